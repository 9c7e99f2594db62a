"""Draws of an image near an estimate of it, given the data: chains, and the closed form where there is one.

The target of all of them is N(x; mean, width^2 I) p(y | x), a `Conditional`. A chain starts at the mean. Its step size
is given, or measured at every draw; the direction in which it is measured goes on from one draw to the next. With a
given step size Langevin and Hamiltonian steps are the papers', whose variance is too large by a factor of
1 / (1 - eta h / 2) along a direction of curvature h (Hamiltonian: 2 + 2 momentum in place of 2). With a measured one
they are those of `splitting`, which has no such error. A chain forgets its start along a direction of curvature h after
about 1 / (eta h) steps, a Hamiltonian one after about 1 / (eta h)^(1/2), a random walk after as many as there are
pixels: fewer steps than that leave it too narrow.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

from invdiff.operators.noise.base import masked
from invdiff.problem import InverseProblem
from invdiff.samplers.base import Needs
from invdiff.samplers.moves import half_squares
from invdiff.shapes import nonzero, per_row, row_gradient, row_norm
from invdiff.streams import Streams


@dataclass(frozen=True)
class Conditional:
    """N(x; mean, width^2 I) p(y | x), one for each row.

    mean    (R, C, H, W)
    width   standard deviation, image units, a number or one per row, (R,)
    tau     noise level of the data term |y - A(x)|^2 / (2 tau^2); None: the likelihood of the problem
    spread  standard deviation of the closed-form draw, where it is not `width`: the mean stays, the covariance shrinks
    """

    problem: InverseProblem
    mean: Tensor
    width: float | Tensor
    tau: float | None = None
    spread: float | None = None

    def energy(self, x: Tensor) -> Tensor:
        """Minus the logarithm of the density, without constants, (R,)."""
        data = self.problem.nll(x) if self.tau is None else half_squares(self.problem, x) / self.tau**2
        return (x - self.mean).square().flatten(1).sum(1) / (2 * self.width**2) + data

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient of the energy; shaped like x."""
        return (x - self.mean) / per_row(self.width**2, x) + self.data_gradient(x)

    def data_gradient(self, x: Tensor) -> Tensor:
        """Gradient of the data term; shaped like x."""
        if self.tau is None:
            return self.problem.nll_gradient(x)
        return row_gradient(lambda x: half_squares(self.problem, x), x) / self.tau**2


class Draw(Protocol):
    def draw(self, target: Conditional, rng: Streams, step_size: float | None = None) -> Tensor:
        """A draw of the target, (R, C, H, W). step_size: of a chain, image units squared; None: measured."""


class ClosedForm:
    """The exact draw, for a linear operator and Gaussian noise."""

    def draw(self, target: Conditional, rng: Streams, step_size: float | None = None) -> Tensor:
        """Perturb and solve: with x' and y' drawn about mean and y,
        x = x' + (A^T A + (sigma_y / width)^2 I)^-1 A^T (y' - A x') has the right mean and covariance (real y).
        """
        problem, y, width = target.problem, target.problem.y, target.width
        operator = problem.linear_operator
        spread = per_row(width, target.mean) if target.spread is None else target.spread
        perturbed = target.mean + spread * rng.normal()
        y_perturbed = y + per_row(problem.noise_std, y) * rng.normal(tuple(y.shape[1:]), dtype=y.dtype)
        residual = masked(y_perturbed - operator(perturbed), problem.observed)
        return perturbed + operator.solve(operator.adjoint(residual), problem.noise_variance / width**2)


class Chain(ABC):
    """A Markov chain of a fixed length.

    steps  its length
    probe  (R, C, H, W) the random direction in which the step size is measured first; None where it is always given
    reach  how far it is measured, image units: 0.01 of the range of images
    """

    def __init__(self, steps: int, probe: Tensor | None = None, *, scale: float = 1.0) -> None:
        self.steps, self.probe, self.reach = steps, probe, 0.01 * scale

    def draw(self, target: Conditional, rng: Streams, step_size: float | None = None) -> Tensor:
        """The state after `steps` steps from the mean of the target; see `Draw`."""
        if step_size is not None:
            return self.walk(target, target.gradient, step_size, rng)
        eta = self.measured_step(target)
        return self.measured_walk(target, lambda x: bounded(target.gradient(x), eta), eta, rng)

    def measured_step(self, target: Conditional) -> Tensor:
        """0.5 / h for the curvature h of the stiffest direction of the target, shaped to multiply images.

        A quarter of what is stable with Langevin steps, an eighth with Hamiltonian ones.
        """
        assert self.probe is not None
        steepest, self.probe = stiffness(target.data_gradient, target.mean, self.probe, self.reach)
        return per_row(0.5 / (steepest + 1 / target.width**2), target.mean)

    @abstractmethod
    def walk(self, target: Conditional, slope: Callable[[Tensor], Tensor], eta: float | Tensor, rng: Streams) -> Tensor:
        """All steps, with this gradient of the energy and this step size."""

    def measured_walk(
        self, target: Conditional, slope: Callable[[Tensor], Tensor], eta: Tensor, rng: Streams
    ) -> Tensor:
        """All steps with a measured step size; those of `walk` unless a chain has better ones."""
        return self.walk(target, slope, eta, rng)


class Langevin(Chain):
    """Unadjusted Langevin dynamics."""

    def walk(self, target: Conditional, slope: Callable[[Tensor], Tensor], eta: float | Tensor, rng: Streams) -> Tensor:
        x = target.mean
        for _ in range(self.steps):
            x = x - eta * slope(x) + (2 * eta) ** 0.5 * rng.normal()
        return x

    def measured_walk(
        self, target: Conditional, slope: Callable[[Tensor], Tensor], eta: Tensor, rng: Streams
    ) -> Tensor:
        return splitting(target.mean, slope, 2 * eta, 0.0, self.steps, rng.normal)


class Hamiltonian(Chain):
    """Dynamics with a velocity that is damped and kicked at every step.

    momentum  share of the velocity that a step keeps; 0 is Langevin
    """

    def __init__(self, steps: int, probe: Tensor | None = None, *, scale: float = 1.0, momentum: float = 0.9) -> None:
        super().__init__(steps, probe, scale=scale)
        self.momentum = momentum

    def walk(self, target: Conditional, slope: Callable[[Tensor], Tensor], eta: float | Tensor, rng: Streams) -> Tensor:
        x, velocity = target.mean, rng.normal()
        for _ in range(self.steps):
            kick = sqrt(2 * (1 - self.momentum)) * rng.normal()
            velocity = self.momentum * velocity - eta**0.5 * slope(x) + kick
            x = x + eta**0.5 * velocity
        return x

    def measured_walk(
        self, target: Conditional, slope: Callable[[Tensor], Tensor], eta: Tensor, rng: Streams
    ) -> Tensor:
        return splitting(target.mean, slope, eta, self.momentum, self.steps, rng.normal)


def splitting(
    x: Tensor,
    slope: Callable[[Tensor], Tensor],
    eta: Tensor,
    momentum: float,
    steps: int,
    noise: Callable[[], Tensor],
) -> Tensor:
    """Damped dynamics by the splitting BAOAB, (R, C, H, W): on a Gaussian its x has the exact law at any stable step.

    Leimkuhler and Matthews, Applied Mathematics Research eXpress 2013, arXiv:1203.5428. Stable up to eta = 4 / h.

    slope     gradient of the energy
    eta       square of the time step, shaped to multiply x
    momentum  share of the velocity that a step keeps; 0 is Langevin with steps of eta / 2 and noises of two neighbours
    noise     standard normal numbers shaped like x
    """
    step, velocity = eta**0.5, noise()
    for _ in range(steps):
        velocity = velocity - step * slope(x)
        fresh = momentum * velocity + sqrt(1 - momentum**2) * noise()
        x = x + step / 2 * (velocity + fresh)
        velocity = fresh
    return x


class Metropolis(Chain):
    """A random walk whose steps are accepted or not, each row for itself; it takes no gradient."""

    def measured_step(self, target: Conditional) -> Tensor:
        """That of the best random walk on a Gaussian: 2.4^2 over the trace of its precision."""
        assert self.probe is not None
        mean, shift = target.mean, self.reach * self.probe.sign()
        above, here, below = (target.energy(mean + t) for t in (shift, 0 * shift, -shift))
        trace = (above - 2 * here + below) / self.reach**2
        return per_row(2.4**2 / trace.clamp(min=mean[0].numel() / target.width**2), mean)

    def walk(self, target: Conditional, slope: Callable[[Tensor], Tensor], eta: float | Tensor, rng: Streams) -> Tensor:
        x, energy = target.mean, target.energy(target.mean)
        for _ in range(self.steps):
            proposed = x + eta**0.5 * rng.normal()
            its_energy = target.energy(proposed)
            # Half the square of two normal numbers is minus the logarithm of a uniform one.
            accept = its_energy - energy < rng.normal((2,)).square().sum(1) / 2
            x = torch.where(per_row(accept, x), proposed, x)
            energy = torch.where(accept, its_energy, energy)
        # No energy is below NaN: the chain would stand still and hide that the operator failed.
        return torch.where(per_row(energy.isnan(), x), torch.nan, x)


def needs_of(inner: str) -> Needs:
    """What the draw of this name needs: `auto`, `closed_form`, `langevin`, `hamiltonian` or `metropolis`."""
    if inner == "closed_form":
        return Needs(linear=True, gaussian_noise=True)
    return Needs(differentiable=inner != "metropolis", smooth=inner != "metropolis")


def chosen(
    inner: str,
    problem: InverseProblem,
    rng: Streams,
    steps: int,
    step_size: float | None,
    momentum: float = 0.9,
    scale: float = 1.0,
) -> Draw:
    """The draw of this name; `auto` is the closed form where the operator is linear and the noise Gaussian, else
    Langevin.

    steps, step_size, momentum  of the chain; without a step size, the direction in which it is measured is drawn here
    scale                       `Prior.scale`
    """
    if inner == "closed_form" or (inner == "auto" and problem.operator.linear and problem.noise.gaussian):
        return ClosedForm()
    probe = rng.normal() if step_size is None else None
    if inner == "hamiltonian":
        return Hamiltonian(steps, probe, momentum=momentum, scale=scale)
    return (Metropolis if inner == "metropolis" else Langevin)(steps, probe, scale=scale)


def stiffness(slope: Callable[[Tensor], Tensor], x: Tensor, probe: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Largest curvature at x of the function with this gradient, (R,): two power iterations by differences.

    probe  (R, C, H, W) the direction in which they start
    reach  largest difference of a pixel

    Returns the direction found too: a better start for the next call.
    """
    for _ in range(2):
        shift = probe * per_row(reach / nonzero(probe.abs().flatten(1).amax(1)), probe)
        change = slope(x + shift) - slope(x - shift)
        curvature = row_norm(change) / (2 * nonzero(row_norm(shift)))
        # Where nothing changes, as in an image that saturates everywhere, the direction waits for the next call.
        probe = torch.where(per_row(curvature == 0, probe), probe, change)
    return curvature, probe


def bounded(slope: Tensor, eta: float | Tensor) -> Tensor:
    """A gradient cut off where it is far steeper than where the step size was measured, as at photon counts below 0.

    On a Gaussian, with half of the step size that the stiffest direction allows, this is 14 standard deviations out.
    """
    limit = 10 / torch.as_tensor(eta) ** 0.5
    return slope.clamp(-limit, limit)
