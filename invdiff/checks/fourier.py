"""k-space and Fourier magnitudes: where their centre and that of the image lie; coil sensitivities."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from invdiff.checks.evidence import Evidence, correlation, rms
from invdiff.contracts.compare import NotApplicable
from invdiff.findings import Finding
from invdiff.operators import Operator, PhaseRetrieval
from invdiff.operators.mri.coil_maps import CoilArray
from invdiff.operators.mri.kspace import ORIGINS, CartesianSampling, from_kspace, to_kspace
from invdiff.shapes import shallow_copy

BLOCK = 16  # the centre of k-space is this fraction of its sides, at either side of the middle
CLEARLY = 20.0  # ratio of the energies of centre and corners
BETTER, GOOD = 0.3, 0.5  # correlations of magnitude images with the mean image
STRANGE = 0.35  # share of the coil images that the maps cannot explain


def check_fourier_centre(e: Evidence) -> Iterator[Finding]:
    """The centre of k-space, and that of the image, lie where the operator has them."""
    cartesian = isinstance(e.operator, CartesianSampling)
    if not cartesian and not isinstance(e.operator, PhaseRetrieval):
        raise NotApplicable("y is no Fourier transform on a grid")
    y = e.given
    complete = _fully_sampled(e) if cartesian else e.clean
    usual = [_centredness(row) for row in complete]
    found = _centredness(y)
    inside = all(value > CLEARLY for value in usual)
    outside = all(value < 1 / CLEARLY for value in usual)
    elsewhere = (inside and found < 1 / CLEARLY) or (outside and found > CLEARLY)
    in_numpy_order = _rolled(y) if elsewhere else y
    image = _image_moved(e, in_numpy_order, complete[0]) if cartesian else None
    where = "corners" if inside else "middle"
    if elsewhere and not cartesian:
        yield Finding("fourier", f"the energy of y lies in its {where}; give np.fft.fftshift(y)", True)
    elif elsewhere:
        right = _convention(e.operator, image is not False, True)
        also = ", and that of the image too" if image else ""
        shifted = "" if image or image is None else "; np.fft.fftshift(y), and of the mask, also fits"
        words = (
            f"the centre of k-space lies in the {where} of y{also}, which is not this operator's convention; set "
            f"operator.fft={right}, or give np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image), norm='ortho'))"
        )
        yield Finding("fourier", words + shifted, True)
    elif image:
        words = (
            "y belongs to an image whose quadrants are exchanged, a Fourier transform without ifftshift of the image, "
            f"or with one too many; set operator.fft={_convention(e.operator, True, False)}"
        )
        yield Finding("fourier image", words, True)


def _convention(operator: Operator, image: bool, kspace: bool) -> str:
    """The value of `fft` that moves the origin of the image, of k-space, or of both."""
    assert isinstance(operator, CartesianSampling)
    own = operator.convention
    wanted = own.image_centred != image, own.kspace_centred != kspace
    return next(name for name, origins in ORIGINS.items() if origins == wanted)


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
    convention = operator.convention

    def centred(y: Tensor) -> Tensor:
        return to_kspace(from_kspace(y * e.observed, convention))

    found = _unexplained(centred(e.given), maps)
    usual = max(_unexplained(centred(row), maps) for row in e.clean)
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


def _fully_sampled(e: Evidence) -> Tensor:
    """k-space of the typical images with every position measured: a mask may drop the very centre."""
    twin = shallow_copy(e.operator)
    twin.mask = torch.ones(1, 1, 1, e.images.shape[-1], dtype=torch.bool)
    with torch.no_grad():
        return twin(e.images)


def _image_moved(e: Evidence, kspace: Tensor, usual: Tensor) -> bool | None:
    """Whether the zero-filled image lies with its quadrants exchanged; None where the prior's mean does not tell."""
    mean = e.images[0].square().sum(0).sqrt()
    if correlation(mean, _rolled(mean)) > GOOD:
        return None
    straight, moved = _as_mean(kspace, mean)
    right, wrong = _as_mean(_rolled(usual) if _centredness(usual) < 1 else usual, mean)
    if max(right, wrong) < GOOD:
        return None
    if right < wrong:
        straight, moved = moved, straight
    return moved > max(GOOD, straight + BETTER)


def _as_mean(kspace: Tensor, mean: Tensor) -> tuple[float, float]:
    """Correlation with the mean image of the magnitude image as it is, and with its quadrants exchanged."""
    image = from_kspace(kspace).abs().square().sum(0).sqrt()
    return correlation(image, mean), correlation(_rolled(image), mean)


def _unexplained(y: Tensor, maps: Tensor) -> float:
    """Share of the coil images at low resolution, in norm, that is no image times the maps."""
    height, width = y.shape[-2:]
    window = torch.zeros(height, width)
    window[height // 2 - height // 16 : height // 2 + height // 16 + 1] = 1
    columns = torch.zeros(width)
    columns[width // 2 - width // 16 : width // 2 + width // 16 + 1] = 1
    coils = from_kspace(y * window * columns)
    power = maps.abs().square().sum(0)
    image = (maps.conj() * coils).sum(0) / power.where(power > 0, 1)
    scale = float(torch.linalg.vector_norm(coils))
    return float(torch.linalg.vector_norm(coils - maps * image)) / scale if scale > 0 else 0.0
