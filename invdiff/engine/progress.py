"""The progress bar, the same everywhere."""

import sys

from tqdm import tqdm
from tqdm.auto import tqdm as tqdm_auto


def progress_bar(total: int, unit: str, description: str, *, show: bool = True, steady: bool = False) -> tqdm:
    """A bar that appears after two seconds; in a log file it speaks every half minute instead of ten times a second.

    steady  the time left is told from the speed of all that is done, not from that of the last moments
    """
    interactive = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm_auto(
        total=total,
        unit=unit,
        desc=description,
        disable=not show,
        delay=2,
        smoothing=0.0 if steady else 0.3,
        mininterval=0.2 if interactive else 30,
        dynamic_ncols=interactive,
    )
