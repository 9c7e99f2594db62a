"""DICOM and NIfTI: values by the standard's formulas, slices the right way up, refusals in one line."""

import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import HTJ2KLossless, JPEGBaseline8Bit, JPEGLSLossless

from invdiff.io import BadInput, Slicing, image_files, read_image, read_slices

Write = Callable[..., Path]
RNG = np.random.default_rng(0)
CT = RNG.integers(0, 2000, (5, 7), dtype=np.int16)
FRAMES = RNG.integers(0, 1000, (5, 4, 6), dtype=np.uint16)


# -- DICOM -------------------------------------------------------------------------------------------------------------


def window_of_the_standard(x: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, to [0, 1]."""
    y = ((x - (centre - 0.5)) / (width - 1) + 0.5) * (1 - 0) + 0
    return np.where(x <= centre - 0.5 - (width - 1) / 2, 0, np.where(x > centre - 0.5 + (width - 1) / 2, 1, y))


def test_hounsfield_units_and_the_window_of_the_file(tmp_path: Path, write_dicom: Write) -> None:
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1024, "WindowCenter": [40, 300], "WindowWidth": [400, 1500]}
    image = read_image(write_dicom(tmp_path / "ct.dcm", CT, **tags))
    assert image.shape == (5, 7, 1)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[..., 0], window_of_the_standard(2.0 * CT - 1024, 40, 400), atol=1e-6)


def test_other_window_functions(tmp_path: Path, write_dicom: Write) -> None:
    tags = {"WindowCenter": 900, "WindowWidth": 600}
    exact = read_image(write_dicom(tmp_path / "exact.dcm", CT, VOILUTFunction="LINEAR_EXACT", **tags))
    np.testing.assert_allclose(exact[..., 0], np.clip((CT - 900) / 600 + 0.5, 0, 1), atol=1e-6)
    smooth = read_image(write_dicom(tmp_path / "smooth.dcm", CT, VOILUTFunction="SIGMOID", **tags))
    np.testing.assert_allclose(smooth[..., 0], 1 / (1 + np.exp(-4 * (CT - 900.0) / 600)), atol=1e-6)


def test_a_window_of_the_user_is_in_the_unit_of_the_file(tmp_path: Path, write_dicom: Write) -> None:
    path = write_dicom(tmp_path / "ct.dcm", CT, RescaleSlope=1, RescaleIntercept=-1000, WindowCenter=9, WindowWidth=9)
    found = read_slices(path, Slicing(window=(40, 400)))
    np.testing.assert_allclose(found.images[0][..., 0], np.clip((CT - 1000.0 + 160) / 400, 0, 1), atol=1e-6)
    assert found.notes == [f"{path}: black is -160, white 240 (window); volume.window=[centre, width] sets others"]


def test_without_a_window_the_smallest_and_largest_value(tmp_path: Path, write_dicom: Write) -> None:
    image = read_image(write_dicom(tmp_path / "mr.dcm", CT))[..., 0]
    np.testing.assert_allclose(image, (CT - CT.min()) / np.ptp(CT), atol=1e-6)
    inverse = read_image(write_dicom(tmp_path / "xray.dcm", CT, PhotometricInterpretation="MONOCHROME1"))[..., 0]
    np.testing.assert_allclose(inverse, 1 - image, atol=1e-6)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_sets_no_range(tmp_path: Path, write_dicom: Write, kind: str) -> None:
    padded = CT.copy()
    padded[:, :2] = -2000
    image = read_image(
        write_dicom(tmp_path / "round.dcm", padded, PixelPaddingValue=-2000, PhotometricInterpretation=kind)
    )[..., 0]
    inner = (CT[:, 2:] - CT[:, 2:].min()) / np.ptp(CT[:, 2:])
    assert (image[:, :2] == 0).all()
    np.testing.assert_allclose(image[:, 2:], 1 - inner if kind == "MONOCHROME1" else inner, atol=1e-6)


def test_frames(tmp_path: Path, write_dicom: Write) -> None:
    path = write_dicom(tmp_path / "cine.dcm", FRAMES)
    grey = (FRAMES - FRAMES.min()) / np.ptp(FRAMES)  # one range for all: frames stay comparable
    middle = read_slices(path)
    assert middle.names == ["cine_002"]
    assert "slice 2, the middle one of 5; volume.slices=" in middle.notes[0]
    np.testing.assert_allclose(middle.images[0][..., 0], grey[2], atol=1e-6)
    chosen = read_slices(path, Slicing(slices=[4, 1]))
    assert chosen.names == ["cine_004", "cine_001"]
    np.testing.assert_allclose(np.stack(chosen.images)[..., 0], grey[[4, 1]], atol=1e-6)
    assert len(read_slices(path, Slicing(slices="all")).images) == 5
    with pytest.raises(BadInput, match=r"no slice 5: .*cine.dcm has 5, counted from 0"):
        read_slices(path, Slicing(slices=5))


def test_frames_with_rules_of_their_own(tmp_path: Path, write_dicom: Write) -> None:
    """Enhanced multi-frame objects keep rescaling per frame and the window for all."""
    groups = []
    for i in range(5):
        rule, group = Dataset(), Dataset()
        rule.RescaleSlope, rule.RescaleIntercept = i + 1, 10 * i
        group.PixelValueTransformationSequence = Sequence([rule])
        groups.append(group)
    window, shared = Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = 1500, 3000
    shared.FrameVOILUTSequence = Sequence([window])
    path = write_dicom(
        tmp_path / "enhanced.dcm",
        FRAMES,
        PerFrameFunctionalGroupsSequence=Sequence(groups),
        SharedFunctionalGroupsSequence=Sequence([shared]),
    )
    (image,) = read_slices(path, Slicing(slices=3)).images
    np.testing.assert_allclose(image[..., 0], window_of_the_standard(4.0 * FRAMES[3] + 30, 1500, 3000), atol=1e-6)


def test_colour(tmp_path: Path, write_dicom: Write) -> None:
    pixels = RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    np.testing.assert_allclose(read_image(write_dicom(tmp_path / "us.dcm", pixels)), pixels / 255, atol=1e-6)


@pytest.mark.parametrize("window", [None, (0.5, 1.0)])
def test_floats_that_are_not_numbers(tmp_path: Path, window: tuple[float, float] | None) -> None:
    """Refused as an image, with a window too; of a measurement they mark what was not measured."""
    values = np.full((4, 5), 0.5, np.float32)
    values[1, 2] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", values)
    with pytest.raises(BadInput, match="NaN or infinity"):
        read_slices(tmp_path / "a.tif", Slicing(window=window))
    (image,) = read_slices(tmp_path / "a.tif", Slicing(window=window), measured=True).images
    np.testing.assert_array_equal(image[..., 0], values)


def test_files_without_a_suffix_and_folders(tmp_path: Path, write_dicom: Write) -> None:
    assert read_image(write_dicom(tmp_path / "IM0001", CT)).shape == (5, 7, 1)
    write_dicom(tmp_path / "b.dcm", CT)
    (tmp_path / "a.nii.gz").touch()
    assert [p.name for p in image_files(tmp_path)] == ["a.nii.gz", "b.dcm"]


# -- NIfTI -------------------------------------------------------------------------------------------------------------

# Right-anterior-superior: the values grow by 1 to the right, by 10 to the front and by 100 upwards.
RAS = np.arange(4)[:, None, None] + 10.0 * np.arange(5)[:, None] + 100.0 * np.arange(6)
WHITE = RAS.max()


def write_nifti(path: Path, axes: str = "RAS", volume: np.ndarray = RAS, **header: float) -> Path:
    """The volume as it is stored with these axes."""
    image = nibabel.Nifti1Image(volume, np.eye(4))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(axes)
    )
    image = image.as_reoriented(turn)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPI", "PSR", "SAL"])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_slices_look_as_in_a_viewer(tmp_path: Path, axes: str, suffix: str) -> None:
    path = write_nifti(tmp_path / f"head.{suffix}", axes)
    right, front, up = np.arange(4), 10 * np.arange(5), 100 * np.arange(6)
    expected = {  # rows from the top, columns from the left
        "axial": 300 + front[::-1, None] + right[::-1],
        "coronal": 20 + up[::-1, None] + right[::-1],
        "sagittal": 2 + up[::-1, None] + front[::-1],
    }
    for plane, values in expected.items():
        found = read_slices(path, Slicing(plane=plane))
        np.testing.assert_allclose(found.images[0][..., 0] * WHITE, values, atol=1e-3)
    assert found.names == ["head_002"]


def test_grey_levels_of_a_volume(tmp_path: Path) -> None:
    first = Slicing(slices=0)
    dark = read_slices(write_nifti(tmp_path / "a.nii"), first).images[0]
    np.testing.assert_allclose(dark.max(), 43 / WHITE, atol=1e-6)  # the range of the volume, not of the slice
    display = read_slices(write_nifti(tmp_path / "b.nii", cal_min=10, cal_max=30), first)
    assert "black is 10, white 30 (window)" in display.notes[0]
    assert (display.images[0].min(), display.images[0].max()) == (0, 1)
    chosen = read_slices(tmp_path / "b.nii", Slicing(slices=0, window=(20, 40)))
    np.testing.assert_allclose(chosen.images[0].max(), 1, atol=1e-6)
    assert "black is 0, white 40 (window)" in chosen.notes[0]


def test_a_single_slice_is_cut_in_its_own_plane(tmp_path: Path) -> None:
    found = read_slices(write_nifti(tmp_path / "coronal.nii", volume=RAS[:, 2:3]))
    assert found.images[0].shape == (6, 4, 1)
    assert found.names == ["coronal"]
    flat = nibabel.Nifti1Image(RAS[..., 0], np.eye(4))
    nibabel.save(flat, tmp_path / "flat.nii")
    assert read_image(tmp_path / "flat.nii").shape == (5, 4, 1)


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(RAS, None), tmp_path / "loose.nii")
    assert "does not say how the volume lies" in read_slices(tmp_path / "loose.nii").notes[-1]
    nibabel.save(nibabel.Nifti1Image(RAS, np.diag([1, 1, 3, 1])), tmp_path / "thick.nii")
    assert len(read_slices(tmp_path / "thick.nii").notes) == 2
    assert "3 x 1 mm" in read_slices(tmp_path / "thick.nii", Slicing(plane="coronal")).notes[-1]


# -- what is refused ---------------------------------------------------------------------------------------------------


def _nifti(path: Path, volume: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
    return path


def _bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _cut(path: Path, kept: float) -> Path:
    data = path.read_bytes()
    return _bytes(path, data[: int(kept * len(data))])


REFUSED: dict[str, tuple[Callable[[Path, Write], Path], str]] = {
    "absent": (lambda d, w: d / "a.dcm", "no such file"),
    "folder": (lambda d, w: d, "a folder, not an image"),
    "no DICOM": (lambda d, w: _bytes(d / "a.dcm", b"text"), "DICOM file cannot be read"),
    "empty DICOM": (lambda d, w: _bytes(d / "a.dcm", b""), "DICOM file cannot be read"),
    "cut DICOM": (lambda d, w: _cut(w(d / "a.dcm", CT), 0.95), "DICOM file cannot be read"),
    "report": (lambda d, w: w(d / "a.dcm", CT, Rows=None), "DICOM file"),
    "palette": (lambda d, w: w(d / "a.dcm", CT, PhotometricInterpretation="PALETTE COLOR"), "unsupported.*PALETTE"),
    "constant": (lambda d, w: w(d / "a.dcm", 0 * CT + 7), r"all values are 7: .*volume\.window="),
    "all padding": (lambda d, w: w(d / "a.dcm", 0 * CT, PixelPaddingValue=0), "all padding"),
    "window of no width": (lambda d, w: w(d / "a.dcm", CT, WindowCenter=1, WindowWidth=0), "window is 0 wide"),
    "compressed": (
        lambda d, w: w(d / "a.dcm", CT.view(np.uint8), coding=JPEGLSLossless),
        r"compressed as JPEG-LS.*pip install 'pylibjpeg\[all\]'",
    ),
    "compressed anew": (
        lambda d, w: w(d / "a.dcm", CT.view(np.uint8), coding=HTJ2KLossless),
        r"compressed as High-Throughput JPEG 2000.*pip install 'pylibjpeg\[all\]'",
    ),
    "damaged JPEG": (
        lambda d, w: w(d / "a.dcm", CT.view(np.uint8), coding=JPEGBaseline8Bit),
        r"compressed as JPEG Baseline.*cannot be decoded \(.*[a-z]",
    ),
    "no NIfTI": (lambda d, w: _bytes(d / "a.nii", b"text"), "NIfTI file cannot be read"),
    "no gzip": (lambda d, w: _bytes(d / "a.nii.gz", b"text"), "NIfTI file cannot be read"),
    "empty NIfTI": (lambda d, w: _bytes(d / "a.nii.gz", b""), "NIfTI file cannot be read"),
    "cut NIfTI": (lambda d, w: _cut(write_nifti(d / "a.nii"), 0.8), "NIfTI file cannot be read"),
    "cut gzip": (lambda d, w: _cut(write_nifti(d / "a.nii.gz"), 0.8), "NIfTI file cannot be read"),
    "series": (lambda d, w: _nifti(d / "a.nii", np.zeros((2, 3, 4, 5))), "one volume.*2x3x4x5"),
    "complex": (lambda d, w: _nifti(d / "a.nii", RAS.astype(np.complex64)), "real numbers.*complex64"),
    "NaN": (lambda d, w: _nifti(d / "a.nii", np.where(RAS > 10, RAS, np.nan)), "NaN or infinite value"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(
    tmp_path: Path, write_dicom: Write, case: str, recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    make, words = REFUSED[case]
    path = make(tmp_path, write_dicom)
    recwarn.clear()
    capfd.readouterr()
    with pytest.raises(BadInput, match=words) as caught:
        read_slices(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) - len(str(path)) < 250
    assert not [w for w in recwarn.list if w.category is not ResourceWarning], "a second line on the terminal"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("package", "name"), [("pydicom", "a.dcm"), ("nibabel", "a.nii"), ("nibabel", "a.nii.gz")])
def test_a_package_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).touch()
    with pytest.raises(
        BadInput, match=rf"{name} takes the package {package} to read: pip install 'invdiff\[medical\]'"
    ):
        read_slices(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"slices": -1}, "from 0 on, got -1"),
        ({"slices": []}, r"got \[\]"),
        ({"slices": [1, 1]}, "different"),
        ({"slices": "some"}, "an index, a list of them or all, got some"),
        ({"plane": "oblique"}, "axial, coronal, sagittal, got oblique"),
        ({"window": (40, 0)}, "width above 0"),
        ({"window": (40,)}, r"\[centre, width\]"),
    ],
)
def test_choices_that_cannot_be(options: dict, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Slicing(**options)
