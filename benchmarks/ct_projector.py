"""The projector of `operator=ct` beside `deepinv.physics.Tomography`: wall time as a ratio.

    python benchmarks/ct_projector.py [--size 128] [--views 60] [--batch 8] [--rounds 5] [--threads 1] [--device cpu]

Both measure the same images; the calls alternate within one process, so that a busy machine slows both, and the median
ratio counts. The matrix is built before; how long that takes is printed, in calls of the pair that it saves.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from deepinv.physics import Tomography
from torch import Tensor

from invdiff.operators import CT


def seconds(call: Callable[[], Tensor]) -> float:
    began = time.perf_counter()
    result = call()
    if result.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(options.batch, 1, options.size, options.size, generator=generator).to(options.device)
    ours = CT(views=options.views)
    theirs = Tomography(options.views, options.size, normalize=False, device=options.device)
    build = seconds(lambda: ours(x[:1]))
    y = ours(x)
    there = theirs(x)
    difference = float((y - there).norm() / there.norm())
    calls: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "A x": (lambda: ours(x), lambda: theirs.A(x)),
        "A^T y": (lambda: ours.adjoint(y), lambda: theirs.A_adjoint(y)),
        "A^T A x": (lambda: ours.adjoint(ours(x)), lambda: theirs.A_adjoint(theirs.A(x))),
    }
    print(
        f"{options.size}x{options.size}, {options.views} views, batch {options.batch}, {options.threads} thread(s), "
        f"{options.device}; sinograms of noise images differ by {difference:.1e}"
    )
    with torch.no_grad():
        for name, (own, other) in calls.items():
            times = [(seconds(own), seconds(other)) for _ in range(options.rounds + 1)][1:]  # the first warms up
            ratios = [there / here for here, there in times]
            best = [1e3 * min(column) for column in zip(*times, strict=True)]
            print(
                f"{name:8} {statistics.median(ratios):6.1f} times faster ({best[0]:.1f} ms, deepinv {best[1]:.1f} ms; "
                f"rounds: {', '.join(f'{ratio:.0f}' for ratio in sorted(ratios))})"
            )
    print(f"the first call takes {build:.2f} s longer; it pays after {build / (times[-1][1] - times[-1][0]):.0f} pairs")


if __name__ == "__main__":
    main()
