"""An operator with the images that its rules are tried on."""

from functools import cached_property

import torch
from torch import Tensor

from invdiff.contracts.compare import NotApplicable, normal, require
from invdiff.operators import LinearOperator, Operator


class OperatorTrial:
    """An operator, and images (B, C, H, W) to try it on, new at every call: an operator may change its input.

    images  None: random ones about mid-grey
    name    of the operator in messages; None: that of its class
    """

    def __init__(
        self,
        operator: Operator,
        image_shape: tuple[int, ...],
        images: Tensor | None = None,
        name: str | None = None,
    ) -> None:
        self.operator, self.image_shape, self._given = operator, image_shape, images
        self.name = name or type(operator).__name__
        self.images = len(images) if images is not None else operator.images if operator.images > 1 else 3

    def x(self) -> Tensor:
        if self._given is not None:
            return self._given.clone()
        return 0.5 + 0.25 * normal(0, self.images, *self.image_shape)

    @cached_property
    def y(self) -> Tensor:
        with torch.no_grad():
            return self.operator(self.x())

    def linear(self) -> LinearOperator:
        if not self.operator.linear:
            raise NotApplicable("it is not linear")
        require(isinstance(self.operator, LinearOperator), f"{self.name} has linear = True but is no LinearOperator")
        assert isinstance(self.operator, LinearOperator)
        return self.operator

    def differentiable(self) -> None:
        if not self.operator.differentiable:
            raise NotApplicable("it is a black box")

    def signed(self, seed: int) -> tuple[Tensor, Tensor]:
        """Signed noise (B, C, H, W) and its measurement."""
        with torch.no_grad():
            return normal(seed, self.images, *self.image_shape), self._of_noise(seed)

    def _of_noise(self, seed: int) -> Tensor:
        if seed not in self._measured_noise:
            self._measured_noise[seed] = self.operator(normal(seed, self.images, *self.image_shape))
        return self._measured_noise[seed]

    @cached_property
    def _measured_noise(self) -> dict[int, Tensor]:
        return {}
