"""What gradient checkpointing costs and saves: a VJP through a prior with it and without it.

    python benchmarks/checkpointing.py [--prior brain_small] [--size 128] [--batch 4] [--rounds 5]

Time is the median ratio of calls that alternate within one process; memory is what autograd keeps between the forward
and the backward pass, counted tensor by tensor, and with checkpointing also what the largest block keeps while it runs
again.
"""

import argparse
import statistics
import time

import torch

from invdiff import load_prior
from invdiff.priors import Prior


def vjp(prior: Prior, x: torch.Tensor) -> float:
    """Seconds of one forward call and its VJP."""
    began = time.perf_counter()
    leaf = x.detach().requires_grad_(True)
    torch.autograd.grad(prior.denoise(leaf, 0.5).sum(), leaf)
    return time.perf_counter() - began


def kept_megabytes(prior: Prior, x: torch.Tensor) -> float:
    """Peak of what autograd holds, views of one storage counted once; MB."""
    alive: dict[int, int] = {}
    peak = 0

    class Kept:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal peak
            self.tensor, self.key = tensor, tensor.untyped_storage().data_ptr()
            counts[self.key] = counts.get(self.key, 0) + 1
            alive[self.key] = tensor.untyped_storage().nbytes()
            peak = max(peak, sum(alive.values()))

        def __del__(self) -> None:
            counts[self.key] -= 1
            if counts[self.key] == 0:
                alive.pop(self.key, None)

    counts: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in prior.parameters()}

    def pack(tensor: torch.Tensor) -> object:
        return tensor if tensor.untyped_storage().data_ptr() in weights else Kept(tensor)

    def unpack(kept: object) -> torch.Tensor:
        return kept.tensor if isinstance(kept, Kept) else kept  # type: ignore[return-value]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        vjp(prior, x)
    return peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="brain_small")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    prior = load_prior(options.prior)
    x = torch.rand(options.batch, prior.channels or 1, options.size, options.size)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    memory = {}
    for on in (False, True):
        prior.checkpoint_gradients(on)
        memory[on] = kept_megabytes(prior, x)
    for _ in range(options.rounds):
        for on in (False, True):
            prior.checkpoint_gradients(on)
            seconds[on].append(vjp(prior, x))
    ratio = statistics.median(b / a for a, b in zip(seconds[False], seconds[True], strict=True))
    print(f"{options.prior}, {options.batch} images of {options.size}x{options.size}")
    print(f"kept by autograd: {memory[False]:.0f} MB, with checkpointing {memory[True]:.0f} MB")
    print(f"time of forward and VJP with checkpointing: {ratio:.2f} times")


if __name__ == "__main__":
    main()
