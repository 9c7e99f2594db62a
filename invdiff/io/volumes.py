"""Images from DICOM and NIfTI files, as grey levels in [0, 1].

Spec    DICOM PS3.3: modality transform C.11.1, window C.11.2.1.2, padding C.7.5.1.1.2; NIfTI-1 with the affine of its
        sform or qform. Slices of NIfTI look as in a viewer, in the radiological convention: the patient's right at the
        left, anterior (axial) or superior (coronal, sagittal) on top; sagittal slices face left. They are not
        resampled: an oblique volume is cut along its own axes, the ones nearest to the patient's.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from invdiff.files import BadInput, check_size, must_be_a_file, optional, read_levels, reading
from invdiff.files.pictures import picture_size, to_unit
from invdiff.io.formats import is_dicom, is_nifti, stem
from invdiff.io.slicing import Slicing

# The axis along which a volume stored right-anterior-superior is cut.
_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}

CHUNK = 2**20  # bytes that are inflated at once to be counted
EXTENSIONS = 2**24  # bytes that may lie before the voxels of NIfTI


@dataclass(frozen=True)
class Slices:
    """Images out of one file.

    images  float32 [H, W, C] in [0, 1], C = 1 (grey) or 3 (colour)
    names   one for each, without the folder
    notes   what a user should know of what was chosen, a line each
    units   (scale, offset) of each: image * scale + offset has the unit of the file, such as HU; None: no such rule
    """

    images: list[np.ndarray]
    names: list[str]
    notes: list[str]
    units: list[tuple[float, float] | None]


def read_image(path: str | Path) -> np.ndarray:
    """One image file as float32 [H, W, C] in [0, 1]: a picture (`read_picture`), or the middle slice of a volume."""
    return read_slices(path).images[0]


def read_slices(path: str | Path, slicing: Slicing | None = None, *, measured: bool = False) -> Slices:
    """The chosen images of a picture, a DICOM or a NIfTI file.

    measured  they are a measurement: pictures of floats are taken as they are, whatever their range
    """
    path, slicing = Path(path), slicing or Slicing()
    must_be_a_file(path, "an image")
    if is_nifti(path):
        return _read_nifti(path, slicing)
    if is_dicom(path):
        return _read_dicom(path, slicing)
    return _read_picture(path, slicing, measured)


def read_files(paths: Sequence[Path], slicing: Slicing | None = None, *, measured: bool = False) -> Slices:
    """The chosen images of several files, as of `read_slices`; equal names get a suffix each."""
    found = [read_slices(path, slicing, measured=measured) for path in paths]
    names = [name for slices in found for name in slices.names]
    if len(set(names)) < len(names):  # a folder may hold a.png and a.jpg
        names = [f"{p.name}{n.removeprefix(stem(p))}" for p, s in zip(paths, found, strict=True) for n in s.names]
    return Slices(
        [image for slices in found for image in slices.images],
        names,
        [note for slices in found for note in slices.notes],
        [unit for slices in found for unit in slices.units],
    )


def _read_picture(path: Path, slicing: Slicing, measured: bool) -> Slices:
    values, full = read_levels(path)
    low, high, notes = 0.0, 1.0 if full is None else float(full), []
    if slicing.limits is not None:
        low, high = slicing.limits
        if not measured and not np.isfinite(values).all():
            raise BadInput(f"the image holds NaN or infinity: {path}")
        image = _to_grey(values, low, high)
        notes.append(_black_and_white(path, low, high, "window"))
    else:
        image = values if measured and full is None else to_unit(values, full, path)
        white = 2 ** int(values.max()).bit_length() - 1 if full == 65535 else 65535
        if white < 2**14 and values.max() > 0:  # a camera of 12 or 14 bits, or a scanner
            notes.append(
                f"{path}: the brightest value is {values.max():.0f} of {full}; if {white} is white, give "
                f"volume.window=[{white / 2:g},{white}]"
            )
    return Slices([image], [stem(path)], notes, [(high - low, low)])


def by_size(files: Sequence[Path]) -> dict[tuple[int, int], list[int]]:
    """The places in a list of image files by (H, W) of their images; of pictures only the headers are read."""
    found: dict[tuple[int, int], list[int]] = {}
    for i, path in enumerate(files):
        if is_nifti(path) or is_dicom(path):
            height, width = read_image(path).shape[:2]
        else:
            height, width = picture_size(path)
        found.setdefault((height, width), []).append(i)
    return found


def names_of(path: Path, indices: list[int], count: int) -> list[str]:
    return [stem(path)] if count == 1 else [f"{stem(path)}_{i:03d}" for i in indices]


def _to_grey(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values - low) / (high - low), 0, 1, dtype=np.float32)


def _range(values: np.ndarray, path: Path) -> tuple[float, float]:
    """Smallest and largest value; they show black and white where no window is known."""
    low, high = float(values.min()), float(values.max())
    if not high > low:
        raise BadInput(f"all values are {low:g}: {path}; volume.window=[centre, width] sets black and white")
    return low, high


def _black_and_white(path: Path, low: float, high: float, why: str) -> str:
    return f"{path}: black is {low:.6g}, white {high:.6g} ({why}); volume.window=[centre, width] sets others"


# -- DICOM -------------------------------------------------------------------------------------------------------------


def _read_dicom(path: Path, slicing: Slicing) -> Slices:
    pydicom, pixels = optional("pydicom", path), optional("pydicom.pixels", path)
    with reading(path, "DICOM"):
        _check_deflated(path, pydicom)
        dataset = pydicom.dcmread(path)
        if "Rows" not in dataset:
            raise BadInput(f"the DICOM file holds no image: {path}")
        kind = str(dataset.PhotometricInterpretation)
        coding = dataset.file_meta.TransferSyntaxUID
        if coding.is_compressed and not pixels.get_decoder(coding).is_available:
            raise BadInput(f"{path} is compressed as {coding.name}, decode it with: pip install 'pylibjpeg[all]'")
        count = int(dataset.get("NumberOfFrames") or 1)
        check_size(4 * count * dataset.Rows * dataset.Columns * dataset.SamplesPerPixel, path)
        try:
            stored = pixels.pixel_array(dataset)  # YCbCr comes as RGB
        except RuntimeError as error:  # pydicom lists the reason of every plug-in below a first line without one
            reasons = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
            reason = reasons[0] if reasons else str(error)
            raise BadInput(f"{path}, compressed as {coding.name}, cannot be decoded ({reason[:120]})") from error
        stored = stored.reshape(count, dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)
        indices, notes = slicing.choose(count, path), slicing.notes(count, path)
        if dataset.SamplesPerPixel == 3 and kind.startswith(("RGB", "YBR")):
            white = float(2**dataset.BitsStored - 1)
            images = [stored[i].astype(np.float32) / np.float32(white) for i in indices]
            units: list[tuple[float, float] | None] = [(white, 0.0)] * len(images)
        elif dataset.SamplesPerPixel == 1 and kind in ("MONOCHROME1", "MONOCHROME2"):
            images, levels, units = _grey_frames(stored[..., 0], indices, dataset, path, slicing, pixels)
            notes += levels
        else:
            raise BadInput(f"unsupported kind of DICOM image: {path} ({kind}); save it as grey or RGB")
    return Slices(images, names_of(path, indices, count), notes, units)


def _check_deflated(path: Path, pydicom: ModuleType) -> None:
    """Raise BadInput for a bomb: pydicom inflates a whole data set before any of its sizes can be read."""
    with path.open("rb") as file:
        file.seek(132)
        meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        if meta.get("TransferSyntaxUID") != pydicom.uid.DeflatedExplicitVRLittleEndian:
            return
        inflating, size, more = zlib.decompressobj(-zlib.MAX_WBITS), 0, file.read()
        while more and not inflating.eof:
            size += len(inflating.decompress(more, CHUNK))
            more = inflating.unconsumed_tail
            check_size(size, path)


def _grey_frames(
    stored: np.ndarray, indices: list[int], dataset: Any, path: Path, slicing: Slicing, pixels: ModuleType
) -> tuple[list[np.ndarray], list[str], list[tuple[float, float] | None]]:
    padded = _padding(stored, dataset)
    if padded.all():
        raise BadInput(f"the DICOM image is all padding: {path}")
    rules = [_functions(dataset, i, "FrameVOILUT", "WindowWidth") for i in indices]
    whole = slicing.window is None and None in rules  # the range of the file, so that its frames stay comparable
    values = {i: _in_units(stored[i], dataset, i, pixels) for i in (range(len(stored)) if whole else indices)}
    if not all(np.isfinite(frame).all() for frame in values.values()):
        raise BadInput(f"the image holds NaN or infinity: {path}")
    if whole:
        low_high = _range(np.concatenate([frame[~padded[i]] for i, frame in values.items()]), path)
    images, notes, units = [], [], []
    for i, rule in zip(indices, rules, strict=True):
        sigmoid = not whole and slicing.window is None and rule.get("VOILUTFunction") == "SIGMOID"
        low, high = low_high if whole else slicing.limits or _limits(rule, path)
        image = _sigmoid(values[i], low, high) if sigmoid else _to_grey(values[i], low, high)
        if dataset.PhotometricInterpretation == "MONOCHROME1":  # low values are white
            image, low, high = 1 - image, high, low
        images.append(np.where(padded[i], np.float32(0), image)[..., None])
        units.append(None if sigmoid else (high - low, low))
        notes.append(_black_and_white(path, low, high, "smallest and largest value" if whole else "window"))
    return images, list(dict.fromkeys(notes)), units


def _padding(stored: np.ndarray, dataset: Any) -> np.ndarray:
    """Where a stored value only fills the rectangle about a round field of view."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, bool)
    last = dataset.get("PixelPaddingRangeLimit", first)
    return (stored >= min(first, last)) & (stored <= max(first, last))


def _functions(dataset: Any, frame: int, name: str, wanted: str) -> Any:
    """What holds the attribute `wanted` of a frame: its own functional group, the shared one, or the file; or None."""
    for groups, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        if groups in dataset and len(dataset[groups].value) > index:
            inner = dataset[groups].value[index].get(f"{name}Sequence")
            if inner and inner[0].get(wanted) is not None:
                return inner[0]
    return dataset if dataset.get(wanted) is not None else None


def _in_units(stored: np.ndarray, dataset: Any, frame: int, pixels: ModuleType) -> np.ndarray:
    """Stored values in the unit of the file, such as HU."""
    if "ModalityLUTSequence" in dataset:
        return pixels.apply_modality_lut(stored, dataset).astype(np.float64)
    rule = _functions(dataset, frame, "PixelValueTransformation", "RescaleSlope")
    if rule is None:
        return stored.astype(np.float64)
    return stored.astype(np.float64) * float(rule.RescaleSlope) + float(rule.RescaleIntercept)


def _limits(rule: Any, path: Path) -> tuple[float, float]:
    """What the window of the file shows black and white, of its first window where it has several."""
    centre, width = (
        float(v if isinstance(v, (int, float, str)) else v[0]) for v in (rule.WindowCenter, rule.WindowWidth)
    )
    if not width > 0:
        raise BadInput(f"the window is {width:g} wide: {path}; volume.window=[centre, width] sets another")
    if (
        rule.get("VOILUTFunction", "LINEAR") == "LINEAR"
    ):  # from the middle of the first whole number to that of the last
        centre, width = centre - 0.5, max(width - 1, 1e-6)
    return centre - width / 2, centre + width / 2


def _sigmoid(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return (1 / (1 + np.exp(-4 * (values - (low + high) / 2) / (high - low)))).astype(np.float32)


# -- NIfTI -------------------------------------------------------------------------------------------------------------


def _read_nifti(path: Path, slicing: Slicing) -> Slices:
    nibabel = optional("nibabel", path)
    with reading(path, "NIfTI"):
        _check_extensions(path)
        file = nibabel.load(path)
        shape = file.shape
        check_size(8 * math.prod(int(n) for n in shape), path)
        if len(shape) < 2 or any(n > 1 for n in shape[3:]) or 0 in shape:
            raise BadInput(
                f"a NIfTI file must hold one volume: {path} is {'x'.join(map(str, shape))}; save the one you want"
            )
        if file.get_data_dtype().kind not in "iuf":
            raise BadInput(f"a NIfTI file must hold real numbers: {path} holds {file.get_data_dtype()}")
        oriented = bool(file.header["sform_code"] or file.header["qform_code"])
        # With the axes first that the orientation knows; a flat image has a third one of length 1.
        flat = np.asarray(file.dataobj).reshape(*shape[:3], *[1] * (3 - len(shape)))
        volume = nibabel.as_closest_canonical(nibabel.Nifti1Image(flat, file.affine, file.header))
        values, spacing = np.asarray(volume.dataobj), nibabel.affines.voxel_sizes(volume.affine)
        low, high = float(file.header["cal_min"]), float(file.header["cal_max"])
    if not np.isfinite(values).all():
        raise BadInput(f"the volume holds {int((~np.isfinite(values)).sum())} NaN or infinite value(s): {path}")
    axis = axis_of(values.shape, slicing)
    why = "window"
    if slicing.limits is not None:
        low, high = slicing.limits
    elif not high > low:
        (low, high), why = _range(values, path), "smallest and largest value"
    count = values.shape[axis]
    indices = slicing.choose(count, path)
    images = [_to_grey(values.take(i, axis)[::-1, ::-1].T, low, high)[..., None] for i in indices]
    notes = [*slicing.notes(count, path), _black_and_white(path, low, high, why)]
    if not oriented:
        notes.append(f"{path}: the file does not say how the volume lies; taken as left-anterior-superior")
    sides = [float(spacing[k]) for k in range(3) if k != axis]
    if max(sides) > 1.05 * min(sides):
        notes.append(
            f"{path}: pixels are not square, {sides[1]:.3g} x {sides[0]:.3g} mm; resample the volume if it matters"
        )
    return Slices(images, names_of(path, indices, count), notes, [(high - low, low)] * len(images))


def axis_of(shape: Sequence[int], slicing: Slicing) -> int:
    """The axis along which a volume stored right-anterior-superior is cut."""
    single = [axis for axis in range(3) if shape[axis] == 1]
    return single[0] if len(single) == 1 else _AXES[slicing.plane]  # one slice can be cut in one way only


def _check_extensions(path: Path) -> None:
    """Raise BadInput where what lies before the voxels, which nibabel reads whole, is large: of a bomb, say."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        header = file.read(540)
    for order in "<>":
        if header[:4] == struct.pack(f"{order}i", 348) and len(header) > 348:
            start = struct.unpack(f"{order}f", header[108:112])[0]
        elif header[:4] == struct.pack(f"{order}i", 540) and len(header) == 540:
            start = struct.unpack(f"{order}q", header[168:176])[0]
        else:
            continue
        if not start < EXTENSIONS:
            raise BadInput(f"the header of {path} is {start:g} bytes long; {EXTENSIONS} at most are read")
