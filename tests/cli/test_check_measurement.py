from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import noisy
from invdiff import load_prior

OPTIONS = ("operator=denoising", "prior=digits_mixture")


@pytest.fixture
def y() -> np.ndarray:
    draws = load_prior("digits_mixture").sample(2, torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    return noisy(draws).numpy()


def test_a_sound_measurement(invdiff: Callable, tmp_path: Path, y: np.ndarray) -> None:
    np.save(tmp_path / "y.npy", y)
    ran = invdiff(
        "check-measurement", "measurement=y.npy", "operator=denoising", "prior=digits_mixture", "noise.sigma=0.02"
    )
    assert ran.code == 0
    assert "scale of y" in ran.out
    assert "FAILED" not in ran.out


def test_a_wrong_scale(invdiff: Callable, tmp_path: Path, y: np.ndarray) -> None:
    np.save(tmp_path / "y.npy", 255 * y)
    ran = invdiff("check-measurement", "measurement=y.npy", *OPTIONS)
    assert ran.code == 1
    assert "by 255" in " ".join(ran.out.split())
    assert ran.err == "invdiff: y.npy: a reconstruction would likely be wrong: scale of y\n"


@pytest.mark.slow
def test_reconstruct_refuses_it_in_one_line(reconstruct: Callable, tmp_path: Path, y: np.ndarray) -> None:
    np.save(tmp_path / "y.npy", 255 * y)
    ran = reconstruct("measurement=y.npy", "operator=denoising")
    assert ran.code == 2
    assert "divide y and noise.sigma by 255" in ran.err
    assert len(ran.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert reconstruct("measurement=y.npy", "operator=denoising", "noise.sigma=5", "checks=false").code == 0
