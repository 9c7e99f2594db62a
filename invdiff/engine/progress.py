"""The progress bar, and durations in words, the same everywhere."""

import sys
from collections.abc import Callable
from typing import Any

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


def duration(seconds: float) -> str:
    """A time to two digits at most, `40 s`, `6 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Watch:
    """A bar in per mille of a run, which steps or minutes may bound.

    save  called at the first step: a run that cannot start must not overwrite the configuration of one that did
    """

    def __init__(self, bar: tqdm, save: Callable[[], None]) -> None:
        self.bar, self.save, self.saved = bar, save, False

    def at(self, share: float, **shown: Any) -> None:
        """The share of the run that is done, and numbers to show."""
        if not self.saved:
            self.save()
            self.saved = True
        self.bar.update(int(1000 * min(1.0, share)) - self.bar.n)
        if shown:
            self.bar.set_postfix(shown, refresh=False)
