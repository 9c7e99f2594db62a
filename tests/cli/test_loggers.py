"""`log=`: what is read back from the files of TensorBoard and wandb is what the run found out."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from invdiff.benchmark.store import Store

Run = Callable[..., Any]

BENCHMARK = (
    "benchmark",
    "prior=digits",
    "samplers=[{daps:{schedule:{steps:2}}}]",
    "operators=[denoising]",
    "data=[{generated:{steps:1,count:3}}]",
    "num_samples=1",
    "compute.max_rows=2",
    "output=out",
)
NAME = "denoising/daps/2_steps"


def events(folder: str) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(folder)
    found.Reload()
    return found


def scalars(found: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(tag)]


@pytest.mark.slow
def test_a_benchmark_in_tensorboard(invdiff: Run) -> None:
    done = invdiff(*BENCHMARK, "log=[tensorboard]")
    assert (done.code, done.err) == (0, "")
    found, table = events("out/tensorboard"), Store(Path("out")).table()
    psnr = table["psnr"].to_pylist()
    curve = scalars(found, f"{NAME}/psnr")
    assert [step for step, _ in curve] == [2, 3], "by rows that are stored"
    np.testing.assert_allclose([value for _, value in curve], [np.mean(psnr[:2]), psnr[2]], rtol=1e-6)
    ((step, value),) = scalars(found, "leaderboard/denoising/own settings/daps/psnr")
    assert (step, value) == (3, pytest.approx(np.mean(psnr)))
    assert f"{NAME}/mean_2" in found.Tags()["images"]
    assert (found.Images(f"{NAME}/mean_2")[0].height, found.Images(f"{NAME}/mean_2")[0].width) == (32, 32)
    config = found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "seed: 0" in config


def test_training_in_tensorboard(invdiff: Run) -> None:
    rng = np.random.default_rng(0)
    np.savez("images.npz", images=rng.integers(0, 255, (8, 16, 16), dtype=np.uint8))
    recipe = {"unet.widths": "[8,16]", "unet.blocks": "[1,1]", "shape": "[1,16,16]", "crop": 16, "batch": 2}
    recipe |= {"held_out": 2, "validate_every": 2, "warmup": 2, "steps": 4}
    words = [f"recipe.{key}={value}" for key, value in recipe.items()]
    done = invdiff("train", "data=images.npz", "recipe=digits", *words, "grid=1", "output=made", "log=[tensorboard]")
    assert (done.code, done.err) == (0, "")
    found = events("made/tensorboard")
    assert [step for step, _ in scalars(found, "loss")] == [1, 2, 3, 4]
    rows = [json.loads(line) for line in Path("made/log.jsonl").read_text().splitlines()]
    expected = [(row["step"], pytest.approx(row["mean_psnr"])) for row in rows]
    assert scalars(found, "validation/mean_psnr") == expected


def test_fitting_a_mixture_in_tensorboard(invdiff: Run) -> None:
    rng = np.random.default_rng(0)
    np.savez("images.npz", images=rng.integers(0, 255, (24, 4, 4), dtype=np.uint8))
    words = ["prior=mixture", "mixture.components=2", "mixture.rank=1", "mixture.iterations=2", "mixture.held_out=4"]
    done = invdiff("train", "data=images.npz", *words, "grid=1", "output=made", "log=[tensorboard]")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in Path("made/log.jsonl").read_text().splitlines()]
    expected = [(row["iteration"], pytest.approx(row["held_out"], rel=1e-5)) for row in rows]
    assert scalars(events("made/tensorboard"), "held_out") == expected


@pytest.mark.parametrize("command", [BENCHMARK, ("train", "data=images.npz", "output=out")])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[tensorbord]", ["unknown logger 'tensorbord'", "tensorboard, wandb"]),
        ("tensorboard", ["log must be a list", "[tensorboard]", "got tensorboard"]),
        ("[wandb]", ["log=[wandb] needs the package wandb", "pip install 'invdiff[wandb]'"]),
    ],
)
def test_what_cannot_be_logged_to(
    invdiff: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], value: str, words: list[str]
) -> None:
    plain = find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "wandb" else plain(name, *rest))
    done = invdiff(*command, f"log={value}")
    assert done.code == 2
    assert done.err.count("\n") == 1
    for word in words:
        assert word in done.err
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_benchmark_in_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    environment = {**os.environ, "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-m", "invdiff", *BENCHMARK, "log=[wandb]"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    (file,) = (tmp_path / "out/wandb").glob("offline-run-*/run-*.wandb")
    seen = wandb_rows(file)
    psnr = Store(tmp_path / "out").table()["psnr"].to_pylist()
    assert seen[f"{NAME}/psnr"] == [pytest.approx(np.mean(psnr[:2])), pytest.approx(psnr[2])]
    assert seen["leaderboard/denoising/own settings/daps/psnr"] == [pytest.approx(np.mean(psnr))]
    assert OmegaConf.load(tmp_path / "out/config.yaml").log == ["wandb"]
    assert any("mean_2" in path.name for path in (tmp_path / "out/wandb").rglob("*.png"))


def wandb_rows(file: Path) -> dict[str, list[float]]:
    """Every number of every name in the file of a run."""
    from wandb.proto import wandb_internal_pb2

    seen: dict[str, list[float]] = {}
    for data in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            value = json.loads(item.value_json)
            if isinstance(value, float):
                seen.setdefault(item.key or "/".join(item.nested_key), []).append(value)
    return seen


def leveldb_records(data: bytes) -> list[bytes]:
    """Records of a file in LevelDB's log format, which wandb (0.31) writes and has no reader for in Python.

    A head of seven bytes; then blocks of 32 kB with pieces in them: checksum (4 bytes), length (2), kind (1), content.
    """
    records, at, content = [], 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left  # no room for the head of a piece: filled up with zeros
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        content += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            records.append(content)
            content = b""
    return records
