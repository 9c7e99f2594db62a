"""Text-conditional pipelines from the command line: `prior=FOLDER prior.prompt=...`."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import SHAPES, write

Run = Callable[..., Any]
STEPS = 3


@pytest.fixture
def picture(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="the extra invdiff[diffusers] is not installed")
    pytest.importorskip("transformers", reason="the extra invdiff[diffusers] is not installed")
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")


@pytest.fixture
def run(invdiff: Run, picture: None, without_comparison: None) -> Run:
    """`invdiff reconstruct` of a mask of the picture, with a pipeline in `model`."""
    common = [f"sampler.schedule.steps={STEPS}", "operator=inpainting", "input=a.png", "num_samples=1", "output=out"]
    return lambda *words: invdiff("reconstruct", "prior=./model", "sampler=dps", *common, *words)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_a_pipeline_with_a_prompt(shape: str, run: Run, tmp_path: Path, metrics: Run) -> None:
    """Guidance is counted, and the run says that it biases."""
    write(shape, tmp_path / "model")
    done = run("prior.prompt=a cat, (it's big), [c]", "prior.guidance=3")
    assert done.code == 0, done.err
    assert "a cat, (it's big), [c]" in (tmp_path / "out" / "config.yaml").read_text()
    assert "guidance=3 biases the score" in done.out
    guided = metrics("out")["cost"]
    done = run("prior.prompt=a cat", "output=plain")
    assert done.code == 0, done.err
    assert "biases" not in done.out
    plain = metrics("plain")["cost"]
    assert guided["forwards"] == plain["forwards"] * (1 if shape == "flux" else 2) > 0
    assert np.load(tmp_path / "out" / "samples.npz")["samples"].shape == (1, 1, 3, 16, 16)


@pytest.mark.slow
def test_folders_that_cannot_be_used(run: Run, tmp_path: Path) -> None:
    write("flux", tmp_path / "model")
    said = {
        "prior.negative_prompt=dog": "guidance of this network is distilled",
        "prior.guidance=-1": "guidance must be >= 0",
        "prior.settings.class_label=1": "class_label must be null",
    }
    for word, words in said.items():
        done = run(word)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert words in done.err
    weights = tmp_path / "model" / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    assert "cannot read the CLIPTextModel" in run().err
    shutil.rmtree(tmp_path / "model" / "text_encoder")
    assert "text_encoder, which must hold a CLIPTextModel" in run().err
    index = tmp_path / "model" / "model_index.json"
    index.write_text(index.read_text().replace("CLIPTextModel", "OtherModel"))
    assert "must be one of CLIPTextModel" in run().err


def test_weights_that_are_pickles(run: Run, tmp_path: Path) -> None:
    """Nothing in them runs."""
    write("sd15", tmp_path / "model")
    (tmp_path / "model" / "text_encoder" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "model" / "text_encoder" / "pytorch_model.bin")
    done = run("prior.prompt=a cat")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "cannot read the CLIPTextModel" in done.err
