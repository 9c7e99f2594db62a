"""`invdiff calibrate` end to end: on a prior in closed form whose posterior a sampler draws exactly, or does not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

FAST = ["images=24", "num_samples=4", "operator=denoising", "noise.sigma=0.2", "compute.progress=false"]


@pytest.fixture
def gaussian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "small.py").write_text(
        "import torch\nfrom invdiff.priors import GaussianPrior\n"
        "def gaussian():\n    return GaussianPrior(torch.full((1, 5, 5), 0.5), 0.04 * torch.eye(25))\n"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "small.yaml").write_text("_target_: small.gaussian\n")
    return [f"hydra.searchpath=[file://{tmp_path}]", "prior=small"]


def test_it_writes_the_answer_and_the_picture(invdiff: Callable, gaussian: list[str], tmp_path: Path) -> None:
    done = invdiff("calibrate", *gaussian, *FAST, "sampler=dps", "sampler.schedule.steps=10", "output=out")
    assert done.code == 0, done.err
    assert "TARP" in done.out
    report = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert 0 <= report["p_value"] <= 1
    assert (tmp_path / "out" / "calibration.png").stat().st_size > 10_000
    assert (tmp_path / "out" / "config.yaml").is_file()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("images=3", "images must be >= 20"),
        ("size=9", "size=9 does not fit this prior"),
        ("sampler=mcg operator=hdr", "needs a linear operator"),
    ],
)
def test_bad_input_gets_one_line(invdiff: Callable, gaussian: list[str], override: str, words: str) -> None:
    done = invdiff("calibrate", *gaussian, *FAST, *override.split(), "output=out")
    assert done.code == 2
    assert words in done.err
    assert "Traceback" not in done.err
