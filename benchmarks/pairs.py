"""Every sampler with every operator that it accepts, at three noise levels: the table of pairs, docs/results/pairs.md.

    python benchmarks/pairs.py run --prior brain_small --data held_out.npz [--images 2] [--samples 2] [--minutes 60]
    python benchmarks/pairs.py run --prior digits [--only dps/ /ct]
    python benchmarks/pairs.py page

`run` takes evenly spaced images of a .npz with uint8 `images`, none of which the prior was trained on, or, without
--data, draws of the prior itself. The settings are those that `sampler=NAME` takes on the command line, the recommended
ones; operators are those of the group `operator`, with their defaults. The noise is 0.2, 1 and 5 times that of `TASKS`.
A cell is written to runs/pairs/ when it is done: the same command goes on where it stopped; --minutes is looked at
between two of them.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from torch import Tensor

from invdiff import Compute, InverseProblem, Posterior, load_prior
from invdiff.cli import groups
from invdiff.io import to_tensor
from invdiff.io.examples import drawn_from_prior
from invdiff.operators import GaussianNoise, Noise, Operator, PoissonNoise
from invdiff.priors import Prior
from invdiff.problem import Unsupported, simulate
from invdiff.samplers import Sampler, all_samplers, settings_for
from invdiff.scores.proper import energy_score

FACTORS = (0.2, 1.0, 5.0)
SIDE = 64  # of the images of a prior that takes any size
OWN = ("blur", "callable", "circular_blur", "matrix")  # they need a file of yours
# Overrides and the noise of operators that measure in another unit than that of images, in which it is 0.025.
TASKS = {
    "box": "operator=inpainting operator.box=0.375",
    "ct": "operator=ct operator.views=30",
    "compressed_sensing": "operator=compressed_sensing operator.image_shape={shape}",
    "random_projection": "operator=random_projection operator.image_shape={shape} operator.measurements=64",
    "stacking": "operator=stacking operator.image_shape={shape}",
}
SIGMAS = {"ct": 0.3, "random_projection": 1.0}
CELLS, PAGE = Path("runs/pairs"), Path("docs/results/pairs.md")


# -- pairs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """One pair at one noise level, averaged over images.

    gain      dB of the posterior mean over the operator's first guess, or over the centre of the prior. The squared
              error of the posterior mean is that of the mean of S samples less their variance over S
    misfit    of the samples, 1 fits to the noise
    energy    energy score, image units
    diverged  samples that diverged
    """

    gain: float
    misfit: float
    energy: float | None
    diverged: int


def operators(shape: tuple[int, ...]) -> dict[str, Operator]:
    """Every operator of the group `operator` that measures such images, with its defaults or as in `TASKS`."""
    groups.register()
    names = sorted({*groups.described("operator"), *TASKS} - {*OWN})
    found = {}
    with initialize_config_module("invdiff.configs", version_base="1.3"):
        for name in names:
            task = TASKS.get(name, f"operator={name}").format(shape=json.dumps(shape, separators=(",", ":")))
            operator = instantiate(compose("reconstruct", task.split()).operator)
            if operator.mismatch(shape) is None:
                found[name] = operator
    return found


def noise_of(name: str, shape: tuple[int, ...], images: int) -> Noise:
    """The noise of an operator: `images` of each of the `FACTORS`, one after the other."""
    factors = torch.tensor(FACTORS).repeat_interleave(images)
    if name == "ct_transmission":
        return PoissonNoise(1e-3 * factors**2)
    sigma = SIGMAS.get(name, 0.025) * (shape[-1] / 128 if name == "ct" else 1)  # line integrals grow with the side
    return GaussianNoise(sigma * factors)


def measured(name: str, operator: Operator, truth: Tensor) -> tuple[InverseProblem, Tensor]:
    """The problem of these images at all noise levels, and its true images."""
    shape = tuple(truth.shape[1:])
    noise, truth = noise_of(name, shape, len(truth)), truth.repeat(len(FACTORS), 1, 1, 1)
    return InverseProblem(operator, noise, simulate(truth, operator, noise), image_shape=shape), truth


def scores(posterior: Posterior, truth: Tensor, prior: Prior) -> dict[float, Score]:
    """By noise level."""
    problem, facing = posterior.problem, posterior.facing(truth)
    guess = problem.first_guess
    guess = prior.centre.expand_as(truth) if guess is None else problem.operator.align(guess, truth)
    found = {}
    for factor, rows in zip(FACTORS, torch.arange(len(truth)).chunk(len(FACTORS)), strict=True):
        gains, energies = [], []
        for i in rows:
            kept = facing.samples[i][~posterior.diverged[i]]
            error = (facing.mean_of_samples[i] - truth[i]).square().mean()
            # Of exact samples both are the error of the posterior mean; samples that are too wide gain no more by it.
            error = torch.maximum(error - facing.std[i].square().mean() / len(kept), error / (1 + 1 / len(kept)))
            gains.append(10 * math.log10((guess[i] - truth[i]).square().mean() / error))
            energies.append(energy_score(kept, truth[i]))
        known = [energy for energy in energies if energy is not None]
        found[factor] = Score(
            gain=float(np.mean(gains)),
            misfit=float(posterior.misfit[rows].mean()),
            energy=float(np.mean(known)) if known else None,
            diverged=int(posterior.diverged[rows].sum()),
        )
    return found


# -- run ---------------------------------------------------------------------------------------------------------------


def cell(sampler: Sampler, problem: InverseProblem, truth: Tensor, prior: Prior, count: int) -> dict[str, Any]:
    began = time.process_time()
    try:
        posterior = sampler.sample(problem, prior, num_samples=count, compute=Compute(device="cpu", progress=False))
    except Unsupported as reason:
        return {"refused": str(reason).partition("; compatible samplers")[0]}
    runs = posterior.diverged.numel()
    return {
        "scores": {str(factor): asdict(score) for factor, score in scores(posterior, truth, prior).items()},
        "calls": posterior.cost.forwards / runs,
        "vjps": posterior.cost.vjps / runs,
        "seconds": (time.process_time() - began) / runs,
    }


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    began = time.monotonic()
    prior = load_prior(options.prior).eval()
    truth = true_images(prior, options.data, options.images)
    folder = options.cells / options.prior
    folder.mkdir(parents=True, exist_ok=True)
    for name, operator in operators(tuple(truth.shape[1:])).items():
        problem, repeated = measured(name, operator, truth)
        for sampler in all_samplers():
            path = folder / f"{sampler}-{name}.json"
            if path.exists() or not wanted(sampler, name, options.only):
                continue
            if time.monotonic() - began > 60 * options.minutes:
                print(f"stopped after {options.minutes:g} minutes, before {sampler}/{name}")
                return
            settled = settings_for(sampler, operator, problem.noise, prior).sampler
            result = {"images": len(truth), "samples": options.samples}
            result |= cell(settled, problem, repeated, prior, options.samples)
            path.write_text(json.dumps(result))
            print(options.prior, sampler, name, words(result), flush=True)


def wanted(sampler: str, operator: str, only: list[str]) -> bool:
    """Whether a pair is among these: "dps/", "/ct", "dps/ct"; all, where there are none."""
    pairs = (one.partition("/") for one in only)
    return not only or any(first in ("", sampler) and second in ("", operator) for first, _, second in pairs)


def true_images(prior: Prior, data: str | None, count: int) -> Tensor:
    if data is None:
        names, drawn = drawn_from_prior(count, prior=prior)
        return to_tensor(drawn, names)
    images = np.load(data)["images"]
    kept = images[np.linspace(0, len(images) - 1, count).round().astype(int)]
    kept = kept[:, None] if kept.ndim == 3 else kept.transpose(0, 3, 1, 2)
    return torch.from_numpy(kept[..., :SIDE, :SIDE] if prior.shape is None else kept).float() / 255


# -- page --------------------------------------------------------------------------------------------------------------


def words(result: dict[str, Any]) -> str:
    if "refused" in result:
        return result["refused"]
    return ", ".join(short(Score(**score)) for score in result["scores"].values()) + f" ({result['seconds']:.2f} s)"


def short(score: Score) -> str:
    if score.diverged:
        return "D"
    energy = "" if score.energy is None else f" {1000 * score.energy:.0f}"
    return f"{score.gain:+.1f}/{number(score.misfit)}{energy}"


def missed(score: Score, operator: str) -> bool:
    """Whether the goal is missed, which leaves out the misfit of photon counts."""
    return bool(score.diverged) or not score.gain >= 0 or (not score.misfit <= 2 and operator != "ct_transmission")


def marked(score: Score, operator: str) -> str:
    return f"**{short(score)}**" if missed(score, operator) else short(score)


def number(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 or not math.isfinite(value) else f"{value:.0f}"


def page(options: argparse.Namespace) -> None:
    lines = [HEAD]
    for folder in sorted(path for path in options.cells.iterdir() if path.is_dir()):
        cells = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
        sizes = sorted({f"Images: {cell['images']}; samples of each: {cell['samples']}" for cell in cells.values()})
        lines += [f"## {folder.name}", "", f"{'; '.join(sizes)}.", "", *_tables(cells)]
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text("\n".join(lines))


HEAD = """# Every sampler with every operator

Generated by

```bash
python benchmarks/pairs.py run --prior digits
python benchmarks/pairs.py run --prior brain_small --data held_out.npz
python benchmarks/pairs.py page
```

Images of `brain_small` are slices that it was not trained on, of `digits` draws of the prior. The settings are those
that `sampler=NAME` takes on the command line. The noise is 0.2, 1 and 5 times 0.025, in images' units (CT: 0.3 in line
integrals of 128 pixels). A cell is *gain / misfit, energy score times 1000*:

- gain: dB of the posterior mean over the operator's first guess, or over the centre of the prior where there is none.
  What the number of samples adds to the error of their mean is taken off. With so few images and samples differences of
  2 dB are chance.
- misfit: of the samples; 1 fits to the noise.
- D: a sample diverged. [1]: the pair is refused, with the reason below. Empty: not run.
- Bold: a sample diverged, the gain is below 0, or the misfit above 2.

The run was stopped before its end: rows that are missing and empty cells were not run. The bold cells are open.
"""


def _tables(cells: dict[str, Any]) -> Iterator[str]:
    samplers = sorted({key.partition("-")[0] for key in cells})
    names = sorted({key.partition("-")[2] for key in cells})
    reasons: dict[str, int] = {}
    for factor in FACTORS:
        yield from (f"### Noise times {factor:g}", "")
        yield f"| operator | {' | '.join(samplers)} |"
        yield f"| --- |{' --- |' * len(samplers)}"
        for name in names:
            row = []
            for sampler in samplers:
                found = cells.get(f"{sampler}-{name}", {})
                if "refused" in found:
                    row.append(f"[{reasons.setdefault(found['refused'], len(reasons) + 1)}]")
                else:
                    row.append(marked(Score(**found["scores"][str(factor)]), name) if found else "")
            yield f"| {name} | {' | '.join(row)} |"
        yield ""
    yield from (f"[{index}] {reason}  " for reason, index in reasons.items())
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("--prior", default="brain_small")
    parser.add_argument("--data", help=".npz with uint8 `images`, (N, H, W) or (N, H, W, C); none: draws of the prior")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--samples", type=int, default=2, help="of each image")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--only", nargs="+", default=[], help="pairs: SAMPLER/, /OPERATOR or SAMPLER/OPERATOR")
    parser.add_argument("--cells", type=Path, default=CELLS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    if options.what == "page":
        page(options)
    else:
        run(options)


if __name__ == "__main__":
    main()
