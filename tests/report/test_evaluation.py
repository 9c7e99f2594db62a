"""The scores of metrics.json: right where they can be computed, null with a reason where not."""

import json
import math
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff import metrics
from invdiff.cost import Cost
from invdiff.evaluation import SCORES, evaluate
from invdiff.operators import Denoising, GaussianNoise, Inpainting, Operator
from invdiff.posterior import Posterior
from invdiff.problem import InverseProblem


class Squares(Operator):
    """Nonlinear, without a first guess."""

    def forward(self, x: Tensor) -> Tensor:
        return x**2

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def score(
    x: Tensor,
    samples: Tensor,
    operator: Operator | None = None,
    diverged_at: Tensor | None = None,
    truth: bool = True,
    sigma: float = 0.1,
) -> dict[str, Any]:
    operator = operator or Denoising()
    y = operator(x) + sigma * torch.randn(operator(x).shape, generator=torch.Generator().manual_seed(9))
    problem = InverseProblem(operator, GaussianNoise(sigma), y)
    flags = torch.full(samples.shape[:2], -1) if diverged_at is None else diverged_at
    names = [f"image_{i}" for i in range(len(x))]
    found = evaluate(problem, Posterior(samples, flags, Cost()), names, x if truth else None)
    json.dumps(found, allow_nan=False)
    return found


def test_psnr_is_that_of_the_formula() -> None:
    x, z = draw(3, 16, 16), draw(3, 16, 16, seed=1)
    assert metrics.psnr(z, x) == pytest.approx(-10 * math.log10(float((x - z).square().mean())), abs=1e-4)
    # In another unit of the field nothing changes.
    assert metrics.psnr(4 * z - 1, 4 * x - 1, (-1.0, 3.0)) == pytest.approx(metrics.psnr(z, x), abs=1e-4)
    # Values that cannot be shown are clamped first.
    assert metrics.psnr(torch.where(x > 0.5, 9.0, x), torch.where(x > 0.5, 1.0, x)) == math.inf
    assert math.isnan(metrics.psnr(torch.full_like(x, torch.nan), x))


def test_ssim() -> None:
    x = draw(1, 32, 32)
    assert metrics.ssim(x, x) == pytest.approx(1)
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    assert metrics.ssim(blurred, x) < metrics.ssim((x + blurred) / 2, x) < 1
    assert math.isnan(metrics.ssim(x[:, :8, :8], x[:, :8, :8]))


def test_means_leave_out_what_is_not_known() -> None:
    assert metrics.mean_of([1.0, None, 3.0, math.nan, math.inf]) == 2
    assert metrics.mean_of([None, math.nan]) is None
    assert metrics.for_json(math.inf) is None
    assert metrics.for_json(1.5) == 1.5


def test_averages_over_samples_and_images() -> None:
    x = draw(2, 1, 16, 16)
    samples = x[:, None] + 0.1 * torch.randn(2, 3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    found = score(x, samples)
    for i, row in enumerate(found["images"]):
        assert row["psnr"] == pytest.approx(np.mean([metrics.psnr(s, x[i]) for s in samples[i]]))
        assert row["ssim"] == pytest.approx(np.mean([metrics.ssim(s, x[i]) for s in samples[i]]))
        assert row["psnr_mean"] == pytest.approx(metrics.psnr(samples[i].mean(0), x[i]), abs=1e-4)
        assert row["psnr_mean"] > row["psnr"] + 2
    for name in ("psnr", "misfit", "baseline_psnr"):
        assert found["mean"][name] == pytest.approx(np.mean([row[name] for row in found["images"]]))


def test_misfit_is_one_at_the_truth() -> None:
    x = draw(1, 1, 64, 64)
    assert score(x, x[:, None])["mean"]["misfit"] == pytest.approx(1, abs=0.1)
    assert score(x, x[:, None], Inpainting(keep=0.5))["mean"]["misfit"] == pytest.approx(1, abs=0.1)
    assert score(x, x[:, None] + 0.2)["mean"]["misfit"] == pytest.approx(1 + 0.2**2 / 0.1**2, abs=0.3)


def test_diverged_samples_are_left_out() -> None:
    x = draw(2, 1, 16, 16)
    samples = (x + 0.1)[:, None].repeat(1, 3, 1, 1, 1)
    good = score(x, samples)
    samples[0, 1] = torch.nan
    samples[1] = 1e9
    found = score(x, samples, diverged_at=torch.tensor([[-1, 4, -1], [0, 0, 0]]))
    expected = good["images"][0] | {"diverged": 1}
    assert found["images"][0] == {k: pytest.approx(v) if isinstance(v, float) else v for k, v in expected.items()}
    assert found["images"][1]["diverged"] == 3
    for name in ("psnr", "psnr_mean", "ssim", "misfit"):
        assert found["images"][1][name] is None
        assert found["mean"][name] == found["images"][0][name]
    assert "left out" in found["notes"]["diverged"]


def test_every_gap_has_its_reason() -> None:
    x = draw(1, 1, 16, 16)
    no_truth = score(x, x[:, None], truth=False)
    assert {name for name in SCORES if no_truth["images"][0][name] is None} == set(SCORES) - {"misfit"}
    assert "not known" in no_truth["notes"]["psnr, psnr_mean, ssim, lpips, baseline_psnr"]

    no_guess = score(x, x[:, None] * 0.9, Squares())
    assert no_guess["images"][0]["baseline_psnr"] is None
    assert no_guess["notes"]["baseline_psnr"] == "Squares has no pseudo-inverse"

    equal = score(x, x[:, None].repeat(1, 2, 1, 1, 1))
    assert equal["images"][0]["psnr"] is None
    assert equal["images"][0]["psnr_mean"] is None
    assert "equal" in equal["notes"]["psnr"]
    assert "equal" in equal["notes"]["psnr_mean"]

    small = score(x[..., :8, :8], x[:, None, :, :8, :8] * 0.9)
    assert small["images"][0]["ssim"] is None
    assert "11x11" in small["notes"]["ssim"]


def test_no_first_guess_is_made_where_there_is_no_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Denoising, "first_guess", lambda *_: pytest.fail("conjugate gradients for nothing"))
    x = draw(1, 1, 16, 16)
    score(x, x[:, None], truth=False)


def test_lpips_where_its_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "lpips_unavailable", lambda shape: None)
    monkeypatch.setattr(metrics, "_lpips_model", lambda: lambda a, b: (a - b).abs().mean())
    x = draw(1, 1, 32, 32)
    found = score(x, (x * 0.5)[:, None])
    assert found["images"][0]["lpips"] == pytest.approx(float(x.mean()), rel=1e-4)  # |2 * x/2| in [-1, 1]
    assert "lpips" not in found["notes"]


def test_lpips_tells_what_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert metrics.LPIPS_BACKBONE in str(metrics.lpips_unavailable())
    assert "32x32" in str(metrics.lpips_unavailable((3, 31, 400)))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / metrics.LPIPS_BACKBONE).write_bytes(b"")
    assert metrics.lpips_unavailable((3, 32, 32)) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_the_lpips_package_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a backbone of random weights: what is tested is that it loads from disk alone and takes our images."""
    from torchvision.models import alexnet

    (tmp_path / "checkpoints").mkdir()
    torch.save(alexnet(weights=None).state_dict(), tmp_path / "checkpoints" / metrics.LPIPS_BACKBONE)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a download"))
    metrics._lpips_model.cache_clear()
    try:
        x, z = draw(1, 32, 32), draw(1, 32, 32, seed=1)
        assert metrics.lpips_distance(x, x) == pytest.approx(0, abs=1e-6)
        assert metrics.lpips_distance(z, x) > metrics.lpips_distance(0.9 * x + 0.1 * z, x) > 0
        assert metrics.lpips_distance(2 * z, 2 * x, (0.0, 2.0)) == pytest.approx(metrics.lpips_distance(z, x))
    finally:
        metrics._lpips_model.cache_clear()
