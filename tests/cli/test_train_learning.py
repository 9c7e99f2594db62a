"""`invdiff train from=measurements`: from masked images, or a file of measurements, to a prior that reconstructs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from invdiff.learning.learners import MixtureLearner
from invdiff.learning.measured import operator_for_each
from invdiff.operators import GaussianBlur, Inpainting
from invdiff.priors import load_prior

Run = Callable[..., Any]

WORDS = (
    "from=measurements",
    "mixture.components=2",
    "mixture.rank=2",
    "learning.gaussian_rounds=2",
    "learning.rounds=1",
    "learning.held_out=6",
    "grid=4",
    "output=made",
)


@pytest.fixture
def train(invdiff: Run) -> Run:
    return lambda *words: invdiff("train", *WORDS, *words)


@pytest.fixture(autouse=True)
def images(tmp_path: Path) -> np.ndarray:
    """images.npz: forty digits of the bundled mixture, 8x8."""
    digits = load_prior("digits_mixture").sample(40, torch.Generator().manual_seed(0)).clamp(0, 1)  # type: ignore[union-attr]
    stack = (255 * torch.nn.functional.avg_pool2d(digits, 4)[:, 0]).round().to(torch.uint8).numpy()
    np.savez(tmp_path / "images.npz", images=stack)
    return stack


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("made/log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_from_masked_images_to_a_reconstruction(train: Run, invdiff: Run, arrays: Run) -> None:
    done = train("prior=mixture", "data=images.npz", "operator.keep=0.5", "noise.sigma=0.02")
    assert (done.code, done.err) == (0, "")
    assert "3 rounds" in done.out
    assert "prior.weights=made/prior.safetensors" in done.out
    left = {p.name for p in Path("made").iterdir()}
    made = {"prior.safetensors", "last.safetensors", "checkpoint.pt", "log.jsonl", "grid.png", "card.md", "config.yaml"}
    assert left == made
    assert [row["prior"] for row in rows()] == ["gaussian", "gaussian", "mixture"]
    card = Path("made/card.md").read_text()
    for words in (
        "34 measurements by Inpainting, no clean image",
        "| 0.050 |",
        "from=measurements",
        "operator.keep=0.5",
    ):
        assert words in card
    config = OmegaConf.load("made/config.yaml")
    assert (config["from"], config.operator.keep, config.noise.sigma) == ("measurements", 0.5, 0.02)
    assert "recipe" not in config

    words = ("prior.weights=made/prior.safetensors", "data=generated", "output=out", "num_samples=1")
    done = invdiff("reconstruct", *words, "sampler=daps", "sampler.schedule.steps=2")
    assert (done.code, done.err) == (0, "")
    assert arrays("out")["samples"].shape == (1, 1, 1, 8, 8)


def test_a_file_of_measurements_with_their_masks(train: Run, images: np.ndarray) -> None:
    """Grey images without a channel axis; what the masks leave out may be NaN."""
    masks = np.random.default_rng(0).random(images.shape) < 0.6
    np.savez("masked.npz", y=np.where(masks, images / np.float32(255), np.nan).astype(np.float32), mask=masks)
    done = train("prior=mixture", "measurement=masked.npz", "noise.sigma=0.01")
    assert (done.code, done.err) == (0, "")
    assert load_prior(weights="made/prior.safetensors").shape == (1, 8, 8)
    assert "Denoising" not in Path("made/card.md").read_text()  # nobody knows the true images


def test_a_network(train: Run) -> None:
    small = ("recipe.unet.widths=[8,16]", "recipe.unet.blocks=[1,1]", "recipe.shape=[1,8,8]", "recipe.crop=8")
    few = (
        "recipe.steps=2",
        "recipe.validate_every=2",
        "recipe.held_out=4",
        "recipe.batch=2",
        "sampler.schedule.steps=2",
    )
    done = train("recipe=digits", "data=images.npz", "operator.keep=0.5", *small, *few)
    assert (done.code, done.err) == (0, "")
    assert [row["prior"] for row in rows()] == ["gaussian", "gaussian", "network"]
    assert load_prior(weights="made/prior.safetensors").shape == (1, 8, 8)
    assert "mixture" not in OmegaConf.load("made/config.yaml")


def test_interrupted_and_going_on(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    words = ("prior=mixture", "data=images.npz", "operator.keep=0.5")
    with monkeypatch.context() as patch:
        patch.setattr(MixtureLearner, "fit", stopped)
        done = train(*words)
    assert (done.code, done.err) == (130, "invdiff: interrupted after round 2; the same command resumes\n")
    assert load_prior(weights="made/prior.safetensors").shape == (1, 8, 8)
    assert train(*words).code == 0
    assert [row["round"] for row in rows()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("from=guesses", "data=images.npz"), "from must be one of images, measurements, got guesses"),
        (("from=images", "measurement=y.npy"), "measurement= needs from=measurements"),
        (("data=images.npz", "measurement=y.npy"), "give data= (images, measured here) or measurement="),
        (("data=images.npz", "init=some.safetensors"), "init= needs from=images"),
        (("data=images.npz", "operator=phase_retrieval"), "learning from measurements needs a linear operator"),
        (("data=images.npz", "noise=poisson"), "learning from measurements needs Gaussian noise, got PoissonNoise"),
        (("data=images.npz", "learning.rounds=0"), "learning: rounds must be an integer >= 1, got 0"),
        (("data=images.npz", "learning.rounds=few"), "learning.rounds must be an integer, got few"),
        (("data=images.npz", "mixture.components=30"), "components=30 need >= 60 measurements"),
        (
            ("data=images.npz", "prior=network", "recipe=digits"),
            "a network learns from whole images: recipe.shape must be",
        ),
    ],
)
def test_errors_teach(train: Run, words: tuple[str, ...], error: str) -> None:
    done = train("prior=mixture", *words)
    assert done.code == 2
    assert done.err.startswith(f"invdiff: error: {error}")
    assert done.err.count("\n") == 1
    assert not Path("made").exists()


def test_random_choices_are_made_for_each_image() -> None:
    """Where the class knows how; a mask that was given, or lines that are not random, are those of all."""
    settings = {"margin": None, "axis": "rows", "text_height": 0.1, "seed": 3}
    operator = operator_for_each(Inpainting, settings | {"keep": 0.5}, (1, 8, 8), 5)
    assert isinstance(operator, Inpainting)
    assert operator.images == 5
    assert len({tuple(mask.flatten().tolist()) for mask in operator.mask_of((1, 8, 8))}) == 5
    assert operator_for_each(Inpainting, settings | {"text": "words"}, (1, 8, 8), 5) is None
    assert operator_for_each(GaussianBlur, {"std": 1.0, "kernel_size": 5}, (1, 8, 8), 5) is None
