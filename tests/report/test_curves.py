"""Signals are drawn as curves; a predictive band holds the measurement of a right posterior."""

import torch
from torch import Tensor

from invdiff import InverseProblem
from invdiff.operators import Denoising, GaussianNoise
from invdiff.posterior import Cost, Posterior
from invdiff.report.curves import are_signals, curves, predicted


def posterior(truth: Tensor, draws: int = 200) -> Posterior:
    """Of white signals of variance 1 with noise of variance 1: N(y / 2, 1 / 2)."""
    generator = torch.Generator().manual_seed(0)
    y = truth + torch.randn(truth.shape, generator=generator)
    samples = y[:, None] / 2 + 0.5**0.5 * torch.randn(len(y), draws, *truth.shape[1:], generator=generator)
    problem = InverseProblem(Denoising(), GaussianNoise(1.0), y)
    return Posterior(samples, torch.full(samples.shape[:2], -1), Cost(), problem)


def test_curves() -> None:
    truth = torch.randn(2, 1, 1, 60, generator=torch.Generator().manual_seed(1))
    assert are_signals(truth)
    assert not are_signals(torch.zeros(2, 1, 8, 8))
    found = posterior(truth)
    figure = curves(found, ["a", "b"], truth, title="signals", badge=("does not explain the data", True))
    assert len(figure.axes) == 4
    assert {line.get_label() for line in figure.axes[0].get_lines()} == {"mean", "truth"}
    assert "does not explain" in figure.get_suptitle()
    assert len(curves(found, ["a"], None, title="").axes) == 2


def test_predictive_bands_hold_measurements() -> None:
    truth = torch.randn(1, 1, 1, 400, generator=torch.Generator().manual_seed(2))
    found = posterior(truth)
    new = predicted(found, 0, found.samples[0])
    assert new.shape == (200, 400)
    # Of N(y / 2, 1/2 + 1): y lies |y| / 2 from its middle, y of variance 2.
    assert abs(float(new.std(0).mean()) - 1.5**0.5) < 0.03
    low, high = new.quantile(0.05, 0), new.quantile(0.95, 0)
    inside = ((found.problem.y.flatten() > low) & (found.problem.y.flatten() < high)).float().mean()
    assert inside > 0.97
