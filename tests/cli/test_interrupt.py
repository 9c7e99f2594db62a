"""Ctrl-C keeps what is finished, says so in one line and exits with 130."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invdiff.priors.edm import EDMPrior

Run = Callable[..., Any]

WORDS = [
    "reconstruct",
    "prior=digits",
    "input=pictures",
    "output=out",
    "sampler=daps",
    "sampler.schedule.steps=3",
    "num_samples=2",
]

# The process sends the signal to itself, at a network call: where it arrives does not depend on how fast things are.
SCRIPT = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from invdiff.cli.main import main
from invdiff.priors.edm import EDMPrior

calls, plain = 0, EDMPrior.denoise

def denoise(self, x, sigma):
    global calls
    calls += 1
    if calls == {stop}:
        os.kill(os.getpid(), signal.SIGINT)
    return plain(self, x, sigma)

EDMPrior.denoise = denoise
sys.argv = ["invdiff", *{words!r}]
main()
"""


def check_one_image(metrics: Run, arrays: Run, files: Run) -> None:
    assert [row["name"] for row in metrics("out")["images"]] == ["a"]
    assert arrays("out")["samples"].shape == (1, 2, 1, 32, 32)
    assert np.isfinite(arrays("out")["samples"]).all()
    assert {"out/samples/a_000.png", "out/samples/a_001.png", "out/comparison.png", "out/config.yaml"} <= files()
    assert not any(name.startswith(("out/samples/b", "out/samples/c")) for name in files())


def test_a_signal(pictures: Path, tmp_path: Path, metrics: Run, arrays: Run, files: Run) -> None:
    # With one sample in flight, calls 1 to 6 finish the first image; the signal comes in the second one.
    code = SCRIPT.format(stop=8, words=[*WORDS, "compute.max_rows=1"])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert (done.returncode, done.stderr) == (130, "invdiff: interrupted after 1 finished image(s)\n")
    check_one_image_in(tmp_path, metrics, arrays, files)


def check_one_image_in(folder: Path, metrics: Run, arrays: Run, files: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        check_one_image(metrics, arrays, files)


def interrupt_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = EDMPrior.denoise, iter(range(1, 10_000))

    def denoise(self: EDMPrior, x: Any, sigma: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return plain(self, x, sigma)

    monkeypatch.setattr(EDMPrior, "denoise", denoise)


def test_finished_images_are_those_of_a_full_run(
    invdiff: Run, pictures: Path, metrics: Run, arrays: Run, files: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    invdiff(*WORDS, "output=full")
    interrupt_at(10, monkeypatch)
    done = invdiff(*WORDS, "compute.max_rows=1")
    assert (done.code, done.err) == (130, "invdiff: interrupted after 1 finished image(s)\n")
    check_one_image(metrics, arrays, files)
    np.testing.assert_allclose(arrays("out")["samples"], arrays("full")["samples"][:1], atol=1e-4)
    assert metrics("out")["cost"]["peak_memory_mb"] > 0


@pytest.mark.parametrize("call", [1, 2])
def test_nothing_finished(invdiff: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    interrupt_at(call, monkeypatch)
    done = invdiff(*WORDS)
    assert (done.code, done.err) == (130, "invdiff: interrupted after 0 finished image(s)\n")
    assert not Path("out").exists()


def test_in_a_sweep_no_job_follows(invdiff: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(2, monkeypatch)
    done = invdiff(*WORDS, "-m", "seed=0,1")
    assert done.code == 130
    assert done.err == "invdiff: interrupted after 0 finished image(s)\n"
    assert {p.name for p in Path("out").iterdir()} == {"multirun.yaml"}


def test_while_the_prior_draws_a_truth(invdiff: Run, monkeypatch: pytest.MonkeyPatch, files: Run) -> None:
    interrupt_at(3, monkeypatch)
    done = invdiff("reconstruct", "prior=digits", "data=generated", "output=out")
    assert (done.code, done.err) == (130, "invdiff: interrupted\n")
    assert files() == set()
