"""The only loop: pulls steps from a sampler and does everything that is not the method.

One random stream per row, chunking to memory, precision, progress,
callbacks, the clock, cost metering, divergence detection, and keeping what is finished on Ctrl-C.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from invdiff.engine.cost import MeteredCodec, MeteredPrior, metered_operator
from invdiff.engine.device import peak_memory_mb, reset_peak_memory, resolve
from invdiff.engine.progress import progress_bar
from invdiff.engine.step import Step
from invdiff.latent import CodedProblem, decoded
from invdiff.posterior import Cost, Posterior
from invdiff.priors import Codec, Prior
from invdiff.priors.precision import PRECISIONS, chosen
from invdiff.problem import InverseProblem
from invdiff.shapes import shallow_copy
from invdiff.streams import Streams, key

# Activations kept for a network VJP take about 4 kB a pixel with the bundled priors: 4 GB for this many.
CPU_PIXELS = 2**20

# Pixels in flight beyond which a batch gains little speed. On a CPU core digits of 32x32 take 8.6 ms a row alone, 3.6
# ms in a batch of 32; slices of 128x128 gain nothing from 2 on. Of accelerators an estimate.
FILLING_CPU, FILLING = 2**15, 2**22

# What is this many times the value range away from its centre, or this many standard deviations, is no image any more.
DIVERGED = 100.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C. `posterior` holds the images that were finished, the first `images` of the batch; None where none was."""

    def __init__(self, posterior: Posterior | None, images: int) -> None:
        super().__init__(f"interrupted after {images} finished image(s)")
        self.posterior, self.images = posterior, images


@dataclass(frozen=True)
class Event:
    """What a callback is told after each step.

    step   the sampler's state, one row for each sample of each image of the chunk
    index  number of the step, from 0
    total  steps of the run
    image  (R,) image index of each row
    sample (R,) sample index of each row
    codec  of a latent prior, whose `step` holds codes
    """

    step: Step
    index: int
    total: int
    image: Tensor
    sample: Tensor
    codec: Codec | None = None

    @property
    def x0(self) -> Tensor:
        """Images (R, C, H, W) of the clean estimate."""
        return self.step.x0 if self.codec is None else decoded(self.step.x0, self.codec)


Callback = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how to compute. The random numbers are the same everywhere; results agree to rounding, which long
    chains and decisions (resampling, acceptance) amplify.

    device     cuda, xpu, mps or cpu, with an index where there are several, cuda:1; None: the first available
    precision  of networks: `auto` (bf16 where the hardware is fast at it and its error is bounded), `float32`,
               `bfloat16`
    compile    run the prior through `torch.compile`
    checkpoint VJPs through the network keep less and compute more (gradient checkpointing): measured a third of
               the memory for 1.2 times the time (benchmarks/checkpointing.py); nothing changes in samplers without VJPs
    max_rows   samples in flight at once; None: as many as memory is likely to hold, halved on CUDA when it does not
    progress   show a progress bar on anything longer than two seconds
    """

    device: str | None = None
    precision: str = "auto"
    compile: bool = False
    checkpoint: bool = False
    max_rows: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"compute: precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"compute: max_rows must be at least 1, or null, got {self.max_rows}")

    def resolve_device(self) -> torch.device:
        """Raises ValueError where the device is not available."""
        return resolve(self.device, "compute.device")


class Method(Protocol):
    """What the loop asks of a sampler; see `invdiff.samplers.Sampler`."""

    @property
    def num_steps(self) -> int: ...

    @property
    def particles(self) -> int: ...

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]: ...


@dataclass
class _Rows:
    """Samples of a part of the rows of a problem, as they come out."""

    problem: InverseProblem
    samples: list[Tensor] = field(default_factory=list)
    means: list[Tensor] = field(default_factory=list)
    diverged_at: list[Tensor] = field(default_factory=list)


def check_num_samples(num_samples: int) -> None:
    """Raise ValueError for fewer than one."""
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")


def run(
    sampler: Method,
    problem: InverseProblem,
    prior: Prior,
    *,
    num_samples: int,
    seed: int,
    first_image: int = 0,
    compute: Compute,
    callback: Callback | None = None,
) -> Posterior:
    """Draw `num_samples` posterior samples of every image of a problem; see `Sampler.sample`."""
    check_num_samples(num_samples)
    device = compute.resolve_device()
    with torch.inference_mode(False):  # what a caller's inference mode makes cannot be differentiated
        prior = shallow_copy(prior).to(device)  # the prior of the caller stays where it is
    prior.checkpoint_gradients(compute.checkpoint)
    cost = Cost(precision=chosen(compute.precision, device, bounded_error=prior.bounded_error))
    reset_peak_memory(device)  # else the peak of an earlier run would be this one's
    metered = MeteredPrior(prior.diffusion, cost, compile=compute.compile)
    codec = None if prior.codec is None else MeteredCodec(prior.codec, cost)
    shape = prior.diffusion_shape(problem.image_shape)

    # Row r is sample r % S of image r // S: a chunk finishes images in their order.
    total = problem.images * num_samples
    limit = compute.max_rows or _likely_rows(problem, device, total, sampler.particles)
    done = _Rows(problem)
    start = 0
    with progress_bar(total * sampler.num_steps, "step", type(sampler).__name__, show=compute.progress) as bar:
        while start < total:
            bar.update(start * sampler.num_steps - bar.n)  # back, after a chunk that did not fit
            rows = torch.arange(start, min(start + limit, total))
            image, sample = rows // num_samples, rows % num_samples
            streams = Streams(
                [key(seed, "sample", first_image + int(i), int(s)) for i, s in zip(image, sample, strict=True)],
                shape,
                device,
                problem.y.real.dtype,
            )
            try:
                with torch.inference_mode(False):  # what a caller's inference mode makes cannot be differentiated
                    part = problem.select(image).to(device)
                part.operator = metered_operator(part.operator, cost)
                if codec is not None:
                    part = CodedProblem(part, codec)
                last, diverged_at = _run_chunk(
                    sampler.iterate(part, metered, streams),
                    sampler.num_steps,
                    prior.diffusion,
                    cost,
                    image,
                    sample,
                    callback,
                    bar,
                    prior.codec,  # pictures of callbacks are not metered
                )
            except torch.OutOfMemoryError:
                if limit == 1 or compute.max_rows is not None:
                    raise
                limit = max(1, limit // 2)
                torch.cuda.empty_cache()
                continue
            except KeyboardInterrupt as stop:
                images = start // num_samples
                cost.peak_memory_mb = peak_memory_mb(device)
                raise Interrupted(_assemble(done, images, num_samples, cost) if images else None, images) from stop
            done.samples.append((last.x if codec is None else decoded(last.x, codec)).cpu())
            if last.mean is not None and codec is None:  # the image of a mean of codes is no mean of images
                done.means.append(last.mean.cpu())
            done.diverged_at.append(diverged_at.cpu())
            start += len(rows)
    cost.peak_memory_mb = peak_memory_mb(device)
    return _assemble(done, problem.images, num_samples, cost)


def _run_chunk(
    steps: Iterator[Step],
    num_steps: int,
    prior: Prior,
    cost: Cost,
    image: Tensor,
    sample: Tensor,
    callback: Callback | None,
    bar: tqdm,
    codec: Codec | None,
) -> tuple[Step, Tensor]:
    """Run one chunk of rows to its end: the last step, and the step at which each row diverged, -1 for never."""
    low, high = prior.value_range
    diverged_at = torch.full((len(image),), -1)
    step = None
    index = 0
    while True:
        began = time.perf_counter()
        # Gradients are off here and not inside the generator: a mode set around a `yield` would leak out of it.
        with torch.inference_mode(False), torch.no_grad():
            following = next(steps, None)
            if following is not None:
                bad = _diverged(following, (low + high) / 2, high - low).cpu()
        cost.seconds += time.perf_counter() - began  # `.cpu()` has waited for the GPU to finish the step
        if following is None:
            break
        step = following
        diverged_at[bad & (diverged_at < 0)] = index
        bar.update(len(image))
        if callback is not None:
            callback(Event(step, index, num_steps, image, sample, codec))
        index += 1
        if bool((diverged_at >= 0).all()):
            break  # nothing left to save in this chunk
    if step is None:
        raise RuntimeError("the sampler yielded no step")
    return step, diverged_at


def _diverged(step: Step, centre: float, width: float) -> Tensor:
    """(R,) bool: rows that hold NaN or infinity, or that have left every reasonable range.

    The iterate may be as far out as its noise takes it; the clean estimate may not.
    """
    x, x0 = step.x.flatten(1), step.x0.flatten(1)
    sound = ((x - centre).abs() <= DIVERGED * (width + step.sigma)).all(1)
    return ~(sound & ((x0 - centre).abs() <= DIVERGED * width).all(1))  # NaN compares false: it counts as diverged


def _assemble(done: _Rows, images: int, num_samples: int, cost: Cost) -> Posterior:
    rows = images * num_samples
    samples, diverged_at = torch.cat(done.samples)[:rows], torch.cat(done.diverged_at)[:rows]
    means = torch.cat(done.means)[:rows].unflatten(0, (images, num_samples)) if done.means else None
    problem = done.problem if images == done.problem.images else done.problem.select(torch.arange(images))
    shape = (images, num_samples)
    found = Posterior(samples.unflatten(0, shape), diverged_at.reshape(shape), cost, problem)
    return found if means is None else replace(found, conditional_mean=found.average(means))


def images_at_once(sampler: Method, problem: InverseProblem, num_samples: int, compute: Compute) -> int:
    """How many images fill the device, or `compute.max_rows`: with more, the first ones only wait for the last."""
    if compute.max_rows is not None:
        return max(1, compute.max_rows // num_samples)
    device = compute.resolve_device()
    total = problem.images * num_samples
    pixels = num_samples * sampler.particles * problem.image_shape[-1] * problem.image_shape[-2]
    filling = -(-(FILLING_CPU if device.type == "cpu" else FILLING) // pixels)
    return max(1, min(filling, _likely_rows(problem, device, total, sampler.particles) // num_samples))


def _likely_rows(problem: InverseProblem, device: torch.device, total: int, particles: int) -> int:
    """Rows that are likely to fit; on CUDA all of them, since running out of memory there can be caught."""
    if device.type == "cuda":
        return total
    pixels = particles * problem.image_shape[-1] * problem.image_shape[-2]
    return max(1, min(total, CPU_PIXELS // pixels))
