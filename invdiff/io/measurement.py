"""A measurement as it was read from a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

# Parameters of operators that a file may hold beside y, under these names.
PARAMETERS = ("mask", "maps")


@dataclass(frozen=True)
class Measurement:
    """What a measurement file holds.

    y           float32 or complex64; (B, ...) from volumes and k-space, as it lies in the file from arrays
    parameters  of the operator, by the names of its options: `mask` (what was sampled), `maps` (coil sensitivities)
    names       one per image; None where the file is an array, which does not say whether it has a batch axis
    units       (scale, offset) of each image: an image reconstructed from y, times scale plus offset, has the unit of
                the file; None: it is not known
    notes       what a user should know of what was chosen, a line each
    """

    y: Tensor
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    names: list[str] | None = None
    units: list[tuple[float, float] | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
