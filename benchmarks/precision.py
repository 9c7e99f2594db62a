"""bf16 against float32: speed as a ratio in one run, and the change of a reconstruction in dB.

    python benchmarks/precision.py [--prior digits] [--images 8]

Images are drawn from the prior itself, 70 % of their pixels removed, and reconstructed twice with the same seed. On
hardware without native bf16 (`precision=auto` stays with float32 there) bf16 is emulated: its accuracy is measured all
the same, its speed means nothing and is labelled so.
"""

import argparse
import time

import torch

from invdiff import Compute, InverseProblem, load_prior
from invdiff.operators import GaussianNoise, Inpainting
from invdiff.priors import Prior
from invdiff.priors.ode import generate
from invdiff.priors.precision import autocast, fast_bf16
from invdiff.samplers import DAPS
from invdiff.schedules import EDM
from invdiff.scores.metrics import psnr
from invdiff.streams import Streams, generator, key


def seconds_per_call(prior: Prior, x: torch.Tensor, precision: str, calls: int = 5) -> float:
    best = float("inf")
    for _ in range(calls):
        began = time.perf_counter()
        with torch.no_grad(), autocast(precision, x.device):
            prior.denoise(x, 0.5)
        best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="digits")
    parser.add_argument("--images", type=int, default=8)
    options = parser.parse_args()
    prior = load_prior(options.prior)
    shape = prior.shape or (3, 64, 64)
    streams = Streams([key(0, "generate", i) for i in range(options.images)], shape, "cpu")
    truth = generate(prior, streams.normal()).clamp(0, 1)
    operator, noise = Inpainting(keep=0.3), GaussianNoise(0.025)
    measured = [generator(0, "measure", i) for i in range(options.images)]
    problem = InverseProblem(operator, noise, noise.sample(operator(truth), measured, operator.measured(shape)))
    sampler = DAPS(schedule=EDM(steps=40, sigma_max=5, sigma_min=0.02))

    scores = {}
    for precision in ("float32", "bfloat16"):
        mean = sampler.sample(problem, prior, num_samples=4, compute=Compute(precision=precision, progress=False)).mean
        scores[precision] = sum(psnr(m, x) for m, x in zip(mean, truth, strict=True)) / options.images
    change = scores["bfloat16"] - scores["float32"]
    print(
        f"{options.prior}, {options.images} images, DAPS mean of 4: "
        f"float32 {scores['float32']:.2f} dB, bf16 {change:+.3f} dB"
    )

    x = torch.rand(8, *shape)
    ratio = seconds_per_call(prior, x, "float32") / seconds_per_call(prior, x, "bfloat16")
    native = "native" if fast_bf16("cpu") else "emulated here: this processor has neither AMX nor AVX512-BF16"
    print(f"network call, batch 8: bf16 runs at {ratio:.2f} times the speed of float32 ({native})")


if __name__ == "__main__":
    main()
