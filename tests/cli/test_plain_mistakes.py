"""Mistakes of the first hour: names of priors, networks in files, checks without images, errors without words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from helpers import assert_refused
from invdiff import load_prior
from invdiff.benchmark.store import _record
from invdiff.cli.app import explain
from invdiff.cli.main import main
from invdiff.contracts.prior_figures import DECLARED, NOISY, Level, judge
from invdiff.report.leaderboard import prior_label

Run = Callable[..., Any]

NETWORK = """
import torch
from omegaconf import OmegaConf

class Half(torch.nn.Module):
    def forward(self, x, t):
        return 0.5 * x

ready = Half()

def load():
    return Half()

def nothing():
    return 3
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prior.network=net.py:absent"], ["net.py has no 'absent'", "load"]),
        (["prior.network=net.py:nothing"], ["net.py: nothing must be a torch module, or a function"]),
        (["prior.network=net.py"], ["give network=my_unet.py:load"]),
        (["prior.network=3"], ["prior.network must be", "got 3"]),
        (["prior=photo", "prior.weights=eps.pt"], ["eps.pt is a torch checkpoint: use prior=parametrised"]),
        (["prior=digits", "prior.weights=eps.ckpt"], ["eps.ckpt is a torch checkpoint"]),
    ],
)
def test_a_network_that_cannot_be_used(invdiff: Run, words: list[str], said: list[str]) -> None:
    Path("net.py").write_text(NETWORK)
    torch.save({}, "eps.pt")
    torch.save({}, "eps.ckpt")
    done = invdiff("reconstruct", "prior=parametrised", "data=cat", *words, "output=out")
    assert_refused(done, *said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compute=../x"], "compute must be a group of options, given as compute.NAME=value, got ../x"),
        (["volume=3"], "volume must be a group of options"),
        (["noise.sigma=[]"], "must be a number or one per image"),
    ],
)
def test_what_the_fuzz_found(invdiff: Run, words: list[str], said: str) -> None:
    done = invdiff("reconstruct", "prior=digits", "data=generated", "data.steps=1", *words, "output=out")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert said in done.err


@pytest.mark.parametrize("name", ["load", "ready"])
def test_a_network_in_a_file(invdiff: Run, name: str) -> None:
    Path(f"net_{name}.py").write_text(NETWORK)
    words = (f"prior.network=net_{name}.py:{name}", "prior.shape=[1,8,8]", "grid=0", "output=out", "contract=false")
    done = invdiff("check-prior", "prior=parametrised", *words)
    assert "error" not in done.err
    assert "needs images of yours: give input=" in " ".join(done.out.split())


def test_readings_are_not_judged_on_draws_of_the_prior() -> None:
    readings = {NOISY: 10.0, DECLARED: 20.0, "another": 30.0}
    levels = [Level(0.2, 10.0, 20.0, 1.0, 0.0)]
    found = {drawn: judge(load_prior("digits"), levels, readings, None, drawn=drawn)[-1] for drawn in (True, False)}
    assert (found[True].result, found[False].result) == ("n/a", "warning")


def test_names_of_priors() -> None:
    assert prior_label({"name": "digits", "weights": None}) == "digits"
    assert prior_label({"name": "digits", "weights": "a/mix01/prior.safetensors"}) == "mix01/prior.safetensors"
    stored = {"file": "prior.safetensors", "sha256": "0123456789abcdef"}
    assert prior_label({"name": "digits", "weights": stored}) == "prior.safetensors (01234567)"
    assert prior_label({"_target_": "x.Gaussian", "std": 2}) == "Gaussian(std=2)"


def test_an_error_without_words_names_its_place() -> None:
    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError, match=r"^$") as raised:
        fail()
    assert "ValueError without words (test_plain_mistakes.py, line" in str(explain(raised.value))


def test_a_bare_name_keeps_the_settings_of_the_experiment(invdiff: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def stop(value: Any, key: str, *_: Any, **__: Any) -> None:
        seen.append(OmegaConf.to_container(OmegaConf.create({"list": value}))["list"])
        raise ValueError("seen")

    monkeypatch.setattr("invdiff.cli.benchmark_command.chosen", stop)
    words = ("benchmark", "experiment=posterior/gmm", "output=out")
    invdiff(*words, "samplers=[tds,dps,pnpdm,{mcg:{}}]")
    tds, dps, pnpdm, mcg = seen.pop()
    assert tds["tds"]["prior_std"] == 11.36
    assert dps["dps"]["schedule"]["sigma_max"] == 113.0
    assert (pnpdm, mcg) == ("pnpdm", {"mcg": {}})
    invdiff(*words, "samplers+=[mine]")
    assert [*map(str, seen[0])][-1] == "mine"
    assert len(seen.pop()) == 11
    invdiff("benchmark", "experiment=posterior/gmm_small", "samplers=[dps]", "output=out")
    assert seen.pop()[0]["dps"]["schedule"]["steps"] == 30
    invdiff("benchmark", "samplers+=[mcg]", "output=out")
    assert seen.pop() == ["dps", "daps", "mcg"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "it has no results.parquet"),
        (["out", "format=pdf"], "format must be one or several of latex, csv, got pdf"),
        ([], ""),
    ],
)
def test_report_of_no_benchmark(invdiff: Run, words: list[str], said: str) -> None:
    done = invdiff("report", *words)
    assert said in done.err
    assert ("usage: invdiff report" in done.out) == (not words)


def test_streams_that_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.argv", ["invdiff", "--version"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0


def test_records_that_are_nested_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" * 100_000)
    assert _record(path) is None


SIMULATOR = """
import numpy as np

def camera(image):
    return np.eye(8, 1024) @ image.reshape(1024)
"""
BOX = ("operator=callable", "operator.file=sim.py:camera", "prior=digits", "sampler=enkg")
HINT = "use BlackBox (operator.numpy=true)"
PLACE = "sim.py, line 5"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reconstruct", *BOX, "data=generated"], HINT),
        (["check-operator", *BOX[:2], "operator.image_shape=[1,32,32]"], HINT),
        *(
            pytest.param(words, said, marks=pytest.mark.slow)
            for words, said in (
                (["tune", *BOX], HINT),
                (["calibrate", *BOX], HINT),
                (["benchmark", "operators=[{callable:{file:sim.py:camera}}]", *BOX[2:3], "samplers=[enkg]"], PLACE),
                (["train", "from=measurements", "data=truth", *BOX[:2], "prior=mixture"], PLACE),
            )
        ),
    ],
)
def test_a_simulator_of_one_array_is_recognised(invdiff: Run, pictures: Path, words: list[str], said: str) -> None:
    """It raises before any y is there: the line names its place, or what to do."""
    Path("sim.py").write_text(SIMULATOR)
    pictures.rename("truth")
    done = invdiff(*words, *([] if words[0] == "check-operator" else ["output=out"]))
    assert done.code == (1 if words[0] == "check-operator" else 2)
    assert said in done.err
    assert "Traceback" not in done.err
