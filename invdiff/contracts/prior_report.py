"""A whole check of a prior: its contract, its denoising of images, its cost and its samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.contracts.prior import prior_checks
from invdiff.contracts.prior_figures import (
    CallCost,
    Level,
    call_cost,
    compare_readings,
    judge,
    measure_level,
    noisy_images,
    width,
    with_fixed_shape,
)
from invdiff.contracts.verdict import Verdict, judged
from invdiff.priors import Codec, Prior
from invdiff.priors.ode import generate
from invdiff.streams import Streams, key


@dataclass(frozen=True, kw_only=True)
class PriorReport:
    """The outcome of a check; on a prior that raises, the contract alone.

    names     of the images
    pictures  noise level, the first noisy image and its estimate, (C, H, W) each
    samples   (N, C, H, W), or None
    """

    prior: Prior
    names: Sequence[str]
    verdicts: Sequence[Verdict]
    levels: Sequence[Level] = ()
    readings: dict[str, float]
    cost: CallCost | None = None
    pictures: Sequence[tuple[float, Tensor, Tensor]] = ()
    samples: Tensor | None = None


def contract(prior: Prior, image_shape: tuple[int, ...]) -> Verdict:
    """All rules of priors as one verdict, the first broken one in its words."""
    verdicts = judged(prior_checks(with_fixed_shape(prior, image_shape)))
    broken = [verdict for verdict in verdicts if verdict.result == "failed"]
    if broken:
        return Verdict("contract", "failed", broken[0].words)
    return Verdict("contract", "passed", "a pure function of each image and its level, with the right gradient")


@torch.no_grad()
def ceiling(codec: Codec, clean: Tensor) -> Verdict:
    """PSNR of images that are encoded and decoded: no reconstruction by this prior has a better one."""
    low, high = codec.value_range
    error = (codec.decode(codec.encode(clean)).clamp(low, high) - clean).square().flatten(1).mean(1)
    decibels = float((10 * ((high - low) ** 2 / error).log10()).mean())
    return Verdict("codec", "passed", f"images come back with {decibels:.1f} dB, the most that this prior can reach")


def report_on(
    prior: Prior,
    names: Sequence[str],
    clean: Tensor,
    sigmas: Sequence[float],
    *,
    seed: int,
    with_contract: bool,
    samples: int,
    steps: int,
    device: torch.device,
    drawn: bool = False,
    on_step: Callable[[int], object] = lambda count: None,
) -> PriorReport:
    """Check a prior on clean images (N, C, H, W) in image units, at noise levels.

    samples, steps  unconditional samples to draw, by how many Heun steps
    drawn           the images are draws of this prior, which fit it however it is read
    on_step         called with the number of steps done, of `len(sigmas) + 2 * steps` in all
    """
    verdicts = [contract(prior, tuple(clean.shape[1:]))] if with_contract else []
    if any(verdict.words.startswith("raises") for verdict in verdicts):
        return PriorReport(prior=prior, names=names, verdicts=verdicts, readings={})
    prior, clean = prior.to(device), clean.to(device)
    codec, show = prior.codec, lambda x: x
    if codec is not None:  # noise is on codes, levels are of codes, pictures of images
        verdicts.append(ceiling(codec, clean))
        prior, clean, show = prior.diffusion, codec.encode(clean).detach(), codec.decode
    levels, pictures = [], []
    for sigma in sigmas:
        level, estimate = measure_level(prior, clean, sigma, seed)
        levels.append(level)
        noisy = noisy_images(clean[:1], sigma, seed)
        pictures.append((sigma, show(noisy)[0].cpu(), show(estimate[:1])[0].cpu()))
        on_step(1)
    readings = compare_readings(prior, clean, seed)
    on_step(steps)
    cost = call_cost(prior, clean[:1], 0.2 * width(prior))
    generated = None
    if samples:
        streams = [key(seed, "generate", i) for i in range(samples)]
        noise = Streams(streams, prior.shape or tuple(clean.shape[1:]), clean.device).normal()
        generated = generate(prior, noise, steps=steps, on_step=lambda _: on_step(1))
    return PriorReport(
        prior=prior,
        names=names,
        verdicts=[*verdicts, *judge(prior, levels, readings, generated, drawn=drawn)],
        levels=levels,
        readings=readings,
        cost=cost,
        pictures=pictures,
        samples=None if generated is None else show(generated).cpu(),
    )
