"""The mixture benchmark: how far each sampler's draws are from a posterior that is known exactly.

    python benchmarks/posterior_gmm.py run [--seeds 20] [--dimensions 8 80 800] [--samplers mcgdiff fkc ...]
    python benchmarks/posterior_gmm.py page          writes docs/results/posterior_gmm.md

Problem   Cardoso et al., ICLR 2024, section 5: 25 Gaussians of unit covariance with means (-8i, -8j) repeated, i, j
          from -2 to 2, random weights; a random matrix of 1, 2 or 4 rows with singular values in [0, 1]; one noise
          level, a random fraction of the largest of them.
Protocol  One for all: sliced Wasserstein distance W1 over 1,000 random directions between 1,000 draws of the sampler
          and 1,000 exact ones, beside the floor, the same between two exact sets. Particle filters give their whole
          weighted cloud of 1,000 particles, all others 1,000 independent samples. Mean and 1.96 standard errors over
          problems, and the median. 100 steps from sigma = 160 to 0.05 unless said; published tables use other counts,
          orders and slices.

Each (d, d_y, seed, sampler) is written when it is done: the same command goes on where it stopped.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff import Compute, InverseProblem
from invdiff.distances import sliced_wasserstein
from invdiff.operators import CompressedSensing, GaussianNoise
from invdiff.priors import GaussianMixturePrior
from invdiff.samplers import all_samplers
from invdiff.samplers.smc import ParticleSampler
from invdiff.schedules import EDM

DRAWS, DIRECTIONS = 1000, 1000
FOLDER, PAGE = Path("runs/posterior_gmm"), Path("docs/results/posterior_gmm.md")
LEVELS = EDM(steps=100, sigma_max=160.0, sigma_min=0.05)
STD = 129**0.5  # of one coordinate under the prior: centres 8 (-2 .. 2), unit variance about each
# Every setting besides the schedule that is not the default.
SETTINGS: dict[str, dict[str, Any]] = {
    "dps": {"clip": False},  # nothing to clip: the values are no pictures
    "daps": {"prior_std": STD, "draw_std": None},  # the exact draw
    "fkc": {"ensemble": DRAWS, "prior_std": STD, "particles_at_once": 10**6},
    "mcgdiff": {"ensemble": DRAWS, "particles_at_once": 10**6},
    "tds": {"ensemble": DRAWS, "prior_std": STD, "particles_at_once": 10**6},
}


def problem(d: int, d_y: int, seed: int) -> tuple[GaussianMixturePrior, InverseProblem]:
    """One random problem, images of shape (1, 1, d)."""
    rng = torch.Generator().manual_seed(1000 * seed + 10 * d + d_y)
    corners = torch.tensor([[-8.0 * i, -8.0 * j] for i in range(-2, 3) for j in range(-2, 3)])
    weights = torch.randn(25, generator=rng).square()
    prior = GaussianMixturePrior.isotropic(weights / weights.sum(), corners.repeat(1, d // 2).reshape(25, 1, 1, d), 1.0)
    u, _, vt = torch.linalg.svd(torch.randn(d_y, d, generator=rng), full_matrices=False)
    values = torch.rand(d_y, generator=rng).sort(descending=True).values
    operator = CompressedSensing(image_shape=(1, 1, d), ratio=d_y / d)
    operator.matrix = u * values @ vt
    noise = GaussianNoise(float(torch.rand((), generator=rng) * values.max()))
    y = noise.sample(operator(prior.sample(1, rng)), [rng])
    return prior, InverseProblem(operator, noise, y)


def draws(name: str, prior: GaussianMixturePrior, given: InverseProblem) -> tuple[Tensor, Tensor | None, float]:
    """Points (N, d), their weights where they have any, and the seconds they took."""
    sampler = replace(all_samplers()[name](), schedule=LEVELS, **SETTINGS[name])
    compute = Compute(precision="float32", progress=False, max_rows=DRAWS)
    began = time.perf_counter()
    if isinstance(sampler, ParticleSampler):
        cloud = sampler.cloud(given, prior, compute=compute)
        return cloud.particles[0].flatten(1), cloud.weights[0], time.perf_counter() - began
    found = sampler.sample(given, prior, num_samples=DRAWS, compute=compute)
    return found.samples[0, ~found.diverged[0]].flatten(1), None, time.perf_counter() - began


def run(options: argparse.Namespace) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for d in options.dimensions:
        for d_y in (1, 2, 4):
            for seed in range(options.seeds):
                prior, given = problem(d, d_y, seed)
                exact = prior.posterior(given)
                rng = torch.Generator().manual_seed(seed)
                truth = exact.sample(DRAWS, rng).flatten(1)
                for name in ["floor", "prior", *options.samplers]:
                    path = FOLDER / f"{d}-{d_y}-{seed}-{name}.json"
                    if path.exists():
                        continue
                    weights, seconds = None, 0.0
                    if name == "floor":
                        points = exact.sample(DRAWS, rng).flatten(1)
                    elif name == "prior":
                        points = prior.sample(DRAWS, rng).flatten(1)
                    else:
                        points, weights, seconds = draws(name, prior, given)
                    if len(points) < DRAWS:
                        print(
                            f"d={d} d_y={d_y} seed={seed} {name}: {DRAWS - len(points)} of {DRAWS} diverged", flush=True
                        )
                        path.write_text(json.dumps({"distance": None, "seconds": seconds, "draws": len(points)}))
                        continue
                    slices = torch.Generator().manual_seed(7)  # the same directions for all
                    distance = sliced_wasserstein(
                        points.double(), truth.double(), slices, directions=DIRECTIONS, weights=weights
                    )
                    path.write_text(json.dumps({"distance": distance.value, "seconds": seconds, "draws": len(points)}))
                    print(f"d={d} d_y={d_y} seed={seed} {name}: {distance.value:.3f}, {seconds:.1f} s", flush=True)


def page() -> None:
    """A table of what there is."""
    found: dict[tuple[str, int, int], list[float]] = {}
    for path in FOLDER.glob("*.json"):
        d, d_y, _, name = path.stem.split("-")
        distance = json.loads(path.read_text())["distance"]
        if distance is not None:
            found.setdefault((name, int(d), int(d_y)), []).append(distance)
    cells = sorted({(d, d_y) for _, d, d_y in found})
    names = [n for n in ("floor", "prior", *SETTINGS) if any(n == name for name, _, _ in found)]
    lines = ["# The mixture benchmark", "", "Generated by", "", "```bash", "python benchmarks/posterior_gmm.py run"]
    lines += ["python benchmarks/posterior_gmm.py page", "```", "", *(__doc__ or "").split("\n\n")[2].split("\n"), ""]
    lines += [
        "Mean ± 1.96 standard errors (median) over problems; `floor` is exact against exact, `prior` ignores y.",
        "",
    ]
    lines += [f"| d | d_y | problems | {' | '.join(names)} |", "| --- " * (3 + len(names)) + "|"]
    for d, d_y in cells:
        row = []
        for name in names:
            values = found.get((name, d, d_y), [])
            if not values:
                row.append("diverged")
                continue
            error = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            row.append(f"{statistics.mean(values):.2f} ± {error:.2f} ({statistics.median(values):.2f})")
        lines.append(f"| {d} | {d_y} | {len(found[('floor', d, d_y)])} | {' | '.join(row)} |")
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[8, 80, 800])
    parser.add_argument("--samplers", nargs="+", default=list(SETTINGS))
    options = parser.parse_args()
    page() if options.what == "page" else run(options)


if __name__ == "__main__":
    main()
