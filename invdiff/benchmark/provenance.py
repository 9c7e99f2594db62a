"""The origin of rows: versions, revision of the source, hardware."""

import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch

from invdiff._version import __version__


def provenance(device: torch.device) -> dict[str, str | None]:
    """The columns that every row of this process on this device shares."""
    return {
        "invdiff": __version__,
        "torch": str(torch.__version__),
        "git_revision": git_revision(),
        "device": _device(device.type, device.index),
    }


@cache
def git_revision() -> str | None:
    """Commit of the source tree this package is in, `+changes` where files differ from it; None outside a checkout."""
    file = Path(__file__)
    # An installation inside another repository must not report its revision.
    if shutil.which("git") is None or _git("ls-files", "--error-unmatch", file.name) is None:
        return None
    revision = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return None if revision is None else revision.strip() + ("+changes" if changed else "")


def _git(*words: str) -> str | None:
    done = subprocess.run(
        ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout if done.returncode == 0 else None


@cache
def _device(kind: str, index: int | None) -> str:
    if kind == "cuda":
        return torch.cuda.get_device_name(index)
    return f"{_processor()}, {torch.get_num_threads()} thread(s)"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
