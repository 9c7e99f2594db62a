"""Whose uncertainty is right: calibration of samplers on images whose posterior is known.

    python benchmarks/calibration.py run [--images 100] [--samples 15] [--samplers exact dps ...]
    python benchmarks/calibration.py page          writes docs/results/calibration.md

Truths are drawn from the bundled mixture of digits, a prior in closed form, and 70 % of their pixels are taken away.
The row `exact` draws from the exact posterior: what it shows is the check itself. Each sampler is written when it is
done: the same command goes on where it stopped.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from invdiff import Compute, InverseProblem, load_prior
from invdiff.engine.step import Step
from invdiff.operators import GaussianNoise, Inpainting
from invdiff.posterior import Cost
from invdiff.priors import ClosedFormPrior, Prior
from invdiff.report.calibration import calibration_figure
from invdiff.report.comparison import save_figure
from invdiff.samplers.base import Needs, Sampler
from invdiff.scores.calibration import calibrate
from invdiff.streams import Streams

FOLDER, PAGE = Path("runs/calibration"), Path("docs/results/calibration.md")
OPERATOR, NOISE = Inpainting(keep=0.3), GaussianNoise(0.05)
SETTINGS = {  # what the page calls them, and how they are made
    "exact": None,
    "pnpdm": "sampler=pnpdm",
    "lanpaint": "sampler=lanpaint",
    "mmps": "sampler=mmps",
    "pigdm": "sampler=pigdm",
    "daps": "sampler=daps",
    "daps, exact draws": "sampler=daps sampler.draw_std=null",
    "dps": "sampler=dps sampler.clip=false",
    "mcg": "sampler=mcg sampler.clip=false",
    "reddiff": "sampler=reddiff",
}
LEVELS = (0.5, 0.9)
ABOUT = """\
settings as of `sampler=` with `operator=inpainting`, but that `dps` and `mcg` do not clip clean
estimates to [0, 1]: draws of this prior leave that range. The prior is exact, so that what is wrong is the sampler's
own. `exact` draws from the posterior in closed form: the check of the check.

Pixels inside: how often the central credible interval of a pixel, 50 % and 90 %, holds the truth, ± its standard error
over images. Less than the level: over-confident. TARP: how often a ball around a random point that holds 50 % or 90 %
of the samples holds the truth, with a 95 % bootstrap band. p: the smallest p-value of all tests that ranks are uniform,
corrected for their number."""


@dataclass(frozen=True, kw_only=True)
class ExactPosterior(Sampler):
    """Draws from p(x | y) itself; no method, the measure of the others.

    prior  the one that the truths come from
    """

    prior: ClosedFormPrior

    @property
    def num_steps(self) -> int:
        return 1

    def needs(self) -> Needs:
        return Needs(linear=True, gaussian_noise=True)

    def expected_cost(self) -> Cost:
        return Cost()

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        draws, before = [], None
        for row, stream in enumerate(rng.generators):
            y = problem.y[row]
            if before is None or not torch.equal(y, before):  # samples of one image stand side by side
                posterior, before = self.prior.posterior(problem.select(torch.tensor([row]))), y
            draws.append(posterior.sample(1, stream))
        x = torch.cat(draws).to(problem.y)
        yield Step(x, x, 0.0)


def made(name: str, prior: ClosedFormPrior) -> Sampler:
    words = SETTINGS[name]
    if words is None:
        return ExactPosterior(prior=prior)
    with initialize_config_module("invdiff.configs", version_base="1.3"):
        return instantiate(compose("reconstruct", ["operator=inpainting", *words.split()]).sampler)


def run(options: argparse.Namespace) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    prior = load_prior("digits_mixture")
    assert isinstance(prior, ClosedFormPrior)
    for name in options.samplers:
        path = FOLDER / f"{slug(name)}.json"
        if path.exists():
            continue
        began = time.perf_counter()
        sampler = made(name, prior)
        found = calibrate(
            sampler,
            prior,
            OPERATOR,
            NOISE,
            images=options.images,
            num_samples=options.samples,
            compute=Compute(precision="float32", progress=False),
            resolution=0.004,
        )
        nearest = [int((found.levels - level).abs().argmin()) for level in LEVELS]
        row = {
            "images": options.images,
            "samples": options.samples,
            "coverage": [float(found.coverage[k]) for k in nearest],
            "error": [float(found.coverage_error[k]) for k in nearest],
            "tarp": [float(found.tarp[k]) for k in nearest],
            "band": [found.tarp_band[:, k].tolist() for k in nearest],
            "p_value": found.summary()["p_value"],
            "diverged": found.diverged,
            "seconds": time.perf_counter() - began,
        }
        PAGE.with_suffix("").mkdir(parents=True, exist_ok=True)
        picture = PAGE.with_suffix("") / f"{slug(name)}.png"
        save_figure(calibration_figure(found, title=f"{name}: digits, 70 % of the pixels missing"), picture)
        path.write_text(json.dumps(row))
        print(f"{name}: {row}", flush=True)


def slug(name: str) -> str:
    return name.replace(", ", "_").replace(" ", "_")


def page() -> None:
    """A table of what there is, and the pictures."""
    found = {name: json.loads(p.read_text()) for name in SETTINGS if (p := FOLDER / f"{slug(name)}.json").exists()}
    some = next(iter(found.values()))
    lines = ["# Whose uncertainty is right", "", "Generated by", "", "```bash", "python benchmarks/calibration.py run"]
    lines += ["python benchmarks/calibration.py page", "```", ""]
    lines += [
        f"{some['images']} digits drawn from the bundled mixture `digits_mixture`, "
        "70 % of the pixels missing, noise 0.05,",
        *f"{some['samples']} samples of each; {ABOUT}".splitlines(),
        "",
        "| sampler | pixels inside 50 % | 90 % | TARP 50 % | 90 % | p |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in found.items():
        inside = [f"{c:.2f} ± {e:.2f}" for c, e in zip(row["coverage"], row["error"], strict=True)]
        balls = [f"{t:.2f} ({low:.2f} to {high:.2f})" for t, (low, high) in zip(row["tarp"], row["band"], strict=True)]
        lines.append(f"| {name} | {' | '.join([*inside, *balls])} | {row['p_value']:.2g} |")
    for name in found:
        lines += ["", f"![{name}](calibration/{slug(name)}.png)"]
    PAGE.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--samplers", nargs="+", default=list(SETTINGS))
    options = parser.parse_args()
    page() if options.what == "page" else run(options)


if __name__ == "__main__":
    main()
