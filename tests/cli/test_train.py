"""`invdiff train` on a handful of tiny images, and what becomes of it in `invdiff reconstruct`."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from invdiff.priors import load_prior
from invdiff.priors.training.training import Trainer

Run = Callable[..., Any]

RECIPE = (
    "recipe=digits",
    "recipe.unet.widths=[8,16]",
    "recipe.unet.blocks=[1,1]",
    "recipe.shape=[1,16,16]",
    "recipe.crop=16",
    "recipe.batch=4",
    "recipe.held_out=2",
    "recipe.validate_every=5",
    "recipe.warmup=2",
    "output=made",
)


@pytest.fixture
def images(tmp_path: Path) -> np.ndarray:
    """images.npz: twelve grey ramps of 12x12."""
    ramps = [np.add.outer(np.arange(12) * (i + 1), np.arange(12) * (12 - i)) % 256 for i in range(12)]
    stack = np.stack(ramps).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=stack)
    return stack


@pytest.fixture
def train(invdiff: Run) -> Run:
    return lambda *words: invdiff("train", *RECIPE, "pad_to=16", *words)


def rows() -> list[dict[str, float]]:
    return [json.loads(line) for line in Path("made/log.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("images")
def test_from_images_to_a_reconstruction(train: Run, invdiff: Run, arrays: Run) -> None:
    done = train("data=images.npz", "recipe.steps=10", "grid=6")
    assert (done.code, done.err) == (0, "")
    assert "10 steps" in done.out
    assert "prior.weights=made/prior.safetensors" in done.out
    left = {p.name for p in Path("made").iterdir()}
    assert left == {
        "prior.safetensors",
        "mixture.safetensors",
        "checkpoint.pt",
        "log.jsonl",
        "grid.png",
        "card.md",
        "config.yaml",
    }
    assert "its samples are noise" in done.out
    assert "a mixture fitted to the same images in 0 s denoises held-out images better" in done.out
    assert [row["step"] for row in rows()] == [5, 10]
    card = Path("made/card.md").read_text()
    assert "# Prior `digits`" in card
    assert "10 steps" in card
    assert "| 0.050 |" in card
    with Image.open("made/grid.png") as grid:
        assert grid.size == (2 * 16, 3 * 16)  # two columns
    config = OmegaConf.load("made/config.yaml")
    assert (Path(config.data).name, config.recipe.batch, config.pad_to) == ("images.npz", 4, 16)
    assert "_values" not in config
    assert load_prior(weights="made/prior.safetensors").shape == (1, 16, 16)

    words = ("prior.weights=made/prior.safetensors", "data=generated", "data.steps=2", "output=out")
    done = invdiff("reconstruct", *words, "sampler=daps", "sampler.schedule.steps=2", "num_samples=2")
    assert (done.code, done.err) == (0, "")
    assert arrays("out")["samples"].shape == (1, 2, 1, 16, 16)


@pytest.mark.slow
@pytest.mark.usefixtures("images")
def test_it_goes_on_where_it_stopped(train: Run) -> None:
    train("data=images.npz", "recipe.steps=6", "grid=1")
    assert rows()[-1]["step"] == 6
    done = train("data=images.npz", "recipe.steps=12", "grid=1")
    assert done.code == 0
    assert [row["step"] for row in rows()] == [5, 6, 10, 12]
    assert "12 steps" in done.out
    weights = Path("made/checkpoint.pt").stat().st_mtime_ns
    assert "12 steps" in train("data=images.npz", "recipe.steps=12", "grid=1").out  # nothing left to do
    assert Path("made/checkpoint.pt").stat().st_mtime_ns == weights


@pytest.mark.slow
@pytest.mark.usefixtures("images")
def test_interrupted(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Trainer.train_step

    def step(self: Trainer) -> float:
        if self.step == 3:
            raise KeyboardInterrupt
        return plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        done = train("data=images.npz", "recipe.steps=8", "grid=1")
    assert (done.code, done.err) == (130, "invdiff: interrupted at step 3; the same command resumes\n")
    assert {p.name for p in Path("made").iterdir()} == {"checkpoint.pt", "config.yaml"}
    done = train("data=images.npz", "recipe.steps=8", "grid=1")
    assert done.code == 0, done.err
    assert [row["step"] for row in rows()] == [5, 8]


@pytest.mark.slow
def test_folder_and_tar(train: Run, images: np.ndarray) -> None:
    Path("folder").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(f"folder/{i:02d}.png")
    with tarfile.open("images.tar", "w") as archive:
        archive.add("folder")
    for source in ("folder", "images.tar"):
        done = train(f"data={source}", "recipe.steps=1", "grid=1", f"output=from-{source}")
        assert done.code == 0, done.err
    first, second = (Path(f"from-{s}/prior.safetensors").read_bytes() for s in ("folder", "images.tar"))
    assert first == second


@pytest.mark.usefixtures("images")
def test_another_network_in_the_same_folder(train: Run) -> None:
    train("data=images.npz", "recipe.steps=2", "grid=1")
    before = Path("made/config.yaml").read_text()
    done = train("data=images.npz", "recipe.steps=4", "recipe.unet.widths=[8,24]")
    assert done.code == 2
    assert done.err.startswith("invdiff: error: made/checkpoint.pt holds another network")
    assert done.err.count("\n") == 1
    assert Path("made/config.yaml").read_text() == before, "the configuration of the run that is there was overwritten"


@pytest.mark.usefixtures("images")
def test_a_damaged_checkpoint(train: Run) -> None:
    train("data=images.npz", "recipe.steps=2", "grid=1")
    Path("made/checkpoint.pt").write_bytes(b"nothing of the kind")
    done = train("data=images.npz", "recipe.steps=4", "grid=1")
    assert done.code == 2
    assert done.err.startswith("invdiff: error: ")
    assert done.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("images")
def test_it_learns(train: Run) -> None:
    train("data=images.npz", "recipe.steps=150", "recipe.validate_every=50", "grid=4", "recipe.ema=0.9")
    assert rows()[-1]["mean_psnr"] > rows()[0]["mean_psnr"] + 0.5
