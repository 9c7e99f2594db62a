"""What the commands on images take in."""

from collections.abc import Callable, Sequence

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from invdiff.io import BadInput, Slicing, image_files, match_channels, read_slices, square, to_tensor
from invdiff.io.formats import stem
from invdiff.priors import Prior, as_prior


def make_prior(config: DictConfig) -> Prior:
    """The prior of a configuration: one of ours, a `deepinv` denoiser, whatever `as_prior` takes."""
    made = instantiate(config.prior)
    try:
        return as_prior(made).eval()
    except TypeError as error:
        raise BadInput(f"prior={config.prior['_target_']}: {error}") from error


def true_images(
    config: DictConfig, prior: Prior, *, say: Callable[[Sequence[str]], object]
) -> tuple[Tensor, list[str], list[str]]:
    """The images to measure and reconstruct, (B, C, H, W), their names, and what to know of how they were read.

    config  its keys input, data, size, volume and seed
    say     told what to know of the files, as soon as they have been read
    """
    notes: list[str] = []
    if config.input is not None:
        slicing: Slicing = instantiate(config.volume)
        files = image_files(str(config.input))
        found = [read_slices(f, slicing) for f in files]
        names = [name for slices in found for name in slices.names]
        if len(set(names)) < len(names):  # a folder may hold a.png and a.jpg
            names = [f"{f.name}{n.removeprefix(stem(f))}" for f, s in zip(files, found, strict=True) for n in s.names]
        images = [image for slices in found for image in slices.images]
        notes = [note for slices in found for note in slices.notes]
        say(notes)
    else:
        names, images = instantiate(config.data, prior=prior, seed=config.seed)
    try:
        images = [match_channels(image, prior.channels, name) for image, name in zip(images, names, strict=True)]
    except BadInput as error:
        if config.input is not None or prior.shape is None:
            raise
        raise BadInput(f"{error}; data=generated draws one from the prior itself") from error
    if config.size is not None:
        images = [square(image, config.size) for image in images]
    truth = to_tensor(images, names)
    if config.input is not None:
        low, high = prior.value_range
        truth = low + (high - low) * truth
    reason = prior.mismatch(tuple(truth.shape[1:]))
    if reason is not None:
        hint = f"; size={prior.shape[-1]} resizes and crops" if prior.shape and truth.shape[1] == prior.shape[0] else ""
        raise BadInput(f"prior and image do not match: {reason}{hint}")
    return truth, names, notes
