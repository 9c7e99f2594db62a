"""Images to try things on, without a download: photographs of scikit-image, and draws from a prior itself."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from invdiff.io import square
from invdiff.priors import Prior
from invdiff.priors.closed_form.base import ClosedFormPrior
from invdiff.priors.ode import generate
from invdiff.streams import Streams, generator, key

# These are files inside the scikit-image wheel; other names of skimage.data would start a download.
PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket", "camera")


def photograph(
    name: str, size: int | None = 256, *, prior: Prior | None = None, seed: int = 0
) -> tuple[list[str], list[np.ndarray]]:
    """One photograph of scikit-image as float32 [H, W, C] in [0, 1]; prior and seed play no role.

    size  shorter side resized and centre cropped to it, None leaves the photograph as it is
    """
    if name not in PHOTOGRAPHS:
        raise ValueError(f"unknown photograph {name!r}; there are {', '.join(PHOTOGRAPHS)}")
    from skimage import data

    image = np.atleast_3d(getattr(data, name)()).astype(np.float32) / 255
    return [name], [image if size is None else square(image, size)]


def drawn_from_prior(
    count: int = 1, steps: int = 40, *, prior: Prior, seed: int = 0
) -> tuple[list[str], list[np.ndarray]]:
    """Images drawn from the prior itself: truths for which the prior is exactly right, up to its own sampling error.

    Priors in closed form draw exactly, networks by `steps` Heun steps of their probability-flow ODE. Image i depends on
    (seed, i) alone. Needs a prior of a fixed shape.
    """
    if count < 1 or steps < 1:
        raise ValueError(f"data=generated: count and steps must be at least 1, got {count} and {steps}")
    if prior.shape is None:
        raise ValueError(
            "data=generated draws images from the prior, which must have a fixed size; give input= instead"
        )
    if isinstance(prior, ClosedFormPrior):  # unclamped, so that they keep the prior's own law
        images = torch.cat([prior.sample(1, generator(seed, "generate", i)) for i in range(count)])
    else:
        streams = Streams([key(seed, "generate", i) for i in range(count)], prior.diffusion_shape(prior.shape))
        images = generate(prior, streams.normal(), steps=steps).clamp(*prior.value_range)
    return [f"generated_{i:03d}" for i in range(count)], list(torch.permute(images, (0, 2, 3, 1)).numpy())


def example_for(prior: Prior, count: int) -> partial[tuple[list[str], list[np.ndarray]]]:
    """Examples for a prior: photographs for colour images, a grey one for any size, else draws of the prior."""
    if prior.channels in (3, None):
        return partial(_photographs, ("cat", "astronaut", "coffee", "rocket")[:count])
    if prior.shape is None:
        return partial(photograph, "camera", None)
    return partial(drawn_from_prior, count)


def _photographs(names: Sequence[str], *, prior: Prior, seed: int) -> tuple[list[str], list[np.ndarray]]:
    return list(names), [photograph(name, None)[1][0] for name in names]
