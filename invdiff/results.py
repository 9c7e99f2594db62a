"""The files of a reconstruction: which there are, and how each is written."""

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from torch import Tensor

from invdiff.benchmark.pictures import rms
from invdiff.io import write_image
from invdiff.io.output import Output, file_stem
from invdiff.io.placement import Volume, write_nifti
from invdiff.posterior import Posterior

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Format = Literal["png", "npz", "npy", "tif", "nii"]
FORMATS: tuple[Format, ...] = ("png", "npz")
PREVIEW = "preview.png"
SAMPLES = "samples"  # the folder of single samples
_PICTURES = ("png", "tif")  # a file for each picture; the others hold all images


def files_of(names: Sequence[str], num_samples: int, formats: Sequence[Format]) -> list[str]:
    """All files that a reconstruction may have, relative to its folder. Raises ValueError for an unknown format."""
    for one in formats:
        if one not in get_args(Format):
            raise ValueError(f"a format of results must be one of {', '.join(get_args(Format))}, got {one!r}")
    files = ["metrics.json", "comparison.png"]
    files += ["samples.npz"] if "npz" in formats else []
    files += ["samples.npy", "mean.npy", "std.npy"] if "npy" in formats else []
    files += ["mean.nii.gz", "std.nii.gz"] if "nii" in formats else []
    for suffix in (one for one in formats if one in _PICTURES):
        for name in names:
            files += _files_of_image(name, len(names) == 1, num_samples, suffix).values()
    return files


def _files_of_image(name: str, alone: bool, num_samples: int, suffix: str) -> dict[str, str]:
    """Files of `mean`, `std` and each sample, `0`, of an image; `alone`: the only one."""
    stem = file_stem(name)
    prefix = "" if alone else f"{stem}_"
    samples = {str(s): f"{SAMPLES}/{stem}_{s:03d}.{suffix}" for s in range(num_samples)}
    return {"mean": f"{prefix}mean.{suffix}", "std": f"{prefix}std.{suffix}", **samples}


def write_pictures(
    output: Output,
    found: Posterior,
    names: Sequence[str],
    *,
    alone: bool,
    value_range: tuple[float, float],
    formats: Sequence[Format],
) -> None:
    """Mean, std and samples of these images, which are not written yet; without those that diverged.

    names  of the images of `found`
    alone  they are the only image of the run
    """
    from invdiff.report.comparison import save_map  # matplotlib is slow to import

    low, high = value_range
    for i, name in enumerate(names):
        sound = {str(s): x for s, x in enumerate(found.samples[i]) if not found.diverged[i, s]}
        means = {"mean": found.mean[i]} if found.mean[i].isfinite().all() else {}
        stds = {"std": found.std[i]} if found.std[i].isfinite().all() else {}
        values = means | stds | sound
        for suffix in (one for one in formats if one in _PICTURES):
            for what, file in _files_of_image(name, alone, found.samples.shape[1], suffix).items():
                if what not in values or output.has(file):
                    continue
                with output.written(file) as place:
                    if suffix == "tif":
                        _write_tif(place, values[what])
                    elif what == "std":
                        save_map(rms(values[what]), place)
                    else:
                        write_image(place, (values[what] - low) / (high - low))


def named_pictures(stem: str) -> tuple[str, str]:
    """Files of the mean and the standard deviation of the only image, named after its photograph."""
    return f"{stem}_restored.png", f"{stem}_uncertainty.png"


def write_named_pictures(output: Output, found: Posterior, stem: str, value_range: tuple[float, float]) -> None:
    """Write `named_pictures` of the only image; the second one needs two samples."""
    from invdiff.report.comparison import save_map

    low, high = value_range
    restored, uncertainty = named_pictures(stem)
    if found.mean.isfinite().all():
        with output.written(restored) as place:
            write_image(place, (found.mean[0] - low) / (high - low))
    if found.std.isfinite().all():
        with output.written(uncertainty) as place:
            save_map(rms(found.std[0]), place)


def _write_tif(file: Any, image: Tensor) -> None:
    """(C, H, W) as float32, in image units: colour as RGB, other numbers of channels as pages."""
    import tifffile  # slow to import

    array = image.float().numpy()
    if len(array) == 3:
        tifffile.imwrite(file, array.transpose(1, 2, 0), photometric="rgb")
    else:
        tifffile.imwrite(file, array.squeeze(0) if len(array) == 1 else array, photometric="minisblack")


def write_results(
    output: Output,
    arrays: Mapping[str, Tensor],
    names: Sequence[str],
    scores: Mapping[str, Any],
    figure: "Figure",
    formats: Sequence[Format],
    volume: Volume,
) -> None:
    """What is written of all images: arrays, metrics.json, comparison.png."""
    from invdiff.report.comparison import save_figure

    saved: dict[str, Any] = {name: tensor.numpy() for name, tensor in arrays.items()}
    if "npz" in formats:
        with output.written("samples.npz", durable=True) as file:
            np.savez_compressed(file, names=np.array(names), **saved)
    if "npy" in formats:
        for name in ("samples", "mean", "std"):
            with output.written(f"{name}.npy", durable=True) as file:
                np.save(file, saved[name], allow_pickle=False)
    if "nii" in formats:
        for name in ("mean", "std"):
            with output.written(f"{name}.nii.gz", durable=True) as file:
                write_nifti(file, saved[name], volume, spread=name == "std")
    drawn = BytesIO()
    save_figure(figure, drawn)
    output.write("comparison.png", drawn.getvalue())
    output.write("metrics.json", (json.dumps(scores, indent=2, allow_nan=False) + "\n").encode())
