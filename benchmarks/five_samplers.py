"""The five samplers on eleven tasks: the results page, docs/results/five_samplers.md, with its pictures.

    python benchmarks/five_samplers.py run --data held_out.npz [--images 16] [--samples 4] [--few 2]
    python benchmarks/five_samplers.py page

`run` takes evenly spaced slices of a .npz with uint8 `images` of 128x128, none of which the brain prior was trained on.
Every cell is written to runs/five_samplers/ when it is done: the same command goes on where it stopped. Settings are
those that `sampler=` and `operator=` take on the command line, the recommended ones. Samplers are compared by the
energy score, paired over the slices; PSNR of a sample ranks nothing (docs/scores.md). Cells of the kind `paper` take
the published settings where there are any for the task, on a few of the slices; the kind `picture` is of two slices
drawn from the prior itself, since the real ones may not be passed on.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from invdiff import Compute, InverseProblem, load_prior
from invdiff.cli import groups
from invdiff.io import to_tensor
from invdiff.io.examples import drawn_from_prior
from invdiff.problem import simulate
from invdiff.report.comparison import thumbnails
from invdiff.samplers import settings_for
from invdiff.scores import evaluate

SAMPLERS = ("dps", "mcg", "reddiff", "enkg", "daps")
CAMERA = "operator=callable operator.file=benchmarks/black_box_camera.py:camera operator.numpy=true"
TASKS = {  # what the page calls it, and the overrides that make it; noise in the units of the measurement
    "random inpainting 70 %": "operator=inpainting operator.keep=0.3 noise.sigma=0.025",
    "box inpainting": "operator=inpainting operator.box=48 noise.sigma=0.025",
    "super-resolution x4": "operator=super_resolution noise.sigma=0.025",
    "Gaussian blur": "operator=gaussian_blur operator.std=2.0 operator.kernel_size=31 noise.sigma=0.025",
    "motion blur": "operator=motion_blur operator.kernel_size=31 noise.sigma=0.025",
    "CT 30 views": "operator=ct operator.views=30 noise.sigma=0.3",
    "MRI x4": "operator=mri operator.acceleration=4 noise.sigma=0.025",
    "phase retrieval": "operator=phase_retrieval noise.sigma=0.025",
    "HDR": "operator=hdr noise.sigma=0.025",
    "nonlinear blur": "operator=nonlinear_blur operator.kernel_size=31 noise.sigma=0.025",
    "black box": f"{CAMERA} operator.differentiable=false noise.sigma=0.025",
}
PAPER = {  # tasks with published settings, by the name of their experiments
    "random inpainting 70 %": "inpainting",
    "box inpainting": "box_inpainting",
    "super-resolution x4": "super_resolution",
    "Gaussian blur": "gaussian_blur",
    "motion blur": "motion_blur",
    "phase retrieval": "phase_retrieval",
    "HDR": "hdr",
    "nonlinear blur": "nonlinear_blur",
}
CELLS, PAGE = Path("runs/five_samplers"), Path("docs/results/five_samplers.md")


def composed(overrides: list[str]) -> Any:
    groups.register()
    with initialize_config_module("invdiff.configs", version_base="1.3"):
        return compose("reconstruct", overrides)


SCORES = ("energy", "crps", "spread_error", "psnr_mean", "psnr", "ssim", "lpips", "misfit", "baseline_psnr")


def cell(task: str, sampler_name: str, truth: torch.Tensor, kind: str, count: int) -> dict[str, Any]:
    """Scores of `count` samples of one sampler on one task; or the reason why there are none."""
    config = composed(["prior=brain_small", *TASKS[task].split()])
    prior, operator, noise = instantiate(config.prior), instantiate(config.operator), instantiate(config.noise)
    if kind == "paper":
        sampler = instantiate(composed([f"experiment=paper/{sampler_name}_{PAPER[task]}"]).sampler)
    else:
        sampler = settings_for(sampler_name, operator, noise, prior).sampler
    y = simulate(truth, operator, noise)
    problem = InverseProblem(operator, noise, y, image_shape=tuple(truth.shape[1:]))
    missing = sampler.needs().missing(problem, prior)
    if missing:
        return {"impossible": f"needs {' and '.join(missing)}"}
    began = time.perf_counter()
    posterior = sampler.sample(problem, prior, num_samples=count, compute=Compute())
    seconds = time.perf_counter() - began
    scores = evaluate(posterior, [str(i) for i in range(len(truth))], truth, prior.value_range)
    shown = operator.align(posterior.samples[:2, 0], truth[:2])
    return {
        "images": len(truth),
        "samples": count,
        **{key: scores["mean"][key] for key in SCORES},
        "energies": [row["energy"] for row in scores["images"]],
        "diverged": int(posterior.diverged.sum()),
        "calls": posterior.cost.forwards / posterior.diverged.numel(),
        "vjps": posterior.cost.vjps / posterior.diverged.numel(),
        "seconds": seconds / posterior.diverged.numel(),
        **({"pictures": (shown.clamp(0, 1) * 255).round().byte().squeeze(1).tolist()} if kind == "picture" else {}),
    }


def run(options: argparse.Namespace) -> None:
    images = np.load(options.data)["images"]
    kept = images[np.linspace(0, len(images) - 1, options.images).round().astype(int)]
    truth = torch.from_numpy(kept).float()[:, None] / 255
    CELLS.mkdir(parents=True, exist_ok=True)
    for kind in options.kinds:
        if kind == "picture":
            names, drawn = drawn_from_prior(2, prior=load_prior("brain_small"))
            truth = to_tensor(drawn, names)
            np.save(CELLS / "truth.npy", (truth[:, 0] * 255).round().byte().numpy())
        for sampler in options.samplers:
            for task in TASKS:
                path = CELLS / f"{_key(task, sampler, kind)}.json"
                if path.exists() or (kind == "paper" and not _published(sampler, task)):
                    continue
                if kind == "picture" and sampler == "enkg" and task != "black box":
                    continue  # minutes each, for a picture
                some = truth[: options.few if kind == "paper" else options.images]
                result = cell(task, sampler, some, kind, 1 if kind == "picture" else options.samples)
                path.write_text(json.dumps(result))
                print(kind, sampler, task, result.get("energy", result.get("impossible")), flush=True)


def _published(sampler: str, task: str) -> bool:
    """EnKG's published settings are hours for an image: not run here."""
    from importlib.resources import files

    if sampler == "enkg" or task not in PAPER:
        return False
    return (files("invdiff.configs") / "experiment" / "paper" / f"{sampler}_{PAPER[task]}.yaml").is_file()


# -- the page ----------------------------------------------------------------------------------------------------------


def page() -> None:
    cells = {path.stem: json.loads(path.read_text()) for path in sorted(CELLS.glob("*.json"))}
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    main_cells = [c for key, c in cells.items() if key.endswith("-main") and "images" in c]
    numbers = {(c["images"], c["samples"]) for c in main_cells}
    lines = [HEAD.replace("NUMBERS", " or ".join(f"{n} slices, {s} samples of each" for n, s in sorted(numbers)))]
    for score, heading, digits in (
        ("energy", "Energy score times 1000, lower is better", 1),
        ("crps", "CRPS times 1000, lower is better", 1),
        ("spread_error", "Spread / error (1 is right, below 1 too sure)", 2),
        ("psnr_mean", "PSNR of the mean, dB", 1),
        ("misfit", "Misfit (1 fits to the noise)", 2),
        ("psnr", "PSNR of a sample, dB: ranks nothing", 1),
    ):
        lines += [f"## {heading}", "", *_table(cells, score, digits), ""]
    lines += ["## Cost of a sample: network calls + VJPs, seconds on one core", "", *_costs(cells), ""]
    title = "## Recommended against published settings, energy score times 1000 on the same images"
    lines += [title, "", *_papers(cells), ""]
    lines += ["## Pictures", "", *_pictures(cells)]
    PAGE.write_text("\n".join(lines) + "\n")


HEAD = """# Five samplers on eleven tasks

Slices of brains that the prior `brain_small` has not seen, 128x128, NUMBERS; the same measurements for all.
Generated by

```bash
python benchmarks/five_samplers.py run --data held_out.npz
python benchmarks/five_samplers.py page
```

Published settings, which cost hours, ran on the first slices alone. Scores are after alignment in phase retrieval. An
energy score in bold is better than every other in its row by more than 2 standard errors of the paired difference. A
dash is a pair that cannot work: `mcg` needs a linear operator, and the black box, a camera in NumPy, gives no
gradients. The `first guess` uses no prior: the pseudo-inverse, filtered back-projection, or what else is usual.
Settings are the recommended ones, found on other slices, where any were.

Seconds are of a core that multiplies bfloat16 matrices, those of EnKG of 2 slices on it; but for `mcg` on blurs, which
ran on a slower core beside other work.

What fails: EnKG, which sees values alone, with 64 particles: on super-resolution, Gaussian blur and CT it stays below
the first guess.
"""


def _key(task: str, sampler: str, kind: str = "main") -> str:
    return f"{task.replace(' ', '_')}-{sampler}-{kind}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"  # noqa: RUF001


def gain(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, float]:
    """Mean of our energy scores minus theirs over the first images, which both have, and its standard error."""
    pairs = zip(ours["energies"], theirs["energies"], strict=False)
    found = [a - b for a, b in pairs if a is not None and b is not None]
    error = float(np.std(found, ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else math.inf
    return float(np.mean(found)) if found else math.nan, error


def _best(found: list[dict[str, Any]]) -> int | None:
    """The cell whose energy score is better than all others by more than 2 standard errors, if there is one."""
    known = [k for k, c in enumerate(found) if c.get("energy") is not None]
    first = min(known, key=lambda k: found[k]["energy"], default=None)
    if first is None or len(known) < 2:
        return None
    losses = [gain(found[k], found[first]) for k in known if k != first]
    return first if all(mean > 2 * error for mean, error in losses) else None


def _table(cells: dict[str, Any], score: str, digits: int) -> list[str]:
    extra = ["first guess"] if score == "psnr_mean" else []
    unit = 1000 if score in ("energy", "crps") else 1
    rows = [["task", *extra, *SAMPLERS], ["---"] * (1 + len(extra) + len(SAMPLERS))]
    for task in TASKS:
        found = [cells.get(_key(task, sampler), {}) for sampler in SAMPLERS]
        base = [_number(next((c["baseline_psnr"] for c in found if "psnr" in c), None), digits)] if extra else []
        words = [_number(None if c.get(score) is None else unit * c[score], digits) for c in found]
        best = _best(found) if score == "energy" else None
        rows.append([task, *base, *(f"**{word}**" if k == best else word for k, word in enumerate(words))])
    return [f"| {' | '.join(row)} |" for row in rows]


def _costs(cells: dict[str, Any]) -> list[str]:
    rows = [["task", *SAMPLERS], ["---"] * (1 + len(SAMPLERS))]
    for task in TASKS:
        row = [task]
        for sampler in SAMPLERS:
            c = cells.get(_key(task, sampler), {})
            row.append(f"{c['calls']:.0f} + {c['vjps']:.0f}, {c['seconds']:.1f} s" if "calls" in c else "–")  # noqa: RUF001
        rows.append(row)
    return [f"| {' | '.join(row)} |" for row in rows]


def _papers(cells: dict[str, Any]) -> list[str]:
    headings = ["task", "sampler", "recommended", "calls", "published", "calls", "recommended - published"]
    rows = [headings, ["---"] * len(headings)]
    for task in PAPER:
        for sampler in SAMPLERS:
            ours, theirs = cells.get(_key(task, sampler), {}), cells.get(_key(task, sampler, "paper"), {})
            if ours.get("energy") is not None and theirs.get("energy") is not None:
                mean, error = gain(ours, theirs)
                mine = [energy for energy in ours["energies"][: theirs["images"]] if energy is not None]
                words = [f"{1000 * np.mean(mine):.1f}", f"{ours['calls']:.0f}"]
                words += [f"{1000 * theirs['energy']:.1f}", f"{theirs['calls']:.0f}"]
                rows.append([task, sampler, *words, f"{1000 * mean:+.1f} ± {1000 * error:.1f}"])
    return [f"| {' | '.join(row)} |" for row in rows]


def _pictures(cells: dict[str, Any]) -> list[str]:
    truth = torch.from_numpy(np.load(CELLS / "truth.npy")).float()[:, None] / 255
    lines = ["Slices drawn from the prior: the real ones may not be passed on.", ""]
    for task in TASKS:
        tiles, names = [*truth], []
        for sampler in SAMPLERS:
            found = cells.get(_key(task, sampler, "picture"), {})
            if "pictures" in found:
                names.append(sampler)
                tiles += [*(torch.tensor(found["pictures"]).float()[:, None] / 255)]
        if not names:
            continue
        path = PAGE.parent / "five_samplers" / f"{task.replace(' ', '_').replace('%', 'percent')}.png"
        path.parent.mkdir(exist_ok=True)
        thumbnails(torch.stack(tiles), path, 2)
        lines += [f"{task}; from the top: truth, {', '.join(names)}", "", f"![{task}](five_samplers/{path.name})", ""]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("--data", help=".npz with uint8 `images`, (N, 128, 128)")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4, help="of each slice")
    parser.add_argument("--few", type=int, default=2, help="slices for the published settings")
    parser.add_argument("--kinds", nargs="+", default=["main", "picture", "paper"])
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
    options = parser.parse_args()
    if options.what == "page":
        page()
    elif options.data is None:
        parser.error("run needs --data")
    else:
        run(options)


if __name__ == "__main__":
    main()
