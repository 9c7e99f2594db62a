"""`ddrm`, `ddnm` and `diffpir` beside deepinv's classes: the same prior, operator, measurement and number of calls.

    python benchmarks/deepinv_peers.py [--prior digits] [--images 8] [--samples 4] [--calls 20 100]

Draws of the prior, 70 % of the pixels missing or a circular Gaussian blur, noise 0.05. deepinv 0.5 has no DDNM: ours
stands beside its DDRM, the same rule but for the start. Their levels and settings are their defaults, with fewer levels
where fewer calls are asked for; ours are the defaults with as many levels as calls, without time travel.

Four digits, inpainting, 20 calls: energy score x 1000 `ddrm` 76.5, `ddnm` 76.2, `diffpir` 69.9, deepinv's ddrm 68.4,
deepinv's diffpir 86.9; PSNR of the mean 18.27, 18.41, 19.48, 20.07, 17.04. Levels of deepinv's ddrm are even from 1 to
0.05, for which see `ddrm`. The blur has not been measured.
"""

import argparse
from typing import Any

import deepinv
import numpy as np
import torch
from torch import Tensor

from invdiff import Compute, InverseProblem, load_prior, simulate
from invdiff.io import to_tensor
from invdiff.io.examples import drawn_from_prior
from invdiff.operators import CircularBlur, GaussianNoise, Inpainting, Operator
from invdiff.priors import Prior
from invdiff.samplers import DDNM, DDRM, DiffPIR, Sampler
from invdiff.schedules import EDM
from invdiff.scores.metrics import psnr
from invdiff.scores.proper import crps, energy_score

SIGMA = 0.05


def kernel(width: int = 9, std: float = 1.5) -> Tensor:
    taps = torch.exp(-((torch.arange(width) - width // 2) ** 2) / (2 * std**2))
    return torch.outer(taps, taps) / taps.sum() ** 2


def problems(shape: tuple[int, ...]) -> dict[str, tuple[Operator, Any]]:
    """Each operator of ours with deepinv's physics of the same."""
    noise = deepinv.physics.GaussianNoise(SIGMA)
    mask = Inpainting(keep=0.3).mask_of(shape).float()
    return {
        "inpainting": (Inpainting(keep=0.3), deepinv.physics.Inpainting(shape, mask=mask[0], noise_model=noise)),
        "blur": (
            CircularBlur(kernel=kernel()),
            deepinv.physics.BlurFFT(shape, filter=kernel()[None, None], noise_model=noise),
        ),
    }


def theirs(name: str, prior: Prior, physics: Any, y: Tensor, calls: int) -> Tensor:
    """A sample of each image, (B, C, H, W); images one after the other, as their mask has one shape."""
    denoiser = prior.to_deepinv()
    model = (
        deepinv.sampling.DDRM(denoiser, sigmas=np.linspace(1, 0, calls + 1)[:calls])
        if name == "ddrm"
        else deepinv.sampling.DiffPIR(denoiser, deepinv.optim.data_fidelity.L2(), sigma=SIGMA, max_iter=calls)
    )
    return torch.cat([model(row[None], physics) for row in y])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="digits")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--calls", type=int, nargs="+", default=[20, 100])
    options = parser.parse_args()
    torch.manual_seed(0)  # deepinv draws from the global state
    prior = load_prior(options.prior)
    names, images = drawn_from_prior(options.images, prior=prior)
    x, noise = to_tensor(images, names), GaussianNoise(SIGMA)
    print("| task | calls | sampler | energy | CRPS | PSNR of the mean | PSNR of a sample |\n" + "| --- " * 7 + "|")
    for task, (operator, physics) in problems(tuple(x.shape[1:])).items():
        y = simulate(x, operator, noise)
        assert (physics.A(x) - operator(x)).abs().max() < 1e-4, "the two operators must be the same"
        problem = InverseProblem(operator, noise, y)
        for calls in options.calls:
            schedule = EDM(steps=calls, sigma_max=3.0, sigma_min=0.005, rho=3.0)
            ours: list[Sampler] = [DDRM(schedule=schedule), DDNM(schedule=schedule, repeats=1)]
            ours += [DiffPIR(schedule=schedule)]
            found: dict[str, Tensor] = {}
            for sampler in ours:
                run = sampler.sample(problem, prior, num_samples=options.samples, compute=Compute(progress=False))
                found[f"`{sampler.name()}`"] = run.samples
            for name in ("ddrm", "diffpir"):
                drawn = [theirs(name, prior, physics, y, calls) for _ in range(options.samples)]
                found[f"deepinv's {name}"] = torch.stack(drawn, 1)
            for label, samples in found.items():
                pairs = list(zip(samples, x, strict=True))
                energy, score = (float(np.mean([f(s, t) for s, t in pairs])) for f in (energy_score, crps))
                mean = np.mean([psnr(s.mean(0), t) for s, t in pairs])
                single = np.mean([psnr(one, t) for s, t in pairs for one in s])
                print(
                    f"| {task} | {calls} | {label} | {1e3 * energy:.1f} | {1e3 * score:.1f} "
                    f"| {mean:.2f} | {single:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
