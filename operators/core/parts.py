"""Operators made of other operators: parameters per image are those of the parts."""

import copy
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from invdiff.shapes import per_row, row_norm

from .base import Drawn, Operator

# Largest change of a measurement, as a share of it, that counts as none: `PhaseRetrieval.border` allows 0.04.
SAME = 0.05


class OperatorOfParts(Operator):
    """An operator that holds others as `parts`.

    It is differentiable where every part is, and stepped where one is; it has no decomposition. An image is aligned as
    a part aligns it where that leaves the whole measurement as it is.
    """

    def __init__(self, parts: Sequence[Operator]) -> None:
        super().__init__()
        name = type(self).__name__.removeprefix("Linear").lower()
        if not parts:
            raise ValueError(f"{name}: parts must hold at least one operator, got none")
        for part in parts:
            if not isinstance(part, Operator):
                raise ValueError(f"{name}: parts must be operators, got {type(part).__name__}; wrap it by as_operator")
        self.parts = nn.ModuleList(parts)
        self.differentiable = all(part.differentiable for part in parts)
        counts = {part.images for part in parts} - {1}
        if len(counts) > 1:
            raise ValueError(
                f"{name}: parts must be for equally many images, got {' and '.join(map(str, sorted(counts)))}"
            )

    @property
    def operators(self) -> list[Operator]:
        return list(self.parts)  # type: ignore[arg-type]  # a ModuleList is typed as one of modules

    @property
    def images(self) -> int:
        return max(part.images for part in self.operators)

    @property
    def stepped(self) -> bool:
        return any(part.stepped for part in self.operators)

    @property
    def drawn(self) -> Mapping[str, Drawn]:
        return {name: Drawn("", drawn.by) for part in self.operators for name, drawn in part.drawn.items()}

    def align(self, x: Tensor, reference: Tensor) -> Tensor:
        for part in self.operators:
            if part.ambiguous:
                y, moved = self(x), part.align(x, reference)
                # A part may be aligned by a move that others see: a blur by a kernel that is not symmetric.
                same = row_norm(self(moved) - y) <= SAME * row_norm(y)
                x = torch.where(per_row(same, x), moved, x)
        return x

    def select(self, index: Tensor) -> Self:
        if self.images == 1:
            return self
        chosen = copy.copy(self)
        chosen._modules = {"parts": nn.ModuleList(part.select(index) for part in self.operators)}
        return chosen
