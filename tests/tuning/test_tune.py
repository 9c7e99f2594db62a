"""The search: known settings first, hopeless trials stopped, resumed as if nothing had happened, at one price."""

import csv
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from invdiff import Compute, InverseProblem
from invdiff.io import BadInput
from invdiff.operators import GaussianNoise, Inpainting
from invdiff.posterior import Cost, Posterior
from invdiff.priors import GaussianPrior
from invdiff.problem import simulate
from invdiff.samplers import DAPS, DPS, REDDiff
from invdiff.samplers.base import Sampler
from invdiff.samplers.settings import as_config, with_settings
from invdiff.schedules import EDM, VP
from invdiff.scores import score_images
from invdiff.tuning.space import Choice, Range, Search

optuna = pytest.importorskip("optuna", reason="the extra invdiff[tune] is not installed")

from invdiff.tuning.tune import JOURNAL, LatestMedian, Tried, Tuning  # noqa: E402
from invdiff.tuning.validation import Validation  # noqa: E402

Make = Callable[..., Tuning]

GIVEN = DAPS(schedule=EDM(steps=4, sigma_max=5.0, sigma_min=0.02), prior_std=0.25, draw_std=0.1)
SPACE = (
    Range(name="draw_std", low=0.01, high=1.0, log=True),
    Range(name="schedule.sigma_max", low=1.0, high=10.0),
    Choice(name="inner", values=("auto", "closed_form")),
)


@pytest.fixture(scope="module")
def validation() -> Validation:
    """Four images of a Gaussian prior, half of the pixels measured."""
    prior = GaussianPrior.example()
    prior.value_range = (0.0, 1.0)
    truth = prior.sample(4, torch.Generator().manual_seed(0))
    operator, noise = Inpainting(keep=0.5), GaussianNoise(0.1)
    problem = InverseProblem(operator, noise, simulate(truth, operator, noise, 7), image_shape=tuple(truth.shape[1:]))
    return Validation(problem=problem, truth=truth, prior=prior, score="psnr", num_samples=2, seed=7, batch=1)


@pytest.fixture
def make(validation: Validation, tmp_path: Path) -> Make:
    """`make(folder)` opens a search; fields of Search and Validation may follow."""

    def call(folder: str = "out", *, settings: Mapping[str, Any] | None = None, **options: Any) -> Tuning:
        of_search = {
            k: options.pop(k) for k in ("sampler", "parameters", "first", "calls", "vjp_weight") if k in options
        }
        prune_after = options.pop("prune_after", 3)
        search = {"sampler": GIVEN, "parameters": SPACE, "first": {}, "calls": 4.0, "vjp_weight": 1.0} | of_search
        return Tuning(
            tmp_path / folder,
            Search(**search),
            replace(validation, **options),
            settings=settings or {"of": "the tests"},
            prune_after=prune_after,
            seed=0,
            compute=Compute(device="cpu", precision="float32", progress=False),
        )

    return call


def told(tuning: Tuning) -> list[tuple[Any, ...]]:
    """What a trial is and what came of it, without the time that it took."""
    return [(t.number, t.origin, t.state, t.score, t.images, dict(t.values), dict(t.sampler)) for t in tuning.trials()]


# -- trials ------------------------------------------------------------------------------------------------------------


def test_known_settings_are_the_first_trials_and_the_best_is_never_worse(make: Make) -> None:
    bold = replace(GIVEN, draw_std=3.0)  # outside of the space: tried all the same, as it is
    tuning = make(first={"bold": bold, "again": GIVEN})
    tuning.run(6)
    trials = tuning.trials()
    assert [t.origin for t in trials] == ["given", "bold", *["search"] * 4], "settings that are the same are tried once"
    assert instantiate(dict(trials[0].sampler)) == GIVEN
    assert instantiate(dict(trials[1].sampler)) == bold
    assert trials[0].values == {"draw_std": 0.1, "schedule.sigma_max": 5.0, "inner": "auto"}
    assert "draw_std" not in trials[1].values, "Optuna is told of no value outside of its range"
    best = tuning.best()
    assert best is not None
    assert best.score == max(t.score or 0.0 for t in trials if t.complete())
    assert instantiate(dict(best.sampler)) == instantiate(dict(tuning.ranked()[0].sampler))


def test_the_score_is_that_of_the_benchmark(make: Make, validation: Validation) -> None:
    tuning = make(batch=2)
    tuning.run(1)
    posterior = GIVEN.sample(validation.problem, validation.prior, num_samples=2, seed=7)
    scores = score_images(posterior, validation.truth, (0.0, 1.0))
    assert tuning.trials()[0].score == pytest.approx(np.mean([s.image["psnr_mean"] for s in scores]), abs=1e-4)


def test_hopeless_trials_are_stopped_and_recorded_as_pruned(make: Make, tmp_path: Path) -> None:
    hopeless = (Range(name="draw_std", low=3.0, high=4.0),)
    first = {"a": replace(GIVEN, draw_std=0.2), "b": replace(GIVEN, draw_std=3.5)}
    tuning = make(parameters=hopeless, first=first)
    tuning.run(5)
    assert [(t.state, t.images) for t in tuning.trials()] == [
        ("complete", 4),
        ("complete", 4),
        ("complete", 4),  # as bad, but tried first: those are never stopped
        ("pruned", 1),
        ("pruned", 1),
    ]
    states = [t.state for t in tuning.study.trials]
    assert states == [optuna.trial.TrialState.COMPLETE] * 3 + [optuna.trial.TrialState.PRUNED] * 2
    with (tmp_path / "out" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["complete"] * 3 + ["pruned"] * 2
    best = tuning.best()
    assert best is not None
    assert best.number < 2


def test_without_pruning_every_trial_sees_all_images(make: Make) -> None:
    tuning = make(parameters=(Range(name="draw_std", low=3.0, high=4.0),), prune_after=None)
    tuning.run(5)
    assert [t.images for t in tuning.trials()] == [4] * 5


def test_an_easy_first_image_keeps_no_trial_alive() -> None:
    def verdict(pruner: Any) -> bool:
        study = optuna.create_study(direction="maximize", pruner=pruner)
        for late in (20.0, 21.0):
            trial = study.ask()
            trial.report(30.0, 1)
            trial.report(late, 2)
            study.tell(trial, late)
        trial = study.ask()
        trial.report(30.5, 1)
        assert not trial.should_prune()
        trial.report(10.0, 2)
        return trial.should_prune()

    assert verdict(LatestMedian(n_startup_trials=2))
    assert not verdict(optuna.pruners.MedianPruner(n_startup_trials=2)), "Optuna has its own cure now: drop ours"


def test_settings_that_diverge_or_cannot_be_are_never_the_best(make: Make) -> None:
    wild = DPS(schedule=VP(steps=4), zeta=1e30, guidance="published", clip=False)
    space = (Range(name="zeta", low=1e29, high=1e30, log=True),)
    tuning = make(sampler=replace(wild, zeta=0.1), parameters=space, first={"wild": wild}, calls=None)
    tuning.run(3)
    assert [t.state for t in tuning.trials()] == ["complete", "diverged", "diverged"]
    assert "image 0" in tuning.trials()[1].reason
    best = tuning.best()
    assert best is not None
    assert best.origin == "given"

    crossed = (Range(name="schedule.sigma_min", low=1.0, high=4.0), Range(name="schedule.sigma_max", low=0.5, high=0.9))
    refused = make("refused", parameters=crossed)
    refused.run(2)
    assert [t.state for t in refused.trials()] == ["complete", "refused"]
    assert "sigma_min must be < sigma_max" in refused.trials()[1].reason


def test_only_a_score_that_falls_is_better_where_it_should(make: Make) -> None:
    for score in ("misfit", "energy_score"):
        tuning = make(score, score=score, num_samples=4)
        tuning.run(5)
        best = tuning.best()
        assert best is not None
        assert best.score == min(t.score or 0.0 for t in tuning.trials() if t.complete())


# -- resuming ----------------------------------------------------------------------------------------------------------


def test_a_search_in_two_parts_is_the_same_search(make: Make, tmp_path: Path) -> None:
    whole = make("whole")
    whole.run(12)
    assert make("parts").run(5) == 5
    again = make("parts")
    assert again.run(12) == 7
    assert told(again) == told(whole)
    best = (tmp_path / "whole" / "sampler" / "best.yaml").read_text()
    assert (tmp_path / "parts" / "sampler" / "best.yaml").read_text() == best
    assert make("parts").run(12) == 0, "it is complete"


@pytest.mark.parametrize("calls", [1, 9])
def test_interrupted_in_a_trial_it_goes_on_as_if_not(
    make: Make, calls: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = make("whole")
    whole.run(4)
    plain, count = DAPS.sample, iter(range(100))

    def sample(self: Sampler, *given: Any, **named: Any) -> Posterior:
        if next(count) == calls:
            raise KeyboardInterrupt
        return plain(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(DAPS, "sample", sample)
        with pytest.raises(KeyboardInterrupt):
            make("stopped").run(4)
    # A kill in the middle of writing leaves half a line, and Optuna's lock.
    with (tmp_path / "stopped" / JOURNAL).open("ab") as file:
        file.write(b'{"op_code":5,"wor')
    (tmp_path / "stopped" / f"{JOURNAL}.lock").symlink_to(JOURNAL)
    again = make("stopped")
    again.run(4)
    assert told(again) == told(whole)


@pytest.mark.parametrize("lines", [3, 17])
def test_killed_while_it_writes_it_goes_on_as_if_not(make: Make, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make("whole")
    whole.run(4)
    child = os.fork()
    if child == 0:
        from optuna.storages.journal import JournalFileBackend

        plain, count = JournalFileBackend.append_logs, iter(range(1000))

        def append(self: Any, logs: Any) -> None:
            plain(self, logs)
            if next(count) == lines:
                os.kill(os.getpid(), signal.SIGKILL)

        JournalFileBackend.append_logs = append
        try:
            make("killed").run(4)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child was to die of its kill"
    again = make("killed")
    assert again.run(4) > 0
    assert told(again) == told(whole)


def test_a_folder_of_another_search_is_refused(make: Make, tmp_path: Path) -> None:
    make(settings={"operator": "a", "data": "b"}).run(1)
    with pytest.raises(BadInput, match=r"holds another search \(its operator differ"):
        make(settings={"operator": "c", "data": "b"})
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / JOURNAL).write_text('{"op_code":0}\nno journal\n')
    with pytest.raises(BadInput, match="damaged in line 2"):
        make("foreign")


# -- space and budget --------------------------------------------------------------------------------------------------


def test_every_trial_costs_the_same(make: Make) -> None:
    given = replace(GIVEN, schedule=EDM(steps=12, sigma_max=5.0, sigma_min=0.02))
    tuning = make(sampler=given, parameters=(Range(name="ode_steps", low=1, high=3, whole=True),), calls=12.0)
    tuning.run(8)
    steps = {t.sampler["ode_steps"]: t.sampler["schedule"]["steps"] for t in tuning.trials()}
    assert steps == {1: 12, 2: 6, 3: 4}
    assert {t.forwards for t in tuning.trials()} == {12}


def test_what_would_buy_quality_by_calls_is_refused_unless_it_is_open() -> None:
    more = Search(
        sampler=GIVEN,
        parameters=(Range(name="schedule.steps", low=4, high=40, whole=True),),
        first={},
        calls=4.0,
        vjp_weight=1.0,
    )
    with pytest.raises(BadInput, match="changes the number of network calls"):
        more.check()
    replace(more, calls=None).check()
    too_dear = replace(more, parameters=(Range(name="ode_steps", low=1, high=10, whole=True),))
    with pytest.raises(BadInput, match=r"space\.ode_steps: 10 changes .* and no number of steps compensates"):
        too_dear.check()


def test_an_end_that_is_no_setting_is_refused() -> None:
    search = Search(
        sampler=GIVEN, parameters=(Range(name="draw_std", low=-1, high=1),), first={}, calls=4, vjp_weight=1
    )
    with pytest.raises(
        BadInput, match=r"space\.draw_std: -1 is not allowed: daps: draw_std must be a number > 0 or null, got -1"
    ):
        search.check()


def test_a_configuration_of_a_sampler_makes_it_again() -> None:
    sampler = REDDiff(schedule=VP(steps=7, sigma_max=None), lam=0.3, weighting="sqrt")
    assert instantiate(as_config(sampler)) == sampler
    assert with_settings(sampler, {"lam": 1.0, "schedule.sigma_max": 2.0}) == REDDiff(
        schedule=VP(steps=7, sigma_max=2.0), lam=1.0, weighting="sqrt"
    )


# -- scores ------------------------------------------------------------------------------------------------------------


def test_distance_to_the_truth_is_least_for_the_exact_posterior(validation: Validation) -> None:
    of_truth = replace(validation, score="truth")
    rng = torch.Generator().manual_seed(1)
    every = [validation.prior.posterior(validation.problem.select(torch.tensor([i]))) for i in range(4)]  # type: ignore[attr-defined]
    exact = torch.stack([posterior.sample(16, rng) for posterior in every])
    wide = exact.mean(1, keepdim=True) + 2 * (exact - exact.mean(1, keepdim=True))
    narrow = exact.mean(1, keepdim=True).expand_as(exact)
    scores = of_truth.scorer()

    def score(samples: torch.Tensor) -> float:
        posterior = Posterior(samples, torch.full(samples.shape[:2], -1), Cost(), validation.problem)
        return float(np.mean(scores(validation.problem, posterior, range(4))))

    assert score(exact) < min(score(wide), score(narrow))
    assert abs(score(exact)) < 0.1 * score(wide)


@pytest.mark.parametrize("score", ["energy_score", "crps"])
def test_proper_scores_prefer_the_exact_posterior(validation: Validation, score: str) -> None:
    """And not its mean, which has the best PSNR: the objectives are those of the benchmark."""
    proper = replace(validation, score=score, num_samples=16)  # type: ignore[arg-type]
    rng = torch.Generator().manual_seed(1)
    posteriors = [validation.prior.posterior(validation.problem.select(torch.tensor([i]))) for i in range(4)]  # type: ignore[attr-defined]
    exact = torch.stack([posterior.sample(16, rng) for posterior in posteriors])
    mean = exact.mean(1, keepdim=True)
    scores = proper.scorer()

    def found(samples: torch.Tensor) -> list[float]:
        posterior = Posterior(samples, torch.full(samples.shape[:2], -1), Cost(), validation.problem)
        return scores(validation.problem, posterior, range(4))

    assert not proper.higher_is_better
    assert np.mean(found(exact)) < min(np.mean(found(mean + width * (exact - mean))) for width in (0.0, 2.0))
    posterior = Posterior(exact, torch.full(exact.shape[:2], -1), Cost(), validation.problem)
    of_benchmark = [s.image[score.removesuffix("_score")] for s in score_images(posterior, validation.truth)]
    assert found(exact) == pytest.approx(of_benchmark)


def test_scores_that_cannot_be_are_refused_before_the_work(validation: Validation) -> None:
    with pytest.raises(BadInput, match=r"score=energy_score: num_samples must be >= 4, .* got 3"):
        replace(validation, score="energy_score", num_samples=3).scorer()
    with pytest.raises(BadInput, match="score=lpips: LPIPS needs"):
        replace(validation, score="lpips").scorer()
    with pytest.raises(BadInput, match="score=truth compares distributions"):
        replace(validation, score="truth", num_samples=1).scorer()
    with pytest.raises(BadInput, match="score must be one of energy_score, crps, psnr"):
        replace(validation, score="beauty").scorer()  # type: ignore[arg-type]


def test_trials_are_told_of_one_by_one(make: Make) -> None:
    seen: list[Tried] = []
    make().run(3, tell=seen.append)
    assert [t.number for t in seen] == [0, 1, 2]
