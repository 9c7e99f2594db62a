"""The tensors in a checkpoint, and the ways to read them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ..base import Prior

WRAPPER = "model."  # before the names of a network inside its preconditioning or its training module


@dataclass(frozen=True)
class Contents:
    """The weights in a file.

    path          of the file
    tensors       float32, by name
    entry         of the file that holds them, None where the file is the weights
    kind          class of a pickled network
    trust_pickle  as in `read_prior`
    """

    path: Path
    tensors: Mapping[str, Tensor]
    entry: str | None = None
    kind: str | None = None
    trust_pickle: bool = False

    @cached_property
    def plain(self) -> dict[str, Tensor]:
        """The tensors under the names of the bare network."""
        return {name.removeprefix(WRAPPER): tensor for name, tensor in self.tensors.items()}

    @property
    def wrapped(self) -> bool:
        """Whether every name belongs to a network inside another module."""
        return all(name.startswith(WRAPPER) for name in self.tensors)


@dataclass(frozen=True)
class Candidate:
    """A way to read a file.

    name  `format` that chooses it
    what  in words
    read  makes the prior, with settings of the adapter by name
    """

    name: str
    what: str
    read: Callable[..., Prior]


# The candidates of a file that has all tensors of a signature; none where it is of another network after all.
Reader = Callable[[Contents], list[Candidate]]
