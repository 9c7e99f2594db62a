"""Priors of fields in physical units: reading them, and priors whose units change."""

from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff import load_prior
from invdiff.contracts.trained import better_mixture, roughness, verdict
from invdiff.priors import EDMPrior, LowRankMixturePrior, Prior
from invdiff.priors.training.fields import is_fields, read_fields

RANGE = (250.0, 310.0)


@pytest.mark.parametrize(
    ("shape", "channels", "axes", "found"),
    [
        ((5, 8, 9), 1, None, (8, 9, 1)),
        ((5, 2, 8, 9), 2, None, (8, 9, 2)),
        ((5, 8, 9, 3), 3, None, (8, 9, 3)),
        ((5, 3, 3, 3), 3, "NHWC", (3, 3, 3)),
        ((5, 40), 1, None, (1, 40, 1)),
    ],
)
def test_orders_of_axes(
    tmp_path: Path, shape: tuple[int, ...], channels: int, axes: str | None, found: tuple[int, ...]
) -> None:
    values = np.random.default_rng(0).uniform(-3, 5, shape)
    np.save(tmp_path / "f.npy", values)
    fields, (low, high) = read_fields(tmp_path / "f.npy", channels=channels, axes=axes)  # type: ignore[arg-type]
    assert len(fields) == 5
    assert fields[0].shape == found
    assert (low, high) == (np.float32(values.min()), np.float32(values.max()))
    back = low + (high - low) * np.stack(fields) / 255
    if values.ndim == 4 and shape[1] == 2:
        np.testing.assert_allclose(back.transpose(0, 3, 1, 2), values, atol=1e-5)


@pytest.mark.parametrize(
    ("array", "given", "said"),
    [
        (np.zeros((4, 3, 3, 3)), {}, "axes=NCHW or axes=NHWC"),
        (np.zeros((4, 9, 9)), {}, r"low < high, got \[0, 0\]"),
        (np.full((4, 9, 9), np.nan), {}, "finite numbers, got NaN"),
        (np.zeros((4, 9, 9), complex), {}, "real numbers, got complex128"),
        (np.ones((4, 2, 9, 9)), {}, "has 2 channel"),
        (np.ones((4, 9, 9)), {"value_range": (3.0, 1.0)}, "low < high"),
        (np.ones(4), {}, r"\(N, L\), got \(4,\)"),
    ],
)
def test_what_is_no_field(tmp_path: Path, array: np.ndarray, given: dict, said: str) -> None:
    np.save(tmp_path / "f.npy", array)
    with pytest.raises(ValueError, match=said):
        read_fields(tmp_path / "f.npy", channels=1, **given)


def test_pictures_are_no_fields(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", images=np.zeros((4, 9, 9), np.uint8))
    np.savez(tmp_path / "f.npz", images=np.zeros((4, 9, 9), np.float32))
    assert not is_fields(tmp_path / "p.npz")
    assert is_fields(tmp_path / "f.npz")
    assert not is_fields(tmp_path)


@pytest.mark.parametrize("prior", [EDMPrior.example(), LowRankMixturePrior.example()], ids=["network", "mixture"])
def test_units_of_a_prior(tmp_path: Path, prior: Prior) -> None:
    prior.in_units(RANGE).save(tmp_path / "p.safetensors", dtype=torch.float32)  # type: ignore[operator]
    other = load_prior(weights=tmp_path / "p.safetensors")
    assert other.value_range == RANGE
    assert other.unit == 30.0
    low, span = RANGE[0], RANGE[1] - RANGE[0]
    x = torch.rand(2, *prior.shape, generator=torch.Generator().manual_seed(0))  # type: ignore[misc]
    sigma = torch.tensor([0.05, 0.7])
    with torch.no_grad():
        found = (other.denoise(low + span * x, span * sigma) - low) / span
        torch.testing.assert_close(found, prior.denoise(x, sigma), atol=2e-4, rtol=0)
    assert other.sigma_range[1] == pytest.approx(span * prior.sigma_range[1]) or isinstance(prior, LowRankMixturePrior)


def waves(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    phases = 6.28 * torch.rand(count, 1, 1, 1, generator=generator)
    t = torch.linspace(0, 6.28, 16)
    return 0.5 + 0.4 * (t[:, None] + t + phases).sin()


def flat_prior() -> LowRankMixturePrior:
    """Independent pixels about grey."""
    grey = torch.full((1, 1, 16, 16), 0.5)
    return LowRankMixturePrior(torch.ones(1), grey, torch.zeros(1, 256, 1), torch.tensor([0.3]))


def test_verdict_on_samples() -> None:
    images = waves(8)
    noise = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert roughness(noise) == pytest.approx(1, abs=0.1)
    prior = LowRankMixturePrior(
        torch.ones(1), torch.full((1, 1, 16, 16), 0.5), torch.zeros(1, 256, 1), torch.tensor([0.3])
    )
    assert any("its samples are noise" in line for line in verdict(prior, noise, images))
    assert not any("noise (" in line for line in verdict(prior, images, waves(8, seed=1)))


def test_a_mixture_that_is_better(tmp_path: Path) -> None:
    flat = LowRankMixturePrior(
        torch.ones(1), torch.full((1, 1, 16, 16), 0.5), torch.zeros(1, 256, 1), torch.tensor([0.3])
    )
    words = better_mixture(flat, waves(60), waves(8, seed=1), tmp_path / "m.safetensors")
    assert words is not None
    assert "denoises held-out images better" in words
    mixture = load_prior(weights=tmp_path / "m.safetensors")
    assert better_mixture(mixture, waves(60), waves(8, seed=1), tmp_path / "n.safetensors") is None
    assert better_mixture(flat, waves(5), waves(8), tmp_path / "n.safetensors") is None
