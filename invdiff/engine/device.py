"""Where to compute, and what only the device can tell: when it has finished, and how much memory it took."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

KINDS = ("cuda", "xpu", "mps", "cpu")  # the first available one is the default


def resolve(name: str | None, key: str = "device") -> torch.device:
    """The device of this name, such as `cuda:1`; None: the first available of `KINDS`.

    key  what the setting is called, for the message

    Raises ValueError where there is no such device. mps has no float64, which closed-form priors and particle filters
    compute in: they need the CPU there.
    """
    there = [kind for kind in KINDS if _count(kind)]
    if name is None:
        return torch.device(there[0])
    kind, _, index = name.partition(":")
    if kind not in there or (index and not (index.isdecimal() and int(index) < _count(kind))):
        raise ValueError(f"{key}={name} cannot be used here; available: {', '.join(there)}")
    return torch.device(name)


def _count(kind: str) -> int:
    if kind == "cpu":
        return 1
    module = getattr(torch, kind)
    available = torch.backends.mps.is_available() if kind == "mps" else module.is_available()
    return int(module.device_count()) if available else 0


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Time of one call, until the device has finished."""
    synchronise(device)
    began = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - began


def shortest(run: Callable[[], object], device: torch.device, limit: float = 0.5) -> float:
    """The shortest time of at most five calls, after one that warms up; about `limit` seconds in all."""
    run()
    times: list[float] = []
    while not times or (len(times) < 5 and sum(times) < limit):
        times.append(seconds_of(run, device))
    return min(times)


def reset_peak_memory(device: torch.device) -> None:
    if device.type in ("cuda", "xpu"):
        getattr(torch, device.type).reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """CUDA, XPU: peak of allocated memory since the reset. CPU: peak resident size of the process, on macOS the present
    size. MPS: memory that the driver holds."""
    if device.type in ("cuda", "xpu"):
        return float(getattr(torch, device.type).max_memory_allocated(device)) / 2**20
    if device.type == "mps":
        return float(torch.mps.driver_allocated_memory()) / 2**20
    if sys.platform == "linux":  # where psutil gives no peak
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    memory = psutil.Process().memory_info()
    return float(getattr(memory, "peak_wset", memory.rss)) / 2**20
