"""Classifier two-sample test."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from invdiff.scores.points import Estimate, sets


def classifier_accuracy(
    x: Tensor, y: Tensor, generator: torch.Generator, *, folds: int = 5, width: int = 32, steps: int = 100
) -> Estimate:
    """Classifier two-sample test: accuracy of a small network on points that it was not trained on; 0.5 is chance.

    folds  of the cross-validation: every point is judged by the network that was trained without its fold
    width  of the two hidden layers
    steps  of AdamW, on all points at once

    Where the counts differ, points are drawn from the larger set. An accuracy of 0.5 does not prove equal laws. The
    error is that of as many tosses, widened for networks that share their training data (Nadeau and Bengio, Inference
    for the Generalization Error, Machine Learning 2003). Source: Lopez-Paz and Oquab, Revisiting Classifier Two-Sample
    Tests, ICLR 2017.
    """
    x, y, _ = sets(x, y, None)
    if not (folds >= 2 and width >= 1 and steps >= 1):
        raise ValueError(f"classifier: folds must be >= 2, width and steps >= 1, got {folds}, {width} and {steps}")
    count = min(len(x), len(y))
    if count < folds:
        raise ValueError(f"classifier: {folds} folds need {folds} points of each set, got {len(x)} and {len(y)}")
    chosen = [s[torch.randperm(len(s), generator=generator)[:count].to(s.device)] for s in (x, y)]
    points = torch.cat(chosen)
    label = torch.cat([torch.ones(count), torch.zeros(count)]).to(points)
    fold = (torch.arange(count) % folds).repeat(2).to(points.device)
    held_out = fold == torch.arange(folds, device=fold.device)[:, None]  # (folds, points)

    # All folds at once: layers are (folds, in, out), and each network sees the points in the units of its own training.
    kept = (~held_out).to(points)
    kept = kept / kept.sum(1, keepdim=True)
    mean = kept @ points
    std = (kept @ points**2 - mean**2).clamp(min=0).sqrt()
    features = ((points - mean[:, None]) / std.where(std > 0, 1)[:, None]).float()
    sizes = [points.shape[1], width, width, 1]
    layers = [
        torch.randn(folds, a, b, generator=generator).to(features.device) * math.sqrt(2 / a) for a, b in pairwise(sizes)
    ]
    biases = [torch.zeros(folds, 1, b, device=features.device) for b in sizes[1:]]
    parameters = [p.requires_grad_(True) for p in layers + biases]
    optimiser = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=1e-2)

    def logits() -> Tensor:
        h = features
        for i, (layer, bias) in enumerate(zip(layers, biases, strict=True)):
            h = torch.baddbmm(bias, h.relu() if i else h, layer)
        return h.squeeze(-1)

    target, train = label.float().expand(folds, -1), kept.float()
    with torch.enable_grad():
        for _ in range(steps):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits(), target, reduction="none")
            optimiser.zero_grad()
            (loss * train).sum().backward()  # a mean in each fold; the sum over folds mixes nothing
            optimiser.step()
    with torch.no_grad():
        right = (logits() > 0) == (target > 0.5)
    accuracy = float(right[held_out].double().mean())
    tosses = accuracy * (1 - accuracy) / (2 * count)
    return Estimate(accuracy, math.sqrt(tosses * (1 + folds / (folds - 1))))
