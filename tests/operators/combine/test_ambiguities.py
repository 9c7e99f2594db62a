"""Ambiguities of parts: what a composition and a stack can and cannot tell apart."""

import pytest
import torch

from invdiff.operators import CodedDiffraction, GaussianBlur, Inpainting, Operator, PhaseRetrieval, SuperResolution
from invdiff.operators.combine.composition import compose
from invdiff.operators.combine.stacking import stack

SHAPE = (1, 16, 16)


def picture() -> torch.Tensor:
    x = torch.zeros(1, *SHAPE)
    x[..., 5:11, 6:9], x[..., 5, 6:13] = 0.8, 0.4
    return x


PARTS: dict[str, tuple[Operator, bool, bool]] = {  # the operator, whether it is ambiguous, whether a turn is seen
    "blurred": (compose([GaussianBlur(std=0.8, kernel_size=5), PhaseRetrieval()]), True, False),
    "smaller": (compose([SuperResolution(factor=2), PhaseRetrieval()]), True, False),
    "masked": (compose([Inpainting.random(SHAPE, keep=0.5, seed=1), PhaseRetrieval()]), True, True),
    "two cameras": (stack([PhaseRetrieval(), PhaseRetrieval(oversampling=1.5)], image_shape=SHAPE), True, False),
    "with a picture": (stack([PhaseRetrieval(), SuperResolution(factor=4)], image_shape=SHAPE), False, True),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_turned_image_is_turned_back_unless_it_was_seen(name: str) -> None:
    operator, ambiguous, seen = PARTS[name]
    x = picture()
    turned = x.flip((-2, -1))
    assert operator.ambiguous == ambiguous
    assert torch.allclose(operator.align(turned, x), turned if seen else x, atol=1e-5)


def test_signs_go_through_linear_parts() -> None:
    operator = compose([Inpainting.random(SHAPE, keep=0.5, seed=1), CodedDiffraction(masks=2)])
    x = picture()
    assert torch.equal(operator.align(-x, x), x)
