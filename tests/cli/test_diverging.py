"""Samples that diverge are told, left out, and never averaged in."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from invdiff.samplers import DAPS

Run = Callable[..., Any]


def test_all_diverge(reconstruct: Run, pictures: Path, metrics: Run, arrays: Run, files: Run) -> None:
    # Without clip: with it, estimates stay in [0, 1] whatever the weight, and only the misfit tells.
    wild = ("sampler=dps", "sampler.guidance=published", "sampler.zeta=1e12")
    absurd = (*wild, "sampler.clip=false", "sampler.schedule.steps=5")
    done = reconstruct("input=pictures/a.png", "num_samples=2", *absurd)
    assert done.code == 2
    lines = done.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("invdiff: error: every sample diverged, first at step ")
    assert lines[0].endswith("written to out")
    assert {f for f in files() if f.startswith("out/")} == {
        "out/",
        *(f"out/{name}" for name in ("comparison.png", "samples.npz", "metrics.json", "config.yaml", ".run.json")),
    }
    found = metrics("out")
    row = found["images"][0]
    assert row["diverged"] == 2
    assert [row[score] for score in ("psnr", "psnr_mean", "ssim", "misfit")] == [None] * 4
    assert row["baseline_psnr"] > 0
    assert found["mean"]["psnr"] is None
    assert "diverged" in found["notes"]
    assert arrays("out")["samples"].shape == (1, 2, 1, 32, 32)
    assert np.isnan(arrays("out")["mean"]).all()


@pytest.mark.slow
def test_one_diverges(
    reconstruct: Run, pictures: Path, metrics: Run, arrays: Run, files: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = DAPS.iterate

    def spoiled(self: DAPS, *args: Any) -> Iterator[Any]:
        for step in plain(self, *args):
            step.x[1] = torch.nan  # the second sample of the first image
            yield step

    monkeypatch.setattr(DAPS, "iterate", spoiled)
    done = reconstruct("input=pictures", "num_samples=3")
    assert (done.code, done.err) == (0, "")
    found = metrics("out")
    assert [row["diverged"] for row in found["images"]] == [1, 0, 0]
    assert all(row["psnr"] is not None and row["misfit"] is not None for row in found["images"])
    kept = arrays("out")["samples"][0, [0, 2]]
    np.testing.assert_allclose(arrays("out")["mean"][0], kept.mean(0), atol=1e-6)
    np.testing.assert_allclose(arrays("out")["std"][0], kept.std(0, ddof=1), atol=1e-6)
    assert "out/samples/a_001.png" not in files()
    assert {"out/samples/a_000.png", "out/samples/a_002.png"} <= files()
    assert "left out" in found["notes"]["diverged"]
