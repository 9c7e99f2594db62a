"""The scores of metrics.json: right where they can be computed, null with a reason where not."""

import json
import math
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff.operators import Denoising, GaussianNoise, Inpainting, Operator
from invdiff.posterior import Cost, Posterior
from invdiff.problem import InverseProblem
from invdiff.report.tables import scores_in_words
from invdiff.scores import SCORES, evaluate, metrics
from invdiff.scores.proper import crps, energy_score


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
    found = evaluate(Posterior(samples, flags, Cost(), problem), names, x if truth else None)
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


def test_proper_scores_of_images_with_their_errors() -> None:
    x = draw(3, 1, 16, 16)
    samples = x[:, None] + 0.1 * torch.randn(3, 4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    found = score(x, samples)
    for i, row in enumerate(found["images"]):
        assert row["energy"] == pytest.approx(energy_score(samples[i], x[i]))
        assert row["crps"] == pytest.approx(crps(samples[i], x[i]))
    for name in ("energy", "crps"):
        values = [row[name] for row in found["images"]]
        assert found["mean"][name] == pytest.approx(np.mean(values))
        assert found["standard_error"][name] == pytest.approx(np.std(values, ddof=1) / math.sqrt(3))
    spreads = samples.var(1).mean((1, 2, 3)) * 5 / 4
    errors = (samples.mean(1) - x).square().mean((1, 2, 3))
    assert found["images"][0]["spread_error"] == pytest.approx(float((spreads[0] / errors[0]).sqrt()), rel=1e-4)
    assert found["mean"]["spread_error"] == pytest.approx(float((spreads.sum() / errors.sum()).sqrt()), rel=1e-4)
    assert not any("noisy" in str(note) for note in found["notes"].values())

    few = score(x, samples[:, :3])
    assert few["images"][0]["energy"] is not None
    assert "noisy: of 3 samples" in few["notes"]["energy"]
    one = score(x, samples[:, :1])
    assert one["mean"]["energy"] is None
    assert one["notes"]["crps"] == "needs num_samples >= 2"
    left = score(x, samples, diverged_at=torch.tensor([[-1, 3, 3, 3], [-1] * 4, [-1] * 4]))
    assert left["images"][0]["energy"] is None
    assert left["notes"]["energy"] == "fewer than two samples are left"


def test_the_summary_of_a_reconstruction_shows_proper_scores() -> None:
    x = draw(2, 1, 16, 16)
    samples = x[:, None] + 0.1 * torch.randn(2, 3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    found = score(x, samples)
    (table,), lines = scores_in_words(found, "title")
    headings = [str(column.header) for column in table.columns]
    assert headings[1:4] == ["energy score", "CRPS", "spread / error"]
    assert str(next(iter(table.columns[1].cells))) == f"{found['images'][0]['energy']:.4f}"
    words = "\n".join(lines)
    assert (
        f"energy score {found['mean']['energy']:.4f} ± {found['standard_error']['energy']:.4f} over the images" in words
    )
    assert "noisy: of 3 samples" in words


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
    assert all("not known" in no_truth["notes"][name] for name in set(SCORES) - {"misfit"})

    no_guess = score(x, x[:, None] * 0.9, Squares())
    assert no_guess["images"][0]["baseline_psnr"] is None
    assert no_guess["notes"]["baseline_psnr"] == "Squares has no first guess"

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
    monkeypatch.setattr(metrics, "_lpips_model", lambda: None)
    (tmp_path / "checkpoints" / metrics.LPIPS_BACKBONE).write_bytes(b"")
    assert metrics.lpips_unavailable((3, 32, 32)) is None


def test_half_a_download_of_the_lpips_weights_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And not an error after the samples were computed: the other scores are there."""
    weights = tmp_path / "checkpoints" / metrics.LPIPS_BACKBONE
    weights.parent.mkdir()
    weights.write_bytes(b"half of a download")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    metrics._lpips_model.cache_clear()
    x = draw(1, 1, 32, 32)
    found = score(x, (x * 0.5)[:, None])
    assert found["images"][0]["lpips"] is None
    assert found["images"][0]["ssim"] is not None
    assert f"LPIPS weights are damaged, or cannot be read: {weights}" in found["notes"]["lpips"]


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
    assert metrics.lpips_unavailable((3, 32, 32)) is None
    try:
        x, z = draw(1, 32, 32), draw(1, 32, 32, seed=1)
        assert metrics.lpips_distance(x, x) == pytest.approx(0, abs=1e-6)
        assert metrics.lpips_distance(z, x) > metrics.lpips_distance(0.9 * x + 0.1 * z, x) > 0
        assert metrics.lpips_distance(2 * z, 2 * x, (0.0, 2.0)) == pytest.approx(metrics.lpips_distance(z, x))
    finally:
        metrics._lpips_model.cache_clear()


# -- measurements that cannot tell some images apart -------------------------------------------------------------------


class Magnitude(Operator):
    """Loses the sign of each image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()

    def align(self, x: Tensor, reference: Tensor) -> Tensor:
        return torch.where((x * reference).sum((1, 2, 3), keepdim=True) < 0, -x, x)

    def first_guess(self, y: Tensor) -> Tensor:
        return -y

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape


@pytest.fixture
def signed() -> tuple[Tensor, Tensor]:
    """Two images and four samples of each; sample s is 0.04 (s + 1) too bright, and its sign is lost in two of them."""
    x = 0.2 + 0.5 * draw(2, 1, 16, 16)
    off = 0.04 * torch.arange(1, 5).reshape(1, 4, 1, 1, 1)
    sign = torch.tensor([[1, -1, 1, -1], [-1, -1, -1, 1]]).reshape(2, 4, 1, 1, 1)
    return x, sign * (x[:, None] + off)


def test_scores_are_of_aligned_images(signed: tuple[Tensor, Tensor]) -> None:
    x, samples = signed
    found, plain = score(x, samples, Magnitude()), score(x, samples.abs())
    for i, (row, wanted) in enumerate(zip(found["images"], plain["images"], strict=True)):
        for name in ("energy", "crps", "spread_error", "psnr", "psnr_mean", "ssim", "misfit"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-5)
        assert row["baseline_psnr"] > 15, "the first guess is aligned too"
        assert row["psnr_raw"] == pytest.approx(np.mean([metrics.psnr(s, x[i]) for s in samples[i]]))
        assert row["psnr_raw"] < row["psnr"] - 5
    assert set(found["mean"]) == {*SCORES, "psnr_raw"}
    assert "Magnitude cannot tell some images apart" in found["notes"]["alignment"]
    assert "psnr_raw" not in plain["mean"]
    assert "alignment" not in plain["notes"]

    unknown = score(x, samples, Magnitude(), truth=False)
    assert unknown["images"][0]["psnr_raw"] is None
    assert "psnr_raw" in str(list(unknown["notes"]))
    assert "truth" not in unknown["notes"]["alignment"]


def test_aligned_samples_can_be_averaged(signed: tuple[Tensor, Tensor]) -> None:
    """Onto the one that fits best, which knows no truth and may have lost its sign; diverged ones are no example."""
    x, samples = signed
    problem = InverseProblem(Magnitude(), GaussianNoise(0.1), x.abs())
    flags = torch.full((2, 4), -1)
    flags[0, 0] = 3
    posterior = Posterior(samples, flags, Cost(), problem)
    for truth, signs in ((None, (-1, -1)), (x, (1, 1))):
        found = posterior.aligned if truth is None else posterior.facing(truth)
        assert torch.equal(found.diverged, posterior.diverged)
        for i, sign in enumerate(signs):
            torch.testing.assert_close(found.samples[i], sign * samples[i].abs())
    assert torch.equal(posterior.samples, signed[1]), "what the sampler gave is kept"
    unmoved = InverseProblem(Denoising(), GaussianNoise(0.1), x)
    kept = replace(posterior, problem=unmoved)
    assert kept.aligned is kept.facing(x) is kept


def test_best_of_only_where_it_is_asked_for(signed: tuple[Tensor, Tensor]) -> None:
    x, samples = signed
    flags = torch.full((2, 4), -1)
    flags[0, 0] = 3
    assert not any("best" in name for name in score(x, samples, diverged_at=flags)["mean"])

    # The one with the smallest misfit is not the one nearest to the truth.
    y = x + torch.tensor([0.08, 0.17]).reshape(2, 1, 1, 1)
    problem = InverseProblem(Magnitude(), GaussianNoise(0.1), y)
    found = evaluate(Posterior(samples, flags, Cost(), problem), ["a", "b"], x, best_of=True)
    for i, (oracle, fits) in enumerate([(1, 1), (0, 3)]):
        row = found["images"][i]
        assert row["psnr_best_oracle"] == pytest.approx(metrics.psnr(samples[i, oracle].abs(), x[i]))
        assert row["psnr_best_misfit"] == pytest.approx(metrics.psnr(samples[i, fits].abs(), x[i]))
        assert row["psnr_best_oracle"] > row["psnr"]
    for name in ("psnr_best_oracle", "psnr_best_misfit"):
        assert found["mean"][name] == pytest.approx(np.mean([row[name] for row in found["images"]]))

    nothing = evaluate(Posterior(samples, torch.zeros(2, 4), Cost(), problem), ["a", "b"], x, best_of=True)
    assert nothing["images"][0]["psnr_best_oracle"] is None
