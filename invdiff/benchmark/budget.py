"""Costs: of a VJP in network calls, the steps that a budget buys, and the samples that a device holds."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from invdiff.engine.device import seconds_of
from invdiff.io import BadInput
from invdiff.priors import Prior
from invdiff.priors.precision import autocast
from invdiff.ranges import Positive, fits
from invdiff.samplers import Sampler
from invdiff.schedules import Schedule

FEWEST_STEPS = 4  # with fewer, no sampler works as designed
MOST_STEPS = 100_000
MOST_ROUNDS = 10  # of timing a VJP on a busy machine
PILOT = (4, 12)  # steps of the two short runs that time a sampler; a straight line goes through them
# Pixels in flight from which on a device does not get faster; larger batches would only be stored later. Measured with
# the bundled networks: on a CPU the time of a pixel is the same from 2^15 on.
FULL = {"cpu": 2**17, "cuda": 2**23}
SHARE = 0.6  # of the free memory, for what the sampler and the operator keep comes on top of the network's

KINDS: tuple[Literal["calls", "seconds"], ...] = ("calls", "seconds")


class NoFit(ValueError):
    """A sampler does not fit into a budget; the message gives the reason."""


@dataclass(frozen=True)
class Budget:
    """The cost that one sample may have.

    kind    `calls`: network calls, a VJP counting as many forwards as it takes time; `seconds`: in its batch
    amount  network calls, or seconds
    """

    kind: Literal["calls", "seconds"]
    amount: float

    def __str__(self) -> str:
        return f"{self.amount:.12g} {'network calls' if self.kind == 'calls' else 's'}"


def budgets_of(kind: Literal["calls", "seconds"], amounts: Any) -> list[Budget]:
    """The budgets that a number, a list of them or None stands for; raises BadInput where one is not > 0."""
    found = []
    for amount in [] if amounts is None else [amounts] if isinstance(amounts, (int, float, str)) else amounts:
        if not fits(amount, Positive):
            raise BadInput(f"budget.{kind} must be numbers > 0, got {amount}")
        found.append(Budget(kind, float(amount)))
    return found


def network_cost(sampler: Sampler, vjp_weight: float | None) -> float:
    """Network calls of one sample, by what the sampler declares: forwards and weighted VJPs."""
    cost = sampler.expected_cost()
    return cost.forwards + (vjp_weight or 0.0) * cost.vjps


def with_steps(sampler: Sampler, steps: int) -> Sampler:
    """The same sampler with another number of steps in its schedule, or of `steps` or `iterations`.

    Raises ValueError where it cannot have as many, `NoFit` where it has none of the three.
    """
    schedule: Any = getattr(sampler, "schedule", None)
    if isinstance(schedule, Schedule):
        changed: Any = replace(sampler, schedule=replace(schedule, steps=steps))  # type: ignore[call-arg, type-var]
        return changed
    return replace(sampler, **{_count_of(sampler): steps})


def steps_of(sampler: Sampler) -> int:
    """The number that `with_steps` sets; raises `NoFit` where there is none."""
    schedule: Any = getattr(sampler, "schedule", None)
    found: int = schedule.steps if isinstance(schedule, Schedule) else getattr(sampler, _count_of(sampler))
    return found


def _count_of(sampler: Sampler) -> str:
    for name in ("steps", "iterations"):
        if name in {field.name for field in fields(sampler)}:
            return name
    raise NoFit(f"{type(sampler).__name__} has no schedule, so its steps cannot be fitted")


def fit_calls(sampler: Sampler, calls: float, vjp_weight: float | None) -> Sampler:
    """The sampler with the most steps whose network calls stay within a budget; raises NoFit below `FEWEST_STEPS`.

    A sampler without network calls keeps its steps.
    """
    if network_cost(sampler, vjp_weight) == 0:
        return sampler

    def fits(steps: int) -> bool:
        try:
            return network_cost(with_steps(sampler, steps), vjp_weight) <= calls
        except NoFit:
            raise
        except ValueError:  # more steps than its schedule has
            return False

    if not fits(FEWEST_STEPS):
        least = network_cost(with_steps(sampler, FEWEST_STEPS), vjp_weight)
        raise NoFit(f"{FEWEST_STEPS} steps take {least:.0f} network calls, more than the {calls:g} a sample may cost")
    low, high = FEWEST_STEPS, 2 * FEWEST_STEPS
    while high < MOST_STEPS and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return with_steps(sampler, low)


def fit_seconds(
    sampler: Sampler, seconds: float, vjp_weight: float | None, seconds_of: Callable[[Sampler], float]
) -> Sampler:
    """The sampler with as many steps as its time allows; raises NoFit below `FEWEST_STEPS`.

    A sampler without network calls keeps its steps, whatever they take.

    seconds_of  runs a sampler and returns the seconds of one sample
    """
    if network_cost(sampler, vjp_weight) == 0:
        return sampler
    few, more = (with_steps(sampler, steps) for steps in PILOT)
    seconds_of(few)  # to warm up
    times = [seconds_of(s) for s in (few, more)]
    costs = [network_cost(s, vjp_weight) for s in (few, more)]
    rate = max(times[1] - times[0], 0.1 * times[1]) / (costs[1] - costs[0])
    start = max(times[0] - rate * costs[0], 0.0)
    least = start + rate * network_cost(with_steps(sampler, FEWEST_STEPS), vjp_weight)
    if least > seconds:
        raise NoFit(f"{FEWEST_STEPS} steps take {least:.2g} s, more than the {seconds:g} s a sample may take")
    return fit_calls(sampler, (seconds - start) / rate, vjp_weight)


@dataclass(frozen=True)
class Speed:
    """The cost of a network.

    vjp_weight  seconds of a VJP over those of a forward; None where the prior has none, or it could not be measured
    bytes       most memory of a forward and its VJP on one image; None on the CPU
    """

    vjp_weight: float | None
    bytes: int | None


def measure_speed(
    prior: Prior, shape: tuple[int, ...], device: torch.device, precision: str, *, rows: int, repeats: int = 5
) -> Speed:
    """Time forwards and VJPs of a prior on `rows` images (C, H, W); on CUDA, measure their memory too.

    repeats  pairs timed in a round; up to `MOST_ROUNDS` rounds, until a VJP takes longer than a forward

    The weight is None where it never does, on a busy machine.
    """
    shape, prior = prior.diffusion_shape(shape), prior.diffusion  # of a latent prior the codec is not timed
    x = torch.zeros(rows, *shape, device=device)
    x += prior.value_range[0] + 0.5 * (prior.value_range[1] - prior.value_range[0])
    sigma = (prior.sigma_range[0] * prior.sigma_range[1]) ** 0.5

    def forward() -> Tensor:
        with torch.no_grad(), autocast(precision, device):
            return prior.denoise(x, sigma)

    def with_vjp() -> Tensor:
        with torch.enable_grad(), autocast(precision, device):
            leaf = x.clone().requires_grad_(True)
            out = prior.denoise(leaf, sigma)
        (gradient,) = torch.autograd.grad(out, leaf, torch.ones_like(out))
        return gradient

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    (with_vjp if prior.differentiable else forward)()  # fills caches, and the memory
    taken = None
    if device.type == "cuda":
        taken = max(1, (torch.cuda.max_memory_allocated(device) - before) // rows)
    if not prior.differentiable:
        return Speed(None, taken)
    # Alternating, and the shortest of each: other load falls on both alike.
    pairs: list[tuple[float, float]] = []
    for _ in range(MOST_ROUNDS):
        pairs += [(seconds_of(forward, device), seconds_of(with_vjp, device)) for _ in range(repeats)]
        plain, both = (min(times) for times in zip(*pairs, strict=True))
        if both > plain:
            return Speed(both / plain - 1, taken)
    return Speed(None, taken)


def likely_rows(shape: tuple[int, ...], particles: int, device: torch.device, speed: Speed) -> int:
    """Samples of images (C, H, W) that fill a device and are likely to fit; at least one."""
    rows = FULL.get(device.type, FULL["cpu"]) // (particles * shape[-1] * shape[-2])
    if device.type == "cuda" and speed.bytes is not None:
        free = torch.cuda.mem_get_info(device)[0]
        rows = min(rows, int(SHARE * free) // (particles * speed.bytes))
    return max(1, rows)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on the CPU, torch raises a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
