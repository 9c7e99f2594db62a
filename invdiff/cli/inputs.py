"""Prior, sampler and images of a configuration."""

import importlib.util
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from invdiff.benchmark.images import Source
from invdiff.cli import groups
from invdiff.cli.app import chosen_name, typed
from invdiff.cli.targets import make, resolved
from invdiff.fingerprint import with_contents
from invdiff.io import BadInput, by_size, image_files
from invdiff.io.examples import drawn_from_prior
from invdiff.io.placement import Volume, places_of, stacked
from invdiff.io.truth import TrueImages, true_images
from invdiff.operators import Noise, Operator
from invdiff.priors import Prior, as_prior
from invdiff.problem import InverseProblem
from invdiff.samplers import Sampler, settings_for
from invdiff.samplers.settings import Settled, as_config, given_settings


def make_prior(config: DictConfig) -> Prior:
    """The prior of a configuration: of this package, a `deepinv` denoiser, anything that `as_prior` takes."""
    made = make(config.prior)
    try:
        return as_prior(made).eval()
    except TypeError as error:
        raise BadInput(f"prior={config.prior['_target_']}: {error}") from error


def make_sampler(config: DictConfig, operator: Operator, noise: Noise, prior: Prior) -> Settled:
    """The sampler of a configuration with its settings for this problem, which the configuration then holds.

    The recommended ones do not touch settings that were typed or differ from the defaults, nor samplers from a
    configuration of the user's, which is complete.
    """
    made = made_sampler(config.sampler, "sampler")
    wanted = config.recommended and is_generated(chosen_name("sampler"))
    names = [word.partition("=")[0] for word in typed("sampler")]
    settled = settle(made, operator, noise, prior, names, recommended=wanted)
    if settled.changed:
        config.sampler = OmegaConf.create(as_config(settled.sampler))
    config.recommended = False
    return settled


def made_sampler(node: DictConfig, path: str) -> Sampler:
    """The sampler of a node, as it stands. Raises BadInput, naming its path, for anything else."""
    node = node.copy()
    for inner in node.values():
        if isinstance(inner, DictConfig) and "_target_" in inner and is_dataclass(cls := resolved(inner, path)):
            # Another `_target_`, another schedule say, leaves settings of the default one behind.
            OmegaConf.set_struct(inner, False)
            for name in set(inner) - {"_target_", *(field.name for field in fields(cls))}:
                del inner[name]
    made = make(node, path)
    if not isinstance(made, Sampler):
        raise BadInput(f"{path} must make a sampler, got {type(made).__name__} from {node['_target_']}")
    return made


def is_generated(name: str | None) -> bool:
    """True for a node made from a class; any other holds all settings that its author wants."""
    return name == "callable" or name in groups.sampler_classes()


def settle(
    made: Sampler, operator: Operator, noise: Noise, prior: Prior, named: list[str], *, recommended: bool
) -> Settled:
    """A sampler with the recommended settings in the place of defaults that were not named."""
    if not recommended:
        return Settled(made, {}, None)
    given = given_settings(made, [name.removeprefix("settings.") for name in named])
    return settings_for(type(made), operator, noise, prior, given=given)


def source_of(config: DictConfig, data: DictConfig) -> Source:
    """The images of `input`, or of a node of the group data where that is null."""
    if config.input is not None:
        return Source({"input": Path(config.input).name}, files=config.input)
    settings = plain(data)
    settings.pop("count", None)
    drawn = resolved(data, "data") is drawn_from_prior
    return Source(with_contents(settings), example=partial(make, data), drawn=drawn)


def plain(node: DictConfig) -> dict[str, Any]:
    """A node as plain values."""
    found: Any = OmegaConf.to_container(node, resolve=True)
    return found


def check_optional(module: str, extra: str, what: str) -> None:
    """Raise BadInput, with the command that installs it, where a package is missing."""
    if importlib.util.find_spec(module) is None:
        raise BadInput(f"{what} needs the package {module}; install it with pip install 'invdiff[{extra}]'")


def of_one_size(config: DictConfig, output: Path, prior: Prior) -> list[tuple[DictConfig, Path]]:
    """The configuration and its folder; of images of several sizes one for each, in folders named by width and height.

    A prior for images of any size takes each as it is; any other keeps them together, to be resized or refused.
    """
    named = next((key for key in ("input", "measurement") if config[key] is not None), None)
    if named is None or prior.shape is not None or config.size is not None:
        return [(config, output)]
    if not isinstance(config[named], str) or not Path(config[named]).is_dir():
        return [(config, output)]
    files = image_files(config[named])
    sizes = by_size(files)
    if len(sizes) == 1:
        return [(config, output)]
    truths = None if config.truth is None else image_files(config.truth)
    if truths is not None and len(truths) != len(files):
        raise BadInput(f"truth must be {len(files)} images, one per measurement, got {len(truths)}")
    parts = []
    for (height, width), places in sorted(sizes.items()):
        part, folder = config.copy(), output / f"{width}x{height}"
        part[named], part.output = [str(files[i]) for i in places], str(folder)
        if truths is not None:
            part.truth = [str(truths[i]) for i in places]
        parts.append((part, folder))
    return parts


def true_images_of(config: DictConfig, prior: Prior, files: Any) -> TrueImages:
    """Images of files, or the example of a configuration, their names, and notes on reading; see `true_images`."""
    example, slicing = partial(make, config.data), make(config.volume)
    return true_images(prior, files=files, example=example, slicing=slicing, size=config.size, seed=config.seed)


def volume_of(config: DictConfig, units: Sequence[tuple[float, float] | None], problem: InverseProblem) -> Volume:
    """Where a volume of all images lies: as the NIfTI or DICOM files that they are from, in their unit."""
    check_optional("nibabel", "medical", "save.format=nii")
    source = config.measurement if config.input is None else config.input
    absent = source is None or (isinstance(source, str) and not Path(source).exists())
    places = [] if absent else places_of(source, make(config.volume))
    known = [unit for unit in units if unit is not None]
    scale, offset = np.transpose(known) if len(known) == problem.images else (1.0, 0.0)
    if len(places) != problem.images:
        return Volume(scale=scale, offset=offset)
    height, width = problem.image_shape[-2:]
    return Volume(stacked([place.seen_with((height, width)) for place in places]), scale, offset)
