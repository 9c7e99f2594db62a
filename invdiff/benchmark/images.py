"""The true images of a benchmark or a search, from files or examples, with their fingerprints."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from invdiff.benchmark.grid import Images
from invdiff.fingerprint import Settings, fingerprint, of_image
from invdiff.io import BadInput, Slicing
from invdiff.io.truth import Example, true_images
from invdiff.priors import Prior


@dataclass(frozen=True)
class Source:
    """Files, or an example; one of the two.

    settings  as JSON
    drawn     draws of the prior: known by their origin, since the last digits of a network depend on the machine
    """

    settings: Settings
    files: str | None = None
    example: Example | None = None
    drawn: bool = False


def load_images(
    sources: Sequence[Source],
    prior: Prior,
    prior_settings: Settings,
    *,
    slicing: Slicing | None,
    size: int | None,
    seed: int,
) -> Images:
    """The images of all sources, one after another; raises BadInput where they differ in size."""
    truths, names, keys = [], [], []
    for source in sources:
        truth, own, *_ = true_images(
            prior, files=source.files, example=source.example, slicing=slicing, size=size, seed=seed
        )
        truths.append(truth)
        names += own
        if source.drawn:
            keys += [fingerprint([source.settings, prior_settings, seed, i]) for i in range(len(own))]
        else:
            keys += [of_image(image.numpy()) for image in truth]
    shapes = {tuple(truth.shape[1:]) for truth in truths}
    if len(shapes) > 1:
        raise BadInput(f"images differ in size: {', '.join(map(str, sorted(shapes)))}; size=256 brings them to one")
    settings: Settings = {"sources": [source.settings for source in sources], "size": size}
    return Images(torch.cat(truths), names, keys, settings)
