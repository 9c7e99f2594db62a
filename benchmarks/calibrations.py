"""Fill the calibrations of the package, `invdiff.priors/weights/calibrations.json`, which `reconstruct` looks up.

    python benchmarks/calibrations.py [--only digits/inpainting ...] [--images 200] [--samples 4 8] [--minutes 60]
    python benchmarks/calibrations.py --input slices/ --truths "held-out brain slices" --only brain_small/
    python benchmarks/calibrations.py --check 100 --only digits_mixture/

Each prior and operator below, with `sampler=auto`, recommended settings and Gaussian noise, on draws of the prior or on
the images of --input, on one number of samples after the other. Each is written when it is done: the same command goes
on where it stopped, and measures again only what has another key by now. --minutes is looked at between two of them.
--check N instead draws N other truths and prints what the stored corrections give on them: rows of the table in
docs/results/calibration_auto.md.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator

import torch

from invdiff import Compute, InverseProblem, load_prior, simulate
from invdiff.correction import Correction
from invdiff.io.atomic import write_atomically
from invdiff.io.truth import true_images
from invdiff.operators import CT, MRI, GaussianBlur, GaussianNoise, Inpainting, Operator, SuperResolution
from invdiff.priors import Prior
from invdiff.samplers import Sampler, settings_for
from invdiff.scores.calibration import Calibration, calibrate
from invdiff.scores.conformal import correct, tried
from invdiff.scores.proper import pooled
from invdiff.scores.stored import bundled_file, key_of, read_calibrations

PRIORS = ("digits_mixture", "brain_mixture", "digits", "brain_small", "brain", "photo")
OPERATORS: dict[str, Operator] = {  # as the command makes them by default, but for CT of few views
    "inpainting": Inpainting(),
    "super_resolution": SuperResolution(),
    "gaussian_blur": GaussianBlur(),
    "mri": MRI(),
    "ct": CT(views=30),
}
SIDE = 64  # of the images of a prior that takes any size: a quarter of the cost of 128
CHECK_SEED, SEED = 1, 0


def tasks(only: list[str], samples: list[int]) -> Iterator[tuple[str, Prior, str, Operator, int]]:
    for name in PRIORS:
        prior = None
        for task, operator in OPERATORS.items():
            if only and not any(f"{name}/{task}".startswith(wanted) for wanted in only):
                continue
            prior = load_prior(name).eval() if prior is None else prior
            if operator.mismatch(shape_for(prior)) is None:
                yield from ((name, prior, task, operator, count) for count in samples)


def shape_for(prior: Prior) -> tuple[int, ...]:
    return tuple(prior.shape or (prior.channels, SIDE, SIDE))


def settled(prior: Prior, operator: Operator, noise: GaussianNoise, count: int) -> tuple[Sampler, dict]:
    """The sampler that runs, and the key of its calibration."""
    shape = shape_for(prior)
    problem = InverseProblem(operator, noise, simulate(torch.zeros(1, *shape), operator, noise), image_shape=shape)
    sampler, _ = settings_for("auto", operator, noise, prior).sampler.resolve(problem, prior)
    return sampler, key_of(problem, prior, sampler, count)


def checked(stored: Correction, found: Calibration) -> str:
    """Cells of a table: images of both, spread / error, and what intervals and balls hold on the other truths."""
    error, std = torch.stack([one.squares for one in found.errors]).sqrt().T
    ratio = pooled((std * math.sqrt(1 + 1 / found.num_samples) / error).tolist(), error.tolist())
    words = [f"{stored.images}, {found.images}", f"{ratio.value:.2f} ± {ratio.standard_error:.2f}" if ratio else ""]
    shares = tried(stored, found.errors)
    for level in (0.5, 0.9):
        words.append("{:.3f} ± {:.3f}".format(*shares[f"pixels {level:.2f}"]))
    for level in (0.5, 0.9):
        (before, _), (share, error_of) = stored.balls[level].before, shares[f"balls {level:.2f}"]
        outside = "" if abs(share - level) <= 1.96 * error_of else ", outside"
        words.append(
            f"{before:.2f}: {share:.3f} ({share - 1.96 * error_of:.3f} to {share + 1.96 * error_of:.3f}){outside}"
        )
    return " | ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="beginnings of PRIOR/OPERATOR")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--samples", type=int, nargs="+", default=[4])
    parser.add_argument("--sigma", type=float, default=0.05, help="of the noise; the default is that of noise=gaussian")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--input", help="a folder of true images")
    parser.add_argument("--truths", default="held-out images", help="what they are, in words")
    parser.add_argument("--check", type=int, metavar="N")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path, began = bundled_file(), time.monotonic()
    known = read_calibrations(path) if path.exists() else []
    for name, prior, task, operator, count in tasks(options.only, options.samples):
        shape, noise = shape_for(prior), GaussianNoise(options.sigma)
        sampler, key = settled(prior, operator, noise, count)
        drawn = options.input is None
        there = [one for one in known if one.key == key and one.drawn == drawn]
        if bool(there) != bool(options.check):
            continue
        if time.monotonic() - began > 60 * options.minutes:
            print(f"stopped after {options.minutes:g} minutes, before {name}/{task} with {count} samples")
            break
        images: int | torch.Tensor = options.check or options.images
        if not drawn:
            images, *_ = true_images(prior, files=options.input, size=shape[-1], most=options.check or options.images)
        start = time.monotonic()
        found = calibrate(
            sampler,
            prior,
            operator,
            noise,
            images=images,
            num_samples=count,
            seed=CHECK_SEED if options.check else SEED,
            compute=Compute(precision="float32", progress=False),
            image_shape=shape,
        )
        if options.check:
            print(f"| {name} | {task} | {checked(there[-1], found)} |", flush=True)
            continue
        truths = "draws of the prior" if drawn else options.truths
        correction = correct(found.errors, count, SEED, key=key, truths=truths, drawn=drawn, shape=shape)
        known = [one for one in known if one not in there] + [correction]
        entries = ",\n".join(json.dumps(one.as_json(), allow_nan=False) for one in known)
        write_atomically(path, f'{{"calibrations": [\n{entries}\n]}}\n'.encode())
        what = f"{name}/{task}, {count} samples, {found.images} images, {time.monotonic() - start:.0f} s"
        print(f"{what}: spread x {correction.spread[0]:.2f}; {correction}", flush=True)


if __name__ == "__main__":
    main()
