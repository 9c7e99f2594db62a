"""`invdiff train recipe=brain_latent` on a handful of tiny images, and what becomes of it in `invdiff reconstruct`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from invdiff.priors import LatentPrior, load_prior

Run = Callable[..., Any]
RECIPE = (
    "recipe=brain_latent",
    "recipe.codec.codec.widths=[8,12]",
    "recipe.codec.codec.blocks=[1,1]",
    "recipe.codec.codec.code_channels=2",
    "recipe.codec.crop=16",
    "recipe.codec.batch=4",
    "recipe.codec.steps=20",
    "recipe.codec.held_out=2",
    "recipe.codes.unet.channels=2",
    "recipe.codes.unet.widths=[8]",
    "recipe.codes.unet.blocks=[1]",
    "recipe.codes.shape=[2,4,4]",
    "recipe.codes.crop=4",
    "recipe.codes.batch=4",
    "recipe.codes.steps=10",
    "recipe.codes.validate_every=5",
    "grid=2",
    "output=made",
)


@pytest.fixture
def images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", images=rng.integers(0, 255, (12, 16, 16), np.uint8))


@pytest.mark.slow
@pytest.mark.usefixtures("images")
def test_trained_then_used(invdiff: Run) -> None:
    """Codes have mean 0 and deviation 1, the file gives the same prior, samplers reconstruct images with it."""
    done = invdiff("train", "data=images.npz", *RECIPE)
    assert done.code == 0, done.err
    assert "codec" in done.out
    prior = load_prior(weights="made/prior.safetensors")
    assert isinstance(prior, LatentPrior)
    assert (prior.shape, prior.diffusion.shape, prior.diffusion.unit) == ((1, 16, 16), (2, 4, 4), 1.0)
    with np.load("images.npz") as file:
        codes = prior.codec.encode(torch.from_numpy(file["images"])[:, None].float() / 255)
    assert codes.mean((0, 2, 3)).abs().max() < 0.3
    assert (codes.std((0, 2, 3)) - 1).abs().max() < 0.3
    assert all(Path("made", name).exists() for name in ("card.md", "grid.png"))
    again = invdiff("train", "data=images.npz", *RECIPE)
    assert again.code == 0, again.err
    used = invdiff(
        "reconstruct", "prior.weights=made/prior.safetensors", "data=generated", "operator=inpainting", "sampler=dps",
        "sampler.schedule.steps=5", "num_samples=2", "output=out",
    )  # fmt: skip
    assert used.code == 0, used.err
    assert Path("out/comparison.png").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recipe.codes.unet.channels=3"], "codes.unet.channels must be 2"),
        (["recipe.codes.flip=true"], "set codes.flip=false"),
        (["recipe.codec.crop=18"], "must be a multiple of 4"),
        (["init=x.safetensors"], "init= needs a recipe of a network in pixels"),
    ],
)
@pytest.mark.usefixtures("images")
def test_refused(words: list[str], said: str, invdiff: Run) -> None:
    done = invdiff("train", "data=images.npz", *RECIPE, *words)
    assert done.code == 2
    assert said in done.err


def test_a_damaged_file(tmp_path: Path) -> None:
    """Refused in one line, whatever was cut."""
    prior = LatentPrior.variants()["trained here"]
    assert isinstance(prior, LatentPrior)
    prior.save(tmp_path / "good.safetensors")
    tensors = load_file(str(tmp_path / "good.safetensors"))
    with safe_open(str(tmp_path / "good.safetensors"), framework="pt") as file:
        header = file.metadata()
    for spoil in ("codec.encoder.1.weight", "diffusion.head.weight"):
        rest = {name: t for name, t in tensors.items() if name != spoil}
        save_file(rest, str(tmp_path / "bad.safetensors"), metadata=header)
        with pytest.raises(ValueError, match="prior weights") as error:
            load_prior(weights=tmp_path / "bad.safetensors")
        assert "\n" not in str(error.value)
