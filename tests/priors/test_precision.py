"""The compute policy of networks."""

import pytest
import torch

from invdiff.priors import precision
from invdiff.priors.precision import autocast, fast_bf16


def dtype_inside(policy: str) -> torch.dtype:
    layer = torch.nn.Conv2d(1, 1, 1)
    with autocast(policy, "cpu"), torch.no_grad():
        return layer(torch.zeros(1, 1, 2, 2)).dtype


@pytest.mark.parametrize(("policy", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_what_is_asked_for(policy: str, dtype: torch.dtype) -> None:
    assert dtype_inside(policy) == dtype


def test_auto_asks_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast in [True, False]:
        monkeypatch.setattr(precision, "fast_bf16", lambda device_type, fast=fast: fast and device_type == "cpu")
        assert dtype_inside("auto") == (torch.bfloat16 if fast else torch.float32)


def test_a_device_that_is_not_known_is_not_fast() -> None:
    assert not fast_bf16("mps")
    assert isinstance(fast_bf16("cpu"), bool)


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(ValueError, match="one of auto, float32, bfloat16, got 'half'"):
        autocast("half", "cpu")
