"""The compute policy of networks."""

import pytest
import torch

from invdiff.priors import precision
from invdiff.priors.networks.parametrised import ParametrisedPrior
from invdiff.priors.precision import autocast, chosen, fast_bf16


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


@pytest.mark.parametrize("name", ParametrisedPrior.variants())
def test_auto_is_float32_where_rounding_grows_with_sigma(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At sigma 40 a noise that is rounded to bf16 moves the clean estimate by 0.06 and more."""
    monkeypatch.setattr(precision, "fast_bf16", lambda _: True)
    prior = ParametrisedPrior.variants()[name]
    found = chosen("auto", "cpu", bounded_error=prior.bounded_error)
    assert found == ("float32" if prior.parametrisation in ("epsilon", "score") else "bfloat16")  # type: ignore[attr-defined]
    assert chosen("bfloat16", "cpu", bounded_error=prior.bounded_error) == "bfloat16"  # as asked for


def test_a_device_that_is_not_known_is_not_fast() -> None:
    assert not fast_bf16("mps")
    assert isinstance(fast_bf16("cpu"), bool)


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(ValueError, match="one of auto, float32, bfloat16, got 'half'"):
        autocast("half", "cpu")
