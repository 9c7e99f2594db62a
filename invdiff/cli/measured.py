"""Real measurements: the operator that made them, none of whose parameters is drawn at random."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from torch import Tensor

from invdiff import operators
from invdiff.axes import with_axes
from invdiff.checks import estimate_sigma
from invdiff.cli.app import chosen_name, typed
from invdiff.cli.targets import make
from invdiff.cli.values import estimates_sigma
from invdiff.estimate import noise_left_by_jpeg
from invdiff.files import is_picture
from invdiff.io import BadInput, Measurement, image_files, load_measurement
from invdiff.io.kspace import FULL, estimated_maps, sampled_positions
from invdiff.io.measurement import PARAMETERS
from invdiff.operators import Operator
from invdiff.operators.core.base import Drawn
from invdiff.operators.core.parts import OperatorOfParts
from invdiff.operators.mri.kspace import CENTRED
from invdiff.priors import Prior


def load_measured(config: DictConfig, prior: Prior) -> tuple[Measurement, Operator]:
    """The data of `measurement=`, (B, ...), and its operator.

    Parameters of the operator that the configuration leaves null come from the file, or from y: what is exactly 0 was
    not measured, and coil maps are estimated. Raises BadInput, naming the option that is missing, where they cannot.
    """
    open_ = [name for name in PARAMETERS if config.operator.get(name, "") is None]
    files = config.measurement
    given = load_measurement(
        files if isinstance(files, str) else list(files),
        parameters=open_,
        slicing=make(config.volume),
        size=config.size,
        allow_nan=True,
        of_coils="maps" in config.operator,
        grey=prior.channels == 1,
    )
    _check_unit(given, prior)
    given.notes.extend(_of_scene(config, prior))
    operator = _with_parameters(config, given)
    _check_size(config, given, operator, prior)
    drawn = {name: how for name, how in operator.drawn.items() if not _decided(how)}
    if "maps" in drawn and given.y.dim() >= 3:  # as many coils as y has
        operator = make(config.operator, **given.parameters, **{drawn["maps"].by: given.y.shape[-3]})
    y = with_axes(given.y, operator, prior)
    found, notes = _inferred(operator, y, drawn, str(config.measurement))
    if found:
        rules = {option: None for name in found for option in drawn[name].rule}
        operator = make(config.operator, **given.parameters, **rules, **found)
    units = given.units if y.is_complex() or _keeps_levels(operator, y, prior) else []
    return replace(given, notes=[*given.notes, *notes], units=units), operator


def settle_sigma(config: DictConfig, y: Tensor, operator: Operator) -> list[str]:
    """Put an estimate from y, (B, ...), in the place of noise.sigma=auto; returns a line on it.

    Raises BadInput where y does not show its noise.
    """
    if not estimates_sigma(config):
        return []
    files = image_files(config.measurement if isinstance(config.measurement, str) else list(config.measurement))
    found = noise_left_by_jpeg(files) if all(is_picture(Path(file)) for file in files) else None
    if found is not None:
        config.noise.sigma = float(f"{found:.3g}")
        return [f"noise.sigma=auto: {config.noise.sigma:g}, by the tables and details of the JPEG"]
    try:
        level = estimate_sigma(y, operator)
    except ValueError as error:
        raise BadInput(f"noise.sigma=auto: {error}; give noise.sigma=") from error
    unit = math.sqrt(2) if config.noise.per_component else 1.0
    config.noise.sigma = float(f"{level.value / unit:.4g}")
    return [f"noise.sigma=auto: {config.noise.sigma:g}, with a standard error of {level.error / unit:.1g}, by y"]


def _with_parameters(config: DictConfig, given: Measurement) -> Operator:
    """The operator with the parameters of the file. Raises BadInput where an option contradicts one of them."""
    try:
        operator: Operator = make(config.operator, **given.parameters)
    except InstantiationException as error:
        if not given.parameters:
            raise
        of_file = " and ".join(given.parameters)
        words = " ".join(str(error.__cause__ or error).split())
        raise BadInput(
            f"{words}; {config.measurement} holds {of_file}: leave out the option, or give an array of y alone"
        ) from error
    return operator


def _check_unit(given: Measurement, prior: Prior) -> None:
    """Grey levels of pictures and scanners, which were scaled to [0, 1], measure images in [0, 1] alone."""
    low, high = prior.value_range
    scaled = not given.y.is_complex() and any(unit != (1.0, 0.0) for unit in given.units)
    if scaled and (low, high) != (0.0, 1.0):
        raise BadInput(
            f"measurement must be in the unit of the prior's images, {low:g} to {high:g}, got grey levels that were "
            "scaled to 0 to 1; give the values as an array (.npy) or as a TIFF of floats"
        )


@torch.no_grad()
def _keeps_levels(operator: Operator, y: Tensor, prior: Prior) -> bool:
    """Whether even images are measured with their own value, so that y and images have one unit."""
    shape = operator.image_shape(tuple(y.shape[1:])) or prior.shape
    if shape is None:
        return False
    one = operator.select(torch.zeros(1, dtype=torch.long))
    measured = one.measured(tuple(y.shape[1:]))
    for level in (0.25, 0.75):
        seen = one(torch.full((1, *shape), level))
        if measured is not None:
            seen = torch.where(measured, seen, level)
        if (seen - level).abs().max() > 0.01 * level:
            return False
    return True


def _of_scene(config: DictConfig, prior: Prior) -> list[str]:
    """Set options for scenes that go on outside the frame which the user left alone; returns a line on each."""
    if prior.shape is not None or chosen_name("operator") is None:
        return []
    kind = getattr(operators, config.operator._target_.rpartition(".")[2], Operator)
    typed_names = {word.partition("=")[0] for word in typed("operator")}
    notes = []
    for name, value in kind.of_scenes.items():
        if name in config.operator and name not in typed_names:
            notes.append(
                f"operator.{name}={value}: the scene goes on outside the frame; "
                f"operator.{name}={config.operator[name]} is for an image that ends there"
            )
            config.operator[name] = value
    return notes


def _decided(how: Drawn) -> bool:
    """Whether the user gave the option that decides a draw, or a configuration of their own, which is complete."""
    stated = re.compile(rf"\b{how.by}\s*[=:]")  # an option, also of a part: not a folder of that name
    return chosen_name("operator") is None or any(stated.search(word) for word in typed("operator"))


def _inferred(
    operator: Operator, y: Tensor, drawn: Mapping[str, Drawn], path: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Parameters that y tells, and a line on each. Raises BadInput where y does not tell one."""
    found: dict[str, Tensor] = {}
    notes: list[str] = []
    for name, how in sorted(drawn.items(), key=lambda item: item[0] != "mask"):  # maps are estimated within the mask
        if name == "mask" and how.instead:
            found |= _mask_of(operator, y, how, path, notes)
        elif name == "maps" and how.instead:
            mask = found.get("mask", getattr(operator, "mask", None))
            convention = getattr(operator, "convention", CENTRED)
            found["maps"], note = estimated_maps(y, mask, Path(path), convention)
            notes.append(note)
        else:
            raise BadInput(_missing(operator, name, how))
    return found, notes


def _mask_of(operator: Operator, y: Tensor, how: Drawn, path: str, notes: list[str]) -> dict[str, Tensor]:
    mask = sampled_positions(y) if y.is_complex() else ((y != 0) & ~y.isnan()).any(1, keepdim=True)
    ruled = any(word.partition("=")[0] in how.rule for word in typed("operator"))
    margins = y.is_complex() and float(mask.float().mean()) >= FULL  # which were filled up with zeros
    if not mask.all() and not (ruled and margins):
        if not mask.flatten(1).any(1).all():
            raise BadInput(f"the measurement of an image is 0 everywhere: {path}")
        notes.append(
            f"{path}: {1 - float(mask.float().mean()):.0%} of it is exactly 0 and counts as not measured; "
            f"{how.instead} gives another mask"
        )
        return {"mask": mask[:1] if bool((mask == mask[:1]).all()) else mask}
    if ruled:
        notes.append(f"{path}: measured everywhere; the mask of the operator leaves some of it out")
        return {}
    if operator.masking:
        raise BadInput(f"{_missing(operator, 'mask', how)}; none of {path} is exactly 0, which would tell the mask")
    notes.append(f"{path}: sampled everywhere; operator.{how.rule[0]}= leaves some of it out")
    return {"mask": torch.ones(1, 1, *y.shape[-2:], dtype=torch.bool)}


def _missing(operator: Operator, name: str, how: Drawn) -> str:
    if isinstance(operator, OperatorOfParts):
        give = f"give it in operator.parts, or the {how.by} there"
    else:
        give = f"give {how.instead}, or operator.{how.by}=" if how.instead else f"give operator.{how.by}="
    return (
        f"{chosen_name('operator')}: the {name} of a real measurement must be known, got one drawn at random; "
        f"{give} where y was simulated with it"
    )


def _check_size(config: DictConfig, given: Measurement, operator: Operator, prior: Prior) -> None:
    """Where k-space belongs to images of another size than the prior's, name the option that crops it."""
    if prior.shape is None or not given.y.is_complex() or config.size is not None:
        return
    reason = operator.mismatch(prior.shape)
    if reason is not None:
        raise BadInput(f"{reason}; size={prior.shape[-1]} keeps as much of k-space")
