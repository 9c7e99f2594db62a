"""k-space and Fourier magnitudes: where their centre and that of the image lie; coil sensitivities."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from invdiff.checks.evidence import Evidence, correlation, rms
from invdiff.contracts.compare import NotApplicable
from invdiff.findings import Finding
from invdiff.operators import PhaseRetrieval
from invdiff.operators.mri.coil_maps import CoilArray
from invdiff.operators.mri.kspace import ORIGINS, CartesianSampling, Convention, from_kspace
from invdiff.shapes import shallow_copy

BLOCK = 16  # the centre of k-space is this fraction of its sides, at either side of the middle
CLEARLY = 20.0  # ratio of the energies of centre and corners
BETTER, GOOD = 0.3, 0.5  # correlations of magnitude images with the mean image
STRANGE = 0.35  # share of the coil images that the maps cannot explain


def check_fourier_centre(e: Evidence) -> Iterator[Finding]:
    """The centre of k-space, and that of the image, lie where the operator has them."""
    if isinstance(e.operator, CartesianSampling):
        yield from _of_kspace(e, e.operator)
    elif isinstance(e.operator, PhaseRetrieval):
        if _elsewhere(e.given, e.clean):
            yield Finding("fourier", "the energy of y lies in its corners; give np.fft.fftshift(y)", True)
    else:
        raise NotApplicable("y is no Fourier transform on a grid")


def _of_kspace(e: Evidence, operator: CartesianSampling) -> Iterator[Finding]:
    """Which of the four conventions of `operator.fft` fits: where y has its energy, and its image lies as the mean."""
    complete = _fully_sampled(e)
    own = operator.convention
    elsewhere = _elsewhere(e.given, complete)
    in_middle = own.kspace_centred != elsewhere
    image_in_middle = _image_in_middle(e, own, in_middle, complete[0])
    if image_in_middle is None:  # not to be seen; both usually go together
        image_in_middle = in_middle if elsewhere else own.image_centred
    right = next(name for name, origins in ORIGINS.items() if origins == (image_in_middle, in_middle))
    if right == operator.fft:
        return
    places = {True: "the middle", False: "the first entry"}
    words = (
        f"y has the centre of k-space in {places[in_middle]} and belongs to an image with its origin in "
        f"{places[image_in_middle]}: operator.fft={right} fits, not {operator.fft}"
    )
    yield Finding("fourier", words, True)


def check_coils(e: Evidence) -> Iterator[Finding]:
    """The sensitivity maps have a sum of squares near 1, and explain the differences of the coils."""
    operator = e.operator
    if not isinstance(operator, CoilArray):
        raise NotApplicable("there are no coils")
    maps = operator.maps_of(tuple(e.images.shape[-2:]), e.images)[0]
    power = maps.abs().square().sum(0)
    if operator.maps is not None:
        yield from _of_the_power(e, float(power[power > 0.05 * power.amax()].median()))
    if not isinstance(operator, CartesianSampling) or len(maps) < 2:
        return
    found = _unexplained(e.given, maps, e.observed, operator.convention)
    usual = max(_unexplained(row, maps, e.observed, operator.convention) for row in e.clean)
    if found > max(STRANGE, 3 * usual):
        source = "simulated, for operator.maps was not given" if operator.maps is None else "those of operator.maps"
        words = (
            f"the sensitivity maps leave {found:.0%} of the coil images of y unexplained at low resolution; they are "
            f"{source}: give those of this scan, in the order of its coils, (coils, H, W)"
        )
        yield Finding("coil maps differ", words, True)


def _of_the_power(e: Evidence, power: float) -> Iterator[Finding]:
    usual = rms(e.counted(e.clean))
    ratio = rms(e.y) / usual if usual > 0 else 0.0
    if 0.5 < power < 2 or ratio == 0:
        return
    wrong = abs(math.log(ratio * math.sqrt(power))) < 0.25 * abs(math.log(power))
    words = (
        f"the sum of squares of the sensitivity maps is about {power:.2g} where they see something, and 1 keeps the "
        "scale of the image; divide the maps by sqrt(sum_c |S_c|^2)"
    )
    yield Finding("coil scale", words, wrong)


def _centredness(y: Tensor) -> float:
    """Energy per measured entry in the middle of the last two axes, over that in their corners."""
    energy = y.abs().square().reshape(-1, *y.shape[-2:]).sum(0)
    middle, corner = (_block(energy if there else _rolled(energy)) for there in (True, False))
    tiny = 1e-12 * max(float(energy.amax()), 1e-30)
    return (_per_entry(middle) + tiny) / (_per_entry(corner) + tiny)


def _block(values: Tensor) -> Tensor:
    height, width = values.shape
    dy, dx = max(1, height // BLOCK), max(1, width // BLOCK)
    return values[height // 2 - dy : height // 2 + dy + 1, width // 2 - dx : width // 2 + dx + 1]


def _per_entry(block: Tensor) -> float:
    measured = block[block > 0]
    return float(measured.mean()) if measured.numel() else 0.0


def _rolled(values: Tensor) -> Tensor:
    """The last two axes with their corner in the middle: NumPy's order, centred."""
    return torch.fft.fftshift(values, (-2, -1))


def _elsewhere(y: Tensor, usual: Tensor) -> bool:
    """Whether the energy of y lies in the corners, and that of all usual measurements in the middle, or the reverse."""
    found, others = _centredness(y), [_centredness(row) for row in usual]
    return (found < 1 / CLEARLY and min(others) > CLEARLY) or (found > CLEARLY and max(others) < 1 / CLEARLY)


def _fully_sampled(e: Evidence) -> Tensor:
    """k-space of the typical images with every position measured: a mask may drop the very centre."""
    twin = shallow_copy(e.operator)
    twin.mask = torch.ones(1, 1, 1, e.images.shape[-1], dtype=torch.bool)
    with torch.no_grad():
        return twin(e.images)


def _image_in_middle(e: Evidence, own: Convention, in_middle: bool, usual: Tensor) -> bool | None:
    """Whether the image of y looks like the mean image with its origin in the middle, or else in the first entry.

    None where this cannot be seen.
    """
    mean = e.images[0].square().sum(0).sqrt()
    if correlation(mean, _rolled(mean)) > GOOD or _as_mean(usual, own, mean) < GOOD:
        return None
    found = {place: _as_mean(e.given, Convention(place, in_middle), mean) for place in (True, False)}
    best = max(found, key=lambda place: found[place])
    return best if found[best] > max(GOOD, found[not best] + BETTER) else None


def _as_mean(kspace: Tensor, convention: Convention, mean: Tensor) -> float:
    """Correlation of the magnitude image with the mean image."""
    return correlation(from_kspace(kspace, convention).abs().square().sum(0).sqrt(), mean)


def _unexplained(y: Tensor, maps: Tensor, observed: Tensor, convention: Convention) -> float:
    """Share of the coil images at low resolution, in norm, that is no image times the maps."""
    near = [(torch.arange(n) - n // 2).abs() <= n // BLOCK for n in y.shape[-2:]]
    low = near[0][:, None] & near[1]
    coils = from_kspace(y * observed * (low if convention.kspace_centred else torch.fft.ifftshift(low)), convention)
    power = maps.abs().square().sum(0)
    image = (maps.conj() * coils).sum(0) / power.where(power > 0, 1)
    scale = float(torch.linalg.vector_norm(coils))
    return float(torch.linalg.vector_norm(coils - maps * image)) / scale if scale > 0 else 0.0
