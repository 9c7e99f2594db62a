"""Search a sampler's settings on validation images, by Optuna: resumable, at a fixed number of network calls.

Suggestions     tree-structured Parzen estimator. Its random numbers depend on the seed and on the number of finished
                trials, so that a search that was killed resumes as if it had not been.
Early stopping  a trial goes through the images in one order, a few at a time, and ends where the mean score of those
                that are done is worse than the median of the finished trials on the same images.
First trials    the given settings, and others (published ones). They are never stopped: the result is at least as good
                on these images.
Storage         the journal of Optuna, `study.journal`; `optuna-dashboard` reads it. A killed trial is lost, finished
                trials never are.
"""

import csv
import io
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import torch
from omegaconf import OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from invdiff.engine.driver import Compute
from invdiff.engine.progress import progress_bar
from invdiff.io import BadInput
from invdiff.io.atomic import write_atomically
from invdiff.samplers import Sampler
from invdiff.samplers.settings import as_config, setting, with_settings
from invdiff.tuning.space import Choice, Parameter, Search
from invdiff.tuning.validation import SCORES, Validation

JOURNAL, NAME = "study.journal", "invdiff"
RESULT = "result"  # the attribute of a trial that holds its results: one write for all of them

FIRST, SEARCHED = "first", "search"


class LatestMedian(optuna.pruners.MedianPruner):
    """The median rule on the latest running score alone.

    Optuna compares the best of all running scores: after an easy first image that would be the first one for ever, and
    nothing would be stopped.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step is None:
            return False
        # A trial apart: the one at hand may be the storage's own.
        latest = optuna.trial.create_trial(
            state=TrialState.RUNNING, intermediate_values={step: trial.intermediate_values[step]}
        )
        return super().prune(study, latest)


# -- the search --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One trial that has ended.

    number    in the order in which they ended, from 0
    origin    `search`, or the name of the settings that were tried first
    state     `complete`, or why there is no score of all images: `pruned` (hopeless), `diverged`, `refused` (no such
              settings)
    score     mean over the images that were done; None where there is none
    images    how many that are
    calls     network calls of one sample, weighted
    seconds   of the whole trial
    values    of what is searched, by name
    sampler   the whole of it, as a node for hydra
    reason    in words, where it was refused or diverged
    """

    number: int
    origin: str
    state: str
    score: float | None
    images: int
    calls: float
    forwards: int
    vjps: int
    seconds: float
    values: Mapping[str, Any]
    sampler: Mapping[str, Any]
    reason: str

    def complete(self) -> bool:
        return self.state == "complete"


class _Ended(Exception):
    """A trial ends before its last image; `state` as in `Tried`."""

    def __init__(self, state: str, reason: str = "") -> None:
        super().__init__(reason)
        self.state = state


@contextmanager
def _refusing() -> Iterator[None]:
    """A ValueError of the sampler ends the trial, not the search."""
    try:
        yield
    except ValueError as error:
        raise _Ended("refused", " ".join(str(error).split())) from error


class Tuning:
    """A search in a folder, which no other run may write to.

    folder       where `study.journal`, `trials.csv` and `sampler/best.yaml` are
    settings     as JSON, everything that determines the trials: a folder with a search of other settings is refused
    prune_after  trials to complete before pruning starts; None disables pruning
    seed         of the suggestions
    """

    def __init__(
        self,
        folder: Path,
        search: Search,
        validation: Validation,
        *,
        settings: Mapping[str, Any],
        prune_after: int | None,
        seed: int,
        compute: Compute,
    ) -> None:
        self.folder, self.search, self.validation = folder, search, validation
        self.seed, self.compute = seed, replace(compute, progress=False)
        self.progress = compute.progress
        self.first = search.firsts()
        self.score = validation.scorer()
        pruner = optuna.pruners.NopPruner() if prune_after is None else LatestMedian(n_startup_trials=prune_after)
        self.study = _open(folder, "maximize" if validation.higher_is_better else "minimize", pruner, settings)

    def run(self, trials: int, *, tell: Callable[[Tried], object] = lambda _: None) -> int:
        """Run until so many trials have ended, those of earlier runs included; returns the number of new ones.

        tell  called with every trial that has ended, after its results were written
        """
        before = len(self.trials())
        total = max(0, trials - before) * len(self.validation.truth)
        self._write()
        with progress_bar(total, "image", "tune", show=self.progress, steady=True) as bar:
            for number in range(before, trials):
                self._one(number, bar.update)
                bar.update((number + 1 - before) * len(self.validation.truth) - bar.n)
                best = self._write()
                if best is not None:
                    bar.set_postfix_str(f"best {self.validation.score} {best.score:.4g}", refresh=False)
                tell(self.trials()[-1])
        return max(0, trials - before)

    def trials(self) -> list[Tried]:
        """All that have ended, in their order."""
        ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return [_tried(number, trial) for number, trial in enumerate(sorted(ended, key=lambda trial: trial.number))]

    def ranked(self) -> list[Tried]:
        """The complete trials, best first; the earliest of equals."""
        sign = -1 if self.validation.higher_is_better else 1
        return sorted((t for t in self.trials() if t.complete()), key=lambda t: sign * (t.score or 0.0))

    def best(self) -> Tried | None:
        """None where no trial is complete."""
        return next(iter(self.ranked()), None)

    def importance(self) -> dict[str, float]:
        """Importance of the parameters, as shares; empty where there are too few complete trials.

        By PED-ANOVA, Watanabe et al., IJCAI 2023, arXiv:2304.10255, over the complete trials.
        """
        complete = [t for t in self.trials() if t.complete()]
        names = [p.name for p in self.search.parameters if len({str(t.values.get(p.name)) for t in complete}) > 2]
        if len(complete) < 10 or len(names) < 2:
            return {}
        with warnings.catch_warnings(action="ignore"):  # that it is experimental
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return optuna.importance.get_param_importances(self.study, evaluator=evaluator, params=names)

    # -- one trial -----------------------------------------------------------------------------------------------------

    def _one(self, number: int, update: Callable[[int], object]) -> None:
        origin = list(self.first)[number] if number < len(self.first) else SEARCHED
        trial = self._ask(number, origin)
        result: dict[str, Any] = {"origin": origin, "state": "complete", "reason": ""}
        done: list[float] = []
        try:
            sampler = self._sampler(trial, origin)
            result |= {"sampler": as_config(sampler), "calls": self.search.cost(sampler)}
            for scores in self._scores(sampler, result):
                update(len(scores))
                done += scores
                trial.report(float(np.mean(done)), len(done))
                if len(done) < len(self.validation.truth) and origin == SEARCHED and trial.should_prune():
                    raise _Ended("pruned")
        except _Ended as end:
            result |= {"state": end.state, "reason": str(end)}
        result |= {"score": float(np.mean(done)) if done else None, "images": len(done)}
        trial.set_user_attr(RESULT, result)
        if result["state"] == "complete":
            self.study.tell(trial, result["score"])
        else:
            self.study.tell(trial, state=TrialState.PRUNED)

    def _ask(self, number: int, origin: str) -> Trial:
        """The next trial; random numbers by the number of finished ones, so that an interrupted one is repeated."""
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)
        if origin != SEARCHED:
            sampler = self.first[origin]
            values = {p.name: _value(sampler, p.name) for p in self.search.parameters}
            fitting = {p.name: values[p.name] for p in self.search.parameters if p.holds(values[p.name])}
            self.study.enqueue_trial(fitting)
        return self.study.ask()

    def _sampler(self, trial: Trial, origin: str) -> Sampler:
        """The sampler of a trial. First settings may lie outside of the space: Optuna gets those inside."""
        if origin == SEARCHED:
            values = {p.name: _suggest(trial, p) for p in self.search.parameters}
            with _refusing():
                return self.search.at_budget(with_settings(self.first["given"], values))
        sampler = self.first[origin]
        for parameter in self.search.parameters:
            if parameter.holds(_value(sampler, parameter.name)):
                _suggest(trial, parameter)
        return sampler

    def _scores(self, sampler: Sampler, result: dict[str, Any]) -> Iterator[list[float]]:
        """The scores of a few images after another; what a sample took, up to them, is added to `result`."""
        v = self.validation
        forwards = vjps = rows = 0
        for images in v.batches():
            problem = v.problem.select(torch.tensor(images))
            with _refusing():  # such as a step size out of its range
                posterior = sampler.sample(
                    problem,
                    v.prior,
                    num_samples=v.num_samples,
                    seed=v.seed,
                    first_image=images[0],
                    compute=self.compute,
                )
            forwards, vjps = forwards + posterior.cost.forwards, vjps + posterior.cost.vjps
            rows += posterior.diverged.numel()
            result |= {"forwards": round(forwards / rows), "vjps": round(vjps / rows)}
            if posterior.diverged.any():
                which = int(posterior.diverged.any(1).nonzero()[0])
                raise _Ended("diverged", f"a sample of image {images[which]} diverged")
            with torch.no_grad():
                scores = self.score(problem, posterior, images)
            if any(math.isnan(score) for score in scores):
                raise _Ended("diverged", "the score is NaN")
            yield scores

    # -- output -----------------------------------------------------------------------------------------------

    def _write(self) -> Tried | None:
        """`trials.csv` and, where a trial is complete, `sampler/best.yaml`."""
        trials = self.trials()
        write_atomically(self.folder / "trials.csv", self._table(trials).encode(), durable=False)
        best = self.best()
        if best is not None:
            (self.folder / "sampler").mkdir(exist_ok=True)
            write_atomically(self.folder / "sampler" / "best.yaml", self._best_file(best).encode())
        return best

    def _table(self, trials: Sequence[Tried]) -> str:
        columns = ("number", "origin", "state", "score", "images", "calls", "forwards", "vjps", "seconds", "reason")
        names = [p.name for p in self.search.parameters]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*columns, *names])
        for t in trials:
            own = [getattr(t, column) for column in columns]
            writer.writerow(["" if v is None else v for v in own] + [t.values.get(name, "") for name in names])
        return file.getvalue()

    def _best_file(self, best: Tried) -> str:
        kind = str(best.sampler["_target_"]).rpartition(".")[2]
        head = (
            f"# {kind} tuned by invdiff tune: {SCORES[self.validation.score]} {best.score:.4g} on "
            f"{best.images} validation images, {best.calls:g} network calls a sample\n"
        )
        return head + OmegaConf.to_yaml(OmegaConf.create(dict(best.sampler)))


def _value(sampler: Sampler, name: str) -> Any:
    """A setting of a sampler; None where its class lacks it."""
    try:
        return setting(sampler, name)
    except AttributeError:
        return None


def _suggest(trial: Trial, parameter: Parameter) -> Any:
    if isinstance(parameter, Choice):
        return trial.suggest_categorical(parameter.name, parameter.values)
    if parameter.whole:
        return trial.suggest_int(parameter.name, int(parameter.low), int(parameter.high), log=parameter.log)
    return trial.suggest_float(parameter.name, parameter.low, parameter.high, log=parameter.log)


def _tried(number: int, trial: FrozenTrial) -> Tried:
    result = trial.user_attrs[RESULT]
    return Tried(
        number=number,
        origin=result["origin"],
        state=result["state"],
        score=result["score"],
        images=result["images"],
        calls=result.get("calls", 0.0),
        forwards=result.get("forwards", 0),
        vjps=result.get("vjps", 0),
        seconds=round(trial.duration.total_seconds(), 3) if trial.duration else 0.0,
        values=dict(trial.params),
        sampler=result.get("sampler", {}),
        reason=result["reason"],
    )


# -- storage -----------------------------------------------------------------------------------------------------------


def _open(
    folder: Path,
    direction: Literal["maximize", "minimize"],
    pruner: optuna.pruners.BasePruner,
    settings: Mapping[str, Any],
) -> optuna.Study:
    """The study of a folder, or a new one. Raises BadInput where its settings differ."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL
    _mend(path)
    with warnings.catch_warnings(action="ignore"):  # that the journal is experimental, in Optuna 4
        storage = JournalStorage(JournalFileBackend(str(path)))
        study = optuna.create_study(
            storage=storage, study_name=NAME, direction=direction, pruner=pruner, load_if_exists=True
        )
    mine = json.loads(json.dumps(settings))
    theirs = study.user_attrs.get("settings")
    if theirs is None:
        if study.get_trials(deepcopy=False):
            raise BadInput(f"{path} is not a search of invdiff; set another output=")
        study.set_user_attr("settings", mine)
    elif theirs != mine:
        differing = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))
        raise BadInput(f"{folder} holds another search (its {', '.join(differing)} differ); set another output=")
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
        # Of a run that was killed: its settings are tried again under another number.
        if trial.state == TrialState.WAITING:
            study.ask()
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _mend(path: Path) -> None:
    """Remove what a kill leaves behind: half a line, and the lock of a dead process."""
    for lock in path.parent.glob(f"{path.name}.lock*"):
        lock.unlink()
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            if not isinstance(json.loads(line).get("op_code"), int):
                raise ValueError("no entry of a journal")
        except (ValueError, AttributeError, RecursionError) as error:
            raise BadInput(
                f"{path} is damaged in line {number}; remove it to start anew, or truncate it there to keep the lines "
                "before"
            ) from error
    if len(whole) < len(data):
        write_atomically(path, whole)
