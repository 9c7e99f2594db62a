"""`invdiff calibrate` end to end: on a prior in closed form whose posterior a sampler draws exactly, or does not."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
    return [f"hydra.searchpath=[file://{tmp_path}]", "prior=small", "trust=small.gaussian"]


def test_it_writes_the_answer_and_the_picture(invdiff: Callable, gaussian: list[str], tmp_path: Path) -> None:
    done = invdiff("calibrate", *gaussian, *FAST, "sampler=dps", "sampler.schedule.steps=10", "output=out")
    assert done.code == 0, done.err
    assert "TARP" in done.out
    report = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert 0 <= report["p_value"] <= 1
    assert len(report["calibrations"]) == 1
    assert re.search(r"calibration (not )?rejected \(.*\): (no effect|intervals|balls|samples) ", done.out)
    assert (tmp_path / "out" / "calibration.png").stat().st_size > 10_000
    assert (tmp_path / "out" / "config.yaml").is_file()


@pytest.mark.slow
def test_reconstruct_names_the_command_that_measures_and_then_states_its_result(
    invdiff: Callable, gaussian: list[str], tmp_path: Path
) -> None:
    steps = ["sampler=daps", "sampler.schedule.steps=3", "operator=inpainting", "operator.text='a b'"]
    words = [*gaussian, *steps, "noise.sigma=0.2", "num_samples=4", "data=generated", "compute.progress=false"]
    first = invdiff("reconstruct", *words, "output=first")
    assert first.code == 0, first.err
    said = re.search(r"90 % intervals: not measured for this prior.*; run invdiff (calibrate .*)", first.out)
    assert said
    done = invdiff(*shlex.split(said[1]), gaussian[0], "images=40", "compute.progress=false", "output=measured")
    assert done.code == 0, done.err

    again = invdiff("reconstruct", *words, "calibration=measured/calibration.json", "output=again")
    assert re.search(
        r"90 % intervals: measured coverage 0\.\d+ ± 0\.\d+ on 40 images \(draws of the prior\)", again.out
    )
    before, after = (np.load(tmp_path / f / "samples.npz") for f in ("first", "again"))
    assert np.array_equal(before["samples"], after["samples"])
    assert np.allclose(after["interval"].mean(1), after["mean"], atol=1e-5)
    assert not np.allclose(before["interval"], after["interval"])
    notes = json.loads((tmp_path / "again" / "metrics.json").read_text())["notes"]
    assert notes["calibration"]["images"] == 40


@pytest.mark.slow
def test_images_of_a_folder_are_the_truths(invdiff: Callable, gaussian: list[str], tmp_path: Path) -> None:
    (tmp_path / "slices").mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (22, 5, 5), dtype=np.uint8)):
        Image.fromarray(image).save(tmp_path / "slices" / f"{i:02d}.png")
    done = invdiff("calibrate", *gaussian, *FAST, "sampler=daps", "input=slices", "images=21", "output=out")
    assert done.code == 0, done.err
    (found,) = json.loads((tmp_path / "out" / "calibration.json").read_text())["calibrations"]
    assert (found["truths"], found["drawn"], found["images"]) == ("images in slices", False, 21)


def test_a_calibration_that_is_none_gets_one_line(invdiff: Callable, gaussian: list[str]) -> None:
    done = invdiff("reconstruct", *gaussian, "operator=denoising", "data=generated", "calibration=none.json")
    assert done.code == 2
    assert "calibration: no such file: none.json" in done.err


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
