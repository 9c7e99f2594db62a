"""From measurements to samples: `invdiff.reconstruct`, and the same in parts that can be stored and put together.

The command `invdiff reconstruct` reads its files and runs the same `Job`.
"""

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from invdiff.axes import problem_of
from invdiff.checks import IMPOSSIBLE, calls_ahead, check_measurement, estimate_sigma
from invdiff.correction import Correction
from invdiff.engine.driver import Callback, Compute, Interrupted, check_num_samples, images_at_once
from invdiff.findings import Finding
from invdiff.io.output import Output
from invdiff.operators import GaussianNoise, Noise
from invdiff.posterior import Cost, Posterior
from invdiff.priors import Prior, as_prior, load_prior
from invdiff.problem import InverseProblem, as_measurement
from invdiff.reconstruction import Reconstruction
from invdiff.results import Format
from invdiff.samplers import Sampler, settings_for
from invdiff.scores.prior_fit import distance_from
from invdiff.scores.stored import bundled_file, find_calibration, key_of, read_calibrations
from invdiff.scores.verdict import NOTES

log = logging.getLogger("invdiff")
verdict_log = logging.getLogger("invdiff.verdict")

Watch = Callable[[range], Callback]

TENSORS = ("samples", "diverged_at", "conditional_mean")  # of a `Posterior`, that are stored of finished images


def reconstruct(
    y: Any,
    operator: Any,
    *,
    noise: Noise | float | Literal["auto"] = 0.05,
    prior: Any = "photo",
    sampler: str | type[Sampler] | Sampler = "auto",
    num_samples: int = 4,
    seed: int = 0,
    truth: Any = None,
    names: str | Sequence[str] = "image",
    image_shape: tuple[int, ...] | None = None,
    recommended: bool = True,
    checks: bool = True,
    clouds: bool = False,
    calibration: str | Path | None = None,
    compute: Compute | None = None,
    callback: Callback | None = None,
) -> Reconstruction:
    """Draw posterior samples of the images that were measured.

    y            measurements (B, ...), a tensor or an array; without an axis for images or channels where it is clear
    operator     the forward model: an `Operator`, a `deepinv` physics, a callable, a matrix (see `as_operator`)
    noise        a `Noise`, or the standard deviation of Gaussian noise in units of y; "auto": estimated from y, where
                 parts of it are noise alone
    prior        the name of a bundled prior, a file of weights (.safetensors), a `Prior`, a `deepinv` denoiser or a
                 function (x, sigma) -> clean images
    sampler      a name or class, run with the settings for this operator; an instance runs as it is
    num_samples  of each image, S
    seed         determines every random number, with the index of image and sample
    truth        true images (B, C, H, W), for scores and the figure; the sampler does not see them
    names        of the images, for files and tables: B of them, or one that is numbered, image_000
    image_shape  (C, H, W), where neither operator, truth nor prior determine it
    recommended  False: default settings instead of the recommended ones; `auto` always uses the latter
    checks       compare y with A of typical images of the prior before the work, see `invdiff.checks`
    clouds       the samples of an image are particles of one ensemble, for the cost of one sample: `enkg` and particle
                 filters. They are not independent, and their spread is too small
    calibration  a file of `invdiff calibrate`, for the intervals; None: the calibrations of the package
    compute      device, precision, chunks, progress
    callback     called after every step with an `Event`

    The reasons for choices and what the checks found are logged at level INFO under `invdiff`, and are in `notes`;
    findings of the `verdict` at level WARNING under `invdiff.verdict`.
    Raises ValueError before any work where the parts do not fit together (`Unsupported` where the sampler cannot solve
    this problem), where an operator of your own breaks a rule that samplers rely on (6 calls on 9 images find out) and
    where the checks find that no image of this prior can explain y; TypeError for arguments of another kind; and
    `Interrupted` on Ctrl-C: its `posterior` is the `Reconstruction` of the finished images, or None.
    """
    job = prepare(
        y,
        operator,
        noise=noise,
        prior=prior,
        sampler=sampler,
        num_samples=num_samples,
        seed=seed,
        truth=truth,
        names=names,
        image_shape=image_shape,
        recommended=recommended,
        checks=checks,
        clouds=clouds,
        calibration=calibration,
        compute=compute,
    )
    try:
        found = job.sample(range(job.problem.images), callback)
    except Interrupted as stop:
        if stop.posterior is not None:
            stop.posterior = job.result(stop.posterior, range(stop.posterior.problem.images))
        raise
    result = job.result(found, range(job.problem.images))
    try:
        verdict = result.verdict
    except KeyboardInterrupt as stop:
        raise Interrupted(result, len(result.names)) from stop
    for finding in verdict:
        verdict_log.log(logging.INFO if finding.kind in NOTES else logging.WARNING, finding.words)
    return result


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """A reconstruction that is checked and ready to run, all images at once or some after others.

    chains  runs of the sampler for each image: num_samples, or 1 where the samples are particles of one ensemble

    The samples of an image are the same either way, to rounding: it keeps its index and with it its random numbers.
    """

    problem: InverseProblem
    prior: Prior
    sampler: Sampler
    num_samples: int
    chains: int
    seed: int
    names: Sequence[str]
    truth: Tensor | None
    notes: dict[str, Any]
    calibration: Correction | None
    compute: Compute

    def groups(self, done: Collection[int]) -> list[range]:
        """The images that are not done, in their order, by as many as fill the device."""
        size = images_at_once(self.sampler, self.problem, self.chains, self.compute)
        found: list[range] = []
        for i in (i for i in range(self.problem.images) if i not in done):
            if found and found[-1].stop == i and len(found[-1]) < size:
                found[-1] = range(found[-1].start, i + 1)
            else:
                found.append(range(i, i + 1))
        return found

    def sample(self, images: range, callback: Callback | None = None) -> Posterior:
        """Samples of these images. Raises `Interrupted` on Ctrl-C."""
        together = self.chains < self.num_samples
        draw = self.sampler.sample_of_cloud if together else self.sampler.sample
        try:
            return draw(
                self._of(images),
                self.prior,
                num_samples=self.num_samples,
                seed=self.seed,
                first_image=images.start,
                compute=self.compute,
                callback=callback,
            )
        except Interrupted as stop:
            if together:  # it holds the first particles alone
                stop.posterior = None
            raise

    def result(self, found: Posterior, images: Sequence[int], *, whole: bool = True) -> Reconstruction:
        """Samples of these images as a `Reconstruction`, cut to the frame of y where the images go on outside it.

        whole  False: without the network calls that compare them with images of the prior

        Raises `Interrupted`, with the result that lacks only this comparison, on Ctrl-C in these calls.
        """
        try:
            device = self.compute.resolve_device()
            distance = distance_from(self.prior, found.samples, found.diverged, device) if whole else None
        except KeyboardInterrupt as stop:
            raise Interrupted(self.result(found, images, whole=False), len(images)) from stop
        frame = found.problem.operator.frame
        truth = None if self.truth is None else self.truth[list(images)]
        framed = frame(found.samples)
        result = Reconstruction(
            samples=framed,
            diverged_at=found.diverged_at,
            cost=found.cost,
            problem=found.problem,
            names=[self.names[i] for i in images],
            truth=truth if truth is None or truth.shape[-2:] == framed.shape[-2:] else frame(truth),
            value_range=self.prior.value_range,
            sampler=self.sampler,
            notes=dict(self.notes),
            calibration=self.calibration,
            conditional_mean=None if found.conditional_mean is None else frame(found.conditional_mean),
            prior_distance=distance,
        )
        if framed.shape != found.samples.shape:
            vars(result)["misfit"] = found.misfit  # of the whole scene: its frame alone does not determine y
        return result

    # -- as files ------------------------------------------------------------------------------------------------------

    def as_arrays(self, found: Posterior) -> dict[str, np.ndarray]:
        """What `restored` needs of the samples of some images."""
        cost = np.array(json.dumps(asdict(found.cost)))
        tensors = {name: getattr(found, name) for name in TENSORS}
        return {"cost": cost} | {name: value.numpy() for name, value in tensors.items() if value is not None}

    def restored(self, parts: Mapping[int, Mapping[str, np.ndarray]]) -> Reconstruction:
        """The result of all images that `as_arrays` was called with, by the index of the first of each call.

        Raises `Interrupted` as `result` does.
        """
        images: list[int] = []
        cost = Cost()
        for first, part in sorted(parts.items()):
            images += range(first, first + len(part["samples"]))
            cost += Cost(**json.loads(str(part["cost"])))
        tensors = {
            name: torch.cat([torch.from_numpy(parts[first][name]) for first in sorted(parts)])
            for name in TENSORS
            if name in next(iter(parts.values()))
        }
        means = tensors.get("conditional_mean")
        found = Posterior(tensors["samples"], tensors["diverged_at"], cost, self._of(images), conditional_mean=means)
        return self.result(found, images)

    def _of(self, images: Sequence[int]) -> InverseProblem:
        everything = len(images) == self.problem.images
        return self.problem if everything else self.problem.select(torch.tensor(list(images)))

    def done(self, output: Output) -> set[int]:
        """The images that are finished in a folder of this job."""
        kept = output.kept("diverged_at")
        return {first + i for first, part in kept.items() for i in range(len(part["diverged_at"]))}

    def run_into(self, output: Output, formats: Sequence[Format], watch: Watch) -> Reconstruction:
        """Sample the images that `output` does not hold yet, and store them there group by group.

        watch  gives the callback for a group of images

        The result does not depend on how often this is stopped and called again, to the last bit. Raises `Interrupted`
        on Ctrl-C, with the `Reconstruction` of all images that are finished.
        """
        try:
            for images in self.groups(self.done(output)):
                found = self.sample(images, watch(images))
                output.keep(images.start, self.as_arrays(found))
                self.result(found, images, whole=False).write_pictures(output, formats, alone=self.problem.images == 1)
        except KeyboardInterrupt as stop:
            inner = stop.posterior if isinstance(stop, Interrupted) else None
            if inner is not None:  # of a group that did not fit into the memory at once
                output.keep(images.start, self.as_arrays(inner))
            parts = output.kept()
            result = self.restored(parts) if parts else None
            raise Interrupted(result, 0 if result is None else len(result.names)) from stop
        return self.restored(output.kept())


def prepare(
    y: Any,
    operator: Any,
    *,
    noise: Noise | float | Literal["auto"],
    prior: Any,
    sampler: str | type[Sampler] | Sampler,
    num_samples: int,
    seed: int,
    truth: Any,
    names: str | Sequence[str],
    image_shape: tuple[int, ...] | None = None,
    recommended: bool = True,
    checks: bool,
    clouds: bool = False,
    calibration: str | Path | None,
    compute: Compute | None,
) -> Job:
    """Check a reconstruction and choose its sampler; see `reconstruct`."""
    prior = _as_prior(prior)
    if truth is not None:
        truth = as_measurement(truth).cpu()
        image_shape = tuple(truth.shape[1:])
    problem = problem_of(y, operator, 1.0 if isinstance(noise, str) else noise, prior, image_shape)
    estimate = {}
    if isinstance(noise, str):
        problem, estimate["noise"] = _with_estimate(noise, problem)
        log.info("%s", estimate["noise"])
    names = _numbered(names, problem.images) if isinstance(names, str) else list(names)
    if len(names) != problem.images or len(set(names)) != len(names):
        raise ValueError(f"names must be {problem.images} different ones, one per image, got {', '.join(names)}")
    if truth is not None and len(truth) != problem.images:
        raise ValueError(f"truth must be {problem.images} images, one per measurement, got {len(truth)}")

    chosen, notes = _chosen(sampler, problem, prior, recommended)
    chosen.check(problem, prior)
    check_num_samples(num_samples)
    if clouds:
        if not chosen.clouds:
            chosen.sample_of_cloud(problem, prior)  # raises, with the samplers that have an ensemble
        if not num_samples <= chosen.particles:
            raise ValueError(
                f"clouds=true: num_samples must be at most the ensemble of {chosen.particles}, got {num_samples}"
            )
    chains = 1 if clouds else num_samples
    findings = check_measurement(problem, prior) if checks else []
    impossible = [finding.words for finding in findings if finding.kind in IMPOSSIBLE]
    if impossible:
        raise ValueError(f"{'; and '.join(impossible)}; checks=false reconstructs all the same")
    for finding in findings:
        log.info("check: %s", finding.words)
    if truth is None:  # said in the notes alone: a simulated y may well come from this operator
        findings += [
            Finding("drawn", f"the {name} was drawn at random: right only for y that this operator simulated", False)
            for name in problem.operator.drawn
        ]
    said = {"checks": [asdict(finding) for finding in findings]}
    known = read_calibrations(bundled_file() if calibration is None else Path(calibration))
    measured, words = None, "90 % intervals: need num_samples of 2 or more"
    if clouds:
        words = (
            f"90 % intervals: of particles of one ensemble of {chosen.particles}, not independent: likely too narrow"
        )
        log.info("clouds=true: samples are particles of one ensemble, not independent; their std is likely too small")
    elif num_samples > 1:
        key = key_of(problem, prior, chosen, num_samples, probe=calibration is not None)
        measured, words = find_calibration(key, known, problem.image_shape)
    for note in notes.values():
        log.info("sampler %s", note)
    if prior.note is not None:
        log.info("prior: %s", prior.note)
        notes["prior"] = prior.note
    ahead = calls_ahead(problem, chosen, chains)
    if ahead is not None:
        log.info("%s", ahead)

    return Job(
        problem=problem,
        prior=prior,
        sampler=chosen,
        num_samples=num_samples,
        chains=chains,
        seed=seed,
        names=names,
        truth=truth,
        notes=notes | estimate | {"intervals": words} | said,
        calibration=measured,
        compute=compute or Compute(),
    )


def _as_prior(prior: Any) -> Prior:
    if isinstance(prior, Path) or (isinstance(prior, str) and prior.endswith(".safetensors")):
        return load_prior(weights=prior).eval()
    return (load_prior(prior) if isinstance(prior, str) else as_prior(prior)).eval()


def _with_estimate(noise: str, problem: InverseProblem) -> tuple[InverseProblem, str]:
    """The problem with Gaussian noise as y shows it, and a line on the estimate."""
    if noise != "auto":
        raise ValueError(f'noise must be a Noise, a number or "auto", got {noise!r}')
    try:
        level = estimate_sigma(problem.y, problem.operator)
    except ValueError as error:
        raise ValueError(f'noise="auto": {error}; give the standard deviation') from error
    words = f'noise="auto": {level.value:.4g}, with a standard error of {level.error:.1g}, by y'
    noise_of_y = GaussianNoise(level.value)
    return InverseProblem(problem.operator, noise_of_y, problem.y, image_shape=problem.image_shape), words


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
