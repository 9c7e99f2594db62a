"""From measurements to samples, scores, files and a figure, in one call: `invdiff.reconstruct`.

result = invdiff.reconstruct(y, Inpainting(keep=0.3), noise=0.02, prior="digits", num_samples=8)
result.mean, result.std, result.interval(0.9)
result.save("out")
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from invdiff.benchmark.pictures import rms
from invdiff.findings import Finding
from invdiff.fingerprint import fingerprint, of_image
from invdiff.io.output import Output, opened
from invdiff.io.placement import Volume
from invdiff.posterior import Posterior
from invdiff.results import FORMATS, Format, files_of, write_pictures, write_results
from invdiff.samplers import Sampler
from invdiff.scores import evaluate
from invdiff.scores.metrics import for_json
from invdiff.scores.prior_fit import CALLS
from invdiff.scores.verdict import badge, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INTERVAL = 0.9  # level of the interval in samples.npz


@dataclass(frozen=True, eq=False, kw_only=True)
class Reconstruction(Posterior):
    """Posterior samples with the names of their images, scores, files and a figure.

    names           one per image, B of them
    truth           true images (B, C, H, W) where they are known
    value_range     range of clean images, image units
    sampler         the sampler that ran
    notes           reasons for choices: `sampler` (why `auto` chose it), `settings` (recommended ones that were used),
                    `intervals` (their measured coverage)
    prior_distance  of a sample of each image from the images of the prior, (B,): below 1 for images like them; None
                    where it is not known (`invdiff.scores.prior_fit`)
    """

    names: Sequence[str]
    truth: Tensor | None
    value_range: tuple[float, float]
    sampler: Sampler
    notes: dict[str, Any]
    prior_distance: Tensor | None = None
    _scores: dict[bool, dict[str, Any]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def verdict(self) -> tuple[Finding, ...]:
        """What is wrong with this result, one line each, the severe ones first; empty where nothing was found."""
        return judge(self, self.names, self.value_range, self.sampler, self.prior_distance)

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
        if self.prior_distance is not None:
            distances = dict(zip(self.names, map(for_json, self.prior_distance.tolist()), strict=True))
            notes["prior distance"] = {"images": distances, "network calls of each image": CALLS}
        return scores | {"notes": notes, "verdict": [asdict(finding) for finding in self.verdict]}

    def save(
        self,
        folder: str | Path,
        *,
        best_of: bool = False,
        title: str | None = None,
        formats: Sequence[Format] = FORMATS,
        overwrite: bool = False,
    ) -> None:
        """Write samples.npz, metrics.json, comparison.png, and for each image mean.png, std.png and samples/.

        best_of, title  as of `metrics` and `plot`
        formats         png: these pictures; npz: samples.npz; tif: the same pictures in float32 and image units; npy:
                        samples, mean and std, a file each; nii: mean and std as volumes of all images
        overwrite       replace results of another run in this folder; files that no run has written always stay

        samples.npz holds `samples` (B, S, C, H, W), `mean` and `std` (B, C, H, W), `interval` (B, 2, C, H, W) of 90 %,
        corrected where `calibration` is not None, `y`, `names`, and `x` where the truth is known. Each file is written
        whole or not at all. Raises BadInput where the folder holds results of another run, or other files of these
        names.
        """
        run = fingerprint({"samples": of_image(self.samples.numpy()), "names": list(self.names)})
        files = files_of(self.names, self.samples.shape[1], formats)
        with opened(Path(folder), run, files, overwrite=overwrite) as output:
            self.write(output, formats, Volume(), alone=len(self.names) == 1, best_of=best_of, title=title)
            output.finish()

    def write(
        self,
        output: Output,
        formats: Sequence[Format],
        volume: Volume,
        *,
        alone: bool,
        best_of: bool,
        title: str | None,
    ) -> None:
        """Write all files into a folder that is held; see `save`. `alone`: the run has one image."""
        self.write_pictures(output, formats, alone=alone)
        arrays = {
            "samples": self.samples,
            "mean": self.mean,
            "std": self.std,
            "interval": torch.stack(self.interval(INTERVAL), 1),
            "y": self.problem.y.cpu(),
        }
        if self.truth is not None:
            arrays["x"] = self.truth
        for what in ("scale", "offset"):
            if what in self.notes:
                arrays[what] = torch.tensor([self.notes[what][name] for name in self.names])
        scores = self.metrics(best_of=best_of)
        scores["notes"] |= self._on_std("png" in formats)
        write_results(output, arrays, self.names, scores, self.plot(title=title), formats, volume)

    def write_pictures(self, output: Output, formats: Sequence[Format], *, alone: bool) -> None:
        """Write those of each image that are not written yet."""
        write_pictures(output, self, self.names, alone=alone, value_range=self.value_range, formats=formats)

    def plot(self, *, title: str | None = None) -> "Figure":
        """A figure of truth, measurement, first guess, samples, mean, standard deviation and error of each image.

        Signals, images (C, 1, N), are curves with bands.
        """
        from invdiff.report.comparison import comparison
        from invdiff.report.curves import are_signals, curves

        calls = f"{self.cost.forwards} network calls, {self.cost.seconds:.0f} s"
        title = title or f"{type(self.problem.operator).__name__} · {self.sampler.name()}: {calls}"
        scores = self._scores.get(True) or self.metrics()
        words = badge(self.verdict)
        if are_signals(self.samples):
            return curves(self, list(self.names), self.truth, title=title, badge=words)
        return comparison(self, scores, self.truth, title=title, value_range=self.value_range, badge=words)

    def _on_std(self, drawn: bool) -> dict[str, Any]:
        """A note on std.png, where it is drawn."""
        from invdiff.report.comparison import brightest

        if self.samples.shape[1] == 1:
            return {"std.png": "needs num_samples of 2 or more; std and interval in samples.npz are NaN"}
        known = {n: brightest(rms(std)) for n, std in zip(self.names, self.std, strict=True) if std.isfinite().all()}
        return {"std.png": {"brightest colour": known}} if known and drawn else {}
