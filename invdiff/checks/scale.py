"""Scale, sign and range of y, against A of typical images."""

import math
from collections.abc import Iterator

import torch

from invdiff.checks.evidence import Evidence, alike, rms
from invdiff.findings import Finding

# Ratios of y to what typical images give: those that are said, and those that no image of the prior's range can reach.
LOUD, TOO_LOUD = 3.0, 6.0
FAINT, TOO_FAINT = 1 / 20, 1 / 200
TOO_FAINT_KSPACE = 1 / 25  # a scanner's image is never that dark as a whole
SURE = 6.0  # standard deviations
LINES_UP = 0.4  # correlation with A of the mean image that decides on the sign


def check_scale(e: Evidence) -> Iterator[Finding]:
    """The root mean square of y, without the noise, lies near that of typical images."""
    shown = rms(e.y)
    signal, doubt = _signal(e)
    typical = e.counted(e.clean).abs().square().mean(1).sqrt().sort().values
    lowest, middle, highest = float(typical[0]), float(typical[len(typical) // 2]), float(typical[-1])
    if e.extremes is not None:
        highest = max(highest, *(rms(row) for row in e.counted(e.extremes)))
    if shown == 0 or middle == 0:
        return
    most, least = math.sqrt(signal + doubt) if signal > 0 else shown, math.sqrt(max(signal - doubt, 0))
    against = f"A of typical images of this prior (rms {shown:.2g} against {middle:.2g})"
    if least > LOUD * highest:
        ratio = math.sqrt(signal) / middle
        words = f"y is about {_factor(ratio)} times {against}; {_mend(e, ratio)}"
        yield Finding("units" if least > TOO_LOUD * highest else "scale", words, True)
    elif most < FAINT * lowest:
        ratio = math.sqrt(signal) / middle if signal > doubt else most / middle
        words = f"y is {'about' if signal > doubt else 'at most'} {_factor(ratio)} times {against}; {_mend(e, ratio)}"
        hopeless = most < lowest * (TOO_FAINT_KSPACE if e.y.is_complex() else TOO_FAINT)
        yield Finding("units" if hopeless else "scale", words, hopeless)


def check_sign(e: Evidence) -> Iterator[Finding]:
    """y is not the negative of what typical images give, and not below zero where these never are."""
    if rms(e.y) == 0:
        return
    mean = e.counted(e.clean[:1])[0]
    rows = e.counted(e.clean if e.extremes is None else torch.cat([e.clean, e.extremes[:2]]))
    if not e.y.is_complex() and float(rows.amin()) >= -0.1 * float(rows.amax()):
        yield from _below_the_floor(e, float(rows.amin()), float(rows.amax()))
    elif all(alike(row, mean) > LINES_UP for row in e.counted(e.clean[1:])) and alike(e.y, mean) < -LINES_UP:
        yield Finding("sign", f"y {_NEGATIVE}", True)


_NEGATIVE = "has the sign opposite to A of typical images of this prior; give -y"


def _below_the_floor(e: Evidence, floor: float, ceiling: float) -> Iterator[Finding]:
    low, high = float(e.y.amin()), float(e.y.amax())
    below = e.y < floor - SURE * e.noise_variance.sqrt() - 0.1 * abs(ceiling)
    share = float(below.float().mean())
    if share <= 0.01:
        return
    if high < 0.2 * -low:
        yield Finding("sign", f"y reaches from {low:.2g} to {high:.2g} and {_NEGATIVE}", True)
        return
    shifted = abs(low + high) < 0.3 * (high - low) and high < 1.5 * ceiling
    mend = "it looks scaled to [-1, 1]: give (y + 1) / 2 and noise.sigma / 2" if shifted else "subtract its offset"
    words = f"{share:.0%} of y lies below {floor:.2g}, the least that images of this prior give (down to {low:.2g})"
    yield Finding("range", f"{words}; {mend}", True)


def _signal(e: Evidence) -> tuple[float, float]:
    """Mean square of y without the noise, and what chance may add to it."""
    reals = e.y.numel() * (2 if e.y.is_complex() else 1)
    variance = float(e.noise_variance.mean())
    return rms(e.y) ** 2 - variance, SURE * variance * math.sqrt(2 / max(reals, 1))


def _factor(ratio: float) -> str:
    """One digit, in plain numbers where they are short."""
    digit = float(f"{ratio:.1g}") if not 10 < ratio < 1000 else round(ratio)
    return f"{digit:g}"


FULL_SCALES = (255, 1023, 4095, 16383, 65535)  # of 8 to 16 bits


def _mend(e: Evidence, ratio: float) -> str:
    """What undoes a factor: a known one where it is near."""
    if getattr(e.operator, "norm", None) == "ortho":
        norm = math.sqrt(math.prod(e.given.shape[-2:]))
        for name, factor in (("backward", norm), ("forward", 1 / norm)):
            if 0.4 < ratio / factor < 2.5:
                return f"this may be the norm of the Fourier transform; set operator.norm={name}, or {_times(factor)}"
    elif e.extremes is not None and rms(e.extremes[1]) < 2 * max(map(abs, e.prior.value_range)):  # A keeps the scale
        high = float(e.y.abs().amax()) / max(map(abs, e.prior.value_range))
        full = min(FULL_SCALES, key=lambda n: abs(math.log(high / n)))
        if ratio > 50 and (0.4 < high / full < 1.2 or 0.8 < ratio / full < 1.25):
            return f"divide y and noise.sigma by {full}, the full scale of its numbers"
    return f"{_times(ratio)}, or use a prior in the units of y"


def _times(ratio: float) -> str:
    if ratio < 1:
        return f"multiply y and noise.sigma by {_factor(1 / ratio)}"
    return f"divide y and noise.sigma by {_factor(ratio)}"
