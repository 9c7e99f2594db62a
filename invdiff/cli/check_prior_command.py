"""`invdiff check-prior`: whether a prior keeps its contract, denoises, and was told the right range of its images."""

import json
import math
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from invdiff.cli.app import CheckFailed, command
from invdiff.cli.inputs import make_prior
from invdiff.cli.values import check_kinds
from invdiff.contracts import check_prior
from invdiff.contracts.prior_figures import (
    CallCost,
    Level,
    Verdict,
    call_cost,
    compare_readings,
    judge,
    levels_for,
    measure_level,
    noisy_images,
    width,
    with_fixed_shape,
)
from invdiff.engine.progress import progress_bar
from invdiff.io import BadInput, image_files, match_channels, read_image, square, to_tensor
from invdiff.io.examples import drawn_from_prior, photograph
from invdiff.priors import Prior
from invdiff.priors.ode import generate
from invdiff.report.prior_check import picture, save_figure
from invdiff.scores.metrics import for_json
from invdiff.shapes import describe_shape
from invdiff.streams import Streams, generator

ANY_SIZE = 128  # side of the images for a prior that takes any


@command("check_prior")
def main(config: DictConfig, output: Path) -> None:
    """Check what the configuration says, print it and write it; raises `CheckFailed` where a rule is broken."""
    _check_values(config)
    prior = make_prior(config)
    name, device = type(prior).__name__, _device(config)
    sigmas = _levels(config, prior)
    names, clean = _images(config, prior)
    output.mkdir(parents=True, exist_ok=True)

    verdicts = [_contract(prior, tuple(clean.shape[1:]))] if config.contract else []
    if any(verdict.words.startswith("raises") for verdict in verdicts):
        _write(output, _report(config, prior, names, [], {}, None, verdicts))
        _print_verdicts(name, verdicts)
        raise CheckFailed(f"{name} breaks a rule: {verdicts[0].words}")

    prior, clean = prior.to(device), clean.to(device)
    with progress_bar(len(sigmas) + 2 * config.steps, "step", name) as bar:
        levels, pictures = [], []
        for sigma in sigmas:
            level, estimate = measure_level(prior, clean, sigma, config.seed)
            levels.append(level)
            pictures.append((sigma, noisy_images(clean[:1], sigma, config.seed)[0].cpu(), estimate[0].cpu()))
            bar.update()
        readings = compare_readings(prior, clean, config.seed)
        bar.update(config.steps)
        cost = call_cost(prior, clean[:1], 0.2 * width(prior))
        samples = _samples(config, prior, clean, bar.update)
    verdicts += judge(prior, levels, readings, samples)
    report = _report(config, prior, names, levels, readings, cost, verdicts)
    _write(output, report)

    title = f"{name} on {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
    drawn = None if samples is None else samples.cpu()
    save_figure(picture(levels, clean[0].cpu(), pictures, drawn, prior.value_range, title), output / "check.png")

    _print_levels(prior, levels, names, tuple(clean.shape[1:]))
    _print_verdicts(name, verdicts)
    console = Console(highlight=False, markup=False)
    console.print(_words(cost, device), soft_wrap=True)
    console.print(f"check.png and check.json are in {output}", soft_wrap=True)
    failed = [verdict for verdict in verdicts if verdict.result == "failed"]
    if failed:
        raise CheckFailed(f"{name} breaks {'a rule' if len(failed) == 1 else f'{len(failed)} rules'}: {_named(failed)}")


def _named(verdicts: list[Verdict]) -> str:
    return ", ".join(verdict.rule for verdict in verdicts)


# -- what goes in ------------------------------------------------------------------------------------------------------


def _check_values(config: DictConfig) -> None:
    check_kinds(config, "prior", *(["data"] if "data" in config else []))
    for key, least in (("images", 1), ("grid", 0), ("steps", 2), ("seed", 0), ("size", 8)):
        value = config[key]
        if key == "size" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise BadInput(f"{key} must be a whole number from {least} on, got {value}")
    if not isinstance(config.contract, bool):
        raise BadInput(f"contract must be true or false, got {config.contract}")
    if config.input is not None and not isinstance(config.input, str):
        raise BadInput(f"input must be one file or a folder, got {config.input}")
    if config.input is not None and "data" in config:
        raise BadInput("give input= (images of yours) or data= (an example), not both")


def _device(config: DictConfig) -> torch.device:
    try:
        device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.ones(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).partition("\n")[0]
        raise BadInput(f"device={config.device} cannot be used here: {reason}") from error
    return device


def _levels(config: DictConfig, prior: Prior) -> list[float]:
    given = config.levels
    if given is None:
        return levels_for(prior)
    if not isinstance(given, ListConfig) or not given or not all(isinstance(s, (int, float)) and s > 0 for s in given):
        raise BadInput(f"levels must be a list of noise levels above 0, [0.05,0.1], got {given}")
    return sorted(float(s) for s in given)


def _images(config: DictConfig, prior: Prior) -> tuple[list[str], Tensor]:
    """Names and clean images (N, C, H, W) in image units."""
    low, high = prior.value_range
    if config.input is not None:
        files = image_files(config.input)[: config.images]
        names, images = [file.name for file in files], [read_image(file) for file in files]
    elif "data" in config:
        names, images = instantiate(config.data, prior=prior, seed=config.seed)
    elif prior.channels in (3, None):
        found = [photograph(name, None) for name in ("cat", "astronaut", "coffee", "rocket")[: config.images]]
        names, images = [n for ns, _ in found for n in ns], [image for _, few in found for image in few]
    elif prior.shape is None:
        names, images = photograph("camera", None)
    else:
        names, images = drawn_from_prior(config.images, prior=prior, seed=config.seed)
    of_the_prior = config.input is None and names[0].startswith("generated")
    if not of_the_prior:
        side = config.size or (prior.shape[-1] if prior.shape is not None else ANY_SIZE)
        images = [square(match_channels(i, prior.channels, n), side) for i, n in zip(images, names, strict=True)]
    clean = to_tensor(images, names)
    clean = clean if of_the_prior else low + (high - low) * clean  # those are in image units already
    reason = prior.mismatch(tuple(clean.shape[1:]))
    if reason is not None:
        raise BadInput(f"prior and image do not match: {reason}; input= takes images of yours, size= their side")
    return names[: config.images], clean[: config.images]


# -- what is done ------------------------------------------------------------------------------------------------------


def _contract(prior: Prior, image_shape: tuple[int, ...]) -> Verdict:
    try:
        check_prior(with_fixed_shape(prior, image_shape))
    except AssertionError as error:
        return Verdict("contract", "failed", str(error))
    except Exception as error:  # whatever a prior of the user's raises is a rule broken, with the place
        frame = traceback.extract_tb(error.__traceback__)[-1]
        words = " ".join(str(error).split())[:300]
        where = f"{Path(frame.filename).name}, line {frame.lineno}"
        return Verdict("contract", "failed", f"raises {type(error).__name__}: {words} ({where})")
    return Verdict("contract", "passed", "a pure function of each image and its level, with the right gradient")


def _samples(config: DictConfig, prior: Prior, clean: Tensor, on_step: Any) -> Tensor | None:
    if config.grid == 0:
        return None
    streams = [generator(config.seed, "generate", i) for i in range(config.grid)]
    noise = Streams(streams, prior.shape or tuple(clean.shape[1:]), clean.device).normal()
    return generate(prior, noise, steps=config.steps, on_step=lambda _: on_step())


# -- what comes out ----------------------------------------------------------------------------------------------------


def _report(
    config: DictConfig,
    prior: Prior,
    names: list[str],
    levels: list[Level],
    readings: dict[str, float],
    cost: CallCost | None,
    verdicts: list[Verdict],
) -> dict[str, Any]:
    return {
        "prior": type(prior).__name__,
        "target": config.prior["_target_"],
        "shape": prior.shape,
        "channels": prior.channels,
        "sigma_range": [for_json(s) for s in prior.sigma_range],
        "value_range": list(prior.value_range),
        "differentiable": prior.differentiable,
        "images": names,
        "levels": [{key: for_json(value) for key, value in asdict(level).items()} for level in levels],
        "readings": {words: for_json(psnr) for words, psnr in readings.items()},
        "cost": None if cost is None else asdict(cost),
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }


def _write(output: Path, report: dict[str, Any]) -> None:
    (output / "check.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")


def _print_levels(prior: Prior, levels: list[Level], names: list[str], shape: tuple[int, ...]) -> None:
    title = f"{type(prior).__name__} on {len(names)} image(s) of {describe_shape(shape)}: {', '.join(names[:4])}"
    table = Table(title=Text(title), title_justify="left")
    for heading in ("sigma", "noisy", "denoised", "gain", "error", "outside"):
        table.add_column(heading, justify="right")
    for level in levels:
        gain = level.denoised - level.noisy
        style = "bold red" if not gain > 0 else ""
        cells = (f"{level.sigma:.3g}", _db(level.noisy), _db(level.denoised), _db(gain, "+"), f"{level.kept:.2f}")
        table.add_row(*(Text(cell, style) for cell in (*cells, f"{100 * level.outside:.1f} %")))
    Console(highlight=False, markup=False).print(table)


def _db(value: float, sign: str = "") -> str:
    return f"{value:{sign}.1f} dB" if math.isfinite(value) else str(value)


_STYLES = {"passed": "green", "warning": "yellow", "failed": "bold red", "n/a": "dim"}


def _print_verdicts(name: str, verdicts: list[Verdict]) -> None:
    table = Table(title=Text(f"is {name} what it says it is?"), title_justify="left")
    for heading in ("rule", "", "why"):
        table.add_column(heading, overflow="fold")
    for verdict in verdicts:
        result = verdict.result.upper() if verdict.result == "failed" else verdict.result
        table.add_row(Text(verdict.rule), Text(result, _STYLES[verdict.result]), Text(verdict.words))
    Console(highlight=False, markup=False).print(table)


def _words(cost: CallCost, device: torch.device) -> str:
    vjp = "no VJP" if cost.vjp is None else f"a VJP {1000 * cost.vjp:.1f} ms"
    return (
        f"one image takes {1000 * cost.forward:.1f} ms a call, {vjp}, on {device}; {cost.parameters / 1e6:.2f} million "
        f"parameters, peak memory {cost.peak_memory_mb:.0f} MB"
    )
