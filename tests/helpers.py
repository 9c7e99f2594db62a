"""Shared by the tests: random numbers under their control, dense operators, and comparisons with a known law."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from torch import Tensor

from invdiff.cli.groups import register
from invdiff.cli.inputs import made_sampler
from invdiff.operators import GaussianNoise, Operator, SpectralOperator
from invdiff.priors import GaussianPrior, Prior
from invdiff.problem import InverseProblem
from invdiff.samplers import Sampler
from invdiff.schedules import Schedule
from invdiff.scores.metrics import psnr


def assert_refused(done: Any, *said: str) -> None:
    """A command ended with exit code 2 and one line, which holds these words."""
    assert (done.code, done.err.count("\n")) == (2, 1)
    for part in said:
        assert part in done.err


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers, drawn in double so that every precision has the same ones."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=wide).to(dtype)


def noisy(y: Tensor, sigma: float = 0.02, *, seed: int = 6) -> Tensor:
    """y and Gaussian noise of this standard deviation, of the complex number where y is complex."""
    return y + sigma * torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(seed))


def smooth(height: int, width: int, std: float, length: float = 1.5) -> Tensor:
    """A covariance under which neighbouring pixels are alike, float64 (n, n)."""

    def axis(n: int) -> Tensor:
        i = torch.arange(n, dtype=torch.float64)
        return torch.exp(-(((i[:, None] - i) / length) ** 2) / 2) + 0.02 * torch.eye(n, dtype=torch.float64)

    return std**2 * torch.kron(axis(height), axis(width))


def gaussian(mean: Tensor, covariance: Tensor, value_range: tuple[float, float] = (0.0, 1.0)) -> GaussianPrior:
    """A Gaussian prior in float64 with the value range of pictures."""
    prior = GaussianPrior(mean.double(), covariance.double())
    prior.value_range = value_range
    return prior


class Answers(Prior):
    """The given estimates (1 or R, C, H, W), one for each call; the last one stays."""

    def __init__(self, *estimates: Tensor) -> None:
        super().__init__()
        self.estimates = list(estimates)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        estimate = self.estimates.pop(0) if len(self.estimates) > 1 else self.estimates[0]
        return estimate.expand_as(x)


class Remembering(Prior):
    """Another prior, with the images and the estimate of its last call."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior, self.value_range = prior, prior.value_range
        self.images = self.estimate = torch.empty(0)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        self.images, self.estimate = x, self.prior.denoise(x, sigma)
        return self.estimate


# -- streams and schedules ---------------------------------------------------------------------------------------------


class Scripted:
    """Streams that return the given tensors one after the other: an update rule can be compared digit by digit."""

    def __init__(self, numbers: Iterable[Tensor]) -> None:
        self.numbers = iter(numbers)

    def normal(self, shape: tuple[int, ...] | None = None, *, dtype: torch.dtype = torch.float64) -> Tensor:
        return next(self.numbers)


class Normals:
    """Streams of one generator for all rows, in float64: cheap where a test compares laws and not rows."""

    def __init__(self, rows: int, shape: tuple[int, ...], seed: int = 0) -> None:
        self.rows, self.shape = rows, shape
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, shape: tuple[int, ...] | None = None, *, dtype: torch.dtype = torch.float64) -> Tensor:
        dtype = torch.complex128 if dtype.is_complex else torch.float64
        return torch.randn(self.rows, *(shape or self.shape), generator=self.generator, dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class Levels(Schedule):
    """Exactly these noise levels."""

    values: tuple[float, ...]

    @property
    def steps(self) -> int:  # type: ignore[override]
        return len(self.values) - 1

    def sigmas(self) -> Tensor:
        return torch.tensor(self.values, dtype=torch.float64)


# -- operators ---------------------------------------------------------------------------------------------------------


class Dense(SpectralOperator):
    """A matrix (M, C H W) with its singular value decomposition, in the precision of the image."""

    def __init__(self, matrix: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        left, values, right = torch.linalg.svd(matrix.double())
        n, m = right.shape[0], len(values)
        self.left, self.right = torch.zeros(len(matrix), n, dtype=torch.float64), right
        self.left[:, :m] = left[:, :m]
        self.values = torch.nn.functional.pad(values, (0, n - m))

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.shape

    def singular_values(self, like: Tensor) -> Tensor:
        return self.values.to(like).reshape(1, *self.shape)

    def vt(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.right.to(x).T).reshape(-1, *self.shape)

    def v(self, z: Tensor) -> Tensor:
        return (z.flatten(1) @ self.right.to(z)).reshape(-1, *self.shape)

    def ut(self, y: Tensor) -> Tensor:
        return (y @ self.left.to(y)).reshape(-1, *self.shape)

    def u(self, z: Tensor) -> Tensor:
        return z.flatten(1) @ self.left.to(z).T


def flat(y: Tensor) -> Tensor:
    """Rows as real vectors (B, M): two entries for a complex number."""
    return (torch.view_as_real(y) if y.is_complex() else y).flatten(1)


def dense(operator: Operator, shape: tuple[int, ...], image: int = 0) -> Tensor:
    """The matrix of a linear operator for one image, float64 (M, C H W), in the real vectors of `flat`."""
    one = operator.select(torch.tensor([image]))
    n = torch.Size(shape).numel()
    return flat(one(torch.eye(n, dtype=torch.float64).reshape(n, *shape))).T


class BothCoordinates:
    """One linear problem under a Gaussian prior, in two coordinates: images u in [0, 1] here, x = 2 u - 1 in papers.

    operator  measures u; `matrix` is it in x, with noise of standard deviation `spread` and the measurement `y`, (M,)
    """

    def __init__(self, operator: Operator, shape: tuple[int, int, int], spread: float) -> None:
        self.operator, self.shape, self.spread = operator, shape, spread
        self.pixels = torch.Size(shape).numel()
        self.matrix, self.covariance = dense(operator, shape), smooth(*shape[1:], std=0.6)
        self.mean = 0.3 * normal(self.pixels, seed=1)
        truth = self.mean + torch.linalg.cholesky(self.covariance) @ normal(self.pixels, seed=2)
        self.y = self.matrix @ truth + spread * normal(len(self.matrix), seed=3)
        self.y = torch.where(self.matrix.abs().sum(1) > 0, self.y, 0)
        y = operator(torch.zeros(1, *shape, dtype=torch.float64))
        self.problem = InverseProblem(
            operator, GaussianNoise(spread / 2), ((self.y + self.matrix.sum(1)) / 2).reshape(y.shape)
        )
        # As of a network: grey is its centre.
        self.prior = Remembering(gaussian((self.mean.reshape(shape) + 1) / 2, self.covariance / 4))

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """E[x0 | x0 + sigma n = x], (n,), from Bayes' rule."""
        noisy = self.covariance + sigma**2 * torch.eye(self.pixels, dtype=torch.float64)
        return self.mean + self.covariance @ torch.linalg.solve(noisy, x - self.mean)

    def denoise_vp(self, z: Tensor, a: float) -> Tensor:
        """E[x0 | sqrt(a) x0 + sqrt(1 - a) n = z], (n,)."""
        return self.denoise(z / a**0.5, (1 / a - 1) ** 0.5)

    def numbers(self, count: int) -> list[Tensor]:
        """Standard normal numbers for `count` draws of an image, (n,) each."""
        return [normal(self.pixels, seed=100 + k) for k in range(count)]

    def run(self, sampler: Sampler, numbers: list[Tensor]) -> list[Tensor]:
        """x after every step, (n,), with these numbers one after the other, all of which are used."""
        rng = Scripted([n.reshape(1, *self.shape) for n in numbers])
        with torch.no_grad():
            steps = list(sampler.iterate(self.problem, self.prior, rng))  # type: ignore[arg-type]
        assert next(rng.numbers, None) is None
        return [2 * step.x.flatten() - 1 for step in steps]


def alike(noise: float) -> tuple[InverseProblem, GaussianPrior]:
    """N(0, [[1, .8], [.8, 1]]) of two pixels, the first measured as 1: what biased methods are known to make of it.

    Exact with noise 0.3: mean (0.917, 0.734), variance (0.0826, 0.413); without noise: (1, 0.8) and (0, 0.36).
    """
    prior = gaussian(torch.zeros(1, 1, 2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]), (-1.0, 1.0))
    prior.unit = 0.5
    operator = Dense(torch.tensor([[1.0, 0.0]]), (1, 1, 2))
    return InverseProblem(operator, GaussianNoise(noise), torch.ones(1, 1).double()), prior


# -- settings ----------------------------------------------------------------------------------------------------------


def composed(*overrides: str) -> DictConfig:
    """The configuration of `invdiff reconstruct` with these overrides."""
    register()
    with initialize_config_module("invdiff.configs", version_base="1.3"):
        return compose("reconstruct", list(overrides))


def published(name: str) -> Sampler:
    """The published settings of a sampler, from its experiment on inpainting."""
    return made_sampler(composed(f"experiment=paper/{name}_inpainting").sampler, "sampler")


# -- scores ------------------------------------------------------------------------------------------------------------


def mean_psnr(images: Tensor, truth: Tensor) -> float:
    """PSNR in dB, averaged over images (B, C, H, W)."""
    return sum(psnr(a, b) for a, b in zip(images, truth, strict=True)) / len(truth)


# -- laws --------------------------------------------------------------------------------------------------------------


def affine_law(sampler: Sampler, problem: InverseProblem, prior: GaussianPrior) -> tuple[Tensor, Tensor]:
    """Mean (n,) and covariance (n, n) of a sampler that is an affine map of its random numbers, without Monte Carlo.

    Each number of each step is 1 once, and all others 0.
    """
    shape = problem.image_shape
    most = 4 * max(sampler.expected_cost().forwards, sampler.num_steps) + 4
    zeros = Scripted([torch.zeros(1, *shape, dtype=torch.float64)] * most)
    with torch.no_grad():
        for _ in sampler.iterate(problem, prior, zeros):  # type: ignore[arg-type]
            pass
    n, draws = torch.Size(shape).numel(), most - len(list(zeros.numbers))
    numbers = torch.zeros(draws, 1 + draws * n, n, dtype=torch.float64)
    for k in range(draws):
        numbers[k, 1 + k * n : 1 + (k + 1) * n] = torch.eye(n, dtype=torch.float64)
    rows = problem.select(torch.zeros(numbers.shape[1], dtype=torch.long))
    script = Scripted(numbers.reshape(*numbers.shape[:2], *shape))
    with torch.no_grad():
        *_, last = sampler.iterate(rows, prior, script)  # type: ignore[arg-type]
    x = last.x.flatten(1)
    away = x[1:] - x[0]
    return x[0], away.T @ away


def assert_law(samples: Tensor, mean: Tensor, covariance: Tensor, z: float = 5.0) -> None:
    """Samples (S, ...) have this mean and covariance, every entry within `z` standard errors."""
    x = samples.flatten(1).double()
    count = x.shape[0]
    variance = covariance.diagonal()
    errors = (x.mean(0) - mean.flatten()) / (variance / count).sqrt()
    assert errors.abs().max() < z, f"mean is off by {errors.abs().max():.1f} standard errors"
    spread = ((torch.outer(variance, variance) + covariance**2) / count).sqrt()
    errors = (x.T.cov() - covariance) / spread
    assert errors.abs().max() < z, f"covariance is off by {errors.abs().max():.1f} standard errors"


class HomeWeights:
    """Random weights of a network written down a second time: drawn when its formulas first ask for them.

    tensors  by the names of its home, after a first call
    """

    def __init__(self, seed: int = 0) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.random = torch.Generator().manual_seed(seed)

    def __call__(self, name: str, *shape: int, scale: float | None = None) -> Tensor:
        if name not in self.tensors:
            spread = scale if scale is not None else max(math.prod(shape[1:]), 1) ** -0.5
            self.tensors[name] = spread * torch.randn(shape, generator=self.random)
        return self.tensors[name]

    def conv(self, at: str, h: Tensor, out: int, size: int = 3, *, bias: bool = True, **how: int) -> Tensor:
        weight = self(f"{at}.weight", out, h.shape[1], size, size)
        return F.conv2d(h, weight, self(f"{at}.bias", out, scale=0.1) if bias else None, **how)

    def linear(self, at: str, h: Tensor, out: int, *, bias: bool = True) -> Tensor:
        weight = self(f"{at}.weight", out, h.shape[-1])
        return F.linear(h, weight, self(f"{at}.bias", out, scale=0.1) if bias else None)

    def norm(self, at: str, h: Tensor, groups: int = 32, eps: float = 1e-6) -> Tensor:
        weight, bias = self(f"{at}.weight", h.shape[1], scale=0.5), self(f"{at}.bias", h.shape[1], scale=0.1)
        return F.group_norm(h, groups, weight, bias, eps)
