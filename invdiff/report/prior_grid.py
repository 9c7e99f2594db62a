"""Unconditional samples of a prior as one picture."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from invdiff.engine.progress import progress_bar
from invdiff.priors import Prior
from invdiff.priors.closed_form.base import ClosedFormPrior
from invdiff.priors.ode import generate
from invdiff.report.comparison import thumbnails
from invdiff.streams import Streams, generator, key

STEPS = 40  # Heun steps of a network


def write_grid(prior: Prior, shape: Sequence[int], count: int, path: Path) -> Tensor:
    """Draw `count` samples (C, H, W), exactly where the prior is in closed form; sample i depends on i alone.

    Returns the samples (N, C, H, W).
    """
    if isinstance(prior, ClosedFormPrior):
        samples = torch.cat([prior.sample(1, generator(0, "generate", i)) for i in range(count)])
    else:
        noise = Streams([key(0, "generate", i) for i in range(count)], prior.diffusion_shape(tuple(shape))).normal()
        with progress_bar(STEPS, "step", "sampling") as bar:
            samples = generate(prior.cpu(), noise, steps=STEPS, on_step=lambda _: bar.update())
    low, high = prior.value_range
    thumbnails(((samples - low) / (high - low)).clamp(0, 1), path, max(1, round(count**0.5)))
    return samples
