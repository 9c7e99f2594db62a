"""Integrators and fitted levels at 20 calls of the denoiser: the results page, docs/results/integrators.md.

    python benchmarks/integrators.py run [--prior digits] [--data held_out.npz] [--images 8] [--minutes 60]
    python benchmarks/integrators.py page

`mmps`, `tmpd` and `pnpdm` with every integrator, and `mmps` and `tmpd` with levels that are fitted to the prior in
place of those of EDM. Images are draws of the prior, or evenly spaced ones of a .npz with uint8 `images`. A cell, of
one task, sampler, integrator and levels, is written to runs/integrators/ when it is done: the same command goes on
where it stopped; --minutes is looked at between two of them.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff import Compute, InverseProblem, load_prior, simulate
from invdiff.integrators import BDIA, NAMED, Integrator
from invdiff.io import to_tensor
from invdiff.io.examples import drawn_from_prior
from invdiff.operators import GaussianNoise, Inpainting, Operator, SuperResolution
from invdiff.priors import Prior
from invdiff.samplers import MMPS, TMPD, PnPDM, Sampler
from invdiff.schedules import EDM, Schedule, Table
from invdiff.scores.metrics import psnr
from invdiff.scores.proper import energy_score
from invdiff.tuning.levels import fit_dpm_v3, fit_iia, fit_levels

CALLS, SAMPLES, NOISE = 20, 4, 0.05
TASKS: dict[str, Operator] = {"inpainting 70 %": Inpainting(keep=0.3), "super-resolution x4": SuperResolution(factor=4)}
EDM_LEVELS = EDM(steps=CALLS, sigma_max=10.0, sigma_min=0.01)
INTEGRATORS = [*NAMED, "bdia 1", "dpm_v3", "iia"]
LEVELS = ("edm", "diffusion", "flow")
ON_FITTED = ("ancestral", "euler", "dpm_2m", "dpm_2m_sde", "deis", "conjugate")  # with levels that are fitted
FIRST = "ancestral", "edm"  # all others are compared with it
CELLS, PAGE = Path("runs/integrators"), Path("docs/results/integrators.md")


def cells() -> Iterator[tuple[str, str, str, str]]:
    """Task, sampler, integrator, levels."""
    for task in TASKS:
        for sampler in ("tmpd", "mmps", "pnpdm"):
            walked = (name for name in INTEGRATORS if (sampler, name) != NEVER)
            yield from ((task, sampler, integrator, "edm") for integrator in walked)
            if sampler != "pnpdm":
                yield from ((task, sampler, integrator, levels) for levels in LEVELS[1:] for integrator in ON_FITTED)


NEVER = ("pnpdm", "iia")  # its walks begin at falling levels, and iia takes those of its fit alone


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    began = time.monotonic()
    prior = load_prior(options.prior).eval()
    folder = options.cells / options.prior
    folder.mkdir(parents=True, exist_ok=True)
    truth = true_images(prior, options.data, options.images)
    fitted = Fitted(prior, folder)
    for task, sampler_name, integrator_name, levels in cells():
        path = folder / f"{task}-{sampler_name}-{integrator_name}-{levels}.json"
        if path.exists():
            continue
        if time.monotonic() - began > 60 * options.minutes:
            print(f"stopped after {options.minutes:g} minutes, before {path.stem}")
            return
        schedule = fitted.levels(levels)
        sampler = at_the_calls(sampler_name, fitted.integrator(integrator_name, schedule), schedule)
        path.write_text(json.dumps(scores(sampler, TASKS[task], prior, truth)))
        print(path.stem, path.read_text(), flush=True)


class Fitted:
    """What is fitted to the prior, once and when it is needed; levels are stored."""

    def __init__(self, prior: Prior, folder: Path) -> None:
        self.prior, self.folder = prior, folder
        self.solvers: dict[str, Integrator] = {}

    def levels(self, name: str) -> Schedule:
        if name == "edm":
            return EDM_LEVELS
        path = self.folder / f"levels_{name}.json"
        if not path.exists():
            ends = {"sigma_max": EDM_LEVELS.sigma_max, "sigma_min": EDM_LEVELS.sigma_min}
            path.write_text(json.dumps(fit_levels(self.prior, CALLS, by=name, **ends).values))  # type: ignore[arg-type]
        return Table(values=tuple(json.loads(path.read_text())), steps=CALLS)

    def integrator(self, name: str, schedule: Schedule) -> Integrator:
        if name in NAMED:
            return NAMED[name]
        if name == "bdia 1":
            return BDIA(gamma=1.0)
        if name not in self.solvers:
            self.solvers[name] = (fit_dpm_v3 if name == "dpm_v3" else fit_iia)(self.prior, schedule)
        return self.solvers[name]


def at_the_calls(name: str, integrator: Integrator, schedule: Schedule) -> Sampler:
    """The sampler with the most steps whose calls of the denoiser are not above `CALLS`."""
    if name == "pnpdm":
        sampler = PnPDM(iterations=5, decay=0.45, rho_min=0.04, integrator=integrator)
        options = [replace(sampler, grid=EDM(steps=n, sigma_max=1.0, sigma_min=0.02)) for n in range(2, 9)]
        return [option for option in options if option.expected_cost().forwards <= CALLS][-1]
    cls: Any = {"mmps": MMPS, "tmpd": TMPD}[name]
    steps = max(n for n in range(2, CALLS + 1) if integrator.calls(n) <= CALLS)
    sampler: Sampler = cls(schedule=replace(schedule, steps=steps), integrator=integrator)  # type: ignore[call-arg,type-var]
    return sampler


def scores(sampler: Sampler, operator: Operator, prior: Prior, truth: Tensor) -> dict[str, Any]:
    noise = GaussianNoise(NOISE)
    problem = InverseProblem(operator, noise, simulate(truth, operator, noise))
    posterior = sampler.sample(problem, prior, num_samples=SAMPLES, compute=Compute(device="cpu", progress=False))
    rows = posterior.diverged.numel()
    return {
        "energy": [energy_score(s, t) for s, t in zip(posterior.samples, truth, strict=True)],
        "psnr": [psnr(m, t) for m, t in zip(posterior.mean_of_samples, truth, strict=True)],
        "spread": float(posterior.std.square().mean().sqrt()),
        "misfit": float(posterior.misfit.mean()),
        "diverged": int(posterior.diverged.sum()),
        "calls": [posterior.cost.forwards / rows, posterior.cost.vjps / rows],
    }


def true_images(prior: Prior, data: str | None, count: int) -> Tensor:
    if data is None:
        names, drawn = drawn_from_prior(count, prior=prior)
        return to_tensor(drawn, names)
    images = np.load(data)["images"]
    kept = images[np.linspace(0, len(images) - 1, count).round().astype(int)]
    return torch.from_numpy(kept)[:, None].float() / 255


# -- page --------------------------------------------------------------------------------------------------------------


HEAD = f"""# Integrators and levels at {CALLS} calls

Generated by

```bash
python benchmarks/integrators.py run --prior digits
python benchmarks/integrators.py page
```

Energy score times 1000, lower is better ([scores](../scores.md)), of {SAMPLES} samples of each image, noise {NOISE},
with at most {CALLS} calls of the denoiser for one sample; `mmps` and `tmpd` take VJPs for each of them. In brackets the
difference to `{FIRST[0]}` steps on the levels of EDM ({EDM_LEVELS.sigma_max:g} to {EDM_LEVELS.sigma_min:g}, rho 7),
paired over the images, with its standard error: negative is better. D: samples diverged. Levels `diffusion` and `flow`
are those of `invdiff.tuning.levels.fit_levels`, `dpm_v3` and `iia` are fitted there too. Empty: not run.
"""


def page(options: argparse.Namespace) -> None:
    lines = [HEAD]
    for folder in sorted(path for path in options.cells.iterdir() if path.is_dir()):
        found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))}
        images = sorted({len(cell["energy"]) for cell in found.values()})
        lines += [f"## `{folder.name}`", "", f"Images: {', '.join(map(str, images))}.", ""]
        for levels in LEVELS[1:]:
            path = folder / f"levels_{levels}.json"
            if path.exists():
                numbers = ", ".join(f"{value:.3g}" for value in json.loads(path.read_text()))
                lines += [f"`{levels}`: {numbers}.", ""]
        columns = [(task, sampler) for task in TASKS for sampler in ("tmpd", "mmps", "pnpdm")]
        lines += [f"| integrator | levels | {' | '.join(f'{sampler}, {task}' for task, sampler in columns)} |"]
        lines += ["| --- | --- |" + " --- |" * len(columns)]
        for levels in LEVELS:
            for integrator in INTEGRATORS if levels == "edm" else ON_FITTED:
                row = [cell(found, task, sampler, integrator, levels) for task, sampler in columns]
                if any(row):
                    lines.append(f"| `{integrator}` | {levels} | {' | '.join(row)} |")
        lines.append("")
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text("\n".join(lines))


def cell(found: dict[str, Any], task: str, sampler: str, integrator: str, levels: str) -> str:
    here, first = (found.get(f"{task}-{sampler}-{i}-{k}") for i, k in ((integrator, levels), FIRST))
    if here is None:
        return ""
    if here["diverged"]:
        return "D"
    mean = f"{1000 * np.mean(here['energy']):.1f}"
    if first is None or (integrator, levels) == FIRST:
        return mean
    change = 1000 * (np.array(here["energy"]) - np.array(first["energy"]))
    return f"{mean} ({change.mean():+.1f} ± {change.std(ddof=1) / len(change) ** 0.5:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("--prior", default="digits")
    parser.add_argument("--data", help=".npz with uint8 `images`, (N, H, W); none: draws of the prior")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--cells", type=Path, default=CELLS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    if options.what == "page":
        page(options)
    else:
        run(options)


if __name__ == "__main__":
    main()
