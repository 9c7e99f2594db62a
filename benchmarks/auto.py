"""The default, `sampler=auto`, beside four samplers on images never seen: the results page, docs/results/auto.md.

    python benchmarks/auto.py run --brains brain128_train.npz --photos photos_train.tar [--blocks 0 1 2] [--minutes 60]
    python benchmarks/auto.py page

The two files are those the priors were trained on. Of each, the 48 images that training held out are taken, less those
on which settings of `auto` were chosen, in an order drawn at random. A block is 8 of them. Cells, one of a block, task
and sampler, are in runs/auto/: the same command goes on where it stopped. --minutes is looked at between two of them.
Differences are paired over the images that both samplers have. Coverage is that of each fifth of the images after the
correction that was found on the others (`invdiff.scores.conformal`).
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from invdiff import Compute, InverseProblem, load_prior, simulate
from invdiff.correction import Correction
from invdiff.operators import (
    CT,
    HDR,
    MRI,
    Denoising,
    GaussianBlur,
    GaussianNoise,
    Inpainting,
    Operator,
    SuperResolution,
)
from invdiff.priors import Prior
from invdiff.priors.training.images import read_images, split
from invdiff.samplers import Sampler, settings_for
from invdiff.schedules import EDM
from invdiff.scores.conformal import FACTORS, FEWEST, PIXELS, Errors, background_of, correct, errors_of
from invdiff.scores.metrics import psnr
from invdiff.scores.of_images import proper
from invdiff.scores.proper import pooled
from invdiff.streams import generator

SIDES = {"brain_small": 128, "photo": 64}
TASKS: dict[str, tuple[Operator, float]] = {  # with the standard deviation of the noise, in the units of y
    "inpainting 70 %": (Inpainting(keep=0.3), 0.025),
    "super-resolution x4": (SuperResolution(factor=4), 0.025),
    "Gaussian blur": (GaussianBlur(), 0.025),
    "CT 30 views": (CT(views=30), 0.3),
    "MRI x4": (MRI(acceleration=4), 0.025),
    "denoising": (Denoising(), 0.025),
    "HDR": (HDR(), 0.025),
}
OLD = {"schedule": EDM(steps=40, sigma_max=5.0, sigma_min=0.02), "prior_std": 0.25, "draw_std": 0.03}
SAMPLERS = ("auto", "daps, old default", "mmps", "dps", "reddiff")
HELD_OUT, BLOCK, SAMPLES = 48, 8, 4
CHOSEN_ON = (0, 12, 16, 24, 32, 36)  # of those held out
CELLS, PAGE = Path("runs/auto"), Path("docs/results/auto.md")


def unseen(source: str, channels: int, side: int) -> torch.Tensor:
    """Centres of the images held out and not looked at, in random order, (N, C, side, side) in [0, 1]."""
    _, held = split(read_images(source, channels=channels), HELD_OUT)
    order = [i for i in np.random.default_rng(0).permutation(HELD_OUT) if i not in CHOSEN_ON]
    corners = [((held[i].shape[0] - side) // 2, (held[i].shape[1] - side) // 2) for i in order]
    crops = [held[i][t : t + side, k : k + side] for i, (t, k) in zip(order, corners, strict=True)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def sampler_of(name: str, operator: Operator, noise: GaussianNoise, prior: Prior) -> Sampler:
    """With its recommended settings; the default of before drew by chains where the operator is not linear."""
    given = OLD if name == "daps, old default" and operator.linear else {}
    return settings_for(name.partition(",")[0], operator, noise, prior, given=given).sampler


def cell(sampler: Sampler, problem: InverseProblem, prior: Prior, truth: torch.Tensor, first: int) -> dict[str, Any]:
    began = time.process_time()
    posterior = sampler.sample(
        problem, prior, num_samples=SAMPLES, first_image=first, compute=Compute(device="cpu", progress=False)
    )
    seconds, drawn = time.process_time() - began, posterior.diverged.numel()
    background, rows = background_of(truth, prior.value_range), []
    for i, true in enumerate(truth):
        kept = posterior.samples[i, ~posterior.diverged[i]].float()
        nowhere = torch.zeros_like(true)[None]  # one centre of balls, which are not looked at here
        e = errors_of(true, kept, background[i], nowhere, generator(0, "generate", first + i))
        inside = ~e.error.isnan()
        rows.append(
            {
                **proper(kept, true),
                "psnr_mean": psnr(posterior.mean[i], true, prior.value_range),
                "misfit": float(posterior.misfit[i].mean()),
                "pixels": [[float(f"{v:.4g}") for v in values[inside]] for values in (e.error, e.std)],
                "squares": e.squares.tolist(),
                "background": float(e.background),
            }
        )
    return {
        "images": rows,
        "diverged": int(posterior.diverged.sum()),
        "forwards": posterior.cost.forwards / drawn,
        "vjps": posterior.cost.vjps / drawn,
        "seconds": seconds / drawn,
    }


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    began = time.monotonic()
    CELLS.mkdir(parents=True, exist_ok=True)
    sources = {"brain_small": (options.brains, 1), "photo": (options.photos, 3)}
    for block in options.blocks:
        for name in options.priors:
            prior, (source, channels) = load_prior(name).eval(), sources[name]
            first = BLOCK * block
            truth = unseen(source, channels, SIDES[name])[first : first + BLOCK]
            for task in options.tasks:
                operator, noise = TASKS[task][0], GaussianNoise(TASKS[task][1])
                y = simulate(truth, operator, noise, index=range(first, first + len(truth)))
                problem = InverseProblem(operator, noise, y, image_shape=tuple(truth.shape[1:]))
                for sampler_name in options.samplers:
                    sampler = sampler_of(sampler_name, operator, noise, prior)
                    path = CELLS / f"{name}--{task}--{sampler_name}--{block}.json"
                    if path.exists() or sampler.needs().missing(problem, prior):
                        continue
                    if time.monotonic() - began > 60 * options.minutes:
                        print(f"stopped after {options.minutes:g} minutes, before {path.stem}")
                        return
                    found = cell(sampler, problem, prior, truth, first)
                    path.write_text(json.dumps(found))
                    numbers = [1000 * float(np.mean([row[s] for row in found["images"]])) for s in ("energy", "crps")]
                    print(path.stem, *(f"{n:.2f}" for n in numbers), f"{found['seconds']:.1f} s", flush=True)


# -- the page ----------------------------------------------------------------------------------------------------------


def found_for(name: str, task: str, sampler: str) -> list[dict[str, Any]]:
    """Its cells, in the order of blocks, as far as they are there without a gap."""
    paths = [CELLS / f"{name}--{task}--{sampler}--{block}.json" for block in range(HELD_OUT // BLOCK)]
    there = next((k for k, path in enumerate(paths) if not path.exists()), len(paths))
    return [json.loads(path.read_text()) for path in paths[:there]]


def rows_of(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Scores of images; psnr_many, of the mean of ever more samples: that of S has 1 / S of their variance as error."""
    rows = [row for one in cells for row in one["images"]]
    return [r | {"psnr_many": -10 * math.log10(r["squares"][0] - r["squares"][1] / SAMPLES)} for r in rows]


def paired(theirs: list[dict[str, Any]], ours: list[dict[str, Any]], score: str) -> tuple[float, float, int]:
    """Mean of theirs minus ours over the images of both, its standard error, and how many these are."""
    gaps = [a[score] - b[score] for a, b in zip(theirs, ours, strict=False)]
    return float(np.mean(gaps)), float(np.std(gaps, ddof=1)) / math.sqrt(len(gaps)), len(gaps)


def corrected(rows: list[dict[str, Any]], about: dict[str, Any]) -> Correction:
    errors = []
    for row in rows:
        error, std = (torch.tensor(values, dtype=torch.float64) for values in row["pixels"])
        fill = torch.full((PIXELS - len(error),), torch.nan, dtype=torch.float64)
        balls = torch.full((1, len(FACTORS)), 0.5, dtype=torch.float64)
        squares, background = (torch.tensor(row[k], dtype=torch.float64) for k in ("squares", "background"))
        errors.append(Errors(torch.cat([error, fill]), torch.cat([std, fill]), balls, squares, background))
    return correct(errors, SAMPLES, 0, key={}, truths="images never seen", drawn=False, **about)


def table(rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]


def scores(name: str) -> list[str]:
    heads = (
        "task|sampler|images|energy|- auto|CRPS|- auto|spread / error|PSNR of the mean, dB|- auto|of many|misfit|calls"
    )
    out = [heads.split("|")]
    for task in TASKS:
        ours = rows_of(found_for(name, task, "auto"))
        for sampler in SAMPLERS:
            cells = found_for(name, task, sampler)
            rows = rows_of(cells)
            if not rows:
                continue
            line = [task, sampler, str(len(rows))]
            for score, unit, digits in (("energy", 1000, 1), ("crps", 1000, 1), ("psnr_mean", 1, 2)):
                if score == "psnr_mean":
                    ratio = pooled([r["spread_error"] for r in rows], [r["rmse_mean"] for r in rows])
                    line.append("" if ratio is None else f"{ratio.value:.2f}")
                line.append(f"{unit * float(np.mean([r[score] for r in rows])):.{digits}f}")
                gap, error, _ = paired(rows, ours, score)
                line.append("" if sampler == "auto" else f"{unit * gap:+.{digits}f} ± {unit * error:.{digits}f}")
            lost = sum(one["diverged"] for one in cells)
            misfit = f"{np.mean([r['misfit'] for r in rows]):.2f}" + (f", {lost} diverged" if lost else "")
            line.append(f"{np.mean([r['psnr_many'] for r in rows]):.2f}")
            out.append([*line, misfit, f"{cells[0]['forwards']:.0f} + {cells[0]['vjps']:.0f}"])
    return table(out)


def intervals() -> list[str]:
    out = [["prior", "task", "images", "background", "spread x", "90 % interval: factor", "coverage before", "after"]]
    for name, side in SIDES.items():
        for task in TASKS:
            rows = rows_of(found_for(name, task, "auto"))
            if len(rows) >= FEWEST:
                found = corrected(rows, {"shape": (3 if name == "photo" else 1, side, side)})
                level = found.pixels[0.9]
                words = [f"{share:.3f} ± {error:.3f}" for share, error in (level.before, level.after)]
                spread = "{:.2f} ± {:.2f}".format(*found.spread)
                out.append(
                    [name, task, str(len(rows)), f"{found.background:.2f}", spread, f"{level.factor:.2f}", *words]
                )
    return table(out)


def losses() -> list[str]:
    """Tasks where another sampler is better by more than 2 standard errors, or the old default by more than 0.1 dB."""
    out = []
    for name in SIDES:
        for task in TASKS:
            ours = rows_of(found_for(name, task, "auto"))
            for sampler in SAMPLERS[1:]:
                rows = rows_of(found_for(name, task, sampler))
                if not rows:
                    continue
                for score in ("energy", "crps"):
                    gap, error, count = paired(rows, ours, score)
                    if gap < -2 * error:
                        what = f"{1000 * -gap:.1f} ± {1000 * error:.1f} over {count} images"
                        out.append(f"- `{name}`, {task}: {score} of {sampler} is lower by {what}")
                gap, error, count = paired(rows, ours, "psnr_mean")
                if sampler == SAMPLERS[1] and gap > 0.1:
                    more, error_of = paired(rows, ours, "psnr_many")[:2]
                    what = (
                        f"{gap:.2f} ± {error:.2f} dB over {count} images ({more:+.2f} ± {error_of:.2f} of many samples)"
                    )
                    out.append(f"- `{name}`, {task}: PSNR of the mean of {sampler} is higher by {what}")
    return out or ["Nowhere."]


def page() -> None:
    lines = [HEAD]
    for name, side in SIDES.items():
        lines += [f"## `{name}`, {side}x{side}", "", *scores(name), ""]
    lines += ["## Where `auto` loses", "", LOSSES, "", *losses(), ""]
    lines += ["## 90 % intervals of `auto`", "", INTERVALS, "", *intervals()]
    PAGE.write_text("\n".join(lines) + "\n")


HEAD = """# The default sampler on images never seen

`sampler=auto` beside the default of before and three other samplers at recommended settings, 4 samples of each image.
Generated by

```bash
python benchmarks/auto.py run --brains brain128_train.npz --photos photos_train.tar
python benchmarks/auto.py page
```

Images: of the 48 brain slices and of the 48 photographs (centre crops) that training held out, those on which no
setting of `auto` was chosen. Settings of the others may have been chosen on some of them. Noise 0.025, of CT 0.3, in
the units of the measurement. The default of before: `daps` with `schedule.steps=40 prior_std=0.25 draw_std=0.03`, draws
shrunk on purpose; on HDR Langevin chains. `mmps` needs a linear operator. A row that is missing has not been run
yet, and a row has as many blocks of 8 images as time allowed: the command goes on where it stopped. Rows of `mmps`,
`dps` and `reddiff` are of their settings before those followed the noise of y, but for `dps` on HDR. PSNR of the mean
of `auto` on CT, MRI, denoising, HDR and of 16 of the 24 brains of inpainting is still that of the mean of the samples.

Energy score and CRPS times 1000, lower is better ([scores](../scores.md)). `- auto`: paired difference over the images
of both and its standard error; positive energy and CRPS, negative PSNR are worse than `auto`. Spread / error: 1 is
right, below 1 too sure. The mean of `auto` is that of conditional means (`Posterior.mean`). The mean of S samples, as
of the others, has the error of the posterior mean and 1 / S of the variance of the samples: samples that are too narrow
have the better mean of 4. `of many`: PSNR of the mean of samples without that part, as S grows. Misfit: 1 fits to the
noise. Calls of the network and VJPs are of one sample.
"""

LOSSES = """Energy score or CRPS worse by more than 2 standard errors of the paired difference, or PSNR of the mean more
than 0.1 dB below the default of before:"""

INTERVALS = """Tasks with 20 images or more; pixels that are not background. Before: the interval that is right for
Gaussian samples of an exact sampler, of as many (Student's t). After: mean -+ factor sqrt(std^2 + floor^2), of each
fifth of the images with factor and floor of the others. Spread x: what the spread must be multiplied by, over all
pixels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("--brains", help=".npz that `brain_small` was trained on")
    parser.add_argument("--photos", help=".tar that `photo` was trained on")
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 1, 2], help=f"of {BLOCK} images, of 0 to 4")
    parser.add_argument("--priors", nargs="+", default=list(SIDES))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), help="auto, 'daps, old default', ...")
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    if options.what == "page":
        page()
    elif options.brains is None or options.photos is None:
        parser.error("run needs --brains and --photos")
    else:
        run(options)


if __name__ == "__main__":
    main()
