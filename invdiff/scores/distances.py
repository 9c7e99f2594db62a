"""How far samples are from samples of the truth: distances between two sets of points, each with its standard error.

Sets        x (N, ...), usually of a method, and y (M, ...), usually exact; everything behind the first axis is one
            point. N and M may differ. `weights` (N,), not negative, belong to the points of x (a particle cloud) and
            are normalised here.
Errors      the delete-a-group jackknife (Quenouille; Shao and Tu, The Jackknife and Bootstrap, 1995): a tenth of the
            points, drawn at random, is left out at a time, of both sets at once, and the distance taken again. Valid
            for independent points; of a correlated chain or of resampled particles it sees too little. NaN where
            nothing with a weight is left.
Bias        Wasserstein distances and errors of moments of finite sets are not 0 between equal laws. `floor` measures
            what they are there; `energy_distance` and `squared_mmd` have no such bias and may come out negative.
Randomness  `generator`, on the CPU: directions, groups and initial weights. The same state gives the same number.

All is computed in float64 on the device of x; infinite or NaN points are refused.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from invdiff.streams import generator as stream

GROUPS = 10  # of the jackknife: the error is itself known to a quarter, and costs ten distances
CHUNK = 2**24  # float64 numbers in flight: 128 MB


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error."""

    value: float
    standard_error: float


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
    x, y, weights = _sets(x, y, weights)
    _check_order(p)
    if not directions >= 2:
        raise ValueError(f"sliced Wasserstein: directions must be at least 2, got {directions}")
    keep = _kept(len(x), len(y), generator)
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
    return Estimate(value, math.hypot(_jackknife(left), between))


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
    x, y, weights = _sets(x, y, weights)
    _check_order(p)
    if not (directions >= 1 and iterations >= 0):
        raise ValueError(
            "max-sliced Wasserstein: directions must be at least 1 and iterations not negative, "
            f"got {directions} and {iterations}"
        )

    def along(u: Tensor) -> Tensor:
        return torch.cat(
            [
                wasserstein_1d(part @ x.mT, part @ y.mT, p=p, weights=weights)
                for part in u.split(max(1, CHUNK // (len(x) + len(y))))
            ]
        )

    masses = _masses(x, weights)
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
        for a, b in _kept(len(x), len(y), generator)
    ]
    return Estimate(float(best) ** (1 / p), _jackknife(left))


# -- kernels -----------------------------------------------------------------------------------------------------------


def energy_distance(x: Tensor, y: Tensor, generator: torch.Generator, *, weights: Tensor | None = None) -> Estimate:
    """Energy distance 2 E|x - y| - E|x - x'| - E|y - y'|, unbiased (without weights); 0 between equal laws only.

    Not its square root, which some authors call by the same name. Source: Szekely and Rizzo, Energy statistics, Journal
    of Statistical Planning and Inference 2013.
    """
    x, y, weights = _sets(x, y, weights)
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
    x, y, weights = _sets(x, y, weights)
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
    masses = [_masses(x, weights), _masses(y, None)]
    count = _group_count(len(x), len(y))
    members = []  # (N, groups): the weight of every point, in the column of its group
    for mass in masses:
        member = mass.new_zeros(len(mass), count)
        for g, group in enumerate(_groups(len(mass), count, generator)):
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
    return Estimate(value(everything), _jackknife(left))


# -- a classifier ------------------------------------------------------------------------------------------------------


def classifier_accuracy(
    x: Tensor, y: Tensor, generator: torch.Generator, *, folds: int = 5, width: int = 32, steps: int = 100
) -> Estimate:
    """Classifier two-sample test: how often a small network tells x from y on points it has not seen; 0.5 is chance.

    folds  of the cross-validation: every point is judged by the network that was trained without its fold
    width  of the two hidden layers
    steps  of AdamW, on all points at once

    Where the counts differ, as many of the larger set as the smaller has are drawn. It finds what these networks can
    find: 0.5 proves nothing. The error is that of as many tosses, widened for networks that share their training data
    (Nadeau and Bengio, Inference for the Generalization Error, Machine Learning 2003). Source: Lopez-Paz and Oquab,
    Revisiting Classifier Two-Sample Tests, ICLR 2017.
    """
    x, y, _ = _sets(x, y, None)
    if not (folds >= 2 and width >= 1 and steps >= 1):
        raise ValueError(
            f"classifier: folds must be at least 2, width and steps at least 1, got {folds}, {width} and {steps}"
        )
    count = min(len(x), len(y))
    if count < folds:
        raise ValueError(f"classifier: {folds} folds need {folds} points of each set, got {len(x)} and {len(y)}")
    chosen = [s[torch.randperm(len(s), generator=generator)[:count].to(s.device)] for s in (x, y)]
    points = torch.cat(chosen)
    label = torch.cat([torch.ones(count), torch.zeros(count)]).to(points)
    fold = (torch.arange(count) % folds).repeat(2).to(points.device)
    held_out = fold == torch.arange(folds, device=fold.device)[:, None]  # (folds, points)

    # All folds at once: layers are (folds, in, out), and each network sees the points in the units of its own training.
    kept = (~held_out).to(points)
    kept = kept / kept.sum(1, keepdim=True)
    mean = kept @ points
    std = (kept @ points**2 - mean**2).clamp(min=0).sqrt()
    features = ((points - mean[:, None]) / std.where(std > 0, 1)[:, None]).float()
    sizes = [points.shape[1], width, width, 1]
    layers = [
        torch.randn(folds, a, b, generator=generator).to(features.device) * math.sqrt(2 / a) for a, b in pairwise(sizes)
    ]
    biases = [torch.zeros(folds, 1, b, device=features.device) for b in sizes[1:]]
    parameters = [p.requires_grad_(True) for p in layers + biases]
    optimiser = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=1e-2)

    def logits() -> Tensor:
        h = features
        for i, (layer, bias) in enumerate(zip(layers, biases, strict=True)):
            h = torch.baddbmm(bias, h.relu() if i else h, layer)
        return h.squeeze(-1)

    target, train = label.float().expand(folds, -1), kept.float()
    with torch.enable_grad():
        for _ in range(steps):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits(), target, reduction="none")
            optimiser.zero_grad()
            (loss * train).sum().backward()  # a mean in each fold; the sum over folds mixes nothing
            optimiser.step()
    with torch.no_grad():
        right = (logits() > 0) == (target > 0.5)
    accuracy = float(right[held_out].double().mean())
    tosses = accuracy * (1 - accuracy) / (2 * count)
    return Estimate(accuracy, math.sqrt(tosses * (1 + folds / (folds - 1))))


# -- moments and modes -------------------------------------------------------------------------------------------------


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
        a, b = _centred(a, w), _centred(b, _masses(b, None))
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
    points, w = _points("x", x), _weights(weights, len(x), x.device)
    return _masses(points, w) @ _responsibilities(x, points, components)


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
    points, w = _points("x", x), _weights(weights, len(x), x.device)
    member = _responsibilities(x, points, components)
    if exact.shape != (member.shape[1],) or not (exact.isfinite().all() and (exact >= 0).all() and exact.sum() > 0):
        raise ValueError(
            f"mode weights: exact must be {member.shape[1]} weights, one per component and not negative, "
            f"got {exact.tolist()}"
        )
    target = exact.to(member) / exact.sum().to(member)

    def error(rows: Tensor | slice) -> float:
        masses = _masses(points[rows], None if w is None else w[rows])
        return float((masses @ member[rows] - target).abs().sum() / 2)

    left = [error(rows) for rows, _ in _kept(len(x), len(x), generator)]
    return Estimate(error(slice(None)), _jackknife(left))


# -- the floor ---------------------------------------------------------------------------------------------------------


def floor(
    exact_sample: Callable[[int, torch.Generator], Tensor],
    distance: Distance,
    *,
    size: int | tuple[int, int],
    repeats: int = 20,
    seed: int = 0,
) -> Estimate:
    """What a distance is between two exact sets of these sizes: no method can be told from the truth below it.

    exact_sample  draws so many points, (count, ...), like `GaussianPrior.sample`
    distance      any of this module; settings by a lambda
    size          of both sets, or (of the method's, of the exact one)

    Returns the mean over repeats and the standard error of that mean; a single distance scatters sqrt(repeats) as much.
    """
    if not repeats >= 2:
        raise ValueError(f"floor: repeats must be at least 2, got {repeats}")
    n, m = (size, size) if isinstance(size, int) else size
    values = []
    for r in range(repeats):
        rng = stream(seed, "generate", r)
        values.append(distance(exact_sample(n, rng), exact_sample(m, rng), rng).value)
    found = torch.tensor(values, dtype=torch.float64)
    return Estimate(float(found.mean()), float(found.std()) / math.sqrt(repeats))


# -- parts -------------------------------------------------------------------------------------------------------------


def _sets(x: Tensor, y: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both sets as (N, n) and (M, n) in float64, checked; the weights summing to one."""
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"two sets of points of one shape are compared, got {tuple(x.shape[1:])} and {tuple(y.shape[1:])}"
        )
    return _points("x", x), _points("y", y).to(x.device), _weights(weights, len(x), x.device)


def _points(name: str, x: Tensor) -> Tensor:
    if x.dim() < 2 or len(x) < 2:
        raise ValueError(f"{name} must hold at least two points behind its first axis, (N, ...), got {tuple(x.shape)}")
    if x.is_complex():
        raise ValueError(f"{name} is complex; give its two parts as real coordinates (torch.view_as_real)")
    bad = int((~x.flatten(1).isfinite().all(1)).sum())
    if bad:
        raise ValueError(f"{bad} of {len(x)} points of {name} are NaN or infinite; leave diverged samples out first")
    return x.detach().flatten(1).double()


def _weights(weights: Tensor | None, count: int, device: torch.device) -> Tensor | None:
    if weights is None:
        return None
    w = weights.detach().to(device, torch.float64)
    if w.shape != (count,) or not (w.isfinite().all() and (w >= 0).all() and w.sum() > 0):
        raise ValueError(
            f"weights must be {count} finite numbers, not negative and not all zero, got shape {tuple(w.shape)}"
            + (f", from {float(w.min()):.3g} to {float(w.max()):.3g}" if w.numel() else "")
        )
    return w / w.sum()


def _masses(x: Tensor, weights: Tensor | None) -> Tensor:
    """Normalised weights of the rows of x, also of a part of them."""
    return x.new_full((len(x),), 1 / len(x)) if weights is None else weights / weights.sum()


def _centred(x: Tensor, masses: Tensor) -> Tensor:
    """a with a^T a the covariance, unbiased for equal weights: (N - 1 there, 1 - sum w^2 with weights)."""
    return (x - masses @ x) * (masses / (1 - masses.square().sum())).sqrt()[:, None]


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of every coordinate, which has to be there to be divided by."""
    std = x.std(0)
    if not std.any():
        raise ValueError("all points of y are equal: errors in units of its spread are not defined")
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
    x, y, weights = _sets(x, y, weights)
    masses = _masses(x, weights)
    left = [error(x[a], _masses(x[a], masses[a]), y[b]) for a, b in _kept(len(x), len(y), generator)]
    return Estimate(error(x, masses, y), _jackknife(left))


def _group_count(n: int, m: int) -> int:
    return min(GROUPS, n, m)


def _groups(count: int, groups: int, generator: torch.Generator) -> list[Tensor]:
    """Indices in groups of equal size, up to one, at random: sorted samples would make groups too much alike."""
    return list(torch.randperm(count, generator=generator).tensor_split(groups))


def _kept(n: int, m: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """What is left of both sets without each group."""
    groups = _group_count(n, m)
    pairs = zip(_groups(n, groups, generator), _groups(m, groups, generator), strict=True)
    return [(_without(n, a), _without(m, b)) for a, b in pairs]


def _without(count: int, group: Tensor) -> Tensor:
    keep = torch.ones(count, dtype=torch.bool)
    keep[group] = False
    return keep.nonzero().squeeze(1)


def _jackknife(left: Sequence[float]) -> float:
    """Standard error from the values without each group: the sum of squared deviations times (K - 1) / K."""
    values = torch.tensor(left, dtype=torch.float64)
    return float(((values - values.mean()).square().sum() * (len(values) - 1) / len(values)).sqrt())


def _check_order(p: int) -> None:
    if p not in (1, 2):
        raise ValueError(f"Wasserstein: p must be 1 or 2, got {p}")


def _unit(count: int, n: int, generator: torch.Generator) -> Tensor:
    """Directions uniform on the unit sphere, (count, n), float64."""
    u = torch.randn(count, n, generator=generator, dtype=torch.float64)
    return u / u.norm(dim=1, keepdim=True)
