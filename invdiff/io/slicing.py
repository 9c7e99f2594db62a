"""Which images of a volume are taken."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from invdiff.files.errors import BadInput

Plane = Literal["axial", "coronal", "sagittal"]


@dataclass(frozen=True)
class Slicing:
    """Which images of a volume are taken, and how its values become grey levels.

    slices  frames of DICOM, slices of NIfTI and of k-space: an index from 0, a list of them, or `all`; None: the middle
    plane   of NIfTI: which way it is cut
    window  of DICOM, NIfTI and pictures: (centre, width) of the values from black to white, in the unit of the file (HU
            in CT); None: the file's own, and the smallest to the largest value of the file where it has none
    """

    slices: int | list[int] | Literal["all"] | None = None
    plane: Plane = "axial"
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.plane not in get_args(Plane):
            raise BadInput(f"plane must be one of {', '.join(get_args(Plane))}, got {self.plane}")
        if self.window is not None:
            if len(self.window) != 2 or not float(self.window[1]) > 0:
                raise BadInput(f"window must be [centre, width] with a width above 0, got {list(self.window)}")
            object.__setattr__(self, "window", (float(self.window[0]), float(self.window[1])))
        if isinstance(self.slices, str):
            if self.slices != "all":
                raise BadInput(f"slices must be an index, a list of them or all, got {self.slices}")
        elif self.slices is not None:
            given = [self.slices] if isinstance(self.slices, int) else list(self.slices)
            whole = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in given)
            if not given or not whole or len(set(given)) < len(given):
                raise BadInput(f"slices must be different whole numbers from 0 on, got {self.slices}")

    @property
    def limits(self) -> tuple[float, float] | None:
        """The values that are black and white, None without a window."""
        if self.window is None:
            return None
        centre, width = self.window
        return centre - width / 2, centre + width / 2

    def choose(self, count: int, path: Path) -> list[int]:
        """The indices to take of a volume with `count` slices."""
        if self.slices is None:
            return [count // 2]
        if self.slices == "all":
            return list(range(count))
        chosen = [self.slices] if isinstance(self.slices, int) else [int(i) for i in self.slices]
        if max(chosen) >= count:
            raise BadInput(f"there is no slice {max(chosen)}: {path} has {count}, counted from 0")
        return chosen

    def notes(self, count: int, path: Path) -> list[str]:
        """What to tell a user who chose nothing."""
        if self.slices is not None or count == 1:
            return []
        return [f"{path}: slice {count // 2}, the middle one of {count}; volume.slices= takes others, or all"]
