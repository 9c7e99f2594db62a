"""Errors of the moments of samples and of the weights of their modes; sets, weights and errors as in `distances`."""

from collections.abc import Callable

import torch
from torch import Tensor

from invdiff.scores.points import Estimate, jackknife, left_by_groups, masses_of, normalised, points_of, sets


def mean_error(x: Tensor, y: Tensor, generator: torch.Generator, *, weights: Tensor | None = None) -> Estimate:
    """|mean x - mean y| in units of the spread of y, the root of the sum of its variances."""
    return _jackknifed(lambda a, w, b: float((w @ a - b.mean(0)).norm() / _spread(b).norm()), x, y, weights, generator)


def std_error(x: Tensor, y: Tensor, generator: torch.Generator, *, weights: Tensor | None = None) -> Estimate:
    """|std x - std y| / |std y|, of the vectors of the standard deviations of every coordinate."""

    def error(a: Tensor, w: Tensor, b: Tensor) -> float:
        exact = _spread(b)
        return float((_centred(a, w).square().sum(0).sqrt() - exact).norm() / exact.norm())

    return _jackknifed(error, x, y, weights, generator)


def covariance_error(x: Tensor, y: Tensor, generator: torch.Generator, *, weights: Tensor | None = None) -> Estimate:
    """|cov x - cov y| / |cov y| in the Frobenius norm.

    In more dimensions than points the covariances are never formed: only the products of the points are.
    """

    def error(a: Tensor, w: Tensor, b: Tensor) -> float:
        a, b = _centred(a, w), _centred(b, masses_of(b, None))
        if a.shape[1] <= len(a) + len(b):
            exact = b.mT @ b
            return float((a.mT @ a - exact).norm() / exact.norm())
        own, cross, exact = ((s @ t.mT).square().sum() for s, t in ((a, a), (a, b), (b, b)))
        return float(((own - 2 * cross + exact).clamp(min=0) / exact).sqrt())

    return _jackknifed(error, x, y, weights, generator)


Components = Tensor | Callable[[Tensor], Tensor]


def mode_weights(x: Tensor, components: Components, *, weights: Tensor | None = None) -> Tensor:
    """The share of each of K modes among the points, (K,), float64, summing to 1.

    components  means (K, ...), and a point belongs to the nearest; or a function that gives the probabilities of the
                components for points shaped like x, (N, K): right where the modes overlap or differ in width
    """
    points, w = points_of("x", x), normalised(weights, len(x), x.device)
    return masses_of(points, w) @ _responsibilities(x, points, components)


def mode_weight_error(
    x: Tensor,
    exact: Tensor,
    components: Components,
    generator: torch.Generator,
    *,
    weights: Tensor | None = None,
) -> Estimate:
    """Total variation between the shares of the modes and what they should be, sum |share - exact| / 2, in [0, 1].

    exact       (K,), the weights of the modes, normalised here
    components  as in `mode_weights`
    """
    points, w = points_of("x", x), normalised(weights, len(x), x.device)
    member = _responsibilities(x, points, components)
    if exact.shape != (member.shape[1],) or not (exact.isfinite().all() and (exact >= 0).all() and exact.sum() > 0):
        raise ValueError(
            f"mode weights: exact must be {member.shape[1]} weights, one per component and not negative, "
            f"got {exact.tolist()}"
        )
    target = exact.to(member) / exact.sum().to(member)

    def error(rows: Tensor | slice) -> float:
        masses = masses_of(points[rows], None if w is None else w[rows])
        return float((masses @ member[rows] - target).abs().sum() / 2)

    left = [error(rows) for rows, _ in left_by_groups(len(x), len(x), generator)]
    return Estimate(error(slice(None)), jackknife(left))


def _centred(x: Tensor, masses: Tensor) -> Tensor:
    """a with a^T a the covariance, unbiased for equal weights: (N - 1 there, 1 - sum w^2 with weights)."""
    return (x - masses @ x) * (masses / (1 - masses.square().sum())).sqrt()[:, None]


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of every coordinate, which has to be there to be divided by."""
    std = x.std(0)
    if not std.any():
        raise ValueError("all points of y are equal, so errors in units of its spread are undefined")
    return std


def _responsibilities(x: Tensor, points: Tensor, components: Components) -> Tensor:
    if isinstance(components, Tensor):
        if components.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"component means must be (K, ...) with points of {tuple(x.shape[1:])}, got {tuple(components.shape)}"
            )
        nearest = torch.cdist(points, components.to(points).flatten(1)).argmin(1)
        return torch.nn.functional.one_hot(nearest, len(components)).to(points)
    found = components(x)
    if found.dim() != 2 or len(found) != len(x) or not torch.allclose(found.sum(1), found.new_ones(()), atol=1e-3):
        raise ValueError(
            f"components(x) must give (N, K) probabilities with rows that sum to 1, got shape {tuple(found.shape)}"
        )
    return found.detach().to(points)


def _jackknifed(
    error: Callable[[Tensor, Tensor, Tensor], float],
    x: Tensor,
    y: Tensor,
    weights: Tensor | None,
    generator: torch.Generator,
) -> Estimate:
    """A function of (points, their normalised weights, exact points), and its error."""
    x, y, weights = sets(x, y, weights)
    masses = masses_of(x, weights)
    left = [error(x[a], masses_of(x[a], masses[a]), y[b]) for a, b in left_by_groups(len(x), len(y), generator)]
    return Estimate(error(x, masses, y), jackknife(left))
