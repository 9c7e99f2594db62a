"""Figures of a denoiser on images: PSNR at each level, other image ranges and parametrisations that denoise better,
cost, and samples of its own. `invdiff check-prior` prints them.

Levels are noise on images in the prior's own units; PSNR is of images clamped to the value range, noisy ones too, so
that a denoiser that does nothing gains nothing.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.contracts.verdict import Verdict
from invdiff.engine.device import peak_memory_mb, reset_peak_memory, shortest
from invdiff.priors import CallablePrior, Prior
from invdiff.priors.networks.parametrised import ParametrisedPrior
from invdiff.streams import generator

# In widths of the value range; only levels in the range of the prior are used.
LEVELS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
OVERSHOOT = 0.05  # widths: tolerance for estimates beyond the value range
ADVANTAGE = 1.0  # dB: gain of another reading that is worth a warning

# The references among the readings of a prior.
NOISY, DECLARED = "the noisy image", "as declared"
OTHER_READINGS = "range and parametrisation"  # the rule

Denoise = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Level:
    """One noise level, averaged over images.

    sigma     image units
    noisy     PSNR of the noisy images, dB
    denoised  PSNR of the estimates, dB
    kept      root mean square of D(x, sigma) - clean, in units of sigma
    outside   part of the pixels of the estimates more than `OVERSHOOT` outside the value range
    """

    sigma: float
    noisy: float
    denoised: float
    kept: float
    outside: float


@dataclass(frozen=True)
class CallCost:
    """Of one image: the shortest of a few calls, in seconds; memory in MB."""

    forward: float
    vjp: float | None
    peak_memory_mb: float
    parameters: int


def levels_for(prior: Prior) -> list[float]:
    """`LEVELS` in image units, within the range of the prior; the ends of that range where none is."""
    low, high = prior.sigma_range
    wanted = [fraction * width(prior) for fraction in LEVELS]
    return [sigma for sigma in wanted if low <= sigma <= high] or [low, high]


def width(prior: Prior) -> float:
    return prior.value_range[1] - prior.value_range[0]


def noisy_images(clean: Tensor, sigma: float, seed: int) -> Tensor:
    """Image i with the noise of (seed, i): the same at every level but for its size."""
    noise = [torch.randn(clean.shape[1:], generator=generator(seed, "measure", i)) for i in range(len(clean))]
    return clean + sigma * torch.stack(noise).to(clean)


@torch.no_grad()
def denoised_images(denoise: Denoise, clean: Tensor, sigma: float, seed: int) -> Tensor:
    """Image by image: a batch of large ones need not fit."""
    x = noisy_images(clean, sigma, seed)
    return torch.cat([denoise(x[i : i + 1], sigma) for i in range(len(x))])


def measure_level(prior: Prior, clean: Tensor, sigma: float, seed: int = 0) -> tuple[Level, Tensor]:
    """The numbers of one level, and the estimates (N, C, H, W)."""
    estimate = denoised_images(prior.denoise, clean, sigma, seed)
    low, high = prior.value_range
    slack = OVERSHOOT * (high - low)
    inside = (estimate >= low - slack) & (estimate <= high + slack)
    level = Level(
        sigma,
        mean_psnr(noisy_images(clean, sigma, seed), clean, prior.value_range),
        mean_psnr(estimate, clean, prior.value_range),
        float((estimate - clean).square().mean().sqrt()) / sigma,
        float((~inside).float().mean()),
    )
    return level, estimate


def mean_psnr(x: Tensor, clean: Tensor, value_range: tuple[float, float]) -> float:
    """Mean over images of the PSNR in dB, NaN where one is not finite."""
    low, high = value_range
    # NaN goes through clamp, infinity does not.
    x = torch.where(x.isfinite(), x.clamp(low, high), torch.nan)
    error = (x - clean).square().flatten(1).mean(1) / (high - low) ** 2
    return float(-10 * error.clamp(min=1e-12).log10().mean())


# -- other readings ----------------------------------------------------------------------------------------------------


def other_readings(prior: Prior, channels: int) -> Iterator[tuple[str, Denoise]]:
    """Other declarations of the prior, each with the denoiser that it gives on the same images."""
    yield from _other_ranges(prior)
    if channels == 3:
        yield "its channels are blue, green, red", lambda x, sigma: prior.denoise(x.flip(1), sigma).flip(1)
    if isinstance(prior, ParametrisedPrior):
        yield from _other_parametrisations(prior)
    elif isinstance(prior, CallablePrior):
        yield from _other_answers(prior)


def _other_ranges(prior: Prior) -> Iterator[tuple[str, Denoise]]:
    if isinstance(prior, ParametrisedPrior):
        for ends in ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)):
            if ends != prior.network_range:
                other = copy.copy(prior)
                other.network_range = ends
                words = f"its network_range is {_interval(ends)}, not {_interval(prior.network_range)}"
                yield words, other.denoise
        return
    low, high = prior.value_range
    free = _unbounded(prior)
    for ends in ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-0.5, 0.5)):
        if ends == (low, high):
            continue
        zoom = (ends[1] - ends[0]) / (high - low)
        words = f"it takes images in {_interval(ends)}, not in {_interval(prior.value_range)} (its value_range)"
        yield words, _shifted(free, zoom, ends[0] - zoom * low)


def _shifted(prior: Prior, zoom: float, offset: float) -> Denoise:
    return lambda x, sigma: (prior.denoise(zoom * x + offset, zoom * sigma) - offset) / zoom


def _unbounded(prior: Prior) -> Prior:
    """The prior without the ends of its levels, which another reading would move."""
    if not isinstance(prior, CallablePrior):
        return prior
    free = copy.copy(prior)
    free.sigma_range = (1e-9, math.inf)
    return free


def _other_parametrisations(prior: ParametrisedPrior) -> Iterator[tuple[str, Denoise]]:
    if prior.parametrisation in ("flow", "edm"):
        return  # they have schedules of their own
    for kind in prior.schedule.parametrisations:
        if kind in ("flow", "edm", prior.parametrisation):
            continue
        other = copy.copy(prior)
        other.parametrisation = kind
        yield f"its parametrisation is {kind!r}, not {prior.parametrisation!r}", other.denoise


def _other_answers(prior: CallablePrior) -> Iterator[tuple[str, Denoise]]:
    free = _unbounded(prior)
    yield "it gives the noise (x - D is the image)", lambda x, sigma: x - free.denoise(x, sigma)
    unit = "it gives the noise of unit variance; ParametrisedPrior(..., 'epsilon') takes it"
    yield unit, lambda x, sigma: x - sigma * free.denoise(x, sigma)
    score = "it gives the score; ParametrisedPrior(..., 'score') takes it"
    yield score, lambda x, sigma: x + sigma**2 * free.denoise(x, sigma)
    for times, words in ((2.0, "twice"), (0.5, "half"), (255.0, "255 times"), (1 / 255, "1/255 of")):
        yield f"it expects {words} the noise level", _rescaled(free, times)


def _rescaled(prior: Prior, times: float) -> Denoise:
    return lambda x, sigma: prior.denoise(x, times * sigma)


def _interval(ends: tuple[float, float]) -> str:
    return f"[{ends[0]:g}, {ends[1]:g}]"


def compare_readings(prior: Prior, clean: Tensor, seed: int = 0) -> dict[str, float]:
    """Mean PSNR in dB at the middle levels: of the noisy image, as declared, and of each other reading."""
    sigmas = [s for s in levels_for(prior) if 0.1 <= s / width(prior) <= 0.5] or levels_for(prior)[:1]

    def score(denoise: Denoise) -> float:
        found = [mean_psnr(denoised_images(denoise, clean, s, seed), clean, prior.value_range) for s in sigmas]
        return sum(found) / len(found)

    readings = {NOISY: score(lambda x, sigma: x), DECLARED: score(prior.denoise)}
    return readings | {words: score(denoise) for words, denoise in other_readings(prior, clean.shape[1])}


# -- verdicts ----------------------------------------------------------------------------------------------------------


def judge(
    prior: Prior, levels: Sequence[Level], readings: dict[str, float], samples: Tensor | None, *, drawn: bool = False
) -> list[Verdict]:
    """The rules about images; a warning names the likely mistake.

    drawn  the images are draws of this prior, which fit it however it is read
    """
    return [
        _denoises(prior, levels),
        _keeps(levels),
        _stays(levels),
        _declared(readings) if not drawn else Verdict(OTHER_READINGS, "n/a", "needs images of yours: give input="),
        *([] if samples is None else [_draws(prior, samples)]),
    ]


def _denoises(prior: Prior, levels: Sequence[Level]) -> Verdict:
    # Where images have hardly any noise there is little to gain: the rule does not apply.
    strong = [level for level in levels if level.sigma >= 0.1 * width(prior)]
    if not strong:
        return Verdict("denoises", "n/a", "its sigma_range ends below a tenth of the value range")
    bad = [level for level in strong if not level.denoised > level.noisy]
    if not bad:
        gain = sum(level.denoised - level.noisy for level in strong) / len(strong)
        return Verdict("denoises", "passed", f"{gain:.1f} dB better than the noisy image, on average")
    worst = max(bad, key=lambda level: level.noisy - level.denoised if math.isfinite(level.denoised) else math.inf)
    return Verdict(
        "denoises",
        "failed",
        f"at sigma = {worst.sigma:.3g} it makes {worst.denoised:.1f} dB of {worst.noisy:.1f} dB; is its image range, "
        "its parametrisation or its noise level declared wrongly, or was it trained on other images?",
    )


def _keeps(levels: Sequence[Level]) -> Verdict:
    least = levels[0]
    words = f"at sigma = {least.sigma:.3g} it is {least.kept:.2f} sigma from the clean image"
    if least.kept <= 1.5:
        return Verdict("keeps a clean image", "passed", words)
    return Verdict(
        "keeps a clean image",
        "warning",
        f"{words}: D(x, sigma) should come to x as sigma goes to 0; samplers end there, so each sample has this error",
    )


def _stays(levels: Sequence[Level]) -> Verdict:
    most = max(levels, key=lambda level: level.outside)
    words = f"at sigma = {most.sigma:.3g}, {100 * most.outside:.1f} % of the pixels lie outside the value range"
    if most.outside <= 0.02:
        return Verdict("stays in the value range", "passed", words if most.outside > 5e-4 else "")
    return Verdict("stays in the value range", "warning", f"{words} by more than {OVERSHOOT:.0%} of it")


def _declared(readings: dict[str, float]) -> Verdict:
    declared = readings[DECLARED]
    others = {words: psnr for words, psnr in readings.items() if words not in (NOISY, DECLARED) and math.isfinite(psnr)}
    best = max(others, key=others.__getitem__, default=None)
    # A reading that only does nothing is no evidence, even where the declared one does harm.
    least = max(psnr for psnr in (readings[NOISY], declared, -math.inf) if not math.isnan(psnr)) + ADVANTAGE
    if best is None or others[best] <= least:
        return Verdict(OTHER_READINGS, "passed", "no other reading of it denoises better")
    return Verdict(
        OTHER_READINGS,
        "warning",
        f"{others[best] - declared:.1f} dB better if {best}; check its training"
        if math.isfinite(declared)
        else f"no number as declared, but {others[best]:.1f} dB if {best}; check its training",
    )


def _draws(prior: Prior, samples: Tensor) -> Verdict:
    if not samples.isfinite().all():
        return Verdict("draws images", "failed", "samples of its own hold NaN or infinity")
    if prior.sigma_range[1] < 3 * width(prior):
        return Verdict(
            "draws images",
            "warning",
            f"its noise ends at sigma = {prior.sigma_range[1]:.3g}, where images still show through: it restores, but "
            "its samples start at a level that it was not trained for",
        )
    low, high = prior.value_range
    slack = 2 * OVERSHOOT * (high - low)
    outside = float(((samples < low - slack) | (samples > high + slack)).float().mean())
    if outside > 0.05:
        return Verdict(
            "draws images",
            "warning",
            f"{100 * outside:.0f} % of the pixels of its samples lie far outside the value range",
        )
    return Verdict("draws images", "passed", "look at them in check.png")


# -- cost --------------------------------------------------------------------------------------------------------------


def call_cost(prior: Prior, image: Tensor, sigma: float) -> CallCost:
    """Seconds of a call and of a VJP (a call included) on this image (1, C, H, W), on its device."""
    reset_peak_memory(image.device)

    def forward() -> None:
        with torch.no_grad():
            prior.denoise(image, sigma)

    def vjp() -> None:
        with torch.enable_grad():
            x = image.clone().requires_grad_(True)
            torch.autograd.grad(prior.denoise(x, sigma).square().sum(), x)

    seconds = shortest(forward, image.device)
    backward = shortest(vjp, image.device) if prior.differentiable else None
    peak = peak_memory_mb(image.device)
    return CallCost(seconds, backward, peak, sum(p.numel() for p in prior.parameters()))


def with_fixed_shape(prior: Prior, image_shape: tuple[int, ...]) -> Prior:
    """The prior with a fixed shape, the one that it has or a small one: the rules try it on that."""
    fixed = copy.copy(prior)
    fixed.shape = prior.shape or (image_shape[0], *(min(64, n) for n in image_shape[1:]))
    return fixed
