"""`-m` sweeps: a folder for each job, and a job that fails stops no other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("without_comparison")
WORDS = ("-m", "input=pictures/a.png", "num_samples=1", "sampler.schedule.steps=1")


def test_a_folder_each(reconstruct: Run, pictures: Path, arrays: Run, metrics: Run) -> None:
    done = reconstruct(*WORDS, "operator.keep=0.2,0.8")
    assert (done.code, done.err) == (0, "")
    assert {p.name for p in Path("out").iterdir()} == {"0", "1", "multirun.yaml"}
    for number, keep in enumerate((0.2, 0.8)):
        y = arrays(f"out/{number}")["y"]
        assert (y != 0).mean() == pytest.approx(keep, abs=0.01)
        config = OmegaConf.load(f"out/{number}/config.yaml")
        assert (config.operator.keep, config.output) == (keep, str(Path(f"out/{number}").absolute()))
        assert metrics(f"out/{number}")["images"][0]["name"] == "a"
    assert "out/1" in done.out


def test_a_job_that_fails_stops_no_other(reconstruct: Run, pictures: Path, arrays: Run) -> None:
    done = reconstruct(*WORDS, "operator.keep=7,0.5,-1")
    assert done.code == 2
    lines = done.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("invdiff: error: job 0 (")
    assert "operator.keep=7" in lines[0]
    assert lines[0].endswith("got 7")
    assert lines[1].startswith("invdiff: error: job 2 (")
    assert lines[1].endswith("got -1")
    assert {p.name for p in Path("out").iterdir()} == {"1", "multirun.yaml"}, "empty folders were left"
    assert np.isfinite(arrays("out/1")["samples"]).all()


@pytest.mark.slow
def test_sweeps_over_groups(invdiff: Run, pictures: Path, arrays: Run) -> None:
    # `++`: the samplers of a sweep are not known yet when hydra first looks at the options that they have.
    words = ("-m", "prior=digits", "input=pictures/a.png", "output=out", "num_samples=1")
    groups = ("operator=denoising,super_resolution", "sampler=dps,daps", "++sampler.schedule.steps=2")
    done = invdiff("reconstruct", *words, *groups)
    assert done.code == 0, done.err
    assert arrays("out/0")["y"].shape == arrays("out/1")["y"].shape == (1, 1, 32, 32)
    assert arrays("out/2")["y"].shape == arrays("out/3")["y"].shape == (1, 1, 8, 8)


def test_an_unknown_name_stops_a_sweep_before_it_begins(reconstruct: Run, pictures: Path) -> None:
    done = reconstruct(*WORDS, "operator=denoising,nonsense")
    assert done.code == 2
    assert done.err.startswith("invdiff: error: unknown operator 'nonsense'")
    assert done.err.count("\n") == 1
    assert not Path("out/0").exists()


@pytest.mark.slow
def test_a_sweep_into_the_default_folder(invdiff: Run, pictures: Path) -> None:
    done = invdiff("train", "-m", "recipe=digits", f"data={pictures}", "recipe.crop=512,1024")
    assert done.code == 2
    assert all(f"pad_to={side}" in done.err for side in (512, 1024))
