"""Simulated measurements of true images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from invdiff.io import BadInput
from invdiff.operators import Noise, Operator
from invdiff.streams import generator


@torch.no_grad()
def measure(operator: Operator, noise: Noise, truth: Tensor, seed: int, images: Sequence[int] | None = None) -> Tensor:
    """Measurements y of true images (B, C, H, W), on the CPU.

    images  the index of each, where the batch is a part of a larger set; operator and noise have parameters for all of
            the set, or for one

    That of image i depends on (seed, operator, noise, i) alone: it is measured by itself, so that not even the last
    digit tells what else is in the batch. Raises BadInput where the operator does not take such images.
    """
    reason = operator.refuses(tuple(truth.shape[1:]))
    if reason is not None:
        raise BadInput(reason)
    images = range(len(truth)) if images is None else images
    for whose, count in (("operator", operator.images), ("noise", noise.images)):
        if 1 < count <= max(images):
            raise BadInput(f"the {whose} has parameters for {count} images, there are {max(images) + 1} or more")
    rows = []
    for row, i in zip(truth, images, strict=True):
        own = torch.tensor([i])
        one, likelihood = operator.select(own), noise.select(own)
        clean = one(row[None])
        rows.append(likelihood.sample(clean, [generator(seed, "measure", i)], one.measured(tuple(clean.shape[1:]))))
    return torch.cat(rows)
