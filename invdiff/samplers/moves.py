"""Moves that posterior samplers share."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from invdiff.operators.core.conjugate_gradients import conjugate_gradients
from invdiff.operators.noise.base import masked
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.shapes import nonzero, per_row, row_dot, row_norm


def ancestral_step(
    x: Tensor,
    x0: Tensor,
    sigma: float,
    sigma_next: float,
    noise: Tensor,
    *,
    share: Tensor | None = None,
    unit: float = 1.0,
) -> Tensor:
    """DDPM's ancestral step in variance-exploding coordinates, from sigma to sigma_next < sigma.

    The posterior q(x_next | x, x0): mean x0 + (sigma_next / sigma)^2 (x - x0), variance
    sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2 ("fixed-small"); at sigma_next = 0 it returns x0.

    share  of the larger variance, as the prior predicts it (`Prior.denoise_and_share`), with the prior's unit
    """
    shrink = (sigma_next / sigma) ** 2
    spread: float | Tensor = sigma_next * (1 - shrink) ** 0.5
    if share is not None and sigma_next > 0:
        larger = (1 + (sigma_next / unit) ** 2) / (1 + (sigma / unit) ** 2) / shrink
        spread = spread * larger ** (share / 2)
    return x0 + shrink * (x - x0) + spread * noise


def time_travel(levels: Sequence[float], length: int, repeats: int) -> Iterator[tuple[float, float, bool]]:
    """The way down the levels with jumps back up: level, next level, and whether the next one is new.

    From every `length`-th level, counted from the lowest above 0, the way goes up by `length` levels and down again,
    until it has gone down `repeats` times. RePaint's schedule (arXiv:2201.09865, appendix B), which DDNM shares;
    repeats = 1 goes straight down.

    levels  falling, the last one 0
    """
    lowest = len(levels) - 2
    jumps = dict.fromkeys(range(lowest, length - 1, -length), repeats - 1)
    k, reached = 0, 0
    while k <= lowest:
        yield levels[k], levels[k + 1], k + 1 > reached
        k += 1
        reached = max(reached, k)
        if jumps.get(k):
            jumps[k] -= 1
            yield levels[k], levels[k - length], False
            k -= length


def descents(steps: int, length: int, repeats: int) -> int:
    """How many of the moves of `time_travel` over this many steps go down."""
    levels = range(steps, -1, -1)
    return sum(after < level for level, after, _ in time_travel(levels, length, repeats))


def proximal(problem: InverseProblem, x0: Tensor, rho: Tensor) -> Tensor:
    """The x that minimises |y - A x|^2 + rho |x - x0|^2 for a linear A, (R, C, H, W), and rho > 0, (R,) or ().

    From x0 by 30 iterations of conjugate gradients where A has no singular value decomposition.
    """
    return x0 + damped_solve(problem, problem.linear_operator.adjoint(problem.residual(x0)), rho, 30)


def put_back(problem: InverseProblem, x: Tensor, sigma: float, noise: Tensor, rho: Tensor | None = None) -> Tensor:
    """x at level sigma, moved onto A x = y + sigma A n by the pseudo-inverse of a linear A, (R, C, H, W).

    noise  n, (R, C, H, W)
    rho    > 0, (R,): only as far as y can be trusted, A^+ replaced by (A^T A + rho)^-1 A^T
    """
    operator, residual = problem.linear_operator, problem.residual(x - sigma * noise)
    if rho is None:
        return x + operator.pinv(residual)
    return x + damped_solve(problem, operator.adjoint(residual), rho, 30)


def explained(problem: InverseProblem, x: Tensor, scale: float) -> Tensor:
    """x, moved towards y where it leaves more of it unexplained than noise can account for, (R, C, H, W).

    Clean estimates of a network may miss precise data by many times their noise. A misfit |y - A x|^2 / sigma_y^2 per
    measured number, above its mean 1 plus 4 standard deviations, falls to about that limit; one below it stays. The
    change is that of a Gaussian prior about x with standard deviation 0.1 scale, times a number.

    scale  `Prior.scale`
    """
    residual, variance = problem.residual(x), mean_variance(problem)
    count = measured_numbers(problem)
    limit = 1 + 4 * (2 / count) ** 0.5
    misfit = residual.abs().square().flatten(1).sum(1) / (count * variance)
    share = (1 - (limit / misfit) ** 0.5).clamp(min=0)
    back = problem.linear_operator.adjoint(residual)
    return x + per_row(share, x) * damped_solve(problem, back, variance / (0.1 * scale) ** 2, 30)


def measured_numbers(problem: InverseProblem) -> Tensor:
    """How many real numbers of each image were measured, (B,)."""
    y = problem.y
    ones = masked(torch.ones_like(y.real), problem.observed)
    return ones.flatten(1).sum(1) * (2 if y.is_complex() else 1)


def mean_variance(problem: InverseProblem) -> Tensor:
    """Variance of the noise of one real number, averaged over what was measured of each image, (B,)."""
    y = masked(problem.y, problem.observed)
    variance = problem.noise.variance(y).expand(y.shape)
    return masked(variance, problem.observed).flatten(1).sum(1) / measured_numbers(problem)


def half_squares(problem: InverseProblem, x: Tensor) -> Tensor:
    """|y - A(x)|^2 / 2 over the measured entries, of each row, (R,)."""
    return problem.residual(x).abs().square().flatten(1).sum(1) / 2


def clean_estimate(
    prior: Prior, sigma: float, *, clip: bool, shares: list[Tensor] | None = None
) -> Callable[[Tensor], Tensor]:
    """x -> E[x0 | x_sigma = x], clamped to the value range with `clip`.

    shares  takes the share of variance that the same call predicts (`Prior.denoise_and_share`)
    """

    def estimate(x: Tensor) -> Tensor:
        if shares is None:
            x0 = prior.denoise(x, sigma)
        else:
            x0, share = prior.denoise_and_share(x, sigma)
            shares.append(share.detach())
        return x0.clamp(*prior.value_range) if clip else x0

    return estimate


def weighted_norm(problem: InverseProblem, residual: Tensor) -> Tensor:
    """The norm of each row of a residual y - A(x0), its entries weighted by how noisy they are: (R,).

    The weights are sqrt(mean variance / variance), estimated from y: 1 for Gaussian noise, and for photon counts the
    paper's norm with Lambda = diag(1 / 2y), in the unit of the measurement.
    """
    if problem.noise.gaussian:
        return row_norm(residual)
    y = masked(problem.y, problem.observed)
    weight = (per_row(mean_variance(problem), y) / problem.noise.variance(y)).sqrt()
    return row_norm(weight * residual)


def largest_curvature(problem: InverseProblem, prior: Prior, iterations: int = 20) -> Tensor:
    """Largest curvature of the negative log-likelihood of each image about the centre of the prior, (B,) float64.

    Power iteration with differences of gradients over a tenth of the range of images, which are exact where the
    likelihood is Gaussian and the operator linear.
    """
    return curvature_about(problem, prior.centre, prior.scale, iterations)


def curvature_about(problem: InverseProblem, centre: Tensor, scale: float, iterations: int = 20) -> Tensor:
    """`largest_curvature` about other images, (C, H, W) or (), over a tenth of `scale`."""
    shape = (1, *problem.image_shape)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(problem.y.device, problem.y.real.dtype)
    direction = start.expand(problem.images, *problem.image_shape)
    centre = centre.to(direction)
    reach = 0.1 * scale * math.sqrt(start.numel())
    size = direction.new_zeros(problem.images)
    for _ in range(iterations):
        direction = reach * direction / per_row(nonzero(row_norm(direction)), direction)
        direction = problem.nll_gradient(centre + direction) - problem.nll_gradient(centre - direction)
        size = row_norm(direction) / (2 * reach)
    return size.double()


def operator_norm(problem: InverseProblem, prior: Prior) -> Tensor:
    """Largest factor by which the operator magnifies a change of each image, (B,): the unit of guidance weights.

    Of a nonlinear operator that about the centre of the prior; 1 where nothing changes there.
    """
    return norm_about(problem, prior.centre, prior.scale)


def norm_about(problem: InverseProblem, centre: Tensor, scale: float) -> Tensor:
    """`operator_norm` about other images, see `curvature_about`."""
    norm = (curvature_about(problem, centre, scale) * mean_variance(problem)).sqrt()
    return nonzero(norm).to(problem.y.real.dtype)


def typical_gain(problem: InverseProblem, prior: Prior) -> Tensor:
    """Root mean square of what white noise of standard deviation 1 changes in a number of y, (B,).

    Of a nonlinear operator that about the centre of the prior; 1 where nothing changes there. One random image.
    """
    shape = (1, *problem.image_shape)
    probe = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(problem.y.device, problem.y.real.dtype)
    shift = 0.1 * prior.scale * probe.expand(problem.images, *problem.image_shape)
    centre = prior.centre.to(shift)
    change = masked(problem.operator(centre + shift) - problem.operator(centre - shift), problem.observed)
    return nonzero(row_norm(change) / measured_numbers(problem).sqrt()) / (0.2 * prior.scale)


def longest_step(
    problem: InverseProblem, sigma: float, x0: Tensor, misfit: Tensor, slope: Tensor, pulled: Tensor, scale: float
) -> Tensor:
    """The longest step against the gradient of |y - A(x0)| by x that the noise of y warrants, (R,).

    With r = y - A(x0), s = -A^T r / |r| the slope and p what J, the Jacobian of x0 by x, makes of it, a change -t p of
    x0 leaves |r + t A p|^2 = |r|^2 - 2 t |r| <s, p> + t^2 |A p|^2, which is least at t = |r| <s, p> / |A p|^2. Along p
    that measures x0 with the variance sigma_y^2 / g^2, g = |A p| / |p|, where x says x0 with sigma^2 or so: Bayes' rule
    takes the share sigma^2 / (sigma^2 + sigma_y^2 / g^2) of t. All of this is of x0; x moves it by J. Where |p| > |s|,
    as between two images that are both likely, x0 moves further than x: the step is shorter by |p| / |s|.

    g is measured over a tenth of the range of images, as a shorter shift sees the steps of quantisation steeper than
    they are. Its norm has no weights, as the misfit of photon counts has: with them digits were worse.

    misfit    |y - A(x0)|, (R,)
    slope     its gradient by x0, (R, C, H, W)
    pulled    its gradient by x
    scale     `Prior.scale`
    """
    length = nonzero(row_norm(pulled))
    reach = 0.1 * scale * math.sqrt(pulled[0].numel())
    shift = per_row(reach / length, pulled) * pulled
    gain = nonzero(row_norm(problem.residual(x0 - shift) - problem.residual(x0))) / reach
    share = sigma**2 / (sigma**2 + mean_variance(problem) / gain**2)
    magnified = (length / nonzero(row_norm(slope))).clamp(min=1)
    return share * misfit * row_dot(slope, pulled).clamp(min=0) / (gain * length) ** 2 / magnified


def warranted_share(
    problem: InverseProblem, x0: Tensor, residual: Tensor, change: Tensor, scale: float, slope: Tensor | None = None
) -> Tensor:
    """The share of a change of x0 that y warrants, >= 0, (R,).

    With r = y - A(x0) and a change c that is the covariance V of x0 times `slope`, t c leaves |r - t A c|^2 / sigma_y^2
    and costs t^2 <slope, c> = t^2 <c, V^-1 c> of the prior: their sum is least at
    t = <A c, r> / (|A c|^2 + sigma_y^2 <slope, c>), which is 1 where c is the exact change of a Gaussian x0.
    Of a nonlinear operator A is measured over a tenth of the range of images along the change.

    residual  y - A(x0)
    scale     `Prior.scale`
    slope     None: the share that leaves the least residual, whatever the noise
    """
    if problem.operator.linear:
        seen = masked(problem.operator(change), problem.observed)
    else:
        length = nonzero(row_norm(change))
        reach = (0.1 * scale * math.sqrt(change[0].numel()) / length).clamp(max=1)
        shifted = x0 + per_row(reach, change) * change
        seen = (residual - problem.residual(shifted)) / per_row(reach, residual)
    least = row_dot(seen, seen)
    if slope is not None:
        least = least + mean_variance(problem) * row_dot(slope, change).clamp(min=0)
    return (row_dot(seen, residual) / nonzero(least)).clamp(min=0)


def damped_solve(problem: InverseProblem, b: Tensor, rho: Tensor, iterations: int = 10) -> Tensor:
    """(A^T A + rho I)^-1 b for images b, (R, C, H, W), and rho (R,) or (): exactly by the singular value decomposition.

    Without one it takes this many iterations of conjugate gradients: enough where the result is a preconditioner, or a
    step whose length is measured.
    """
    operator = problem.linear_operator
    if operator.spectral:
        return operator.solve(b, rho)
    return conjugate_gradients(
        lambda x: operator.adjoint(masked(operator(x), problem.observed)) + per_row(rho, x) * x,
        b,
        max_iterations=iterations,
    )
