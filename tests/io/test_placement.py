"""Volumes of results lie where the volumes lie that they are from."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from invdiff.io import BadInput, Slicing, read_slices
from invdiff.io.images import square
from invdiff.io.placement import Volume, places_of, stacked, write_nifti

RNG = np.random.default_rng(0)


def ramp(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """x + 2 y + 3 z in millimetres at each voxel."""
    indices = np.stack([*np.indices(shape), np.ones(shape)])
    return np.tensordot([1.0, 2.0, 3.0], np.tensordot(affine, indices, 1)[:3], 1)


AFFINES = {
    "right-anterior-superior": np.diag([1.5, 1.5, 3.0, 1.0]),
    "left-posterior": np.diag([-1.5, -1.5, 3.0, 1.0]),
    "turned": np.array([[0, 0, 3.0, -7], [-1.5, 0, 0, 20], [0, 1.5, 0, 3], [0, 0, 0, 1]]),
    "oblique": np.array([[1.5, 0.2, 0, 5], [-0.2, 1.5, 0.1, 6], [0, -0.1, 3, 7], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("size", [None, 8, 20])
def test_nifti(tmp_path: Path, name: str, plane: str, size: int | None) -> None:
    """The value of a voxel tells where it lies; read, resized, cropped and written it lies there still."""
    affine, shape = AFFINES[name], (16, 14, 12)
    values = ramp(shape, affine)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), affine), tmp_path / "a.nii.gz")
    slicing = Slicing(slices=[2, 4, 6], plane=plane, window=(0.0, 400.0))
    found = read_slices(tmp_path / "a.nii.gz", slicing)
    images = [image if size is None else square(image, size) for image in found.images]
    places = [place.seen_with(images[0].shape[:2]) for place in places_of(tmp_path / "a.nii.gz", slicing)]
    scale, offset = np.array(found.units).T
    file = io.BytesIO()
    write_nifti(file, np.stack(images).transpose(0, 3, 1, 2), Volume(stacked(places), scale, offset))
    (tmp_path / "b.nii.gz").write_bytes(file.getvalue())
    saved = nibabel.load(tmp_path / "b.nii.gz")
    got, wanted = saved.get_fdata(), ramp(saved.shape, saved.affine)
    inner = (slice(2, -2), slice(2, -2))  # a smaller size is smoothed, which bends the ramp at the edge
    np.testing.assert_allclose(got[inner], wanted[inner], atol=0.7 if size else 0.01)


def test_dicom(tmp_path: Path, write_dicom: Callable[..., Path]) -> None:
    """Of slices that lie behind each other, in the coordinates of nibabel; without a position there is no place."""
    pixels = RNG.integers(0, 100, (6, 8)).astype(np.uint16)
    tags = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [2.0, 0.5], "SliceThickness": 4.0}
    for k in range(3):
        write_dicom(tmp_path / f"{k}.dcm", pixels, ImagePositionPatient=[10, 20, 30 + 5 * k], **tags)
    affine = stacked(places_of(tmp_path, Slicing()))
    row_3_column_2_slice_1 = affine @ [3, 2, 1, 1]
    np.testing.assert_allclose(row_3_column_2_slice_1, [-(10 + 2 * 0.5), -(20 + 3 * 2.0), 35, 1])
    write_dicom(tmp_path / "9.dcm", pixels)
    assert places_of(tmp_path, Slicing()) == []


def test_slices_at_unequal_distances(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(RNG.random((8, 8, 9)), np.eye(4)), tmp_path / "a.nii")
    for slices in ([0, 1, 3], [0, 2, 1]):
        with pytest.raises(BadInput, match="equal distances"):
            stacked(places_of(tmp_path / "a.nii", Slicing(slices=slices)))
    single = stacked(places_of(tmp_path / "a.nii", Slicing(slices=4)))
    np.testing.assert_allclose(single @ [0, 0, 1, 1] - single @ [0, 0, 0, 1], [0, 0, 1, 0])


def test_channels_and_units() -> None:
    images = RNG.random((2, 3, 4, 5))
    for spread, offset in ((False, 7.0), (True, 0.0)):
        file = io.BytesIO()
        write_nifti(file, images, Volume(np.eye(4), scale=[2.0, 3.0], offset=7.0), spread=spread)
        saved = nibabel.Nifti1Image.from_bytes(gzip.decompress(file.getvalue())).get_fdata()
        np.testing.assert_allclose(saved[:, :, 1, 2], 3 * images[1, 2] + offset, rtol=1e-6)
