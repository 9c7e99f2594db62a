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
    scale       (B,), by which images reconstructed from y are multiplied to have the unit of the file; None: it has it
    offset      (B,), which is then added
    notes       what a user should know of what was chosen, a line each
    """

    y: Tensor
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    names: list[str] | None = None
    scale: Tensor | None = None
    offset: Tensor | None = None
    notes: list[str] = field(default_factory=list)
