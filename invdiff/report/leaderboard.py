"""`leaderboard.md`: the samplers of a benchmark side by side, a table for each task and budget."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from invdiff.benchmark.summary import RULES, Comparison, Estimate, Standing
from invdiff.scores.of_images import COVERAGES, coverage_floor

# Heading, score, digits; in the order of the columns.
SCORES = (
    ("energy score", "energy", 4),
    ("CRPS", "crps", 4),
    ("spread / error", "spread_error", 2),
    ("in 90% intervals / one-sided", "coverage_90", 2),
    ("PSNR of mean", "psnr_mean", 2),
    ("PSNR of a sample", "psnr", 2),
    ("SSIM", "ssim", 3),
    ("LPIPS", "lpips", 3),
    ("misfit", "misfit", 2),
    ("diversity", "diversity", 3),
    ("PSNR not aligned", "psnr_raw", 2),
    ("FID", "fid", 2),
    ("KID", "kid", 4),
)
DIGITS = {score: digits for _, score, digits in SCORES}
HEADINGS = {score: heading for heading, score, _ in SCORES}
BEHIND = "behind the best"
BASELINE = HEADINGS["psnr_mean"]  # the column of the first guess, one image too
# To the exact posterior, each beside its floor.
DISTANCES = (
    ("sliced W / floor", "sliced_wasserstein", 3),
    ("mean off / floor", "mean_error", 2),
    ("std off / floor", "std_error", 2),
    ("covariance off / floor", "covariance_error", 2),
    ("modes off / floor", "mode_error", 2),
)

LEGEND = """\
Means over images, ± their standard error; samples of one image are averaged first. Energy score (of images) and CRPS
(of pixels), in image units, lower is better, are proper: the true posterior has the best expected one. Their estimators
are fair: the expectation does not depend on the number of samples, which decides their scatter alone; of fewer than 4
samples they are noisy. Rows are sorted by the distance to the exact posterior where it is known, then by energy score,
without one by PSNR of the mean. Behind the best: difference to the row with the best of these two scores, paired over
the images of both; below 2 standard errors it may be chance. Spread / error: standard deviation of the samples over the
error of their mean, 1 is right, below 1 too sure. In 90% intervals: share of the pixels whose central 90% credible
interval holds the truth, 0.90 if calibrated, beside the share of as many samples that all lie on one side of the truth.
PSNR in dB; that of a sample ranks nothing: it rewards samples that vary too little. Misfit: 1 fits to the noise.
Diversity: root mean square of the samples' standard deviation, in image units. Costs are of one sample of one image:
calls and VJPs of the network, cost in network calls with a VJP counting as many of them as it takes time, seconds of
the sampler. A score in **bold** is better than that of every other row, a cost or time in bold buys a better score than
every lower one, both by more than 2 standard errors of the paired difference."""

OF_DISTANCES = """\
Distances are of all samples of an image to exact draws of its posterior, and the floor is the distance of as many exact
draws: a sampler at its floor cannot be distinguished from the truth. Sliced W: sliced Wasserstein distance W1, in image
units, the smallest first; mean, std and covariance off: relative to the spread, the standard deviations and the
covariance of the posterior; modes off: total variation between the shares of the mixture's components and their exact
weights."""


OF_SETS = """\
FID and KID: distances of the set of all samples, as they are, to the set of the true images, by features of
InceptionV3. FID is biased upwards for few images: compare it at equal numbers only."""


def markdown(comparisons: Sequence[Comparison], failures: int = 0) -> str:
    """The page; `failures` is the number of runs that stopped early."""
    lines = ["# Leaderboard", "", *LEGEND.splitlines(), ""]
    standings = [s for comparison in comparisons for s in comparison.standings]
    if any(score in s.scores for s in standings for _, score, _ in DISTANCES):
        lines += [*OF_DISTANCES.splitlines(), ""]
    if any("fid" in s.scores for s in standings):
        lines += [*OF_SETS.splitlines(), ""]
    if failures:
        lines += [f"{failures} run(s) stopped early; the same command retries them.", ""]
    shown, listed = None, set()
    for comparison in comparisons:
        if comparison.task != shown:
            shown = comparison.task
            lines += [f"## {_escaped(comparison.operator)}", "", _escaped(described(comparison)), ""]
        if comparison.budget is not None:
            lines += [f"### At {comparison.budget} a sample", ""]
            lines += ["Steps are fitted to the budget; all other settings are the sampler's own.", ""]
        lines += [*_table(comparison), ""]
        notes = [
            f"- {score}: {_escaped(why)}"
            for score, why in comparison.notes.items()
            if (shown, score, why) not in listed
        ]
        listed |= {(shown, score, why) for score, why in comparison.notes.items()}
        lines += [*notes, ""] if notes else []
    return "\n".join(lines).rstrip() + "\n"


def columns(comparison: Comparison, *, errors: bool = True) -> dict[str, Callable[[Standing], str]]:
    """Headings of a table, and functions that write their cells; without scores that no sampler has.

    errors  with the standard errors
    """
    found: dict[str, Callable[[Standing], str]] = {}
    rule, floor = comparison.rule, coverage_floor(comparison.settings.get("num_samples", 1), COVERAGES["coverage_90"])
    for heading, score, digits in SCORES:
        if any(score in s.scores for s in comparison.standings):
            found[heading] = partial(_score, score=score, digits=digits, error=errors)
            if score == rule:
                found[heading] = partial(_ruling, score=score, digits=digits, error=errors)
                if any(s.behind for s in comparison.standings):
                    found[BEHIND] = partial(_behind, digits=digits)
            if score == "coverage_90":
                found[heading] = partial(_beside, beside=f"{floor:.2f}", score=score, digits=digits, error=errors)
    for heading, score, digits in DISTANCES:
        if any(score in s.scores for s in comparison.standings):
            found[heading] = partial(_beside_floor, score=score, digits=digits, error=errors)
    if any(s.diverged for s in comparison.standings):
        found["diverged"] = lambda s: f"{s.diverged} of {s.samples}"
    if len({s.images for s in comparison.standings if s.images}) > 1:
        found["images"] = lambda s: str(s.images)  # their means are over different images
    if comparison.budget is not None:
        found["steps"] = lambda s: str(s.steps or "")
    found["calls"] = lambda s: f"{s.forwards:,.0f}"
    found["VJPs"] = lambda s: f"{s.vjps:,.0f}"
    found["cost"] = lambda s: "" if s.cost is None else _marked(f"{s.cost:,.0f}", s.best_for_cost)
    found["seconds"] = lambda s: _marked(f"{s.seconds:.3g}", s.best_for_seconds)
    return found


def estimate(value: Estimate | None, digits: int, *, error: bool = True) -> str:
    """A mean with its standard error, where there is one; an empty string for None."""
    if value is None:
        return ""
    known = error and not math.isnan(value.error)
    return f"{value.mean:.{digits}f}" + (f" ± {value.error:.{digits}f}" if known else "")


def _score(standing: Standing, *, score: str, digits: int, error: bool) -> str:
    return estimate(standing.scores.get(score), digits, error=error)


def _ruling(standing: Standing, *, score: str, digits: int, error: bool) -> str:
    return _marked(_score(standing, score=score, digits=digits, error=error), standing.best)


def _behind(standing: Standing, *, digits: int) -> str:
    return estimate(standing.behind, digits)


def _beside(standing: Standing, *, beside: str, score: str, digits: int, error: bool) -> str:
    words = _score(standing, score=score, digits=digits, error=error)
    return f"{words} / {beside}" if words and beside else ""


def _beside_floor(standing: Standing, *, score: str, digits: int, error: bool) -> str:
    floor = estimate(standing.scores.get(f"{score}_floor"), digits, error=False)
    return _beside(standing, beside=floor, score=score, digits=digits, error=error)


def sorted_by(comparison: Comparison) -> tuple[str, str]:
    """The heading of the column that sorts the rows, and whether `ascending` or `descending`."""
    heading, score, _ = DISTANCES[0]
    if any(score in s.scores for s in comparison.standings):
        return heading, "ascending"
    return HEADINGS[comparison.rule], "ascending" if RULES[comparison.rule] > 0 else "descending"


def _marked(words: str, mark: bool) -> str:
    return f"**{words}**" if mark else words


def _table(comparison: Comparison) -> list[str]:
    cells = columns(comparison)
    lines = ["| " + " | ".join(["sampler", *cells]) + " |", "| --- |" + " ---: |" * len(cells)]
    for s in comparison.standings:
        if s.images:
            words = [write(s) for write in cells.values()]
            why = f" ({s.reason})" if s.reason else ""
            lines.append("| " + " | ".join([_escaped(s.label + why), *words]) + " |")
    if comparison.baseline is not None:
        first = [estimate(comparison.baseline, 2) if heading == BASELINE else "" for heading in cells]
        lines.append("| " + " | ".join(["*first guess, without a prior*", *first]) + " |")
    reasons = [f"- {_escaped(s.label)}: {_escaped(s.reason or '')}" for s in comparison.standings if not s.images]
    return lines + (["", *reasons] if reasons else [])


def _escaped(words: str) -> str:
    """Words of configurations and errors as plain text: no HTML, no links, no cells, one line."""
    for mark in ("\\", "<", "|", "]("):
        words = words.replace(mark, mark[:-1] + "\\" + mark[-1])
    return " ".join(words.split())


def described(comparison: Comparison) -> str:
    """Operator, noise and prior with their settings, and the numbers of images and samples."""
    settings = comparison.settings
    prior = prior_label(settings["prior"])
    parts = [words(settings["operator"]), words(settings["noise"]), f"prior {prior}"]
    images = max((s.images for s in comparison.standings), default=0)
    parts.append(f"{images} image(s), {settings['num_samples']} sample(s) each, seed {settings['seed']}")
    return " · ".join(parts)


def prior_label(node: Mapping[str, Any]) -> str:
    """What a prior is called: by its weights file, with its folder or the start of its hash, where one is given."""
    weights = node.get("weights")
    if isinstance(weights, Mapping):
        return f"{weights.get('file')} ({str(weights.get('sha256'))[:8]})"
    if weights is not None:
        return "/".join(Path(str(weights)).parts[-2:])
    return str(node.get("name") or words(node))


def words(node: Mapping[str, Any]) -> str:
    """A node of a configuration as `Class(setting=value)`, without what is null."""
    name = str(node.get("_target_", "")).rpartition(".")[2]
    own = {key: value for key, value in node.items() if key not in ("_target_", "fingerprint") and value is not None}
    settings = ", ".join(f"{key}={_word(value)}" for key, value in own.items())
    return f"{name}({settings})"


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("file") or words(value))
    return str(value)
