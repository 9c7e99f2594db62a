"""What `invdiff benchmark` gains by batching, and what it costs beside the network and the operator.

    python benchmarks/throughput.py [--images 32] [--steps 10] [--minutes 2] [--prior brain_small]

Batching: DPS on slices drawn from the prior, in the batches that the benchmark chooses, against one slice at a time;
both compute and store the same rows. The two alternate batch by batch within one process and take turns in being first.
On a busy machine say OMP_NUM_THREADS=1: threads that wait for each other at the end of every layer lose more with small
batches, and the ratio would be that of the waiting.

Bookkeeping: everything outside the samplers in a whole `invdiff benchmark` command, from starting Python to the
leaderboard: imports, the cost of a VJP measured, scores, thumbnails, Parquet, fsync. What a sampler takes beyond the
prior, the operator and their gradients, its own arithmetic and the driver's, is told apart. Wall and CPU time both,
since other processes fall on one of them alone. Bookkeeping does not grow with the steps: its share of a run of five
minutes is told as well, for a busy machine gives a process fewer minutes of CPU time than the clock shows.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

# -- batching ----------------------------------------------------------------------------------------------------------


def batching(prior: str, images: int, steps: int) -> None:
    import torch
    from hydra import compose, initialize_config_module

    from invdiff import Compute
    from invdiff.benchmark.grid import Grid
    from invdiff.benchmark.plan import Planner
    from invdiff.benchmark.ranks import Ranks
    from invdiff.benchmark.run import Save, run_benchmark
    from invdiff.benchmark.store import Store
    from invdiff.cli.benchmark_command import make_grid

    words = [f"prior={prior}", f"samplers=[{{dps:{{schedule:{{steps:{steps}}}}}}}]", "operators=[inpainting]"]
    words += [f"images={images}", "num_samples=1"]
    with initialize_config_module("invdiff.configs", version_base="1.3"):
        config = compose("benchmark", words)
        config.data = [{"generated": {"steps": 10}}]
        grid = make_grid(config)
    compute = Compute(precision="float32", progress=False)

    def part(start: int, count: int) -> Grid:
        kept, i = slice(start, start + count), grid.images
        return replace(grid, images=replace(i, truth=i.truth[kept], names=i.names[kept], keys=i.keys[kept]))

    def seconds(of: Grid, rows: int | None) -> tuple[float, float]:
        """Wall and CPU time."""
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter(), time.process_time()
            run_benchmark(
                of, Path(folder), compute=replace(compute, max_rows=rows), save=Save(), vjp_weight=2.0, ranks=Ranks()
            )
            took = time.perf_counter() - began[0], time.process_time() - began[1]
            assert Store(Path(folder)).table().num_rows == len(of.images)
        return took

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.open()
        (run,) = Planner(grid, store, compute, vjp_weight=2.0).plan()
    at_once = min(images, run.rows)
    seconds(part(0, at_once), None)  # to warm up
    pairs = []
    for k, start in enumerate(range(0, images, at_once)):
        few = part(start, at_once)
        order = (None, 1) if k % 2 == 0 else (1, None)
        took = {rows: seconds(few, rows) for rows in order}
        pairs.append((took[None], took[1]))
    print(
        f"batching: {images} images of {tuple(grid.images.truth.shape[1:])} with DPS, {steps} steps, "
        f"{torch.get_num_threads()} thread(s), in batches of {at_once} against one at a time"
    )
    for k, clock in enumerate(("wall", "CPU")):
        batched, single = (sum(times[k] for times in side) for side in zip(*pairs, strict=True))
        ratios = [one[k] / many[k] for many, one in pairs]
        print(
            f"  {clock} time: {batched:.1f} s against {single:.1f} s, {single / batched:.2f}x "
            f"(rounds: {', '.join(f'{r:.2f}' for r in sorted(ratios))}; median {median(ratios):.2f})",
            flush=True,
        )


# -- bookkeeping -------------------------------------------------------------------------------------------------------


class Meter:
    """Time inside some functions of a module or class, calls from one into another counted once.

    within  count only what happens while this one runs
    """

    def __init__(self, device: str, within: "Meter | None" = None) -> None:
        self.wall = self.cpu = 0.0
        self._depth, self._cuda, self._within = 0, device == "cuda", within

    def watch(self, owner: Any, *names: str) -> None:
        for name in names:
            if hasattr(owner, name):
                setattr(owner, name, self._watched(getattr(owner, name)))

    def _watched(self, function: Callable) -> Callable:
        def call(*arguments: Any, **named: Any) -> Any:
            with self._running():
                return function(*arguments, **named)

        return call

    @contextmanager
    def _running(self) -> Iterator[None]:
        self._depth += 1
        began = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0 and (self._within is None or self._within._depth > 0):
                if self._cuda:
                    import torch

                    torch.cuda.synchronize()
                self.wall += time.perf_counter() - began[0]
                self.cpu += time.process_time() - began[1]


def child(words: list[str]) -> None:
    """A benchmark command that is timed; the last line it prints has the times."""
    import torch

    from invdiff.cli.benchmark_command import main as benchmark
    from invdiff.engine import driver
    from invdiff.operators import Inpainting
    from invdiff.priors.networks.edm import EDMPrior

    device = "cuda" if torch.cuda.is_available() else "cpu"
    sampler = Meter(device)
    sampler.watch(driver, "_run_chunk")
    meter = Meter(device, within=sampler)
    meter.watch(EDMPrior, "denoise")
    meter.watch(Inpainting, "forward", "adjoint", "pinv", "solve", "vjp")
    meter.watch(torch.autograd, "grad")
    sys.argv = ["invdiff", *words]
    benchmark()
    print(json.dumps({"inside": (meter.wall, meter.cpu), "sampler": (sampler.wall, sampler.cpu)}))


def bookkeeping(prior: str, images: int, minutes: float) -> None:
    import torch

    from invdiff import load_prior
    from invdiff.io import to_tensor, write_image
    from invdiff.io.examples import drawn_from_prior

    network = load_prior(prior)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        names, drawn = drawn_from_prior(images, 10, prior=network)
        (Path(folder) / "slices").mkdir()
        for name, image in zip(names, to_tensor(drawn, names), strict=True):
            write_image(Path(folder) / "slices" / f"{name}.png", image)
        x = torch.rand(8, *drawn[0].transpose(2, 0, 1).shape, device=device)
        network.to(device)
        times = []
        for _ in range(3):
            began = time.perf_counter()
            leaf = x.clone().requires_grad_(True)
            torch.autograd.grad(network.denoise(leaf, 1.0).sum(), leaf)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append((time.perf_counter() - began) / len(x))
        steps = max(4, round(minutes * 60 / (images * min(times))))
        words = [f"prior={prior}", f"samplers=[{{dps:{{schedule:{{steps:{steps}}}}}}}]", "operators=[inpainting]"]
        words += [f"input={folder}/slices", "num_samples=1", f"output={folder}/out", "compute.precision=float32"]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, "--child", *words], stdout=subprocess.PIPE, text=True, check=True
        )
        wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    told = json.loads(done.stdout.splitlines()[-1])
    print(f"bookkeeping: {images} images with DPS, {steps} steps")
    for clock, whole, inside, sampler in zip(
        ("wall", "CPU"), (wall, cpu), told["inside"], told["sampler"], strict=True
    ):
        print(
            f"  {clock} time: {whole:.0f} s, {whole - sampler:.1f} s or {1 - sampler / whole:.1%} of it bookkeeping, "
            f"{(whole - sampler) / 300:.1%} of five minutes; "
            f"the sampler's own arithmetic {sampler - inside:.1f} s or {(sampler - inside) / whole:.1%}",
            flush=True,
        )


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="brain_small", help="a bundled network")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="of the comparison of batches")
    parser.add_argument("--minutes", type=float, default=2.0, help="about how long the run with bookkeeping takes")
    parser.add_argument("--only", choices=["batching", "bookkeeping"])
    options = parser.parse_args()
    if options.only != "bookkeeping":
        batching(options.prior, options.images, options.steps)
    if options.only != "batching":
        bookkeeping(options.prior, options.images, options.minutes)


if __name__ == "__main__":
    main()
