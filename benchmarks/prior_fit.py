"""Prior and data that do not fit: how many of 20 mismatched images are found, how many of 20 matched ones are accused.

    python benchmarks/prior_fit.py [--only digits ...] [--data digits=digits.npz photo=photos.tar ...]
    python benchmarks/prior_fit.py --measure --data ...

Each prior reconstructs images of its kind (its own draws and, with --data, held-out images; photographs of
scikit-image) and of others: photographs, heads, digits, inverted, scaled, text, noise, patterns. Each image has one of
four operators and noise of 0.025 or 0.05. An image is found where the verdict holds `prior`, `misfit` or `range`, or
where the checks before the run refuse it.

--measure fills `priors/weights/prior_fit.npz`, the features of the reference images: training images of --data, the
usual distance from those that were held out.
"""

import argparse
import io
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate

from invdiff import Compute, load_prior, reconstruct, simulate
from invdiff.io.atomic import write_atomically
from invdiff.io.examples import PHOTOGRAPHS, photograph
from invdiff.operators import MRI, GaussianBlur, Inpainting, Operator, SuperResolution
from invdiff.priors import Prior
from invdiff.priors.ode import generate
from invdiff.priors.training.images import read_images, split
from invdiff.scores.prior_fit import References, bundled_file, features_of, turned
from invdiff.streams import Streams, generator, key

SHAPES = {"digits": (1, 32, 32), "brain_small": (1, 128, 128), "photo": (3, 64, 64)}
SAME = {"brain": "brain_small", "digits_mixture": "digits", "brain_mixture": "brain_small"}  # trained on the same data
HELD_OUT = {"digits": 64, "brain_small": 48, "photo": 48}  # as in their training
MOST = {"digits": 500, "brain_small": 460, "photo": 450}  # reference images
FOUND = ("prior", "misfit", "range")  # kinds of findings
Case = tuple[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--data", nargs="+", default=[], metavar="PRIOR=FILE", help="the training images of a prior")
    parser.add_argument("--measure", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = dict(word.split("=", 1) for word in options.data)
    if options.measure:
        measure(data)
        return
    print("| prior | mismatched, found | matched, accused | missed | accused |\n| --- | --- | --- | --- | --- |")
    for name in options.only:
        matched, mismatched = cases(name, data.get(name))
        accused, found = judged(name, matched), judged(name, mismatched)
        missed = [case for case, kinds in found.items() if not kinds]
        wrong = [f"{case} ({', '.join(kinds)})" for case, kinds in accused.items() if kinds]
        count = f"{len(found) - len(missed)} of {len(found)} | {len(wrong)} of {len(accused)}"
        print(f"| `{name}` | {count} | {', '.join(missed) or '-'} | {', '.join(wrong) or '-'} |", flush=True)


def judged(name: str, chosen: Sequence[Case]) -> dict[str, list[str]]:
    """Kinds of the findings about each case; operators and noise levels take turns."""
    prior, found = load_prior(name).eval(), {}
    for o, (task, operator) in enumerate(operators(name).items()):
        for half, sigma in enumerate((0.025, 0.05)):
            for i in range(o + 4 * half, len(chosen), 8):
                case, x = chosen[i]
                scale = 255.0 if "255" in case else 1.0
                kinds = found[f"{case}, {task}"] = verdict_on(x[None], operator, sigma * scale, prior, seed=i)
                print(f"{name}: {case}, {task}, {sigma}: {', '.join(kinds) or '-'}", file=sys.stderr, flush=True)
    return found


def verdict_on(x: Tensor, operator: Operator, sigma: float, prior: Prior, seed: int) -> list[str]:
    """Kinds of the findings about a reconstruction of one image, or `refused` where the checks before it stop it."""
    y = simulate(x, operator, sigma, seed=seed)
    try:
        result = reconstruct(
            y,
            operator,
            noise=sigma,
            prior=prior,
            num_samples=2,
            image_shape=tuple(x.shape[1:]),
            compute=Compute(progress=False),
        )
    except ValueError as error:
        if "checks=false" not in str(error):
            raise
        return ["refused"]
    return [finding.kind for finding in result.verdict if finding.kind in FOUND]


def operators(name: str) -> dict[str, Operator]:
    last = {"lines": Inpainting(lines=0.5)} if name == "photo" else {"mri": MRI()}
    few = SuperResolution(factor=2 if name == "digits" else 4)
    return {"inpainting": Inpainting(keep=0.3), "super_resolution": few, "blur": GaussianBlur(std=1.5), **last}


# -- images ------------------------------------------------------------------------------------------------------------


def cases(name: str, data: str | None) -> tuple[list[Case], list[Case]]:
    """20 images of the prior's kind, and 20 others."""
    channels, side, _ = shape = SHAPES[name]
    own = draws(name, 24, shape)
    matched = [(f"draw {i}", own[i]) for i in range(20)]
    if name == "photo":
        matched[:8] = [(f"{kind} {n}", part) for kind, part, n in photographs(side)]
    if data is not None:
        held = split(read_images(data, channels=channels, pad_to=side if name == "digits" else None), HELD_OUT[name])[1]
        matched[10:] = [(f"held out {i}", shaped(_tensor(held[4 * i + 1]), shape)) for i in range(10)]
    others: list[Case] = []
    for other in SHAPES:
        if other not in (name, "photo"):
            others += [(f"{other} {i}", shaped(x, shape)) for i, x in enumerate(draws(other, 4, SHAPES[other]))]
    if name != "photo":  # a photograph upside down is still one
        others += [(n, shaped(_tensor(photograph(n, None)[1][0] * 255), shape)) for n in PHOTOGRAPHS]
        others += [(f"upside down {i}", own[20 + i].flip(-2)) for i in range(2)]
    others += [(f"inverted {i}", 1 - own[20 + i]) for i in range(2)]
    others += [("in [-1, 1]", 2 * own[22] - 1), ("in [0, 255]", 255 * own[23])]
    others += [(f"{what} {i}", x) for i in range(3) for what, x in patterns(shape, i).items()]
    return matched, others[:20]


def draws(name: str, count: int, shape: tuple[int, int, int]) -> Tensor:
    streams = Streams([key(1, "generate", i) for i in range(count)], shape)
    return generate(load_prior(name).eval(), streams.normal(), steps=20).clamp(0, 1)


def photographs(side: int) -> list[tuple[str, Tensor, str]]:
    whole = {n: _tensor(photograph(n, None)[1][0] * 255) for n in PHOTOGRAPHS if n != "camera"}
    small = [("small", shaped(x, (3, side, side)), n) for n, x in whole.items()]
    return small + [("part of", x[:, 100 : 100 + side, 150 : 150 + side], n) for n, x in whole.items()]


def patterns(shape: tuple[int, int, int], seed: int) -> dict[str, Tensor]:
    channels, side, _ = shape
    rng, (rows, columns) = generator(seed, "generate", 0), torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij")
    cell = side // (8 >> seed)
    page = Image.new("L", (side, side), 255)
    for line in range(0, side, 11):
        ImageDraw.Draw(page).text((0, line), "the quick brown fox jumps over"[line // 3 % 9 + seed :], fill=0)
    coarse = torch.rand(1, channels, side // 8, side // 8, generator=rng)
    found = {
        "noise": torch.rand(shape, generator=rng),
        "checkerboard": ((rows // cell + columns // cell) % 2).float(),
        "text": torch.from_numpy(np.asarray(page) / 255).float(),
        "flat": torch.full((side, side), 0.5 + 0.2 * seed),
        "ramp": (rows if seed else columns) / side,
        "smooth noise": interpolate(coarse, size=(side, side), mode="bicubic")[0].clamp(0, 1),
    }
    return {what: x.expand(shape).clone() for what, x in found.items()}


def shaped(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The centre, resized to this height and width, in grey or three equal channels."""
    side = min(x.shape[-2:])
    top, left = ((n - side) // 2 for n in x.shape[-2:])
    x = x[None, :, top : top + side, left : left + side]
    if side != shape[-1]:
        x = interpolate(x, size=shape[-2:], mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    return (x if len(x[0]) == shape[0] else x.mean(1, keepdim=True).expand(1, *shape))[0]


def _tensor(image: np.ndarray) -> Tensor:
    """(H, W, C) of 0 to 255 as (C, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)


# -- reference images --------------------------------------------------------------------------------------------------


def measure(data: dict[str, str]) -> None:
    """Measure references of the priors with data, and of those trained on the same, and keep those of others."""
    path = bundled_file()
    stored = dict(np.load(path)) if path.exists() else {}
    for name in [*data, *(twin for twin, source in SAME.items() if source in data)]:
        source, prior = SAME.get(name, name), load_prior(name).eval()
        began = time.monotonic()
        channels, side = SHAPES[source][0], (prior.shape or SHAPES[source])[-1]
        pad_to = side if source == "digits" else None
        kept, held = split(read_images(data[source], channels=channels, pad_to=pad_to), HELD_OUT[source])
        kept = kept[:: -(-len(kept) // MOST[source])]
        others = torch.stack([shaped(_tensor(image), (channels, side, side)) for image in held])
        known = References.measured(
            features(prior, kept, side, parts=prior.shape is None),
            features(prior, held, side),
            torch.cat([turned(prior, x) for x in others.split(8)]),
        )
        stored[prior.weights_hash] = known.features.half().numpy()
        stored[f"{prior.weights_hash}.turned"] = known.turned.numpy()
        stored[f"{prior.weights_hash}.usual"] = np.array(known.usual)
        print(
            f"{name}: {len(known.features)} references, {known.usual:.3f}, {time.monotonic() - began:.0f} s", flush=True
        )
        write(stored)


def write(stored: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **stored)
    write_atomically(bundled_file(), buffer.getvalue())


def features(prior: Prior, images: Sequence[np.ndarray], side: int, *, parts: bool = False) -> Tensor:
    """Of each image, reduced to this height and width; `parts`: of every fourth a part at its own scale instead."""
    found = []
    for i, image in enumerate(images):
        x = _tensor(image)
        if parts and i % 4 == 3:
            rng = np.random.default_rng(i)
            top, left = (int(rng.integers(n - side + 1)) for n in x.shape[-2:])
            x = x[:, top : top + side, left : left + side]
        found.append(features_of(prior, shaped(x, (len(x), side, side))[None]))
    return torch.cat(found)


if __name__ == "__main__":
    main()
