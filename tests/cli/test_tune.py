"""`invdiff tune`: what it writes the other commands take, and it says what it cannot do before it begins."""

import csv
import importlib.util
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from invdiff.benchmark.store import Store
from invdiff.io import BadInput
from invdiff.io.truth import true_images
from invdiff.posterior import Posterior
from invdiff.samplers import DAPS
from invdiff.samplers.base import Sampler
from invdiff.schedules import EDM
from invdiff.tuning.space import Search, read_space

pytest.importorskip("optuna", reason="the extra invdiff[tune] is not installed")

Run = Callable[..., Any]

SHORT = ("sampler=daps", "sampler.schedule.steps=8", "space.ode_steps=[1,2]")


@pytest.fixture
def tune(invdiff: Run) -> Run:
    """`invdiff tune` with the prior of digits, two images and eight steps of DAPS into `out`; later words overrule."""

    def run(*words: str) -> Any:
        own = () if any(word.startswith("sampler=") for word in words) else SHORT
        return invdiff("tune", "images=2", "output=out", *own, *words)

    return run


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """No history.png: drawing takes longer than the search."""
    monkeypatch.setattr("invdiff.cli.tune_command.save_figure", lambda figure, path: None)


def _trials() -> list[dict[str, str]]:
    with Path("out/trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_what_it_finds_the_other_commands_take(tune: Run, invdiff: Run, files: Callable[[], set[str]]) -> None:
    done = tune("sampler=reddiff", "sampler.schedule.steps=6", "trials=5", "+first.bold={lam:0.05}")
    assert (done.code, done.err) == (0, "")
    assert {
        f"out/{name}" for name in ("sampler/best.yaml", "trials.csv", "history.png", "study.journal", "config.yaml")
    } <= files()
    assert "validation: 2 images drawn from the prior with seed 1000000" in done.out
    assert "budget: at most 6 network calls a sample in every trial" in done.out
    rows = _trials()
    assert [row["origin"] for row in rows] == ["given", "bold", "published", "search", "search"], (
        "published settings come too"
    )
    assert {row["calls"] for row in rows} == {"6.0"}
    complete = [row for row in rows if row["state"] == "complete"]
    best = min(complete, key=lambda row: float(row["score"]))

    # The same images, measurements and samples give the same score.
    done = invdiff("benchmark", "--config-dir=out", "samplers=[best]", "images=2", "seed=1000000", "output=again")
    assert (done.code, done.err) == (0, "")
    by_image = Store(Path("again")).table(["energy"]).to_pylist()
    scores = {row["image"]: row["energy"] for row in by_image}
    assert sum(scores.values()) / 2 == pytest.approx(float(best["score"]), abs=1e-4)

    done = invdiff(
        "reconstruct", "--config-dir=out", "sampler=best", "prior=digits", "data=generated", "output=picture"
    )
    assert (done.code, done.err) == (0, "")
    assert OmegaConf.load("picture/config.yaml").sampler == OmegaConf.load("out/sampler/best.yaml")


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
def test_published_settings_that_no_budget_reaches_are_left_out_and_it_says_so(tune: Run) -> None:
    done = tune("trials=2")
    assert (done.code, done.err) == (0, "")
    assert "the published settings are not among the first trials: 4 steps take 20 network calls" in done.out
    assert [row["origin"] for row in _trials()] == ["given", "search"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
def test_the_same_command_goes_on_and_a_saved_configuration_too(tune: Run, invdiff: Run) -> None:
    assert tune("trials=2").code == 0
    first = _trials()
    assert tune("trials=3").code == 0
    assert _trials()[:2] == first
    done = invdiff("tune", "--config-dir=out", "--config-name=config", "trials=4")
    assert (done.code, done.err) == (0, "")
    assert len(_trials()) == 4
    assert _trials()[:2] == first


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
def test_ctrl_c_keeps_the_trials_that_are_finished(tune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, count = DAPS.sample, iter(range(100))

    def sample(self: Sampler, *given: Any, **named: Any) -> Posterior:
        if next(count) == 2:
            raise KeyboardInterrupt
        return plain(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(DAPS, "sample", sample)
        done = tune("trials=3")
    assert done.code == 130
    assert done.err == ("invdiff: interrupted; 2 finished trials are in out, the same command resumes\n")
    stopped = _trials()
    assert len(stopped) == 2
    assert Path("out/sampler/best.yaml").exists()
    assert tune("trials=3").code == 0
    assert _trials()[:2] == stopped
    assert len(_trials()) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
def test_validation_images_are_none_of_the_tests(tune: Run, invdiff: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def watched(*given: Any, **named: Any) -> Any:
        found = true_images(*given, **named)
        seen.append(found[0])
        return found

    monkeypatch.setattr("invdiff.benchmark.images.true_images", watched)
    assert tune("trials=1").code == 0
    assert invdiff("benchmark", "samplers=[daps]", "images=4", "save.thumbnails=0", "output=test").code == 0
    validation, test = seen
    assert torch.cdist(validation.flatten(1), test.flatten(1)).min() > 1, "of 32x32 pixels from 0 to 1"


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
def test_of_a_folder_the_last_images_validate(tune: Run, pictures: Path) -> None:
    done = tune("trials=1", "images=1", f"input={pictures}")
    assert (done.code, done.err) == (0, "")
    assert "validation: the last 1 of 3 images in" in done.out
    assert "c to c; test on the others: images=2 of benchmark takes them" in done.out
    done = tune("images=4", f"input={pictures}", "output=other")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "images=4, but there are 3" in done.err


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"zeta": [1, 2]}, "space.zeta: DAPS has no setting 'zeta' (settings: schedule, ode_steps"),
        ({"schedule": {"steepness": [1, 2]}}, "space.schedule.steepness: EDM has no setting 'steepness'"),
        ({"draw_std": [2, 1, "log"]}, "space.draw_std is empty: low must be < high, got [2,1]"),
        ({"draw_std": [0, 1, "log"]}, "low must be > 0, got 0"),
        ({"draw_std": [1]}, "space.draw_std must have two choices or more"),
        ({"draw_std": 3}, "space.draw_std must be [low,high], [low,high,log] or a list of choices, got 3"),
        ({"draw_std": ["some", "more"]}, "space.draw_std: some is no choice, the setting must be a number or null"),
        ({"ode_steps": [1, 2.5]}, "space.ode_steps: [1,2.5] is no range of it, the setting must be an integer"),
        ({"inner": [1, 2]}, "space.inner: [1,2] is no range of it, the setting must be one of auto, langevin"),
        ({"momentum": [0, 1]}, "space.momentum: 1 is not allowed: daps: momentum must be a number in [0, 1), got 1"),
        ({"schedule": {"steps": [2, 9]}}, "changes the number of network calls; set budget.calls=open to allow it"),
        ({"draw_std": None}, "space is empty; +space.NAME=[low,high,log] searches a setting, one of ode_steps"),
        (None, "space must hold a range for each setting"),
    ],
)
def test_a_space_that_cannot_be(space: Any, message: str) -> None:
    sampler = DAPS(schedule=EDM(steps=8, sigma_max=5.0, sigma_min=0.02))

    def check() -> None:
        parameters = read_space(space, sampler)
        Search(sampler=sampler, parameters=parameters, first={}, calls=8.0, vjp_weight=2.0).check()

    with pytest.raises(BadInput, match=re.escape(message)):
        check()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sampler=mcg", "operator=phase_retrieval"], "MCG needs a linear operator"),
        (["sampler=auto"], "sampler=auto has no settings to search"),
        (["score=beauty"], "score must be one of energy_score, crps, psnr, lpips, misfit, truth, got beauty"),
        (["trials=0"], "trials must be an integer >= 1, got 0"),
        (["budget.calls=some"], "budget.calls must be a number > 0 or one of open or null, got some"),
        (["budget.calls=1"], "more than the 1 a sample may cost"),
        (["+first.bold=3"], "first.bold: it must be settings"),
        (["+first.bold={zeta:1}"], "first.bold: daps has no setting 'zeta'"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(
    tune: Run, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, files: Callable[[], set[str]]
) -> None:
    def sample(self: Sampler, *given: Any, **named: Any) -> Posterior:
        raise AssertionError("it began to work")

    monkeypatch.setattr(DAPS, "sample", sample)
    done = tune(*words)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert message in done.err
    assert not {name for name in files() if name.endswith((".journal", ".csv", ".yaml"))}


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
def test_a_folder_of_another_search_stays_as_it_is(tune: Run) -> None:
    assert tune("trials=1").code == 0
    before = Path("out/config.yaml").read_text()
    for words, differing in ((["operator=denoising"], "operator"), (["space.prior_std=[0.1,0.2]"], "space")):
        done = tune("trials=2", *words)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert f"out holds another search (its {differing}" in done.err
    assert Path("out/config.yaml").read_text() == before
    assert len(_trials()) == 1


def test_without_optuna_it_says_what_to_install(tune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "optuna" else plain(name, *more)
    )
    done = tune()
    assert (done.code, done.err) == (
        2,
        "invdiff: error: tuning needs the package optuna; install it with pip install 'invdiff[tune]'\n",
    )


@pytest.mark.slow
def test_help_of_tune(invdiff: Run) -> None:
    done = invdiff("tune", "sampler=reddiff", "--help")
    assert (done.code, done.err) == (0, "")
    for words in ("usage: invdiff tune", "space.NAME=[low,high]", "learning_rate:", "--config-dir=out sampler=best"):
        assert words in done.out


@pytest.mark.parametrize("name", ["daps", "dps", "enkg", "mcg", "reddiff"])
def test_the_spaces_go_with_their_samplers(invdiff: Run, name: str) -> None:
    config: Any = OmegaConf.create(invdiff("tune", f"sampler={name}", "--cfg", "job").out)
    sampler = instantiate(config.sampler)
    search = Search(sampler=sampler, parameters=read_space(config.space, sampler), first={}, calls=None, vjp_weight=2.0)
    replace(search, calls=search.cost(sampler)).check()
