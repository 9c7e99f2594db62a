"""Fingerprints: the same settings have the same one, however they are written; other contents have another."""

from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff.fingerprint import fingerprint, of_image, of_module, settings_of, with_contents
from invdiff.priors import GaussianPrior
from invdiff.samplers import DAPS, DPS
from invdiff.schedules import EDM, VP


def test_defaults_and_the_order_of_keys_do_not_matter() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert (
        fingerprint({"a": [1, {"b": 2.0}]})
        == fingerprint({"a": [1.0, {"b": 2}]})
        != fingerprint({"a": [1, {"b": 2.5}]})
    )
    assert fingerprint({"a": True}) != fingerprint({"a": 1})
    assert settings_of(DPS()) == settings_of(DPS(schedule=DPS().schedule, clip=DPS().clip))
    kinds = [DPS(), DPS(zeta=7.0), DPS(schedule=VP(steps=7)), DAPS(), DAPS(schedule=EDM(steps=7)), DAPS(tau=0.7)]
    assert len({fingerprint(settings_of(sampler)) for sampler in kinds}) == len(kinds)


def test_files_are_known_by_their_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("here", "there"):
        Path(folder).mkdir()
        Path(folder, "mask.npy").write_bytes(b"mask")
        Path(folder, "camera.py").write_text("class Camera: ...")
    node = {"mask": "here/mask.npy", "list": [{"file": "here/camera.py:Camera"}], "keep": 0.3, "text": "no file"}
    moved = {"mask": "there/mask.npy", "list": [{"file": "there/camera.py:Camera"}], "keep": 0.3, "text": "no file"}
    assert with_contents(node) == with_contents(moved)
    assert with_contents(node)["keep"] == 0.3
    assert with_contents(node)["text"] == "no file"
    for changed in ("mask.npy", "camera.py"):
        before = with_contents(moved)
        Path("there", changed).write_text("another")
        assert with_contents(moved) != before
    assert with_contents("here/camera.py:Camera") != with_contents("here/camera.py:Other")


def test_weights_and_images() -> None:
    prior, other = GaussianPrior.example(), GaussianPrior.example()
    assert of_module(prior) == of_module(other)
    other.mean[0, 0, 0] += 1e-6
    assert of_module(prior) != of_module(other)
    assert of_module(torch.nn.Linear(2, 2).bfloat16()) != of_module(prior)
    x = np.zeros((1, 4, 4), np.float32)
    assert len({of_image(x), of_image(x + 1), of_image(x.reshape(1, 2, 8)), of_image(x.astype(np.float64))}) == 4
    assert of_image(x) == of_image(np.asfortranarray(x))
