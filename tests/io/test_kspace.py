"""k-space of HDF5 files: what the operator gets explains what was measured, and images come back in the file's unit."""

import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff.io import BadInput, Measurement, Slicing, load_measurement
from invdiff.io.kspace import estimate_maps
from invdiff.operators import MRI, MulticoilMRI
from invdiff.operators.mri.coil_maps import simulated_maps
from invdiff.operators.mri.kspace import to_kspace

UNIT = 3e-5  # of the scanner
SIZE = (24, 20)


def scale_of(found: Measurement) -> Tensor:
    """By which images from y are multiplied to have the unit of the file, to broadcast with one image or (B,)."""
    assert all(unit is not None and unit[1] == 0 for unit in found.units)
    return torch.tensor([unit[0] for unit in found.units if unit is not None])


def smooth_images(count: int, size: tuple[int, int] = SIZE) -> Tensor:
    """Positive images of low resolution, (count, 1, H, W), each with its own brightness."""
    h, w = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in size)
    centres = torch.linspace(-0.3, 0.3, count, dtype=torch.float64)[:, None, None]
    blobs = torch.exp(-3 * ((h[:, None] - centres) ** 2 + w**2))
    return ((1 + torch.arange(count))[:, None, None] * blobs)[:, None]


IMAGES = smooth_images(5)
MAPS = simulated_maps(3, SIZE)
KSPACE = UNIT * to_kspace(MAPS * IMAGES)  # (5, 3, H, W)
LINES = torch.zeros(SIZE[1], dtype=torch.bool)
LINES[::3] = LINES[5:15] = True
ALL = Slicing(slices="all")


def write(path: Path, **datasets: Tensor | np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = np.asarray(values, np.complex64) if np.iscomplexobj(np.asarray(values)) else values
        file.attrs["acquisition"] = "AXT2"
    return path


def in_unit_of(file_unit: Tensor) -> Tensor:
    """The images as they come out of the reader, whose y was divided by this."""
    return (UNIT * IMAGES).float() / file_unit[:, None, None, None]


# -- what is read ------------------------------------------------------------------------------------------------------


def test_coils_mask_and_maps(tmp_path: Path) -> None:
    """The operator built of what the file holds measures y from the true images."""
    path = write(tmp_path / "scan.h5", kspace=KSPACE * LINES, mask=LINES, sens_maps=MAPS.expand(5, -1, -1, -1))
    found = load_measurement(path, slicing=ALL)
    assert found.y.dtype == torch.complex64
    assert found.names == [f"scan_{i:03d}" for i in range(5)]
    operator = MulticoilMRI(**found.parameters)
    assert found.units
    torch.testing.assert_close(operator(in_unit_of(scale_of(found))), found.y, rtol=1e-5, atol=1e-5)
    assert torch.equal(operator.measured(tuple(found.y.shape[1:])).squeeze(), LINES.expand(SIZE))
    assert any("70% of k-space is sampled" in note for note in found.notes)


def test_images_come_out_in_about_the_unit_interval(tmp_path: Path) -> None:
    """The maximum of the zero-filled image is one, whatever else is read."""
    path = write(tmp_path / "scan.h5", kspace=KSPACE)
    found = load_measurement(path, slicing=ALL)
    assert found.units
    torch.testing.assert_close(in_unit_of(scale_of(found)).amax((1, 2, 3)), torch.ones(5))
    alone = load_measurement(path, slicing=Slicing(slices=3))
    assert torch.equal(alone.y[0], found.y[3])


def test_one_coil(tmp_path: Path) -> None:
    path = write(tmp_path / "knee.h5", kspace=(UNIT * to_kspace(IMAGES))[:, 0] * LINES, mask=LINES)
    found = load_measurement(path, parameters=["mask"], slicing=ALL)
    assert found.y.shape == (5, 1, *SIZE)
    assert found.units
    torch.testing.assert_close(MRI(**found.parameters)(in_unit_of(scale_of(found))), found.y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stored", ["alone", "pairs", "mask and maps"])
def test_three_axes_are_coils_for_an_operator_of_coils(tmp_path: Path, stored: str) -> None:
    """One slice (coils, H, W); without such an operator they are slices of one coil."""
    more = {"mask": LINES, "sens_maps": MAPS[0]} if stored == "mask and maps" else {}
    one = KSPACE[1] * (LINES if more else 1)
    path = write(tmp_path / "a.h5", kspace=torch.view_as_real(one).numpy() if stored == "pairs" else one, **more)
    found = load_measurement(path, parameters=["maps", "mask"], of_coils=True)
    assert found.y.shape == (1, 3, *SIZE)
    assert any("read as one slice of 3 coil(s)" in note for note in found.notes)
    if more:
        torch.testing.assert_close(
            MulticoilMRI(**found.parameters)(in_unit_of(scale_of(found))[1:2]), found.y, rtol=1e-5, atol=1e-5
        )
    else:
        assert load_measurement(path, slicing=ALL).y.shape == (3, 1, *SIZE)


def test_the_middle_slice_is_taken_and_said(tmp_path: Path) -> None:
    found = load_measurement(write(tmp_path / "scan.h5", kspace=KSPACE))
    assert found.names == ["scan_002"]
    assert found.y.shape == (1, 3, *SIZE)
    assert "slice 2, the middle one of 5; volume.slices=" in found.notes[0]
    chosen = load_measurement(tmp_path / "scan.h5", slicing=Slicing(slices=[4, 0]))
    assert chosen.names == ["scan_004", "scan_000"]
    assert load_measurement(write(tmp_path / "flat.h5", kspace=KSPACE[0, 0])).names == ["flat"]


def test_zeros_tell_what_was_sampled(tmp_path: Path) -> None:
    sparse = LINES.clone()
    sparse[[0, 3, 18]] = False
    for name, pattern in (("lines", sparse.expand(SIZE)), ("points", torch.rand(SIZE) < 0.4)):
        holed = KSPACE * pattern
        holed[2, :, 12, 10] = 0 if name == "lines" else holed[2, :, 12, 10]  # zero by chance
        mask = load_measurement(write(tmp_path / f"{name}.h5", kspace=holed), parameters=["mask"]).parameters["mask"]
        assert torch.equal(mask.expand(1, 1, *SIZE)[0, 0], pattern)


def test_full_kspace_with_empty_margins_leaves_the_mask_to_the_operator(tmp_path: Path) -> None:
    margins = KSPACE.clone()
    margins[..., :3] = margins[..., -3:] = 0
    for name, kspace in (("full", KSPACE), ("margins", margins)):
        found = load_measurement(write(tmp_path / f"{name}.h5", kspace=kspace))
        assert "mask" not in found.parameters
        assert not any("is sampled" in note for note in found.notes)


@pytest.mark.parametrize("shape", ["(1, W)", "(1, 1, W, 1)", "(H, W)", "(S, H, W)", "(S, 1, W)"])
def test_masks_of_every_shape(tmp_path: Path, shape: str) -> None:
    masks = LINES.expand(5, *SIZE).clone()
    masks[:, :, 0] = torch.arange(5)[:, None] % 2 == 0
    given, expected = {
        "(1, W)": (LINES[None], LINES.expand(2, *SIZE)),
        "(1, 1, W, 1)": (LINES[None, None, :, None], LINES.expand(2, *SIZE)),
        "(H, W)": (masks[1], masks[[1, 1]]),
        "(S, H, W)": (masks, masks[[3, 2]]),
        "(S, 1, W)": (masks[:, :1], masks[[3, 2]]),
    }[shape]
    path = write(tmp_path / "scan.h5", kspace=KSPACE, mask=given.numpy().astype(np.float32))
    found = load_measurement(path, parameters=["mask"], slicing=Slicing(slices=[3, 2]))
    measured = MRI(**found.parameters).measured(SIZE)
    assert torch.equal(measured.expand(2, 1, *SIZE)[:, 0], expected)
    assert torch.equal(found.y.abs().amax(1) > 0, expected)  # and nothing else is left in y


def test_numbers_as_others_store_them(tmp_path: Path) -> None:
    pairs = np.zeros(KSPACE.shape, [("real", "f8"), ("imag", "f8")])
    pairs["real"], pairs["imag"] = KSPACE.real, KSPACE.imag
    y = load_measurement(write(tmp_path / "a.h5", kspace=KSPACE)).y
    assert torch.equal(load_measurement(write(tmp_path / "matlab.h5", kspace=pairs)).y, y)
    assert torch.equal(load_measurement(write(tmp_path / "two.h5", kspace=torch.view_as_real(KSPACE))).y, y)


# -- coil maps ---------------------------------------------------------------------------------------------------------


def test_estimated_maps_explain_a_smooth_object_with_a_phase(tmp_path: Path) -> None:
    """The phase goes into the maps, so that a real image fits the data of several coils, and of one."""
    size = (48, 40)
    x, maps = smooth_images(1, size), simulated_maps(3, size)
    phase = torch.exp(1j * torch.linspace(-1, 1, size[1], dtype=torch.float64) ** 2)
    lines = torch.zeros(size[1], dtype=torch.bool)
    lines[2::3] = lines[10:30] = True
    for name, coils in (("several", maps), ("one", torch.ones(1, 1, *size))):
        path = write(tmp_path / f"{name}.h5", kspace=UNIT * to_kspace(coils * phase * x) * lines, mask=lines)
        found = load_measurement(path)
        assert found.parameters["maps"].shape == (1, coils.shape[1], *size)
        assert "coil maps estimated from 20 lines in the centre of k-space" in " ".join(found.notes)
        assert found.units
        misfit = found.y - MulticoilMRI(**found.parameters)(UNIT * x.float() / scale_of(found))
        assert misfit.norm() < 0.03 * found.y.norm()


def test_estimated_maps_have_unit_power_and_no_nan() -> None:
    y = to_kspace(MAPS * IMAGES).to(torch.complex64)
    y[0] = 0
    maps = estimate_maps(y, 10)
    assert maps.isfinite().all()
    torch.testing.assert_close(maps[1:].abs().square().sum(1), torch.ones(4, *SIZE))
    assert torch.equal(estimate_maps(y[1:2], 10), maps[1:2])


def test_maps_take_only_what_the_mask_has_sampled(tmp_path: Path) -> None:
    few = torch.zeros(SIZE[1], dtype=torch.bool)
    few[::3] = few[9:11] = True
    path = write(tmp_path / "scan.h5", kspace=KSPACE, mask=few)
    with pytest.raises(BadInput, match=r"no coil maps in .*, and 2 full line.* operator\.maps= takes a file"):
        load_measurement(path)
    assert "maps" not in load_measurement(path, parameters=["mask"]).parameters


# -- a smaller image ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 16), (31, 17), (16, 16), (12, 16)])
def test_lower_resolution(tmp_path: Path, size: tuple[int, int]) -> None:
    """The centre of k-space, with the oversampled readout cropped, is the k-space of the small image."""
    width = size[1]
    h, w = ((torch.arange(n, dtype=torch.float64) - n // 2) / (width / 2) for n in size)
    x = torch.exp(-12 * (h[:, None] ** 2 + (w - 0.1) ** 2))[None, None]
    lines = torch.zeros(width, dtype=torch.bool)
    lines[::2] = lines[width // 2 - 3 : width // 2 + 3] = True
    maps = torch.exp(torch.complex(0.2 * h[:, None] + 0 * w, 0.5 - 0.8 * w.expand(size)))[None, None]
    path = write(tmp_path / "scan.h5", kspace=UNIT * to_kspace(maps * x) * lines, mask=lines, maps=maps)
    found = load_measurement(path, size=10)
    h, w = ((torch.arange(10, dtype=torch.float64) - 5) / 5 for _ in range(2))
    small = torch.exp(-12 * (h[:, None] ** 2 + (w - 0.1) ** 2))[None, None].float()
    assert found.units
    assert torch.equal(found.parameters["mask"], lines[width // 2 - 5 : width // 2 + 5])
    y = MulticoilMRI(**found.parameters)(UNIT * small / scale_of(found))
    torch.testing.assert_close(found.y, y, rtol=0, atol=0.02 * float(y.abs().max()))


def test_no_resolution_out_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="size=64 is more than the 20 lines"):
        load_measurement(write(tmp_path / "scan.h5", kspace=KSPACE), size=64)
    points = torch.rand(SIZE, generator=torch.Generator().manual_seed(0)) < 0.4
    with pytest.raises(BadInput, match="whole lines, or of equal sides, not 24x20"):
        load_measurement(write(tmp_path / "scan.h5", kspace=KSPACE, mask=points), parameters=["mask"], size=10)


# -- what is refused ---------------------------------------------------------------------------------------------------


def _nan() -> Tensor:
    broken = KSPACE.clone()
    broken[2, 1, 3, 4] = torch.nan
    return broken


def _cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-3000])
    return path


def _bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "absent": (lambda p: p, "no such file"),
    "text": (lambda p: _bytes(p, b"text"), "HDF5 file cannot be read"),
    "empty": (lambda p: _bytes(p, b""), "HDF5 file cannot be read"),
    "cut": (lambda p: _cut(write(p, kspace=KSPACE)), "HDF5 file cannot be read"),
    "images": (lambda p: write(p, images=IMAGES, labels=IMAGES), "the arrays images, labels; name the measurement 'y'"),
    "nothing": (lambda p: write(p), "the arrays none"),
    "no slice": (lambda p: write(p, kspace=KSPACE[:0]), "0x3x24x20"),
    "many axes": (lambda p: write(p, kspace=KSPACE[None]), "1x5x3x24x20"),
    "real": (lambda p: write(p, kspace=KSPACE.real), "must be complex.*float64"),
    "NaN": (lambda p: write(p, kspace=_nan()), "1 NaN or infinite"),
    "dark": (lambda p: write(p, kspace=0 * KSPACE, mask=LINES), "slice 2 holds no signal"),
    "mask of another size": (lambda p: write(p, kspace=KSPACE, mask=LINES[:-1]), "mask is 19, k-space 24x20"),
    "maps of another size": (
        lambda p: write(p, kspace=KSPACE, maps=MAPS[..., :-1]),
        "maps is 1x3x24x19, kspace 1x3x24x20",
    ),
    "maps of other coils": (lambda p: write(p, kspace=KSPACE, maps=MAPS[:, :2]), "maps is 1x2x24x20"),
    "maps of other slices": (lambda p: write(p, kspace=KSPACE, maps=MAPS.expand(4, -1, -1, -1)), "maps is 4x3x24x20"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(tmp_path: Path, case: str) -> None:
    make, words = REFUSED[case]
    path = make(tmp_path / "scan.h5")
    with pytest.raises(BadInput, match=words) as caught:
        load_measurement(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) - len(str(path)) < 250


def test_a_package_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(BadInput, match=r"takes the package h5py to read: pip install 'invdiff\[medical\]'"):
        load_measurement(_bytes(tmp_path / "scan.h5", b""))
