"""Exact zeros of y: a mask that was forgotten, inverted, or is another one."""

from collections.abc import Iterator

import torch
from torch import Tensor

from invdiff.checks.evidence import Evidence
from invdiff.findings import Finding
from invdiff.operators import NoNoise
from invdiff.operators.mri.kspace import CartesianSampling
from invdiff.recorded import Recorded

ALL, MOST, SOME = 0.99, 0.5, 0.02  # shares of entries
STEEP = 6.0  # standard deviations of the noise between a missing pixel and its neighbours
UNCLIPPED = 0.05  # share of negative values, at least, where noise was not clipped
BRIGHT = 0.15  # of the largest value of y
RUNS = 4  # changes between missing and measured lines, at least


def check_mask(e: Evidence) -> Iterator[Finding]:
    """Entries that the operator measures are not exactly 0 while others are not."""
    zero, kept = e.given == 0, e.observed
    if bool(zero.all()):
        yield Finding("zeros", "y holds only zeros", True)
        return
    lost, left = _share(zero, kept), _share(~zero, ~kept)
    if lost > ALL and left > MOST:
        words = (
            f"y is exactly 0 on {lost:.0%} of the entries that the mask keeps and on {1 - left:.0%} of those that it "
            "drops; the mask looks inverted: give its complement, in which non-zero means measured"
        )
        yield Finding("mask inverted", words, True)
    elif bool((~kept).any()) and lost > SOME and left > SOME and _scattered(e):
        words = (
            f"y is exactly 0 on {lost:.0%} of the entries that the mask keeps and not 0 on {left:.0%} of those that it "
            "drops; this is not the mask of y: give the one of the measurement, operator.mask=FILE"
        )
        yield Finding("mask differs", words, True)
    elif lost > SOME and _scattered(e):
        words = (
            f"y is exactly 0 on {lost:.0%} of the entries that the operator measures, in between others; if they were "
            f"not measured, {_mend(e)}"
        )
        yield Finding("mask forgotten", words, True)


def check_soft_mask(e: Evidence) -> Iterator[Finding]:
    """A mask that was given as an array has two values."""
    for module in e.operator.modules():
        given = module.made_with[1].get("mask") if isinstance(module, Recorded) else None
        if given is None or isinstance(given, (str, bytes)) or not hasattr(given, "dtype"):
            continue
        values = torch.as_tensor(given).float().flatten()
        missing = int(values.isnan().sum())
        levels = values[~values.isnan()].unique()
        if missing:
            yield Finding(
                "mask values", f"{missing} entries of operator.mask are NaN; give mask > 0.5, as booleans", True
            )
        elif len(levels) > 2:
            words = (
                f"operator.mask has {len(levels)} values from {float(levels[0]):.2g} to {float(levels[-1]):.2g}, and a "
                "mask has two; give mask > 0.5, as booleans"
            )
            yield Finding("mask values", words, True)


def _mend(e: Evidence) -> str:
    if e.operator.masking or isinstance(e.operator, CartesianSampling):
        return "name them in operator.mask=FILE"
    return "use operator=inpainting operator.mask=FILE, or after a blur a composition with it"


def _share(values: Tensor, among: Tensor) -> float:
    return float(values[among].float().mean()) if bool(among.any()) else 0.0


def _scattered(e: Evidence) -> bool:
    """Whether exact zeros lie in between other values as a mask leaves them, and not as black areas of an image do."""
    if e.given.dim() < 2 or min(e.given.shape[-2:]) < 4:
        return False
    if e.given.is_complex():  # a measured complex number is never exactly 0
        return True
    if not e.problem.noise.gaussian:  # such as counts, which may be 0
        return False
    y, noise = e.given, float(e.noise_variance.mean()) ** 0.5
    unclipped = float((y < 0).sum()) > UNCLIPPED * float((y != 0).sum())
    if unclipped and not isinstance(e.problem.noise, NoNoise) and not _in_steps(y):
        return _holes(y, e.observed, 0)  # where noise goes to either side of zero, in no steps, it is never exactly 0
    bright = max(STEEP * noise, BRIGHT * float(y.abs().amax()))
    typical = [_holes(row, e.observed, BRIGHT * float(row.abs().amax())) for row in e.clean]
    return _holes(y, e.observed, bright) and not any(typical)


def _holes(y: Tensor, observed: Tensor, bright: float) -> bool:
    light = y.abs().reshape(-1, *y.shape[-2:]).amax(0) > bright
    missing = ((y == 0) & observed).reshape(-1, *y.shape[-2:]).all(0)
    return any(_between(missing, light, axis) for axis in (0, 1)) or _is_box(missing, light)


def _in_steps(y: Tensor) -> bool:
    """Whether the values of y are multiples of a step, as those of pictures."""
    values = y[y != 0]
    return len(values.unique()) < 0.5 * len(values)


def _between(missing: Tensor, bright: Tensor, axis: int) -> bool:
    """Whether many missing pixels have a bright neighbour at both sides along an axis, or at one in many runs."""
    pixels = missing.movedim(axis, -1)
    light = bright.movedim(axis, -1)
    inner = pixels[..., 1:-1]
    both = inner & light[..., :-2] & light[..., 2:]
    runs = pixels[..., 1:] & light[..., :-1]  # a run of missing pixels begins at a bright one
    lit = light.any(-1)
    per_line = float(runs.sum(-1)[lit].float().mean()) if bool(lit.any()) else 0.0
    return float(both.sum()) > 0.1 * float(inner.sum()) > 0 or per_line > RUNS


def _is_box(missing: Tensor, bright: Tensor) -> bool:
    """Whether the missing pixels fill a rectangle, away from the border, in a bright surrounding."""
    rows, columns = missing.any(1).nonzero()[:, 0], missing.any(0).nonzero()[:, 0]
    if len(rows) < 3 or len(columns) < 3:
        return False
    top, bottom, left, right = int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])
    height, width = missing.shape
    if min(top, left) == 0 or bottom == height - 1 or right == width - 1:
        return False
    area = (bottom - top + 1) * (right - left + 1)
    ring = bright[top - 1 : bottom + 2, left - 1 : right + 2].float()
    around = (float(ring.sum()) - float(ring[1:-1, 1:-1].sum())) / (ring.numel() - area)
    return float(missing.sum()) > 0.99 * area and area > 0.01 * missing.numel() and around > 0.9
