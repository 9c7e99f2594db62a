"""Priors and operators that are as small as possible, on which samplers are tried."""

from collections.abc import Iterable

import torch
from torch import Tensor

from invdiff.engine.driver import Compute
from invdiff.operators import GaussianBlur, GaussianNoise, Inpainting, Operator, SpectralOperator
from invdiff.priors import LatentPrior, LinearCodec, Prior
from invdiff.problem import InverseProblem
from invdiff.samplers import Sampler
from invdiff.shapes import sigma_per_row

COMPUTE = Compute(device="cpu", precision="float32", progress=False)
SMALL = (1, 8, 8)


class WhitePrior(Prior):
    """N(mean, std^2 I) on images of any shape, in closed form: the cheapest prior with a known posterior."""

    def __init__(self, mean: float = 0.4, std: float = 0.25) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        gain = self.std**2 / (self.std**2 + sigma_per_row(sigma, x) ** 2)
        return self.mean + gain * (x - self.mean)

    @classmethod
    def example(cls) -> "WhitePrior":
        return cls()


class Gain(SpectralOperator):
    """A x = g x with a gain for each image; a gain of NaN spoils one image and must leave the others unchanged."""

    per_image = ("gain",)
    gain: Tensor

    def __init__(self, gain: Tensor) -> None:
        super().__init__()
        self.register_buffer("gain", gain.reshape(-1, 1, 1, 1))

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape

    def singular_values(self, like: Tensor) -> Tensor:
        return self.gain.to(like) * torch.ones(1, 1, *like.shape[2:], dtype=like.dtype, device=like.device)

    def vt(self, x: Tensor) -> Tensor:
        return x

    def v(self, z: Tensor) -> Tensor:
        return z

    def ut(self, y: Tensor) -> Tensor:
        return y

    def u(self, z: Tensor) -> Tensor:
        return z

    @classmethod
    def example(cls) -> tuple["Gain", tuple[int, ...]]:
        return cls(torch.tensor([1.0, 0.5])), (1, 8, 8)


class MaskedGain(Inpainting):
    """`Gain` for samplers that require a mask: half of the pixels, times a gain for each image."""

    per_image = ("mask", "gain")
    gain: Tensor

    def __init__(self, gain: Tensor) -> None:
        super().__init__(keep=0.5)
        self.register_buffer("gain", gain.reshape(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain.to(x)


class Wrapped(Prior):
    """Another prior, to which subclasses add what some samplers need."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior, self.shape, self.channels = prior, prior.shape, prior.channels
        self.sigma_range, self.value_range = prior.sigma_range, prior.value_range
        self.differentiable, self.bounded_error, self.unit = prior.differentiable, prior.bounded_error, prior.unit

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return self.prior.denoise(x, sigma)


class Stepping(Wrapped):
    """It predicts the variance of steps: half way, on a logarithmic scale, between the smallest and the largest."""

    step_variance = True

    def denoise_and_share(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        return self.denoise(x, sigma), torch.full_like(x, 0.5)


class Worded(Wrapped):
    """It has an embedding of two words, in which its clean estimates are linear."""

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        self.register_buffer("words", torch.zeros(2, 3))

    words: Tensor

    @property
    def embedding(self) -> Tensor:
        return self.words

    def denoise_with(self, x: Tensor, sigma: float | Tensor, embedding: Tensor) -> Tensor:
        level = sigma_per_row(sigma, x) / (sigma_per_row(sigma, x) + self.unit)
        return self.denoise(x, sigma) + self.unit * level * embedding.mean((1, 2)).reshape(-1, 1, 1, 1)

    @classmethod
    def example(cls) -> "Worded":
        return cls(WhitePrior())


def fitting(sampler: Sampler, prior: Prior) -> Prior:
    """The prior, or for samplers of latent priors one whose codes are the pixels of images: four channels for each.

    For those that tune an embedding, one whose embedding moves the mean; for those that take the variance of steps from
    the network, one that predicts it.
    """
    if sampler.needs().step_variance:
        prior = Stepping(prior)
    if not sampler.needs().codec:
        return prior
    if sampler.needs().embedding:
        prior = Worded(prior)
    return LatentPrior(prior, LinearCodec(torch.eye(4), 2, value_range=prior.value_range))


def accepted(sampler: Sampler, operators: Iterable[Operator]) -> Operator | None:
    """The first operator on which the sampler runs, with Gaussian noise and a differentiable prior; None: none."""
    for operator in operators:
        with torch.no_grad():
            y = operator(torch.full((operator.images, *SMALL), 0.5))
        problem = InverseProblem(operator, GaussianNoise(0.1), y, image_shape=SMALL)
        if not sampler.needs().missing(problem, fitting(sampler, WhitePrior())):
            return operator
    return None


def small_operator(sampler: Sampler) -> Operator:
    """A blur, which has every trait; a mask for samplers that refuse a blur."""
    blur, mask = GaussianBlur(std=0.8, kernel_size=5), Inpainting(keep=0.5)
    return accepted(sampler, (blur, mask)) or blur
