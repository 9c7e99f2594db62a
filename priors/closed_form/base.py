"""Priors in closed form: draws, densities, Jacobians, and exact posteriors of linear problems."""

from abc import abstractmethod
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ..base import Prior


class Problem(Protocol):
    """A measurement with an exact posterior; `invdiff.InverseProblem` is one.

    operator  `operator(x)`, `linear`; for linear ones `adjoint`, `spectral`, and there `singular_values`, `vt`, `v`,
              `ut` and `u`
    noise     `gaussian`; for Gaussian noise `sigma`
    observed  mask of the measured entries of y, or None
    """

    operator: Any
    noise: Any
    y: Tensor
    image_shape: tuple[int, ...]

    @property
    def images(self) -> int: ...

    @property
    def observed(self) -> Tensor | None: ...

    def nll(self, x: Tensor) -> Tensor: ...

    def select(self, index: Tensor) -> "Problem": ...


class ClosedFormPrior(Prior):
    """A prior with exact draws, densities and posteriors."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """(C, H, W)."""

    @property
    @abstractmethod
    def std(self) -> Tensor:
        """Standard deviation of every pixel, (C, H, W)."""

    @property
    def centre(self) -> Tensor:
        return self.mean

    @cached_property
    def unit(self) -> float:
        """Twice the standard deviation of the pixels: pictures have about half a unit."""
        return 2 * float(self.std.double().square().mean().sqrt()) or super().unit  # a law on one image has none

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Exact draws, (count, C, H, W)."""

    @abstractmethod
    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """Log-density of x0 + sigma eps at x, (B, C, H, W) -> (B,); sigma is a float or one per image, (B,).

        Raises ValueError where there is no density: at sigma = 0, for a law on fewer dimensions than pixels.
        """

    @abstractmethod
    def jvp(self, x: Tensor, sigma: float | Tensor, v: Tensor) -> Tensor:
        """The denoiser's Jacobian at x times v, shaped like x; symmetric, so also its vjp. Without autograd.

        sigma^2 times the Jacobian is the covariance of x0 given x_sigma = x.
        """

    def exactly(self, x: Tensor, sigma: float | Tensor, *more: Tensor) -> torch.autocast:
        """Checks the arguments and returns the context of the computation: autocast, which costs digits, is off.

        Raises ValueError unless x and `more` are (B, *shape) and sigma is one level >= 0 or one per image. Values on an
        accelerator are not read, which would synchronise it.
        """
        for images in (x, *more):
            if images.shape[1:] != self.shape or len(images) != len(x):
                wanted = ", ".join(str(n) for n in ("B" if images is x else len(x), *(self.shape or ())))
                raise ValueError(f"images must be ({wanted}), got {tuple(images.shape)}")
        if isinstance(sigma, Tensor):
            if sigma.numel() not in (1, len(x)):
                raise ValueError(f"sigma must be one value or {len(x)} values, one per image, got {tuple(sigma.shape)}")
            if sigma.device.type == "cpu" and not bool((sigma >= 0).all()):
                raise ValueError(f"sigma must be >= 0, got {float(sigma.min()):.3g}")
        elif not sigma >= 0:
            raise ValueError(f"sigma must be >= 0, got {sigma}")
        return torch.autocast(x.device.type, enabled=False)

    @abstractmethod
    def posterior_and_evidence(self, problem: Problem) -> tuple["ClosedFormPrior", Tensor]:
        """`posterior` and `log_evidence` at the cost of one of them."""

    def posterior(self, problem: Problem) -> "ClosedFormPrior":
        """p(x | y) of one measurement, exact.

        Raises ValueError for more than one measurement, and where no closed form exists: the operator must be linear
        and the noise Gaussian.
        """
        return self.posterior_and_evidence(problem)[0]

    def log_evidence(self, problem: Problem) -> Tensor:
        """log p(y) of one measurement with all constants, a scalar; a complex entry of y counts as two real ones."""
        return self.posterior_and_evidence(problem)[1]

    def check(self, problem: Problem) -> None:
        """Raises ValueError unless `problem` is one linear measurement, with Gaussian noise, of an image of `shape`."""
        check_single(self, problem)
        if not problem.operator.linear:
            raise ValueError(
                f"an exact posterior needs a linear operator, got {type(problem.operator).__name__}; use a sampler"
            )
        if not problem.noise.gaussian:
            raise ValueError(
                f"an exact posterior needs Gaussian noise, got {type(problem.noise).__name__}; use a sampler"
            )


def check_single(prior: Prior, problem: Problem) -> None:
    """Raises ValueError unless `problem` is one measurement of an image that fits the prior."""
    if problem.images != 1:
        raise ValueError(
            f"a posterior needs one measurement, got {problem.images}; select one by problem.select(torch.tensor([i]))"
        )
    reason = prior.mismatch(tuple(problem.image_shape))
    if reason is not None:
        raise ValueError(reason)
