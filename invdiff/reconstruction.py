"""From measurements to samples, scores, files and a figure, in one call: `invdiff.reconstruct`.

    result = invdiff.reconstruct(y, Inpainting(keep=0.3), noise=0.02, prior="digits", num_samples=8)
    result.mean, result.std, result.interval(0.9)
    result.save("out")

The command `invdiff reconstruct` reads its files and calls the same function.
"""

import glob
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from invdiff.engine.driver import Callback, Compute, Interrupted
from invdiff.findings import Finding
from invdiff.io import write_image
from invdiff.operators import Noise, Operator, as_operator
from invdiff.operators.core.base import kind_of_measurement
from invdiff.posterior import Posterior
from invdiff.priors import Prior, as_prior, load_prior
from invdiff.problem import InverseProblem, as_measurement, as_noise
from invdiff.samplers import Sampler, settings_for
from invdiff.scores import evaluate
from invdiff.scores.stored import bundled_file, find_calibration, key_of, read_calibrations
from invdiff.scores.verdict import NOTES, badge, judge
from invdiff.shapes import describe_shape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INTERVAL = 0.9  # level of the interval in samples.npz

log = logging.getLogger("invdiff")
verdict_log = logging.getLogger("invdiff.verdict")


@dataclass(frozen=True, eq=False, kw_only=True)
class Reconstruction(Posterior):
    """Posterior samples with the names of their images, scores, files and a figure.

    names        one per image, B of them
    truth        true images (B, C, H, W) where they are known
    value_range  range of clean images, image units
    sampler      the sampler that ran
    notes        reasons for choices: `sampler` (why `auto` chose it), `settings` (recommended ones that were used),
                 `intervals` (their measured coverage)
    """

    names: Sequence[str]
    truth: Tensor | None
    value_range: tuple[float, float]
    sampler: Sampler
    notes: dict[str, Any]
    _scores: dict[bool, dict[str, Any]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def verdict(self) -> tuple[Finding, ...]:
        """What is wrong with this result, one line each, the severe ones first; empty where nothing was found."""
        return judge(self, self.names, self.value_range, self.sampler)

    def metrics(self, *, best_of: bool = False) -> dict[str, Any]:
        """Scores of every image, their means, cost, notes and the verdict, as in metrics.json.

        See `invdiff.scores.evaluate`.
        """
        if best_of not in self._scores:
            self._scores[best_of] = evaluate(self, self.names, self.truth, self.value_range, best_of=best_of)
        scores = self._scores[best_of]
        notes = scores["notes"] | self.notes
        if self.calibration is not None:
            notes["calibration"] = self.calibration.as_json()
        return scores | {"notes": notes, "verdict": [asdict(finding) for finding in self.verdict]}

    def save(self, folder: str | Path, *, best_of: bool = False, title: str | None = None) -> None:
        """Write samples.npz, metrics.json, comparison.png, and for each image mean.png, std.png and samples/.

        best_of, title  as of `metrics` and `plot`

        samples.npz holds `samples` (B, S, C, H, W), `mean` and `std` (B, C, H, W), `interval` (B, 2, C, H, W) of 90 %,
        corrected where `calibration` is not None, `y`, `names`, and `x` where the truth is known. Pictures of an
        earlier run in this folder are removed.
        """
        from invdiff.report.comparison import save_figure  # matplotlib is slow to import

        folder = Path(folder)
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        _remove_pictures(folder)
        arrays = {
            "samples": self.samples,
            "mean": self.mean,
            "std": self.std,
            "interval": torch.stack(self.interval(INTERVAL), 1),
            "y": self.problem.y.cpu(),
        }
        if self.truth is not None:
            arrays["x"] = self.truth
        saved: dict[str, Any] = {name: tensor.numpy() for name, tensor in arrays.items()}
        np.savez_compressed(folder / "samples.npz", names=np.array(self.names), **saved)
        scores = self.metrics(best_of=best_of)
        scores["notes"] |= self._save_pictures(folder)
        (folder / "metrics.json").write_text(json.dumps(scores, indent=2, allow_nan=False) + "\n")
        save_figure(self.plot(title=title), folder / "comparison.png")

    def plot(self, *, title: str | None = None) -> "Figure":
        """A figure of truth, measurement, first guess, samples, mean, standard deviation and error of each image."""
        from invdiff.report.comparison import comparison

        calls = f"{self.cost.forwards} network calls, {self.cost.seconds:.0f} s"
        title = title or f"{type(self.problem.operator).__name__} · {self.sampler.name()}: {calls}"
        scores = self._scores.get(True) or self.metrics()
        words = badge(self.verdict)
        return comparison(self, scores, self.truth, title=title, value_range=self.value_range, badge=words)

    def _save_pictures(self, folder: Path) -> dict[str, Any]:
        """Returns a note on std.png."""
        from invdiff.report.comparison import save_map

        low, high = self.value_range
        brightest = {}
        for i, name in enumerate(self.names):
            prefix = "" if len(self.names) == 1 else f"{name}_"
            if self.mean[i].isfinite().all():
                write_image(folder / f"{prefix}mean.png", (self.mean[i] - low) / (high - low))
            if self.std[i].isfinite().all():
                brightest[name] = save_map(self.std[i].square().mean(0).sqrt(), folder / f"{prefix}std.png")
            for s, (sample, diverged) in enumerate(zip(self.samples[i], self.diverged[i], strict=True)):
                if not diverged:
                    write_image(folder / "samples" / f"{name}_{s:03d}.png", (sample - low) / (high - low))
        if brightest:
            return {"std.png": {"brightest colour": brightest}}
        if self.samples.shape[1] == 1:
            return {"std.png": "needs num_samples of 2 or more; std and interval in samples.npz are NaN"}
        return {}


def reconstruct(
    y: Any,
    operator: Any,
    *,
    noise: Noise | float = 0.05,
    prior: Any = "photo",
    sampler: str | type[Sampler] | Sampler = "auto",
    num_samples: int = 4,
    seed: int = 0,
    truth: Any = None,
    names: str | Sequence[str] = "image",
    image_shape: tuple[int, ...] | None = None,
    recommended: bool = True,
    calibration: str | Path | None = None,
    compute: Compute | None = None,
    callback: Callback | None = None,
) -> Reconstruction:
    """Draw posterior samples of the images that were measured.

    y            measurements (B, ...), a tensor or an array; without an axis for images or channels where it is clear
    operator     the forward model: an `Operator`, a `deepinv` physics, a callable, a matrix (see `as_operator`)
    noise        a `Noise`, or the standard deviation of Gaussian noise in units of y
    prior        the name of a bundled prior, a file of weights (.safetensors), a `Prior`, a `deepinv` denoiser or a
                 function (x, sigma) -> clean images
    sampler      a name or class, run with the settings for this operator; an instance runs as it is
    num_samples  of each image, S
    seed         determines every random number, with the index of image and sample
    truth        true images (B, C, H, W), for scores and the figure; the sampler does not see them
    names        of the images, for files and tables: B of them, or one that is numbered, image_000
    image_shape  (C, H, W), where neither operator, truth nor prior determine it
    recommended  False: default settings instead of the recommended ones; `auto` always uses the latter
    calibration  a file of `invdiff calibrate`, for the intervals; None: the calibrations of the package
    compute      device, precision, chunks, progress
    callback     called after every step with an `Event`

    The reasons for choices are logged at level INFO under `invdiff`, and are in `notes`; findings of the `verdict` at
    level WARNING under `invdiff.verdict`. Raises ValueError before any work where the parts do not fit together
    (`Unsupported` where the sampler cannot solve this problem), and `Interrupted` on Ctrl-C: its `posterior` is the
    `Reconstruction` of the finished images, or None.
    """
    prior, likelihood = _as_prior(prior), as_noise(noise)
    y = as_measurement(y).cpu()
    if truth is not None:
        truth = as_measurement(truth).cpu()
        image_shape = tuple(truth.shape[1:])
    operator = as_operator(operator, image_shape=image_shape or prior.shape)
    if image_shape is None:
        y = _with_axes(y, operator, prior)
        if operator.image_shape(tuple(y.shape[1:])) is None:
            image_shape = prior.shape
    problem = InverseProblem(operator, likelihood, y, image_shape=image_shape)
    names = _numbered(names, problem.images) if isinstance(names, str) else list(names)
    if len(names) != problem.images or len(set(names)) != len(names):
        raise ValueError(f"names must be {problem.images} different ones, one per image, got {', '.join(names)}")
    if truth is not None and len(truth) != problem.images:
        raise ValueError(f"truth must be {problem.images} images, one per measurement, got {len(truth)}")

    chosen, notes = _chosen(sampler, problem, prior, recommended)
    chosen.check(problem, prior)
    known = read_calibrations(bundled_file() if calibration is None else Path(calibration))
    measured, words = None, "90 % intervals: need num_samples of 2 or more"
    if num_samples > 1:
        key = key_of(problem, prior, chosen, num_samples, probe=calibration is not None)
        measured, words = find_calibration(key, known, problem.image_shape)
    for note in notes.values():
        log.info("sampler %s", note)

    def result(found: Posterior) -> Reconstruction:
        count = found.problem.images  # fewer after an interruption
        return Reconstruction(
            samples=found.samples,
            diverged_at=found.diverged_at,
            cost=found.cost,
            problem=found.problem,
            names=names[:count],
            truth=None if truth is None else truth[:count],
            value_range=prior.value_range,
            sampler=chosen,
            notes=notes | {"intervals": words},
            calibration=measured,
        )

    try:
        found = chosen.sample(problem, prior, num_samples=num_samples, seed=seed, compute=compute, callback=callback)
    except Interrupted as stop:
        if stop.posterior is not None:
            stop.posterior = result(stop.posterior)
        raise
    reconstruction = result(found)
    for finding in reconstruction.verdict:
        verdict_log.log(logging.INFO if finding.kind in NOTES else logging.WARNING, finding.words)
    return reconstruction


def _as_prior(prior: Any) -> Prior:
    if isinstance(prior, Path) or (isinstance(prior, str) and prior.endswith(".safetensors")):
        return load_prior(weights=prior).eval()
    return (load_prior(prior) if isinstance(prior, str) else as_prior(prior)).eval()


def _with_axes(y: Tensor, operator: Operator, prior: Prior) -> Tensor:
    """Measurements (B, ...), with the axis for images, and that for the channel of a grey image, where y has none."""
    if prior.shape is None:  # measurements that are shaped like images
        if y.dim() not in (2, 3, 4):
            raise ValueError(
                f"the measurement is {describe_shape(tuple(y.shape))}; with a prior for images of any size it must be "
                "(H, W), (C, H, W) or (B, C, H, W); give image_shape=(C, H, W) for measurements of other shapes"
            )
        return y.reshape(*[1] * (4 - y.dim()), *y.shape)
    reason = operator.mismatch(prior.shape)
    if reason is not None:
        raise ValueError(reason)
    expected, _ = kind_of_measurement(operator, prior.shape)
    readings = [y, y[None], y[:, None], y[None, None]] if y.dim() else []
    fitting = [reading for reading in readings if tuple(reading.shape[1:]) == expected]
    if not fitting:
        raise ValueError(
            f"the measurement is {describe_shape(tuple(y.shape))}; this operator measures {describe_shape(expected)} "
            f"from the prior's {describe_shape(prior.shape)} images, with or without an axis for several in front"
        )
    return fitting[0]


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}_{i:03d}" for i in range(count)]


def _chosen(
    sampler: str | type[Sampler] | Sampler, problem: InverseProblem, prior: Prior, recommended: bool
) -> tuple[Sampler, dict[str, str]]:
    """The sampler that runs, and notes: why it was chosen, and which settings were recommended."""
    given, settled = sampler, None
    if not isinstance(given, Sampler):
        settled = settings_for(given, problem.operator, problem.noise, prior, recommended=recommended)
        given = settled.sampler
    chosen, reason = given.resolve(problem, prior)
    if reason is not None:
        settled = settings_for(type(chosen), problem.operator, problem.noise, prior)
    notes = {"sampler": reason or "", "settings": "" if settled is None else str(settled)}
    return chosen, {what: note for what, note in notes.items() if note}


def _remove_pictures(folder: Path) -> None:
    """Those of an earlier run with other images or more samples: they would look like results of this one."""
    try:
        earlier = [row["name"] for row in json.loads((folder / "metrics.json").read_text())["images"]]
    except (OSError, ValueError, KeyError, TypeError):
        return  # no earlier run
    for name in earlier:
        pictures = [folder / f"{name}_mean.png", folder / f"{name}_std.png", folder / "mean.png", folder / "std.png"]
        for path in [*pictures, *(folder / "samples").glob(f"{glob.escape(name)}_[0-9][0-9][0-9].png")]:
            path.unlink(missing_ok=True)
