"""`reconstruct` looks at y and at the user's operator before it samples."""

import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import noisy
from invdiff import Compute, Reconstruction, reconstruct
from invdiff.operators import CT, BlackBox, Denoising, Inpainting
from invdiff.priors import Prior
from invdiff.samplers import DAPS, EnKG
from invdiff.schedules import EDM

SAMPLER = DAPS(schedule=EDM(steps=2, sigma_max=5, sigma_min=0.02))


@pytest.fixture
def run(digits: Prior, float32: Compute):  # type: ignore[no-untyped-def]
    def reconstructed(y, operator, **options) -> Reconstruction:  # type: ignore[no-untyped-def]
        given = {"prior": digits, "sampler": SAMPLER, "num_samples": 1, "noise": 0.02, "compute": float32}
        return reconstruct(y, operator, **(given | options))

    return reconstructed


@pytest.fixture
def y() -> Tensor:
    image = torch.zeros(1, 1, 32, 32)
    image[..., 8:24, 12:20] = 1
    return noisy(image)


def test_nothing_is_noted_where_nothing_is_wrong(run, y: Tensor) -> None:  # type: ignore[no-untyped-def]
    assert run(y, Denoising()).notes["checks"] == []


def test_a_finding_is_logged_and_noted(run, y: Tensor, caplog: pytest.LogCaptureFixture) -> None:  # type: ignore[no-untyped-def]
    with caplog.at_level(logging.INFO, "invdiff"):
        result = run(torch.where(torch.rand(32, 32) < 0.5, y, 0), Denoising())
    (note,) = result.notes["checks"]
    assert note["kind"] == "mask forgotten"
    assert note["severe"]
    assert f"check: {note['words']}" in caplog.messages
    assert result.metrics()["notes"]["checks"] == [note]


def test_what_no_image_explains_is_refused(run, y: Tensor) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"divide y and noise.sigma by 255.*; checks=false reconstructs all the same"):
        run(255 * y, Denoising(), noise=5.0)
    kept = torch.rand(32, 32) < 0.5
    with pytest.raises(ValueError, match="mask looks inverted"):
        run(torch.where(kept, y, 0), Inpainting(mask=~kept))
    assert run(255 * y, Denoising(), noise=5.0, checks=False).notes["checks"] == []


def test_a_function_of_the_user_is_tried_first(run, y: Tensor) -> None:  # type: ignore[no-untyped-def]
    def camera(x: Tensor) -> Tensor:
        x[..., :16] = 0
        return x

    with pytest.raises(ValueError, match="camera changes its input"):
        run(y, camera)


def test_calls_of_a_black_box_are_announced(run, y: Tensor, caplog: pytest.LogCaptureFixture) -> None:  # type: ignore[no-untyped-def]
    def simulator(x: np.ndarray) -> np.ndarray:
        return x[:, ::4]

    with caplog.at_level(logging.INFO, "invdiff"):
        found = run(y[..., ::4, :], BlackBox(simulator, image_shape=(1, 32, 32)), sampler=EnKG.example(), num_samples=2)
    (line,) = [line for line in caplog.messages if "measures" in line]
    calls = found.cost.operator_calls
    assert f"enkg measures {calls} images with simulator, about" in line
    assert f"besides {found.cost.forwards} network calls" in line
    caplog.clear()
    with caplog.at_level(logging.INFO, "invdiff"):
        run(y, Denoising(), sampler=EnKG.example())
    assert not [line for line in caplog.messages if "measures" in line]


def test_channels_last(run, float32: Compute) -> None:  # type: ignore[no-untyped-def]
    photo = {"prior": "photo", "sampler": SAMPLER, "compute": float32}
    colour = np.random.default_rng(0).random((16, 20, 3))
    for array in (colour, colour[None]):
        assert run(array, Denoising(), **photo).problem.image_shape == (3, 16, 20)
    grey = np.random.default_rng(0).random((32, 32, 1))
    assert run(grey, Denoising()).problem.image_shape == (1, 32, 32)


@pytest.mark.parametrize("seed", [None, "0", 1.5])
def test_a_seed_is_a_whole_number(run, y: Tensor, seed: object) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError, match="seed must be a whole number, got"):
        run(y, Denoising(), seed=seed)


def test_a_transposed_measurement(run, prior: Prior, brain: Tensor) -> None:  # type: ignore[no-untyped-def]
    y = CT(views=30)(brain[:1]).mT
    with pytest.raises(ValueError, match=r"other way round it fits: give np.swapaxes\(y, -1, -2\)"):
        run(y, CT(views=30), prior=prior)
