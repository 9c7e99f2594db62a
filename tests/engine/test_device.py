"""The device by its name, or the first that is there."""

import pytest
import torch

from invdiff import Compute


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs of Intel and one of Apple."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "device_count", lambda: 1)


def test_the_first_available_device_is_the_default(there: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Compute().resolve_device().type == "xpu"
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    assert Compute().resolve_device().type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert Compute().resolve_device().type == "cpu"


def test_a_device_by_name(there: None) -> None:
    for name in ("xpu", "xpu:1", "mps", "cpu"):
        assert Compute(device=name).resolve_device() == torch.device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "xpu:2", "xpu:x", "tpu", "meta", ""])
def test_a_device_that_is_not_there(there: None, name: str) -> None:
    with pytest.raises(ValueError, match=f"compute.device={name} cannot be used here; available: xpu, mps, cpu"):
        Compute(device=name).resolve_device()
