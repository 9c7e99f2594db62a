"""Distances between two sets of points, samples and exact samples, each with its standard error.

Sets        x (N, ...), usually of a method, and y (M, ...), usually exact; everything behind the first axis is one
            point. N and M may differ. `weights` (N,), not negative, belong to the points of x (a particle cloud) and
            are normalised here.
Errors      the delete-a-group jackknife (Quenouille; Shao and Tu, The Jackknife and Bootstrap, 1995): a tenth of the
            points, drawn at random, is left out at a time, of both sets at once, and the distance taken again. Valid
            for independent points; of a correlated chain or of resampled particles it sees too little. NaN where
            nothing with a weight is left.
Bias        Wasserstein distances and errors of moments of finite sets are not 0 between equal laws. `floor` measures
            their values there; `energy_distance` and `squared_mmd` have no such bias and may come out negative.
Randomness  `generator`, on the CPU: directions, groups and initial weights. The same state gives the same number.

All is computed in float64 on the device of x; infinite or NaN points are refused.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from invdiff.scores.points import (
    Estimate,
    group_count,
    groups,
    jackknife,
    left_by_groups,
    masses_of,
    sets,
)
from invdiff.streams import generator as stream

CHUNK = 2**24  # float64 numbers in flight: 128 MB

Distance = Callable[[Tensor, Tensor, torch.Generator], Estimate]


# -- Wasserstein -------------------------------------------------------------------------------------------------------


def wasserstein_1d(x: Tensor, y: Tensor, *, p: int = 1, weights: Tensor | None = None) -> Tensor:
    """W_p^p between numbers on a line, exactly: (..., N) and (..., M) -> (...).

    The integral of |F^-1(t) - G^-1(t)|^p over t: between equal counts without weights the mean over sorted pairs,
    otherwise a sum over the steps of both quantile functions. `weights` (N,), of x. Differentiable in x and y.
    """
    if weights is None and x.shape[-1] == y.shape[-1]:
        return (x.sort(-1).values - y.sort(-1).values).abs().pow(p).mean(-1)
    x, order = x.sort(-1)
    y = y.sort(-1).values
    masses = torch.ones_like(x) if weights is None else weights.to(x)[order]
    x_levels = masses.cumsum(-1) / masses.sum(-1, keepdim=True)
    y_levels = torch.ones_like(y).cumsum(-1) / y.shape[-1]
    levels = torch.cat([x_levels, y_levels], -1).sort(-1).values
    widths = levels.diff(dim=-1, prepend=torch.zeros_like(levels[..., :1]))
    # Levels that should be equal may differ by rounding: such a step has a width of rounding, whatever it pairs.
    x_at = torch.searchsorted(x_levels, levels).clamp(max=x.shape[-1] - 1)
    y_at = torch.searchsorted(y_levels, levels).clamp(max=y.shape[-1] - 1)
    return ((x.gather(-1, x_at) - y.gather(-1, y_at)).abs().pow(p) * widths).sum(-1)


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    *,
    p: int = 1,
    directions: int = 200,
    weights: Tensor | None = None,
) -> Estimate:
    """Sliced Wasserstein distance (E_u W_p^p(u x, u y))^(1/p), u uniform on the unit sphere.

    p           1 or 2
    directions  how many u; the error includes what is due to their number

    Of two Gaussians of equal covariance, a shift apart, it is (E|u shift|^p)^(1/p), about |shift| / sqrt(n) in n
    dimensions. Source: Bonneel et al., Sliced and Radon Wasserstein Barycenters of Measures, JMIV 2015.
    """
    x, y, weights = sets(x, y, weights)
    _check_order(p)
    if not directions >= 2:
        raise ValueError(f"sliced Wasserstein: directions must be >= 2, got {directions}")
    keep = left_by_groups(len(x), len(y), generator)
    powers = []  # (1 + groups, directions): of everything, and of what each group leaves
    for u in _unit(directions, x.shape[1], generator).to(x).split(max(1, CHUNK // (len(x) + len(y)))):
        along_x, along_y = u @ x.mT, u @ y.mT
        of_all = [wasserstein_1d(along_x, along_y, p=p, weights=weights)]
        without = [
            wasserstein_1d(along_x[:, a], along_y[:, b], p=p, weights=None if weights is None else weights[a])
            for a, b in keep
        ]
        powers.append(torch.stack(of_all + without))
    power = torch.cat(powers, 1)
    value, *left = (power.mean(1) ** (1 / p)).tolist()
    between = float(power[0].std()) / math.sqrt(directions)
    if p == 2:  # d sqrt(w) = dw / (2 sqrt(w))
        between = between / (2 * value) if value > 0 else 0.0
    return Estimate(value, math.hypot(jackknife(left), between))


def max_sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    *,
    p: int = 2,
    directions: int = 200,
    iterations: int = 60,
    weights: Tensor | None = None,
) -> Estimate:
    """Max-sliced Wasserstein distance: W_p along the unit direction in which it is largest.

    The best few of `directions` random ones, and the difference of the means, climb the sphere by turns along the
    gradient which shrink over `iterations`; the best that was met counts: a lower bound of the maximum over directions,
    in practice within a percent of it. The error is taken along that direction: where a maximum is, moving the
    direction changes nothing to first order. Source: Deshpande et al., Max-Sliced Wasserstein Distance and its Use for
    GANs, CVPR 2019.
    """
    x, y, weights = sets(x, y, weights)
    _check_order(p)
    if not (directions >= 1 and iterations >= 0):
        raise ValueError(
            f"max-sliced Wasserstein: directions must be >= 1 and iterations >= 0, got {directions} and {iterations}"
        )

    def along(u: Tensor) -> Tensor:
        return torch.cat(
            [
                wasserstein_1d(part @ x.mT, part @ y.mT, p=p, weights=weights)
                for part in u.split(max(1, CHUNK // (len(x) + len(y))))
            ]
        )

    masses = masses_of(x, weights)
    shift = masses @ x - y.mean(0)
    u = _unit(directions, x.shape[1], generator).to(x)
    if float(shift.norm()) > 0:
        u = torch.cat([(shift / shift.norm())[None], u])
    power = along(u)
    power, at = power.topk(min(8, len(u)))
    u = u[at]
    best, best_u = power[0], u[0]
    for k in range(iterations):
        with torch.enable_grad():
            v = u.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(along(v).sum(), v)
        tangent = gradient - (gradient * u).sum(1, keepdim=True) * u
        length = tangent.norm(dim=1, keepdim=True)
        angle = 0.5 * 0.93**k
        u = math.cos(angle) * u + math.sin(angle) * tangent / length.where(length > 0, 1)
        u = u / u.norm(dim=1, keepdim=True)
        power = along(u)
        if power.max() > best:
            best, best_u = power.max(), u[power.argmax()]
    line_x, line_y = x @ best_u, y @ best_u
    left = [
        float(wasserstein_1d(line_x[a], line_y[b], p=p, weights=None if weights is None else weights[a])) ** (1 / p)
        for a, b in left_by_groups(len(x), len(y), generator)
    ]
    return Estimate(float(best) ** (1 / p), jackknife(left))


# -- kernels -----------------------------------------------------------------------------------------------------------


def energy_distance(x: Tensor, y: Tensor, generator: torch.Generator, *, weights: Tensor | None = None) -> Estimate:
    """Energy distance 2 E|x - y| - E|x - x'| - E|y - y'|, unbiased (without weights); 0 between equal laws only.

    Not its square root, which some authors call by the same name. Source: Szekely and Rizzo, Energy statistics, Journal
    of Statistical Planning and Inference 2013.
    """
    x, y, weights = sets(x, y, weights)
    return _discrepancy(lambda a, b: -torch.cdist(a, b), x, y, weights, generator)


def squared_mmd(
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    *,
    bandwidth: float | None = None,
    weights: Tensor | None = None,
) -> Estimate:
    """Squared maximum mean discrepancy under exp(-|x - y|^2 / (2 bandwidth^2)), unbiased (without weights).

    bandwidth  None: the median distance between different points of both sets together, of at most 1000 of each. It
               depends on the sets: compare numbers of one problem at one bandwidth

    Source: Gretton et al., A Kernel Two-Sample Test, JMLR 2012, equation 3; the bandwidth its section 8.
    """
    x, y, weights = sets(x, y, weights)
    if bandwidth is None:
        some = torch.cat([x[:1000], y[:1000]])
        bandwidth = float(torch.nn.functional.pdist(some).median()) or 1.0  # equal points have any bandwidth
    if not 0 < bandwidth < math.inf:
        raise ValueError(f"squared MMD: bandwidth must be positive, in the units of the points, got {bandwidth}")
    scale = 2 * bandwidth**2
    return _discrepancy(lambda a, b: (-(torch.cdist(a, b) ** 2) / scale).exp(), x, y, weights, generator)


def _discrepancy(
    kernel: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    weights: Tensor | None,
    generator: torch.Generator,
) -> Estimate:
    """E k(x, x') + E k(y, y') - 2 E k(x, y), a point never paired with itself.

    Sums over pairs of groups are enough: the jackknife leaves rows and columns of a small table out.
    """
    points = (x, y)
    masses = [masses_of(x, weights), masses_of(y, None)]
    count = group_count(len(x), len(y))
    members = []  # (N, groups): the weight of every point, in the column of its group
    for mass in masses:
        member = mass.new_zeros(len(mass), count)
        for g, group in enumerate(groups(len(mass), count, generator)):
            member[group, g] = mass[group]
        members.append(member)

    def table(a: int, b: int) -> Tensor:
        """(groups, groups): sums of w w' k over the pairs, without the diagonal of one set with itself."""
        sums = x.new_zeros(count, count)
        for rows in torch.arange(len(points[a]), device=x.device).split(max(1, CHUNK // len(points[b]))):
            k = kernel(points[a][rows], points[b])
            if a == b:
                k[torch.arange(len(rows)), rows] = 0
            sums += members[a][rows].mT @ (k @ members[b])
        return sums

    tables = {pair: table(*pair) for pair in ((0, 0), (1, 1), (0, 1))}
    totals = [m.sum(0) for m in members]
    squares = [m.square().sum(0) for m in members]

    def value(keep: Tensor) -> float:
        def mean(a: int, b: int) -> Tensor:
            pairs = totals[a][keep].sum() * totals[b][keep].sum() - (squares[a][keep].sum() if a == b else 0)
            return tables[a, b][keep][:, keep].sum() / pairs

        return float(mean(0, 0) + mean(1, 1) - 2 * mean(0, 1))

    everything = torch.arange(count, device=x.device)
    left = [value(everything[everything != g]) for g in everything]
    return Estimate(value(everything), jackknife(left))


# -- the floor ---------------------------------------------------------------------------------------------------------


def floor(
    exact_sample: Callable[[int, torch.Generator], Tensor],
    distance: Distance,
    *,
    size: int | tuple[int, int],
    repeats: int = 20,
    seed: int = 0,
) -> Estimate:
    """The distance between two exact sets of these sizes: below it, no method can be distinguished from the truth.

    exact_sample  draws so many points, (count, ...), like `GaussianPrior.sample`
    distance      any of this module; settings by a lambda
    size          of both sets, or (of the method's, of the exact one)

    Returns the mean over repeats and the standard error of that mean; a single distance scatters sqrt(repeats) as much.
    """
    if not repeats >= 2:
        raise ValueError(f"floor: repeats must be >= 2, got {repeats}")
    n, m = (size, size) if isinstance(size, int) else size
    values = []
    for r in range(repeats):
        rng = stream(seed, "generate", r)
        values.append(distance(exact_sample(n, rng), exact_sample(m, rng), rng).value)
    found = torch.tensor(values, dtype=torch.float64)
    return Estimate(float(found.mean()), float(found.std()) / math.sqrt(repeats))


def _check_order(p: int) -> None:
    if p not in (1, 2):
        raise ValueError(f"Wasserstein: p must be 1 or 2, got {p}")


def _unit(count: int, n: int, generator: torch.Generator) -> Tensor:
    """Directions uniform on the unit sphere, (count, n), float64."""
    u = torch.randn(count, n, generator=generator, dtype=torch.float64)
    return u / u.norm(dim=1, keepdim=True)
