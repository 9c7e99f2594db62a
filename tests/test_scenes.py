"""Measurements of scenes that go on outside the frame: the result has the size of y, and no ringing at its border."""

import numpy as np
import pytest
import torch
from torch import Tensor

import invdiff
from invdiff.operators import GaussianBlur
from invdiff.priors.closed_form.gaussian_field import GaussianFieldPrior


@pytest.fixture(scope="module")
def scene() -> Tensor:
    """A smooth field with a strong slope, (1, 1, 48, 52): what lies outside the frame shows within it."""
    draws = torch.randn(1, 1, 48, 52, generator=torch.Generator().manual_seed(3))
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 52), indexing="ij")
    return (0.5 * rows + 0.3 * columns)[None, None] + 0.1 * GaussianBlur(std=1.5)(draws)


def test_the_result_is_that_of_the_frame(scene: Tensor, tmp_path) -> None:
    operator = GaussianBlur(std=1.5, boundary="valid")
    prior = GaussianFieldPrior.matern((1, 48, 52), length=6.0)
    y = invdiff.simulate(scene, operator, 0.01)
    framed = operator.frame(scene)
    for truth in (scene, framed, None):
        result = invdiff.reconstruct(y, operator, noise=0.01, prior=prior, num_samples=2, truth=truth)
        assert result.samples.shape[2:] == y.shape[1:]
        assert result.misfit.shape == (1, 2)
        assert 0.3 < float(result.misfit.mean()) < 3
        if truth is not None:
            torch.testing.assert_close(result.truth, framed)
            assert result.metrics()["images"][0]["baseline_psnr"] > 15
    result.save(tmp_path / "out")
    with np.load(tmp_path / "out" / "samples.npz") as saved:
        assert saved["mean"].shape == saved["y"].shape == tuple(y.shape)
