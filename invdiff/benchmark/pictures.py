"""Small pictures of a reconstruction, for pages: truth, measurement, first guess, samples, uncertainty and error.

Maps are 16-bit grey PNG in units of the value range, white at 1: one fixed scale, so that those of samplers that ran on
different days can be brought to a common one later.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from invdiff.files import opened_picture
from invdiff.io import write_image
from invdiff.io.atomic import write_atomically
from invdiff.posterior import Posterior
from invdiff.problem import InverseProblem

LONGEST = 256  # pixels, the longer side; larger pictures are reduced
MAPS = ("std", "error")
SHARED = ("truth", "measurement", "guess")  # the same for all samplers
PICTURES = (*SHARED, "sample", "mean", *MAPS)
THUMBNAILS = "thumbnails"  # the folder beside the results


@torch.no_grad()
def pictures(
    problem: InverseProblem, truth: Tensor, posterior: Posterior, value_range: tuple[float, float]
) -> list[dict[str, Tensor]]:
    """Of every image of a batch, by the names of `PICTURES`: (C, H, W) in [0, 1], or (H, W) for a map.

    posterior  samples that face the truth (`Posterior.facing`)

    sample  the first that did not diverge; without any there is neither mean nor error
    std     of the samples; none for fewer than two
    error   of the mean, root mean square over the channels

    Pictures with values that are not finite are left out.
    """
    low, high = value_range
    observed = problem.observed
    y = problem.y if observed is None else torch.where(observed, problem.y, 0)  # unmeasured entries may be NaN
    guess = problem.operator.first_guess(y)
    mean, std = posterior.mean, posterior.std
    found: list[dict[str, Tensor]] = []
    for i, x in enumerate(truth):
        of_image = {"truth": x, "mean": mean[i]}
        if guess is not None:
            of_image["guess"] = guess[i]
        kept = (~posterior.diverged[i]).nonzero().flatten()
        if len(kept):
            of_image["sample"] = posterior.samples[i, kept[0]]
        shown = {what: _shown((image - low) / (high - low)) for what, image in of_image.items()}
        shown["measurement"] = measured(y[i], value_range)
        shown["std"], shown["error"] = (rms(values) / (high - low) for values in (std[i], mean[i] - x))
        found.append({what: small(image) for what, image in shown.items() if bool(image.isfinite().all())})
    return found


def save_pictures(folder: Path, run: str, image: int, found: Mapping[str, Tensor]) -> None:
    """Write the pictures of an image of a run into a folder, and remove those that it had earlier and has not now."""
    folder.mkdir(exist_ok=True)
    for what in PICTURES:
        path = folder / file_name(run, image, what)
        if what not in found:
            path.unlink(missing_ok=True)
        elif what in MAPS:
            save_map(found[what], path)
        else:
            write_image(path, found[what])


def file_name(run: str, image: int, what: str) -> str:
    """Of a picture of an image of a run."""
    return f"{run}-{image:06d}-{what}.png"


def drawn(folder: Path) -> set[tuple[str, int]]:
    """The (run, image) of which there are pictures in a folder."""
    named = (re.fullmatch(r"(\w+)-(\d+)-\w+\.png", path.name) for path in folder.glob("*.png"))
    return {(match[1], int(match[2])) for match in named if match}


def measured(y: Tensor, value_range: tuple[float, float]) -> Tensor:
    """A measurement (...) as a picture (C, H, W) in [0, 1]: as it is, or from its smallest value to its largest."""
    low, high = value_range
    if is_picture(y, value_range):
        return (y.nan_to_num() - low) / (high - low)
    values = plane(y)
    bottom, top = values.min(), values.max()
    return ((values - bottom) / (top - bottom).clamp(min=1e-12))[None].float()


def is_picture(y: Tensor, value_range: tuple[float, float]) -> bool:
    """Whether a measurement is in the unit of pictures, up to its noise; line integrals, for one, are not."""
    if y.is_complex() or y.dim() != 3 or y.shape[0] not in (1, 3):
        return False
    values = y[y.isfinite()].double()
    low, high = value_range
    return values.numel() == 0 or float((values - low).abs().mean()) < high - low


def plane(y: Tensor) -> Tensor:
    """A measurement (...) as (H, W); complex numbers by the logarithm of their magnitude."""
    values = (y.abs() if y.is_complex() else y).double().nan_to_num()
    values = values.reshape(-1, *values.shape[-2:] if y.dim() > 1 else (1, len(y)))
    # Leading axes (coils, masks) are averaged: a stack of them would be too thin to see.
    values = values[0] if len(values) == 1 else rms(values)
    if y.is_complex():
        values = (values / values.max().clamp(min=1e-12)).clamp(min=1e-4).log10()
    return values


def small(image: Tensor) -> Tensor:
    """(..., H, W) with its longer side at most `LONGEST`."""
    scale = LONGEST / max(image.shape[-2:])
    if scale >= 1:
        return image
    size = [max(1, round(n * scale)) for n in image.shape[-2:]]
    stack = image.reshape(1, -1, *image.shape[-2:])
    resized = torch.nn.functional.interpolate(stack, size, mode="bilinear", antialias=True)
    return resized.reshape(*image.shape[:-2], *size)


def save_map(values: Tensor, path: Path) -> None:
    """A map (H, W) in units of the value range, as 16-bit grey; what is above 1 is white."""
    data = io.BytesIO()
    levels = (values.clamp(0, 1) * 65535).round().numpy().astype(np.uint16)
    Image.fromarray(levels).save(data, format="PNG")
    write_atomically(path, data.getvalue(), durable=False)


def read_map(path: Path) -> np.ndarray:
    """What `save_map` wrote, (H, W)."""
    with opened_picture(path) as file:
        levels: np.ndarray = np.asarray(file, dtype=np.float64) / 65535
        return levels


def _shown(image: Tensor) -> Tensor:
    """(C, H, W) with one or three channels; others, such as two parts of complex numbers, by their magnitude."""
    return image if image.shape[0] in (1, 3) else rms(image)[None]


def rms(values: Tensor) -> Tensor:
    """(C, H, W) -> (H, W): root mean square over the channels."""
    return values.square().mean(0).sqrt()
