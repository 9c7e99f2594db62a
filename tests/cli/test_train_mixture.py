"""`invdiff train prior=mixture` on small images, and what becomes of it in `invdiff reconstruct`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from invdiff.io.examples import drawn_from_prior
from invdiff.priors import load_prior
from invdiff.priors.closed_form.low_rank import LowRankMixturePrior
from invdiff.priors.training.mixture_fit import MixtureFit

Run = Callable[..., Any]

WORDS = ("prior=mixture", "mixture.components=2", "mixture.rank=2", "mixture.held_out=4", "grid=4", "output=made")


@pytest.fixture(autouse=True)
def images(tmp_path: Path) -> np.ndarray:
    """images.npz: forty grey ramps of 16x16, dark ones and bright ones."""
    rng = np.random.default_rng(0)
    slopes = rng.uniform(0, 4, (40, 2)).astype(np.float32)
    ramps = slopes[:, :1, None] * np.arange(16)[:, None] + slopes[:, 1:, None] * np.arange(16)
    stack = (ramps + np.where(np.arange(40) % 2, 20, 120)[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=stack)
    return stack


@pytest.fixture
def train(invdiff: Run) -> Run:
    return lambda *words: invdiff("train", *WORDS, *words)


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("made/log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_from_images_to_a_reconstruction(train: Run, invdiff: Run, arrays: Run) -> None:
    done = train("data=images.npz", "size=8", "mixture.iterations=3", "mixture.tolerance=0")
    assert (done.code, done.err) == (0, "")
    assert "3 iterations" in done.out
    assert "nats per image" in done.out
    assert "prior.weights=made/prior.safetensors" in done.out
    left = {p.name for p in Path("made").iterdir()}
    assert left == {"prior.safetensors", "checkpoint.pt", "log.jsonl", "grid.png", "card.md", "config.yaml"}
    assert [row["iteration"] for row in rows()] == [1, 2, 3]
    assert set(rows()[0]) == {"iteration", "minutes", "log_likelihood", "held_out", "reseeded"}
    card = Path("made/card.md").read_text()
    for words in ("# Prior `mixture`", "2 Gaussians of rank 2", "| 0.050 |", "prior=mixture data=images.npz size=8"):
        assert words in card
    with Image.open("made/grid.png") as grid:
        assert grid.size == (16, 16)
    config = OmegaConf.load("made/config.yaml")
    assert (config.prior, Path(config.data).name, config.mixture.size) == ("mixture", "images.npz", 8)
    assert not {"recipe", "_values"} & set(config)
    assert load_prior(weights="made/prior.safetensors").shape == (1, 8, 8)

    words = ("prior.weights=made/prior.safetensors", "data=generated", "output=out")
    done = invdiff("reconstruct", *words, "sampler=daps", "sampler.schedule.steps=2", "num_samples=2")
    assert (done.code, done.err) == (0, "")
    assert arrays("out")["samples"].shape == (1, 2, 1, 8, 8)


def test_generated_images_of_a_mixture_are_exact_draws() -> None:
    """With noise far outside the value range: neither clamped nor sent through the ODE, and image i is its own."""
    prior = LowRankMixturePrior(torch.ones(1), torch.zeros(1, 1, 32, 32), torch.zeros(1, 1024, 1), torch.tensor([5.0]))
    _, two = drawn_from_prior(count=2, prior=prior, seed=3)
    _, one = drawn_from_prior(count=1, prior=prior, seed=3)
    assert np.array_equal(one[0], two[0])
    assert two[0].std() == pytest.approx(5, rel=0.1)


def test_the_default_output(invdiff: Run) -> None:
    words = [word for word in WORDS if not word.startswith("output")]
    assert invdiff("train", *words, "data=images.npz", "mixture.iterations=1").code == 0
    assert Path("runs/train/mixture/prior.safetensors").exists()


def test_it_goes_on_where_it_stopped(train: Run) -> None:
    train("data=images.npz", "mixture.iterations=2", "mixture.tolerance=0")
    done = train("data=images.npz", "mixture.iterations=4", "mixture.tolerance=0")
    assert done.code == 0, done.err
    assert [row["iteration"] for row in rows()] == [1, 2, 3, 4]
    assert "4 iterations" in done.out


def test_interrupted(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = MixtureFit.maximise

    def stopped(self: MixtureFit, responsibilities: torch.Tensor) -> Any:
        if self.iteration == 2:
            raise KeyboardInterrupt
        return plain(self, responsibilities)

    words = ("data=images.npz", "mixture.iterations=3", "mixture.tolerance=0")
    with monkeypatch.context() as patch:
        patch.setattr(MixtureFit, "maximise", stopped)
        done = train(*words)
    assert (done.code, done.err) == (
        130,
        "invdiff: interrupted after iteration 2; the same command resumes\n",
    )
    assert {p.name for p in Path("made").iterdir()} == {
        "checkpoint.pt",
        "config.yaml",
        "log.jsonl",
        "prior.safetensors",
    }
    assert train(*words).code == 0
    assert [row["iteration"] for row in rows()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("prior=gaussian",), "prior must be one of network, mixture, got gaussian"),
        (("mixture.components=30",), "components=30 need at least 60 images, got 36; take fewer components or more"),
        (("mixture.rank=many",), "mixture.rank must be an integer, got many"),
        (("mixture.rank=0",), "rank of a mixture must be an integer >= 1, got 0"),
        (("size=64",), "size=64 needs square images of 64 pixels or more, got 16x16"),
        (("init=some.safetensors",), "init= needs from=images prior=network"),
        (("prior=network", "size=8"), "size=8 needs prior=mixture"),
    ],
)
def test_errors_teach(train: Run, words: tuple[str, ...], error: str) -> None:
    done = train("data=images.npz", *words)
    assert done.code == 2
    assert done.err.startswith(f"invdiff: error: {error}")
    assert done.err.count("\n") == 1
    assert not Path("made").exists()


@pytest.mark.slow
def test_a_fit_and_a_network_do_not_share_a_folder(train: Run) -> None:
    train("data=images.npz", "mixture.iterations=1")
    done = train("data=images.npz", "mixture.components=3")
    assert done.code == 2
    assert done.err.startswith("invdiff: error: made/checkpoint.pt holds another fit: {'components': 2")
    small = ("recipe.unet.widths=[8,16]", "recipe.unet.blocks=[1,1]", "recipe.shape=[1,16,16]", "recipe.crop=16")
    done = train("prior=network", "recipe=digits", "recipe.held_out=2", *small, "data=images.npz")
    assert done.code == 2
    assert done.err == "invdiff: error: made/checkpoint.pt holds another network: a mixture, no network\n"


@pytest.mark.slow
def test_help_names_both(invdiff: Run) -> None:
    done = invdiff("train", "--help")
    assert "prior=mixture" in done.out
    assert "components: 100" in done.out


@pytest.mark.slow
def test_fields_in_units_of_their_own(train: Run, invdiff: Run) -> None:
    rng = np.random.default_rng(0)
    fields = 280 + 20 * np.sin(np.linspace(0, 6, 16) + rng.uniform(0, 6, (40, 1)))[:, None] * np.ones((16, 1))
    np.save("fields.npy", fields[:, None])
    done = train("data=fields.npy", "mixture.iterations=2")
    assert (done.code, done.err) == (0, "")
    assert "check-prior: it denoises held-out images" in done.out
    prior = load_prior(weights="made/prior.safetensors")
    assert prior.value_range == pytest.approx((fields.min(), fields.max()))
    draws = prior.sample(8, torch.Generator().manual_seed(0))  # type: ignore[operator]
    assert abs(float(draws.mean()) - 280) < 10
    assert "axes= is for arrays of numbers" in train("data=images.npz", "axes=NCHW").err
    assert "pad_to= is for pictures" in train("data=fields.npy", "pad_to=20").err
    assert "axes must be" in train("data=fields.npy", "axes=CHW").err
