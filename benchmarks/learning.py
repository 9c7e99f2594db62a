"""What a prior that never saw a clean image knows: digits with half of their pixels missing, and a curve in R^5.

    python benchmarks/learning.py DIGITS.npz [--curve] [--samples PICTURE.png]

DIGITS.npz   uint8 array `images` (N, 28, 28), as `invdiff train` takes it; the last 300 are for testing
--curve      the paper's first experiment in small: a closed curve in R^5, two random projections of every point
--samples    draws of the learned prior

Three mixtures of 20 Gaussians of rank 16 are compared by their denoising of unseen digits: fitted to the clean images,
learned from the measurements, and fitted to the measurements as they are, black where nothing was measured.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from invdiff import InverseProblem
from invdiff.learning.em import LearningPlan
from invdiff.learning.learners import MixtureLearner
from invdiff.learning.steps import evidence, refit
from invdiff.operators import GaussianNoise, Inpainting, LinearOperator
from invdiff.priors import LowRankMixturePrior
from invdiff.priors.training.mixture_fit import MixtureRecipe
from invdiff.priors.training.training import denoising_psnr
from invdiff.report.comparison import thumbnails
from invdiff.scores.distances import sliced_wasserstein

SIGMAS = (0.1, 0.2, 0.3, 0.5)


class Projections(LinearOperator):
    """A matrix (B, m, n) of its own for every image."""

    per_image = ("matrix",)
    matrix: Tensor

    def __init__(self, matrix: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return (self.matrix.to(x) @ x.flatten(1)[..., None])[..., 0]

    def adjoint(self, y: Tensor) -> Tensor:
        return (self.matrix.to(y).mT @ y[..., None]).reshape(-1, *self.shape)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.shape


def digits(path: Path, picture: Path | None) -> None:
    with np.load(path) as file:
        images = torch.from_numpy(file["images"]).float()[:, None] / 255
    train, test = images[:-300], images[-300:]
    operator = Inpainting.random(tuple(train.shape[1:]), keep=0.5, seed=0, images=len(train))
    noise = 0.05 * torch.randn(train.shape, generator=torch.Generator().manual_seed(0))
    problem = InverseProblem(operator, GaussianNoise(0.05), operator(train + noise))
    recipe = MixtureRecipe(components=20, rank=16)
    print(f"{len(train)} digits, half of the pixels, noise 0.05; PSNR of {len(test)} unseen digits, dB\n")
    print("| prior | " + " | ".join(f"sigma {s}" for s in SIGMAS) + " | minutes |\n| --- |" + " ---: |" * 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def report(words: str, prior: LowRankMixturePrior, begun: float) -> None:
            psnr = denoising_psnr(prior, test, SIGMAS).values()
            minutes = (time.monotonic() - begun) / 60
            print(f"| {words} | " + " | ".join(f"{p:.2f}" for p in psnr) + f" | {minutes:.1f} |", flush=True)

        begun = time.monotonic()
        report("fitted to clean images", refit(recipe, train, None, 0, 12, folder), begun)
        begun = time.monotonic()
        plan = LearningPlan(gaussian_rounds=6, gaussian_rank=48, rounds=6)
        learner = MixtureLearner(plan, recipe, problem, folder / "learned")
        learned = learner.run()
        assert isinstance(learned, LowRankMixturePrior)
        report("learned from measurements", learned, begun)
        begun = time.monotonic()
        report("fitted to measurements, black where missing", refit(recipe, problem.y, None, 0, 12, folder), begun)
        print("\nheld-out evidence by round, nats: " + ", ".join(f"{row['held_out']:.0f}" for row in learner.rows))
    if picture is not None:
        thumbnails(learned.sample(40, torch.Generator().manual_seed(0)).clamp(0, 1), picture, 10)


def curve(count: int = 400) -> None:
    shape, source = (1, 1, 5), torch.Generator().manual_seed(0)

    def points(n: int) -> Tensor:
        t = 2 * math.pi * torch.rand(n, generator=source)
        waves = [t.cos(), t.sin(), (2 * t).cos(), 0.5 * (2 * t).sin(), 0.5 * (3 * t).cos()]
        return (0.5 + 0.25 * torch.stack(waves, 1)).reshape(-1, *shape)

    x, reference = points(count), points(2000)
    matrix = torch.nn.functional.normalize(torch.randn(count, 2, 5, generator=source), dim=2)
    operator = Projections(matrix, shape)
    y = operator(x) + 0.01 * torch.randn(count, 2, generator=source)
    problem = InverseProblem(operator, GaussianNoise(0.01), y)

    def distance(draws: Tensor) -> float:
        generator = torch.Generator().manual_seed(1)
        return sliced_wasserstein(draws.flatten(1).double(), reference.flatten(1).double(), generator).value

    recipe = MixtureRecipe(components=12, rank=1)
    print(f"\n{count} points of a curve in R^5, two projections of each; sliced Wasserstein distance of 2,000 draws\n")
    with tempfile.TemporaryDirectory() as name:
        learner = MixtureLearner(LearningPlan(rounds=16), recipe, problem, Path(name))
        rounds, found = (1, 4, 8, 12, 16, 20, 24), []

        def on_round(row: dict[str, object]) -> None:
            assert isinstance(learner.prior, LowRankMixturePrior)
            if row["round"] in rounds:
                found.append(distance(learner.prior.sample(2000, torch.Generator().manual_seed(2))))

        learner.run(on_round)
        clean = refit(recipe, x, None, 0, 30, Path(name))
        print("| round | " + " | ".join(map(str, rounds)) + " | fitted to the points | floor |")
        print("| ---: |" + " ---: |" * (len(rounds) + 2))
        ends = [*found, distance(clean.sample(2000, source)), distance(points(2000))]
        print("| distance | " + " | ".join(f"{d:.4f}" for d in ends) + " |")
        print(
            f"\nheld-out evidence, nats: {learner.best:.2f} learned, "
            f"{float(evidence(clean, learner.held_out).mean()):.2f} fitted to the points"
        )


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("digits", type=Path, nargs="?")
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--samples", type=Path)
    options = parser.parse_args()
    if options.digits is not None:
        digits(options.digits, options.samples)
    if options.curve:
        curve()


if __name__ == "__main__":
    main()
