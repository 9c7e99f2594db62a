"""Raw k-space from HDF5 files, as fastMRI lays it out.

Spec    Datasets `kspace`, complex (slices, coils, H, W) or, of one coil, (slices, H, W); `mask`, where some of it was
        sampled, (W,), (H, W) or (slices, H, W); coil sensitivities, (slices, coils, H, W) or (coils, H, W). The centre
        of k-space lies in the middle and the readout runs along H.
Paper   fastMRI: Zbontar et al. (2018), arXiv:1811.08839. Maps from images of low resolution: McKenzie et al. (2002),
        doi:10.1002/mrm.10087; with a Hann window.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from invdiff.files import BadInput, as_measured
from invdiff.files.hdf5 import dataset, opened, without_pairs
from invdiff.io.ismrmrd import is_ismrmrd, read_ismrmrd
from invdiff.io.measurement import Measurement
from invdiff.io.slicing import Slicing
from invdiff.io.volumes import names_of
from invdiff.operators.mri.kspace import CENTRED, Convention, from_kspace, to_kspace
from invdiff.shapes import describe_shape

# What others call the sensitivity maps.
_MAPS = ("maps", "sens_maps", "sensitivity_maps", "sensitivities", "s_maps", "smaps")

# Fully sampled scans have zeros too, in margins that were filled up; no undersampled scan has so few.
FULL = 2 / 3


def is_kspace(path: Path) -> bool:
    """Whether an HDF5 file holds raw k-space in the layout that `read_kspace` takes."""
    with opened(path) as file:
        return dataset(file, "kspace") is not None or is_ismrmrd(file)


def read_kspace(
    path: Path, slicing: Slicing, parameters: Collection[str], size: int | None = None, *, of_coils: bool = False
) -> Measurement:
    """Slices of k-space, complex64 (B, coils, H, W), in a unit that makes images of them lie about in [0, 1].

    Each is divided by the maximum of its own zero-filled root-sum-of-squares image, so that what comes out of a slice
    does not depend on which others are read. The noise level is in this unit. (A percentile is common, but too small
    here: with the 99th, brains sampled fourfold reach twice the range that the priors know, with the maximum 1.2.)

    mask  without such a dataset, k-space of which more than a third is zero was sampled where it is not; with fewer
          zeros there is none in the result
    maps  without such a dataset they are estimated: `estimate_maps`
    size  the image of size x size pixels and the field of view of the lines: the readout is cropped (or padded) to it
          and only the centre of k-space is kept
    of_coils  three axes are (coils, H, W) of one slice, and not (slices, H, W) of one coil
    """
    with opened(path) as file:
        stored = dataset(file, "kspace")
        stored = read_ismrmrd(file, path) if stored is None else stored  # as `is_kspace` found
        shape = stored.shape[:-1] if _in_pairs(stored) else stored.shape
        if len(shape) not in (2, 3, 4) or 0 in shape:
            raise BadInput(
                f"kspace must be (slices, coils, H, W) or (slices, H, W): {path} has {describe_shape(shape)}"
            )
        of_coils = of_coils and len(shape) == 3
        count = 1 if len(shape) == 2 or of_coils else len(stored)
        indices = slicing.choose(count, path)
        # One by one: HDF5 wants indices in order, and reading all would take gigabytes.
        y = torch.stack([_complex(stored[()] if count == 1 and len(shape) < 4 else stored[i], path) for i in indices])
        y = y.reshape(len(indices), -1, *y.shape[-2:])
        sampled = dataset(file, "mask")
        mask = None if sampled is None else torch.from_numpy(as_measured(sampled[()], f"mask of {path}"))
        named = next((name for name in _MAPS if dataset(file, name) is not None), None)
        maps = None
        if named is not None and "maps" in parameters:
            whole = dataset(file, named)
            assert whole is not None
            per_slice = whole.ndim - _in_pairs(whole) == 4 and len(whole) == count
            maps = torch.stack([_complex(whole[i], path) for i in indices]) if per_slice else _complex(whole[()], path)
            maps = maps.reshape(-1, *maps.shape[-3:])
    notes = slicing.notes(count, path)
    if of_coils:
        notes.append(f"{path}: kspace is {describe_shape(shape)}, read as one slice of {y.shape[1]} coil(s)")
    if mask is None:
        mask = sampled_positions(y)
        mask = mask if mask.float().mean() < FULL else None
    else:
        mask = _checked_mask(mask, indices, count, y, path)
        y = torch.where(mask, y, 0)
    if not y.isfinite().all():
        raise BadInput(f"k-space holds {int((~y.isfinite()).sum())} NaN or infinite value(s): {path}")
    if maps is not None and (maps.shape[1:] != y.shape[1:] or len(maps) not in (1, len(y))):
        raise BadInput(
            f"{named} is {describe_shape(maps.shape)}, kspace {describe_shape(y.shape)} (slices, coils, H, W): {path}"
        )
    if size is not None:
        y, mask, maps = _reduced(y, mask, maps, size, path)
    scale = torch.stack([from_kspace(one).abs().square().sum(0).max().sqrt() for one in y])
    if not (scale > 0).all():
        dark = [i for i, s in zip(indices, scale, strict=True) if not s > 0]
        raise BadInput(f"slice {dark[0]} holds no signal: {path}; volume.slices= takes others")
    y = y / scale[:, None, None, None]
    found_parameters, more = _parameters(y, mask, maps, parameters, path)
    units = ", ".join(f"{s:.4g}" for s in scale[:4]) + (", ..." if len(scale) > 4 else "")
    notes += [*more, f"{path}: divided by {units}, so that images are about in [0, 1]; noise levels count in that unit"]
    return Measurement(y, found_parameters, names_of(path, indices, count), [(s, 0.0) for s in scale.tolist()], notes)


def estimate_maps(y: Tensor, lines: int) -> Tensor:
    """Coil sensitivities (B, coils, H, W) from the centre of k-space, as many lines along H and W.

    The coils' images of low resolution over their root sum of squares, so that sum_c |S_c|^2 = 1. They keep the phase
    of the object: what is left for the image is real, but for phase of high resolution, even with one coil.
    """
    height, width = y.shape[-2:]
    window = _hann(height, lines)[:, None] * _hann(width, lines)
    low = from_kspace(y * window)
    return low / low.abs().square().sum(1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)


def _hann(length: int, lines: int) -> Tensor:
    """A window of this many lines about the middle, zero outside."""
    k = torch.arange(length) - length // 2
    return torch.where(k.abs() < lines / 2, torch.cos(torch.pi * k / lines) ** 2, 0)


def _in_pairs(array: Any) -> bool:
    """Whether real and imaginary parts are a last axis of real numbers."""
    return array.dtype.kind == "f" and array.ndim > 2 and array.shape[-1] == 2


def _complex(array: np.ndarray, path: Path) -> Tensor:
    array = without_pairs(array)
    if _in_pairs(array):
        array = array[..., 0] + 1j * array[..., 1]
    if array.dtype.kind != "c":
        raise BadInput(f"k-space and maps must be complex: {path} holds {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.complex64))


def sampled_positions(y: Tensor) -> Tensor:
    """Where any coil has a value, bool (B, 1, H, W), rounded to whole lines; NaN is no value."""
    y = torch.where(y.isnan(), 0, y)
    sampled = (y != 0).any(1, keepdim=True)
    lines = sampled.any(-2, keepdim=True).expand_as(sampled)
    if sampled.sum() > 0.9 * lines.sum():  # a sample that is zero by chance is a sample all the same
        sampled = lines
    return sampled


def _checked_mask(mask: Tensor, indices: list[int], count: int, y: Tensor, path: Path) -> Tensor:
    """(W,), (H, W) or (B, 1, H, W)."""
    size = tuple(y.shape[-2:])
    shape = tuple(mask.shape)
    if shape == (size[1],) or shape == size:
        return mask
    if mask.numel() == size[1] and size[1] in shape:
        return mask.flatten()
    if mask.dim() == 3 and shape[1:] in (size, (1, size[1])) and shape[0] in (1, count):
        chosen = mask if shape[0] == 1 else mask[torch.tensor(indices)]
        return chosen[:, None].expand(-1, 1, *size)
    raise BadInput(f"the mask is {describe_shape(shape)}, k-space {describe_shape(size)}: {path}")


def _parameters(
    y: Tensor, mask: Tensor | None, maps: Tensor | None, wanted: Collection[str], path: Path
) -> tuple[dict[str, Tensor], list[str]]:
    found, notes = {}, []
    if "mask" in wanted and mask is not None:
        found["mask"] = mask
        fraction = float(mask.float().mean())
        notes.append(f"{path}: {fraction:.0%} of k-space is sampled; the operator takes this mask")
    if "maps" in wanted:
        if maps is None:
            maps, note = estimated_maps(y, mask, path)
            notes.append(note)
        found["maps"] = maps
    return found, notes


def estimated_maps(y: Tensor, mask: Tensor | None, path: Path, convention: Convention = CENTRED) -> tuple[Tensor, str]:
    """Coil maps by `estimate_maps` from the lines that are fully sampled, and a note on it. Raises BadInput for few.

    convention  that y and mask are laid out by
    """
    if convention != CENTRED:
        y = to_kspace(from_kspace(y, convention))
        if mask is not None and not convention.kspace_centred:
            mask = torch.fft.fftshift(mask, (-2, -1) if mask.dim() > 1 else -1)
    lines = _calibration(y, mask)
    if lines < 4:
        raise BadInput(
            f"no coil maps in {path}, and {lines} full line(s) in the centre are too few to estimate "
            "them; operator.maps= takes a file"
        )
    return estimate_maps(y, lines), f"{path}: coil maps estimated from {lines} lines in the centre of k-space"


def _calibration(y: Tensor, mask: Tensor | None) -> int:
    """How many lines about the centre are fully sampled in all slices, at most 32: sensitivities are smooth."""
    height, width = y.shape[-2:]
    most = min(32, height, width)
    if mask is None:
        return most
    sampled = (mask.all(0)[0] if mask.dim() == 4 else mask).expand(height, width)
    half = 0
    while 2 * (half + 1) <= most:
        wider = half + 1
        rows = slice(height // 2 - wider, height // 2 + wider)
        if not sampled[rows, width // 2 - wider : width // 2 + wider].all():
            break
        half = wider
    return 2 * half


_Parts = tuple[Tensor, Tensor | None, Tensor | None]


def _reduced(y: Tensor, mask: Tensor | None, maps: Tensor | None, size: int, path: Path) -> _Parts:
    """y, mask and maps of an image of size x size pixels, with values like those of the large one."""
    height, width = y.shape[-2:]
    if size > width:
        raise BadInput(f"size={size} is more than the {width} lines of k-space: {path}")
    if height != width:
        lines = mask if mask is None or mask.dim() == 1 else _as_lines(mask)
        if mask is not None and lines is None:
            raise BadInput(
                f"size= takes k-space sampled in whole lines, or of equal sides, not {height}x{width}: {path}"
            )
        # Along the readout everything is sampled: its field of view can be changed line by line.
        along = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(y, -2), dim=-2, norm="ortho"), -2)
        along = _middle(along, width, -2)
        y = torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(along, -2), dim=-2, norm="ortho"), -2)
        mask = lines
        maps = None if maps is None else _middle(maps, width, -2)
    y = _middle(_middle(y, size, -1), size, -2) * (size / width)
    if mask is not None:
        mask = _middle(mask, size, -1)
        mask = mask if mask.dim() == 1 or mask.shape[-2] == 1 else _middle(mask, size, -2)
    return y, mask, None if maps is None else _resampled(maps, size)


def _resampled(maps: Tensor, size: int) -> Tensor:
    """Square maps at the pixels of the small image, whose origin is that of the large one."""
    width = maps.shape[-1]
    at = (torch.arange(size) - size // 2) * (width / size) + width // 2
    at = 2 * at / (width - 1) - 1
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).expand(len(maps), -1, -1, -1)
    pair = torch.cat([maps.real, maps.imag], 1)
    pair = functional.grid_sample(pair, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return torch.complex(*pair.chunk(2, 1))


def _as_lines(mask: Tensor) -> Tensor | None:
    """A mask without its readout axis, (W,) or (B, 1, 1, W), None where it differs along it."""
    lines = mask[..., :1, :]
    if not (mask == lines).all():
        return None
    return lines.flatten() if mask.dim() == 2 else lines


def _middle(x: Tensor, length: int, axis: int) -> Tensor:
    """As much about the origin, n // 2, of this axis; zeros where it is shorter."""
    before = x.shape[axis] // 2 - length // 2
    if before >= 0:
        return x.narrow(axis, before, length)
    after = length - x.shape[axis] + before
    ends = (-before, after) if axis == -1 else (0, 0, -before, after)
    return functional.pad(x, ends)
