"""EnKG against ensemble Kalman inversion without a diffusion prior, through a camera that only gives values.

    python benchmarks/black_box.py [--prior digits] [--images 8] [--data held_out.npz] [--size 32]

The baseline is the ensemble smoother with multiple data assimilation (Emerick & Reynolds 2013), the usual form of
ensemble Kalman inversion: a Gaussian random field as prior, whose mean, deviation and correlation length are the best
ones for the truths themselves. It is given as many particles as EnKG, as many calls of the camera, and 16 times the
particles. Both see the same measurements.
"""

import argparse

import numpy as np
import torch
from black_box_camera import camera  # beside this file
from torch import Tensor

from invdiff import Compute, InverseProblem, load_prior
from invdiff.io import to_tensor
from invdiff.io.examples import drawn_from_prior
from invdiff.operators import BlackBox, GaussianNoise
from invdiff.samplers import EnKG
from invdiff.scores.metrics import mean_of, psnr
from invdiff.streams import generator

ITERATIONS = 16
LENGTHS = (2.0, 4.0, 8.0)  # of correlation, pixels


def gaussian_field(count: int, size: int, length: float, rng: torch.Generator) -> Tensor:
    """(count, 1, size, size), mean 0 and deviation 1, correlated over `length` pixels."""
    frequency = torch.fft.fftfreq(2 * size)
    spectrum = torch.exp(-((np.pi * length) ** 2) * (frequency[:, None] ** 2 + frequency**2))
    white = torch.fft.fft2(torch.randn(count, 1, 2 * size, 2 * size, generator=rng))
    field = torch.fft.ifft2(white * spectrum / spectrum.square().mean().sqrt()).real
    return field[..., :size, :size]


def kalman_inversion(
    problem: InverseProblem, start: Tensor, noise_std: float, rng: torch.Generator, iterations: int = ITERATIONS
) -> Tensor:
    """The mean of an ensemble (J, C, H, W) that assimilates y of one image `iterations` times, with noise inflated."""
    x = start
    inflated = noise_std * iterations**0.5
    for _ in range(iterations):
        predicted = problem.operator(x).flatten(1)
        scattered = problem.y.flatten(1) + inflated * torch.randn(predicted.shape, generator=rng)
        dx, dy = (x - x.mean(0)).flatten(1), predicted - predicted.mean(0)
        gram = dy @ dy.T / (len(x) - 1)  # (J, J): the gain through the particles, there may be fewer than measurements
        shift = torch.linalg.solve(gram + inflated**2 * torch.eye(len(x)), dy @ (scattered - predicted).T)
        x = x + (shift.T @ dx / (len(x) - 1)).reshape(x.shape)
    return x.mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="digits")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--data", help=".npz with uint8 `images` to take evenly spaced truths from; else of the prior")
    parser.add_argument("--noise", type=float, default=0.025)
    options = parser.parse_args()

    prior = load_prior(options.prior)
    if options.data is None:
        names, drawn = drawn_from_prior(options.images, prior=prior)
        truth = to_tensor(drawn, names)
    else:
        images = np.load(options.data)["images"]
        kept = images[np.linspace(0, len(images) - 1, options.images).round().astype(int)]
        truth = torch.from_numpy(kept).float()[:, None] / 255
    size = truth.shape[-1]
    operator, noise = BlackBox(camera, image_shape=tuple(truth.shape[1:])), GaussianNoise(options.noise)
    y = noise.sample(operator(truth), [generator(0, "measure", i) for i in range(len(truth))])
    problem = InverseProblem(operator, noise, y, image_shape=tuple(truth.shape[1:]))

    sampler = EnKG()
    posterior = sampler.sample(problem, prior, compute=Compute())
    found = posterior.samples[:, 0]
    ours = [psnr(x, t) for x, t in zip(found, truth, strict=True)]
    print(f"{options.prior}, {len(truth)} images of {size}x{size}, {y[0].numel()} measurements, noise {options.noise}")
    print(f"EnKG, {sampler.ensemble} particles: {mean_of(ours):.2f} dB; misfit {problem.misfit(found).mean():.2f}")
    calls = posterior.cost.operator_calls / len(truth)
    counts = {
        "as many particles": sampler.ensemble,
        "as many calls of the camera": round(calls / ITERATIONS),
        "16 times the particles": 16 * sampler.ensemble,
    }
    for what, count in counts.items():
        best, length = max((mean_of(baseline(problem, truth, count, length)) or 0.0, length) for length in LENGTHS)
        print(
            f"Kalman inversion, {what} ({count}), the best length ({length:.0f}): {best:.2f} dB, "
            f"EnKG is {(mean_of(ours) or 0.0) - best:+.2f} dB above it",
            flush=True,
        )


def baseline(problem: InverseProblem, truth: Tensor, count: int, length: float) -> list[float | None]:
    """PSNR of Kalman inversion, image by image."""
    rng = torch.Generator().manual_seed(0)
    start = truth.mean() + truth.std() * gaussian_field(count, truth.shape[-1], length, rng)
    noise_std = float(problem.noise.sigma)  # type: ignore[arg-type]
    images = [problem.select(torch.tensor([i])) for i in range(len(truth))]
    return [psnr(kalman_inversion(one, start, noise_std, rng), x) for one, x in zip(images, truth, strict=True)]


if __name__ == "__main__":
    main()
