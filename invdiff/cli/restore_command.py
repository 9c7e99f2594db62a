"""`invdiff restore`: a photograph of unknown noise and blur, estimated from itself, then reconstructed.

`invdiff upscale` is the same for a photograph that is sharp but small.
"""

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
from omegaconf import DictConfig, open_dict
from rich.console import Console
from torch import Tensor

from invdiff.cli.app import chosen_name, command, typed
from invdiff.cli.inputs import make_prior, make_sampler
from invdiff.cli.reconstruct_command import reconstruct_one_size, that_decide
from invdiff.cli.targets import make
from invdiff.engine.driver import Compute
from invdiff.estimate import Degradation, estimate
from invdiff.files import is_picture
from invdiff.fingerprint import fingerprint, of_image
from invdiff.io import BadInput, load_measurement
from invdiff.io.output import file_stem, opened
from invdiff.job import prepare
from invdiff.priors import Prior
from invdiff.ranges import NotNegative, Positive
from invdiff.report.comparison import save_figure
from invdiff.report.sheet import sheet
from invdiff.shapes import describe_shape

CANDIDATES = (0.7, 1.0, 1.5, 2.0, 3.0)  # pixels, of blur=sheet
PIECE = 160  # pixels: side of the piece of the photograph that blur=sheet shows
STEPS = 20  # of the sampler of this command: on a photograph with blur 1.4 and noise 0.03 40 calls gain 2.7 dB


@command(
    "restore",
    options={
        "photo": str,
        "blur": NotNegative | Literal["auto", "sheet"],
        "sigma": Positive | Literal["auto"],
        "scale": Literal[1, 2, 4, 8],
    },
)
def run(config: DictConfig, output: Path) -> None:
    """Restore a photograph as configured and write the results to `output`; see `configs/restore.yaml`."""
    compute: Compute = make(config.compute)
    compute.resolve_device()  # raises, before any work, where there is no such device
    prior = make_prior(config)
    if tuple(prior.value_range) != (0.0, 1.0):
        raise BadInput(f"prior must be one of images in [0, 1], as photographs are read, got {list(prior.value_range)}")
    y = load_measurement(config.photo, grey=prior.channels == 1).y
    if y.dim() != 4 or len(y) != 1 or y.is_complex() or min(y.shape[-2:]) < 2:
        shape = describe_shape(tuple(y.shape))
        raise BadInput(f"photo must be one picture of at least 2x2 pixels, got {shape} from {config.photo}")
    found = estimate(y[0].double().numpy(), config.photo if is_picture(Path(config.photo)) else None)
    sigma = found.noise if config.sigma == "auto" else float(config.sigma)
    blur = (found.blur or 0.0) if isinstance(config.blur, str) else float(config.blur)
    _say(_in_words(config, found))
    if chosen_name("sampler") == "mmps" and not typed("sampler"):
        config.sampler.schedule.steps = STEPS
    if config.blur == "sheet":
        _write_sheet(config, output, y, sigma, prior, compute)
        return
    reconstruct_one_size(_as_reconstruct(config, sigma, blur), output, prior, compute, named=_stem(config))


def main() -> None:
    """Read the first word as the photograph, where it is no option."""
    given = sys.argv[1:]
    if given and "=" not in given[0] and not given[0].startswith("-"):
        escaped = given[0].replace("\\", "\\\\").replace("'", "\\'")
        sys.argv[1] = f"photo='{escaped}'"
    run()


def _stem(config: DictConfig) -> str:
    return file_stem(Path(config.photo).stem)


def _operator(blur: float, scale: int) -> dict[str, Any]:
    """The node of an operator: a Gaussian blur in pixels of the photograph, then downsampling."""
    parts: list[dict[str, Any]] = []
    if blur > 0:
        std = round(blur * scale, 3)
        taps = 2 * int(np.ceil(4 * std)) + 1
        blurred = {"_target_": "invdiff.operators.GaussianBlur", "std": std, "kernel_size": taps}
        parts.append({**blurred, "boundary": "valid"})
    if scale > 1:
        parts.append({"_target_": "invdiff.operators.SuperResolution", "factor": scale})
    if len(parts) == 2:
        return {"_target_": "invdiff.operators.compose", "parts": parts}
    return parts[0] if parts else {"_target_": "invdiff.operators.Denoising"}


def _as_reconstruct(config: DictConfig, sigma: float, blur: float) -> DictConfig:
    """The configuration of `invdiff reconstruct` that does the rest, with what was found in the photograph."""
    made = config.copy()
    with open_dict(made):
        for name in ("photo", "sigma", "blur", "scale"):
            del made[name]
        made.measurement, made.input, made.data, made.size = config.photo, None, None, None
        made.operator = _operator(blur, config.scale)
        made.noise = {"_target_": "invdiff.operators.GaussianNoise", "sigma": round(sigma, 4)}
        made.volume = {"_target_": "invdiff.io.Slicing"}
        made.recommended, made.clouds = True, False
        made.evaluation = {"best_of": False}
    return made


def _in_words(config: DictConfig, found: Degradation) -> str:
    """One line: what was found, or given, why, and how to have it otherwise."""
    source = "its JPEG table and details" if found.jpeg else "its calm parts"
    given = config.sigma != "auto"
    noise = f"noise {config.sigma:g} as given" if given else f"noise about {found.noise:.3f} (by {source})"
    if config.blur == "sheet":
        blur = f"blur of {', '.join(f'{std:g}' for std in CANDIDATES)} pixels on a piece of it"
    elif config.blur != "auto":
        blur = f"blur {config.blur:g} pixels as given"
    elif found.blur is None:
        blur = "blur unknown, for little stands out of the noise, and taken as 0; blur=sheet shows candidates"
    elif found.blur == 0:
        blur = "no blur that its spectrum shows; blur=sheet shows candidates"
    else:
        blur = f"blur about {found.blur:.1f} pixels (by its spectrum); blur=sheet shows others"
    return f"{config.photo}: {noise}, {blur}"


def _write_sheet(config: DictConfig, output: Path, y: Tensor, sigma: float, prior: Prior, compute: Compute) -> None:
    """Write sheet.png: the piece with most detail, restored for each of `CANDIDATES`."""
    piece = _busiest(y)
    run = fingerprint({**that_decide(config), "y": of_image(y.numpy())})
    with opened(output, run, ["sheet.png"], overwrite=config.overwrite) as folder:
        if not folder.finished:
            pictures = {"as it is": piece[0]}
            for std in CANDIDATES:
                pictures[f"blur={std:g}"] = _sample(_as_reconstruct(config, sigma, std), piece, prior, compute)
            with folder.written("sheet.png") as file:
                save_figure(sheet(pictures, prior.value_range), file)
            folder.finish()
    _say(f"{output / 'sheet.png'} shows a piece restored for each; run again with the blur= that looks right")


def _sample(config: DictConfig, y: Tensor, prior: Prior, compute: Compute) -> Tensor:
    """One sample (C, H, W), neither checked nor judged: most candidates are wrong.

    config  of `invdiff reconstruct`
    """
    operator, noise = make(config.operator), make(config.noise)
    job = prepare(
        y,
        operator,
        noise=noise,
        prior=prior,
        sampler=make_sampler(config, operator, noise, prior).sampler,
        num_samples=1,
        seed=config.seed,
        truth=None,
        names="piece",
        checks=False,
        calibration=None,
        compute=compute,
    )
    return job.result(job.sample(range(1)), range(1), whole=False).mean[0]


def _busiest(y: Tensor) -> Tensor:
    """The piece (1, C, PIECE, PIECE) of a photograph with the largest variance, all of it where it is smaller."""
    height, width = (min(PIECE, n) for n in y.shape[-2:])
    starts = [
        (i, j)
        for i in range(0, y.shape[-2] - height + 1, max(height // 2, 1))
        for j in range(0, y.shape[-1] - width + 1, max(width // 2, 1))
    ]
    pieces = (y[..., i : i + height, j : j + width] for i, j in starts)
    return max(pieces, key=lambda piece: float(piece.var()))


def _say(line: str) -> None:
    Console(highlight=False, markup=False).print(line, soft_wrap=True)
