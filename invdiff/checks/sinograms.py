"""Sinograms: unit of the angles, axis order, axis of rotation, counts instead of line integrals."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from invdiff.checks.evidence import Evidence
from invdiff.contracts.compare import NotApplicable
from invdiff.findings import Finding
from invdiff.operators import CT, CTTransmission

FEW_VIEWS = 8
CHANGING = 3.0  # how much more y changes over the views than typical images let it
UNEVEN = 0.1  # coefficient of variation of the masses of parallel projections
OFF_AXIS = 0.25  # cells; conventions differ by half a cell
SURE = 5.0  # standard deviations


def check_sinogram(e: Evidence) -> Iterator[Finding]:
    """y behaves as projections of an object do over the views of this scan."""
    operator = e.operator
    ct = operator.ct if isinstance(operator, CTTransmission) else operator
    if not isinstance(ct, CT):
        raise NotApplicable("y is no sinogram")
    scan = ct.scan((e.images.shape[-2], e.images.shape[-1]))
    angles = scan.angles()
    span = float(angles.amax() - angles.amin()) * len(angles) / max(len(angles) - 1, 1)
    noise = float(e.noise_variance.mean()) ** 0.5
    sinogram, clean = (y.mT if ct.convention == "astra" else y for y in (e.given, e.clean))  # views last
    yield from _counts(sinogram, clean, noise)
    if isinstance(operator, CTTransmission):
        if float(sinogram.amax()) < 2:  # otherwise it is in counts
            yield from _angles(sinogram, clean, math.degrees(span), noise)
        return
    yield from _angles(sinogram, clean, math.degrees(span), noise)
    if math.isinf(scan.source):
        mass = _mass(sinogram)
        if scan.detectors == scan.views and _variation(mass) > UNEVEN > 2 * _variation(_mass(sinogram.mT)):
            words = (
                "the projections of y have unequal masses, and those of the transposed array equal ones: "
                "give np.swapaxes(y, -1, -2), (detectors, views)"
            )
            yield Finding("sinogram transposed", words, True)
        elif span > 0.9 * math.pi and scan.views > 2:  # three unknowns
            yield from _axis(sinogram, angles, noise, _offset(clean[0], angles)[0], ct)


def _counts(y: Tensor, clean: Tensor, noise: float) -> Iterator[Finding]:
    """Rays past the object have the least line integrals, and the most photons."""
    edge, middle = _edge_and_middle(y)
    usual = [inner - outer for outer, inner in map(_edge_and_middle, clean)]
    if edge > middle + SURE * noise and min(usual) > 0:
        words = (
            f"y is larger at the ends of the detector ({edge:.2g}) than in its middle ({middle:.2g}): these look like "
            "counts or transmitted fractions; give -log(y / y without object), or use operator=ct_transmission"
        )
        yield Finding("sinogram counts", words, True)
    elif middle > edge + SURE * noise and max(usual) < 0:
        words = (
            f"y is smaller at the ends of the detector ({edge:.2g}) than in its middle ({middle:.2g}): these look like "
            "line integrals; use operator=ct"
        )
        yield Finding("sinogram counts", words, True)


def _edge_and_middle(y: Tensor) -> tuple[float, float]:
    rays = y.mean((0, -1))
    width = max(1, len(rays) // 16)
    middle = rays[len(rays) // 4 : max(len(rays) // 4 + 1, 3 * len(rays) // 4)]
    return float(torch.cat([rays[:width], rays[-width:]]).mean()), float(middle.mean())


def _angles(y: Tensor, clean: Tensor, span: float, noise: float) -> Iterator[Finding]:
    views = y.shape[-1]
    if span > math.degrees(math.tau) / 57 or views <= FEW_VIEWS:  # 2 pi taken for degrees, with some room
        return
    found, usual = _change(y, noise), max(_change(row, 0.0) for row in clean)
    if found > max(CHANGING * usual, _most_change(y, math.radians(span), noise)):
        words = (
            f"the {views} views span {span:.3g} degrees, and y changes {found / max(usual, 1e-6):.0f} times as much as "
            "that allows; the angles look like radians: multiply them by 180 / pi"
        )
        yield Finding("sinogram angles", words, True)


def _change(y: Tensor, noise: float) -> float:
    """Root mean square of y about its mean over the views, without the noise, over that of y."""
    size = float(y.square().mean().sqrt())
    change = float((y - y.mean(-1, keepdim=True)).square().mean()) - noise**2
    return math.sqrt(max(change, 0.0)) / size if size > 0 else 0.0


def _most_change(y: Tensor, span: float, noise: float) -> float:
    """A bound of `_change`: no point moves along the detector by more than half of that times the angle."""
    size = float(y.square().mean().sqrt())
    slope = math.sqrt(max(float(y.diff(dim=-2).square().mean()) - 2 * noise**2, 0.0))
    return slope * y.shape[-2] / 2 * span / math.sqrt(12) / size if size > 0 else 0.0


def _axis(y: Tensor, angles: Tensor, noise: float, usual: float, ct: CT) -> Iterator[Finding]:
    offset, doubt = _offset(y, angles, noise)
    found = offset - usual
    # What ends beyond the detector differs from view to view, and with it the mass; it moves the centre of mass too.
    cut_off = _variation(_mass(y)) * y.shape[-2] / 2
    if abs(found) <= OFF_AXIS + max(SURE * doubt, cut_off):
        return
    option = f"set operator.centre={ct.centre + found:.1f}"
    if y.shape[-2] % 2 == 0 and abs(abs(found) - 0.5) < OFF_AXIS:
        if found > 0 and ct.convention != "skimage":
            option = f"that is where radon of scikit-image has it: set operator.convention=skimage; otherwise {option}"
        elif found < 0 and ct.convention == "skimage":
            option = f"that is where others than scikit-image have it: leave out operator.convention, or {option}"
    words = (
        f"the axis of rotation projects {abs(found):.1f} cells {'after' if found > 0 else 'before'} "
        f"its place on the detector; {option}"
    )
    yield Finding("sinogram axis", words, True)


def _offset(y: Tensor, angles: Tensor, noise: float = 0.0) -> tuple[float, float]:
    """Cells from the middle of the detector to the axis of rotation, and its standard deviation.

    The centre of mass of parallel projections is offset + a cos(angle) + b sin(angle).
    """
    rays = y.double().mean(0)
    cells = torch.arange(len(rays), dtype=torch.float64) - (len(rays) - 1) / 2
    mass = rays.sum(0)
    if float(mass.abs().amin()) < 0.2 * float(mass.abs().amax()) or float(mass.abs().amax()) == 0:
        return 0.0, math.inf
    centre = (cells[:, None] * rays).sum(0) / mass
    terms = torch.stack([torch.ones_like(angles), angles.cos(), angles.sin()], 1)
    inverse = torch.linalg.pinv(terms)
    variance = (noise**2 / len(y)) * float(cells.square().sum()) / float(mass.square().mean())
    return float((inverse @ centre)[0]), math.sqrt(variance * float(inverse[0].square().sum()))


def _mass(y: Tensor) -> Tensor:
    return y.mean(0).sum(0)


def _variation(mass: Tensor) -> float:
    return float(mass.std()) / max(float(mass.mean().abs()), 1e-12)
