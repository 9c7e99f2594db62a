"""A finite set of images as a prior: the optimal denoiser of a training set, and exact posteriors of any measurement.

Model       x0 is one of N images, with weights. D(x, sigma) = sum_i r_i x_i, r the softmax of
            log w_i - |x - x_i|^2 / (2 sigma^2).
Paper       Karras et al. 2022, arXiv:2206.00364, appendix B.3: the minimiser of the training loss.
Posterior   the same images, weighted by their likelihoods: any operator, any noise. As good as the set is dense: with
            little noise and few images it is a single image for any y.
"""

import math

import torch
from torch import Tensor

from invdiff.shapes import sigma_per_row

from .base import ClosedFormPrior, Problem, check_single
from .mixture import choose
from .whitening import Rows, log_normaliser, noise_part

# Images measured at a time.
CHUNK = 256


class EmpiricalPrior(ClosedFormPrior):
    """The distribution of a set of images.

    images       (N, C, H, W)
    weights      (N,), >= 0, sum 1; None: all equal
    log_weights  (N,), logarithms up to a constant, instead of the weights
    value_range  range of clean images; None: from the images

    At sigma = 0 the denoiser is its limit, the nearest image.
    """

    images: Tensor
    log_weights: Tensor

    def __init__(
        self,
        images: Tensor,
        weights: Tensor | None = None,
        *,
        log_weights: Tensor | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if images.dim() != 4 or not len(images) or not images.is_floating_point():
            raise ValueError(f"images must be (N, C, H, W), real numbers, got {tuple(images.shape)} of {images.dtype}")
        if not bool(images.isfinite().all()):
            raise ValueError("images must be finite, got NaN or infinity")
        if log_weights is not None:
            weights = log_weights.softmax(0)
        elif weights is None:
            weights = torch.full((len(images),), 1 / len(images), dtype=torch.float64, device=images.device)
        total = float(weights.sum())
        if weights.shape != images.shape[:1] or not bool((weights >= 0).all()) or not abs(total - 1) < 1e-3:
            raise ValueError(
                f"weights of {len(images)} images must be ({len(images)},), >= 0, with sum 1, got "
                f"{tuple(weights.shape)} with sum {total:.6g}"
            )
        if log_weights is None:
            log_weights = weights.double().log()
        self.shape, self.channels = tuple(images.shape[1:]), images.shape[1]
        if value_range is None:
            value_range = (float(images.min()), float(images.max()))
        self.value_range = (float(value_range[0]), float(value_range[1]))
        self.register_buffer("images", images)
        self.register_buffer("log_weights", log_weights.log_softmax(0))

    @property
    def weights(self) -> Tensor:
        """(N,)."""
        return self.log_weights.exp()

    @property
    def mean(self) -> Tensor:
        return (self.weights @ self.images.flatten(1).double()).to(self.images.dtype).reshape(self.images.shape[1:])

    @property
    def std(self) -> Tensor:
        away = (self.images - self.mean).flatten(1).double()
        return (self.weights @ away.square()).sqrt().to(self.images.dtype).reshape(self.images.shape[1:])

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        with self.exactly(x, sigma):
            r, images = self._responsibilities(x, sigma)
            return (r.to(images) @ images).reshape(x.shape).to(x.dtype)

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        with self.exactly(x, sigma):
            refuse_no_noise(sigma)
            r, images = self._responsibilities(x, sigma)
            # In float64 and some images at a time: D - x is a small difference where sigma is small.
            away = -x.flatten(1).double()
            for weights, part in zip(r.split(CHUNK, 1), images.split(CHUNK), strict=True):
                away = away + weights @ part.double()
            return (away / sigma_per_row(sigma, away) ** 2).reshape(x.shape).to(x.dtype)

    def jvp(self, x: Tensor, sigma: float | Tensor, v: Tensor) -> Tensor:
        with self.exactly(x, sigma, v):
            r, images = self._responsibilities(x, sigma)
            slopes = v.flatten(1).to(images) @ images.mT
            r = r.to(images)
            tilted = r * (slopes - (r * slopes).sum(1, keepdim=True))
            variance = sigma_per_row(sigma, tilted) ** 2
            # At sigma = 0 the output is locally constant.
            moved = torch.where(variance > 0, tilted / torch.where(variance > 0, variance, 1), 0)
            return (moved @ images).reshape(x.shape).to(x.dtype)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        return self.images[choose(self.weights, count, generator)]

    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        with self.exactly(x, sigma):
            refuse_no_noise(sigma)
            squares, images = self._squares(x)
            variance = sigma_per_row(sigma, squares) ** 2
            volume = 0.5 * images.shape[1] * (2 * math.pi * variance).log().expand(len(x), 1)[:, 0]
            return ((self.log_weights - 0.5 * squares / variance).logsumexp(1) - volume).to(x.dtype)

    def _responsibilities(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """r (B, N), float64, and the images (N, n)."""
        squares, images = self._squares(x)
        variance = sigma_per_row(sigma, squares) ** 2
        possible = squares.where(self.log_weights.isfinite(), torch.inf)
        further = squares - possible.amin(1, keepdim=True)
        # Relative to the nearest image, which alone remains at sigma = 0.
        exponent = torch.where(variance > 0, further / torch.where(variance > 0, variance, 1), 0)
        exponent = torch.where((variance == 0) & (further > 0), torch.inf, exponent)
        return (self.log_weights - 0.5 * exponent).softmax(1), images

    def _squares(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances (B, N), float64, and the images (N, n)."""
        work = torch.promote_types(x.dtype, self.images.dtype)
        images = self.images.flatten(1).to(work)
        # From differences, never all in memory: products would lose the digits that matter at a small sigma.
        found = torch.cdist(x.flatten(1).to(work), images, compute_mode="donot_use_mm_for_euclid_dist")
        return found.double().square(), images

    def posterior_and_evidence(self, problem: Problem) -> tuple["EmpiricalPrior", Tensor]:
        return self.posterior(problem), self.log_evidence(problem)

    @torch.no_grad()
    def posterior(self, problem: Problem) -> "EmpiricalPrior":
        """p(x | y) of one measurement, by any operator and with any noise, exact."""
        return EmpiricalPrior(self.images, log_weights=self._joint(problem), value_range=self.value_range)

    @torch.no_grad()
    def log_evidence(self, problem: Problem) -> Tensor:
        """log p(y) with all constants; ValueError unless the noise is Gaussian: `nll` drops constants of others."""
        if not problem.noise.gaussian:
            raise ValueError(
                f"log p(y) needs Gaussian noise, got {type(problem.noise).__name__}; the posterior itself is exact for "
                "any noise"
            )
        device = self.images.device
        constant = log_normaliser(Rows(problem, device).count, noise_part(problem, device))
        return self._joint(problem).logsumexp(0) + constant

    def _joint(self, problem: Problem) -> Tensor:
        """log w_i - nll(y | x_i), (N,)."""
        check_single(self, problem)
        with torch.autocast(self.images.device.type, enabled=False):
            found = []
            for part in self.images.double().split(CHUNK):
                found.append(-problem.select(torch.zeros(len(part), dtype=torch.long)).nll(part))
            joint = self.log_weights + torch.cat(found).double()
        if not bool(joint.amax().isfinite()):
            raise ValueError(f"the likelihoods of all {len(joint)} images must not be 0 or NaN, they are for this y")
        return joint

    @classmethod
    def example(cls) -> "EmpiricalPrior":
        return cls(
            0.5 + 0.02 * torch.randn(24, 1, 16, 16, generator=torch.Generator().manual_seed(0)), value_range=(0, 1)
        )


def refuse_no_noise(sigma: float | Tensor) -> None:
    """Raises ValueError if a level is 0, where a set of images has no density."""
    if not bool((torch.as_tensor(sigma) > 0).all()):
        raise ValueError("a set of images has no density at sigma = 0, and no score; give sigma > 0")
