"""What the driver adds: wall time of a sampler over the bare network calls that it makes, as a ratio.

    python benchmarks/sampler_overhead.py [--prior digits] [--steps 40] [--batch 8] [--rounds 5]

Sampler and bare calls alternate within one process, so that a busy machine slows both; the median ratio counts. The
bare loop makes the same calls (forward, and for DPS the product with its Jacobian) on tensors of the same shape.
"""

import argparse
import statistics
import time

import torch

from invdiff import Compute, InverseProblem, load_prior
from invdiff.operators import GaussianNoise, Inpainting
from invdiff.priors import Prior
from invdiff.samplers import DAPS, DPS, Sampler
from invdiff.schedules import EDM, VP


def bare_calls(prior: Prior, x: torch.Tensor, steps: int, *, vjp: bool) -> float:
    """Seconds of `steps` denoiser calls, with a VJP each where asked."""
    began = time.perf_counter()
    for _ in range(steps):
        if vjp:
            leaf = x.detach().requires_grad_(True)
            torch.autograd.grad(prior.denoise(leaf, 1.0).sum(), leaf)
        else:
            with torch.no_grad():
                prior.denoise(x, 1.0)
    return time.perf_counter() - began


def overhead(sampler: Sampler, prior: Prior, shape: tuple[int, ...], batch: int, rounds: int) -> list[float]:
    """Ratios of sampler time to bare network time, one a round."""
    operator, noise = Inpainting(keep=0.3), GaussianNoise(0.05)
    y = operator(torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0)))
    problem = InverseProblem(operator, noise, y)
    compute = Compute(precision="float32", progress=False, max_rows=batch)
    x = torch.rand(batch, *shape)
    expected = sampler.expected_cost()
    ratios = []
    for round_ in range(rounds + 1):
        began = time.perf_counter()
        sampler.sample(problem, prior, seed=round_, compute=compute)
        whole = time.perf_counter() - began
        bare = bare_calls(prior, x, expected.forwards, vjp=expected.vjps > 0)
        if round_ > 0:  # the first round warms up
            ratios.append(whole / bare)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="brain_small")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    prior = load_prior(options.prior)
    shape = prior.shape or (3, 64, 64)
    for sampler in (DPS(schedule=VP(steps=options.steps)), DAPS(schedule=EDM(steps=options.steps))):
        ratios = overhead(sampler, prior, tuple(shape), options.batch, options.rounds)
        print(
            f"{type(sampler).__name__} on {options.prior}, batch {options.batch}, {options.steps} steps: "
            f"{statistics.median(ratios):.3f} times the bare network calls "
            f"(rounds: {', '.join(f'{r:.3f}' for r in sorted(ratios))})"
        )


if __name__ == "__main__":
    main()
