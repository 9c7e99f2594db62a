"""Sets of points to compare: checks, weights, and the delete-a-group jackknife."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GROUPS = 10  # of the jackknife: a relative error of the error of a quarter, for ten distances


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error."""

    value: float
    standard_error: float


def sets(x: Tensor, y: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both sets as (N, n) and (M, n) in float64, checked; the weights summing to one."""
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"two sets must have points of one shape, got {tuple(x.shape[1:])} and {tuple(y.shape[1:])}")
    return points_of("x", x), points_of("y", y).to(x.device), normalised(weights, len(x), x.device)


def points_of(name: str, x: Tensor) -> Tensor:
    if x.dim() < 2 or len(x) < 2:
        raise ValueError(f"{name} must hold at least 2 points, (N, ...), got {tuple(x.shape)}")
    if x.is_complex():
        raise ValueError(f"{name} is complex; give its two parts as real coordinates (torch.view_as_real)")
    bad = int((~x.flatten(1).isfinite().all(1)).sum())
    if bad:
        raise ValueError(f"{bad} of {len(x)} points of {name} are NaN or infinite; leave diverged samples out first")
    return x.detach().flatten(1).double()


def normalised(weights: Tensor | None, count: int, device: torch.device) -> Tensor | None:
    if weights is None:
        return None
    w = weights.detach().to(device, torch.float64)
    if w.shape != (count,) or not (w.isfinite().all() and (w >= 0).all() and w.sum() > 0):
        raise ValueError(
            f"weights must be {count} finite numbers, not negative and not all zero, got shape {tuple(w.shape)}"
            + (f", from {float(w.min()):.3g} to {float(w.max()):.3g}" if w.numel() else "")
        )
    return w / w.sum()


def masses_of(x: Tensor, weights: Tensor | None) -> Tensor:
    """Normalised weights of the rows of x, also of a part of them."""
    return x.new_full((len(x),), 1 / len(x)) if weights is None else weights / weights.sum()


def group_count(n: int, m: int) -> int:
    return min(GROUPS, n, m)


def groups(count: int, groups: int, generator: torch.Generator) -> list[Tensor]:
    """Indices in groups of equal size, up to one, at random: sorted samples would make groups too much alike."""
    return list(torch.randperm(count, generator=generator).tensor_split(groups))


def left_by_groups(n: int, m: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Indices of both sets without each of the groups, in turn."""
    count = group_count(n, m)
    pairs = zip(groups(n, count, generator), groups(m, count, generator), strict=True)
    return [(_without(n, a), _without(m, b)) for a, b in pairs]


def _without(count: int, group: Tensor) -> Tensor:
    keep = torch.ones(count, dtype=torch.bool)
    keep[group] = False
    return keep.nonzero().squeeze(1)


def jackknife(left: Sequence[float]) -> float:
    """Standard error from the values without each group: the sum of squared deviations times (K - 1) / K."""
    values = torch.tensor(left, dtype=torch.float64)
    return float(((values - values.mean()).square().sum() * (len(values) - 1) / len(values)).sqrt())
