"""Where images lie in the patient: read from NIfTI and DICOM, kept through crops and sizes, written as NIfTI.

Spec    NIfTI-1: the affine maps indices of the array to millimetres, right-anterior-superior; DICOM PS3.3 C.7.6.2: the
        position of the first pixel, directions of rows and columns, left-posterior-superior, and spacings.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from invdiff.files.errors import BadInput, optional, reading
from invdiff.io.formats import is_dicom, is_nifti
from invdiff.io.images import image_files
from invdiff.io.slicing import Slicing
from invdiff.io.volumes import axis_of


@dataclass(frozen=True)
class Place:
    """Where an image (H, W) lies.

    affine  4 x 4: (row, column, 0, 1) -> millimetres, right-anterior-superior; its third column is the step to the next
            slice of the volume
    shape   (H, W)
    """

    affine: np.ndarray
    shape: tuple[int, int]

    def seen_with(self, shape: tuple[int, int]) -> "Place":
        """The same image with other pixels: resized as `square` does, then the centre of this shape."""
        scale = max(new / old for old, new in zip(self.shape, shape, strict=True))
        whole = [max(new, round(old * scale)) for old, new in zip(self.shape, shape, strict=True)]
        step = [old / new for old, new in zip(self.shape, whole, strict=True)]
        first = [(w - new) // 2 for w, new in zip(whole, shape, strict=True)]
        corner = [(f + 0.5) * s - 0.5 for f, s in zip(first, step, strict=True)]
        change = np.diag([*step, 1.0, 1.0])
        change[:2, 3] = corner
        return Place(self.affine @ change, shape)


@dataclass(frozen=True)
class Volume:
    """How images (B, C, H, W) become a volume: its affine, and what brings each image into the unit of its file.

    scale, offset  numbers, or one for each image
    """

    affine: np.ndarray = field(default_factory=lambda: np.eye(4))
    scale: Any = 1.0
    offset: Any = 0.0


def places_of(source: str | Path | Sequence[str], slicing: Slicing) -> list[Place]:
    """Where the images of a file or folder lie, in the order of `read_slices`; none where one of them has no place."""
    found: list[Place] = []
    for path in image_files(source):
        here = _of_nifti(path, slicing) if is_nifti(path) else _of_dicom(path) if is_dicom(path) else []
        if not here:
            return []
        found += here
    return found


def stacked(places: Sequence[Place]) -> np.ndarray:
    """The affine of a volume (H, W, slices) of these images.

    Raises BadInput where they do not lie behind each other at equal distances.
    """
    first = places[0].affine
    affine = first.copy()
    if len(places) > 1:
        affine[:, 2] = places[1].affine[:, 3] - first[:, 3]
    for k, place in enumerate(places):
        wanted = first[:, 3] + k * affine[:, 2]
        apart = np.abs(place.affine[:, 3] - wanted).max() + np.abs(place.affine[:, :2] - first[:, :2]).max()
        if apart > 0.01 * np.linalg.norm(first[:, 0]):
            raise BadInput(
                "save.format=nii needs slices behind each other at equal distances; set volume.slices=, or use tif"
            )
    return affine


def write_nifti(file: BinaryIO, images: np.ndarray, volume: Volume, *, spread: bool = False) -> None:
    """Images (B, C, H, W) as float32 (H, W, B), or (H, W, B, C) where there are channels, in the unit of their files.

    spread  they are standard deviations, to which no offset is added
    """
    import nibabel

    scale, offset = (np.reshape(np.asarray(n, float), (-1, 1, 1, 1)) for n in (volume.scale, volume.offset))
    values = images * scale[: len(images)] + (0 if spread else offset[: len(images)])
    values = values.transpose(2, 3, 0, 1)
    image = nibabel.Nifti1Image((values[..., 0] if values.shape[-1] == 1 else values).astype(np.float32), volume.affine)
    image.header.set_xyzt_units("mm")
    file.write(gzip.compress(image.to_bytes(), mtime=0))


def _of_nifti(path: Path, slicing: Slicing) -> list[Place]:
    nibabel = optional("nibabel", path)
    with reading(path, "NIfTI"):
        file = nibabel.load(path)
        shape = (*file.shape[:3], *[1] * (3 - len(file.shape)))
        turned = nibabel.io_orientation(file.affine)
        affine = file.affine @ nibabel.orientations.inv_ornt_aff(turned, shape)
    sides = [shape[int(np.flatnonzero(turned[:, 0] == k)[0])] for k in range(3)]
    axis = axis_of(sides, slicing)
    across, up = (k for k in range(3) if k != axis)
    found = []
    for index in slicing.choose(sides[axis], path):
        indices = np.zeros((4, 4))  # of the volume, from (row, column, 0, 1): rows go down, columns to the left
        indices[up, 0] = indices[across, 1] = -1
        indices[axis, 2] = indices[3, 3] = 1
        indices[:3, 3] = [index if k == axis else sides[k] - 1 for k in range(3)]
        found.append(Place(affine @ indices, (sides[up], sides[across])))
    return found


def _of_dicom(path: Path) -> list[Place]:
    """Of a file with one frame; those of several state their places frame by frame, in ways that differ."""
    pydicom = optional("pydicom", path)
    with reading(path, "DICOM"):
        tags = pydicom.dcmread(path, stop_before_pixels=True)
        needed = [tags.get(name) for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")]
        if int(tags.get("NumberOfFrames") or 1) > 1 or not all(needed):
            return []
        corner, directions, spacing = (np.array(value, float) for value in needed)
        along_row, along_column = directions[:3], directions[3:]
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = along_column * spacing[0], along_row * spacing[1]
        affine[:3, 2] = np.cross(along_row, along_column) * float(tags.get("SliceThickness") or 1)
        affine[:3, 3] = corner
        return [Place(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, (int(tags.Rows), int(tags.Columns)))]
