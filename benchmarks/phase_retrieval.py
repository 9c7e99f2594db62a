"""DAPS against DPS on phase retrieval: the best of four samples, at the same number of network calls.

    python benchmarks/phase_retrieval.py --data held_out.npz [--images 10] [--prior brain_small]

Truths are evenly spaced slices of a .npz with uint8 `images`, none of which the prior was trained on. DAPS takes the
settings of `sampler=auto`; DPS as many steps as DAPS makes calls, which are as many calls and as many VJPs on top.
Scores are after `align`: what the measurement cannot tell apart counts as the same. The samplers are compared by the
energy score of the samples, paired over the images. The best of four by the truth is the papers' protocol and needs the
truth; the best by the misfit does not; neither ranks a sampler.
"""

import argparse

import numpy as np
import torch
from torch import Tensor

from invdiff import Compute, InverseProblem, load_prior
from invdiff.operators import GaussianNoise, PhaseRetrieval
from invdiff.problem import simulate
from invdiff.samplers import DPS, Sampler
from invdiff.samplers.auto import Auto
from invdiff.schedules import VP
from invdiff.scores import score_images
from invdiff.scores.metrics import psnr

SAMPLES = 4


def scores(sampler: Sampler, problem: InverseProblem, truth: Tensor, prior: object) -> tuple[str, np.ndarray]:
    """A line, and the energy score of each image."""
    posterior = sampler.sample(problem, prior, num_samples=SAMPLES, compute=Compute())
    each = posterior.samples.unbind(1)
    found = np.array([[psnr(a, t) for a, t in zip(problem.operator.align(x, truth), truth, strict=True)] for x in each])
    nearest = torch.stack([problem.misfit(x) for x in each]).argmin(0).numpy()
    best, cost = found.max(0), posterior.cost
    scored = score_images(posterior, truth)
    energies = np.array([s.image.get("energy", np.nan) for s in scored], dtype=float)
    words = (
        f"energy score {np.nanmean(energies):.4f}; best of {SAMPLES} {best.mean():.2f} dB, "
        f"{(best >= 25).sum()} of {len(truth)} at 25 dB or more "
        f"({', '.join(f'{p:.1f}' for p in best)}); chosen by misfit {found[nearest, range(len(truth))].mean():.2f} dB; "
        f"all samples {found.mean():.2f} dB; {cost.forwards // found.size} calls and {cost.vjps // found.size} VJPs, "
        f"{cost.seconds / found.size:.1f} s a sample"
    )
    return words, energies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help=".npz with uint8 `images`")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--prior", default="brain_small")
    parser.add_argument("--noise", type=float, default=0.025)
    options = parser.parse_args()

    images = np.load(options.data)["images"]
    kept = images[np.linspace(0, len(images) - 1, options.images).round().astype(int)]
    truth = torch.from_numpy(kept).float()[:, None] / 255
    prior, operator, noise = load_prior(options.prior), PhaseRetrieval(), GaussianNoise(options.noise)
    problem = InverseProblem(operator, noise, simulate(truth, operator, noise), image_shape=tuple(truth.shape[1:]))
    daps, _ = Auto().resolve(problem, prior)
    print(f"{len(truth)} images of {truth.shape[-2]}x{truth.shape[-1]}, noise {options.noise}")
    energies = {}
    for name, sampler in {"daps": daps, "dps": DPS(schedule=VP(steps=daps.num_steps))}.items():
        words, energies[name] = scores(sampler, problem, truth, prior)
        print(f"{name}: {words}", flush=True)
    gap = energies["daps"] - energies["dps"]
    error = np.nanstd(gap, ddof=1) / np.isfinite(gap).sum() ** 0.5
    print(f"energy score of daps minus that of dps, paired: {np.nanmean(gap):+.4f} ± {error:.4f}")


if __name__ == "__main__":
    main()
