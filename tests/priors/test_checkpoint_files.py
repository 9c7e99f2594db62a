"""Files of others: what is read, what is refused, and that nothing in them runs."""

import hashlib
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

import invdiff.configs
from invdiff.priors.networks.checkpoint_files import SOURCES, build, read_checkpoint, read_tensors

WEIGHTS = OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.tensor([1.0, 2.0]))


class Evil:
    """A pickle of this writes a file when it is run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "run")


class Foreign(nn.Linear):
    """A network of a class that the reader does not have."""


def write(content: object, path: Path, how: str) -> Path:
    if how == "safetensors":
        save_file(dict(content), str(path))  # type: ignore[call-overload]
    elif how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    return path


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r"checkpoint|pickle|holds|network|entry") as caught:
        call()
    words = str(caught.value)
    assert "\n" not in words
    assert len(words) < 400
    return words


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "safetensors"])
def test_tensors_are_read_as_they_are(tmp_path: Path, how: str) -> None:
    found = read_tensors(write(WEIGHTS, tmp_path / f"a.{'safetensors' if how == 'safetensors' else 'pt'}", how))
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in WEIGHTS.items())


def test_half_precision_and_data_parallel_names(tmp_path: Path) -> None:
    half = {f"module.{name}": tensor.half() for name, tensor in WEIGHTS.items()}
    found = read_tensors(write(half, tmp_path / "a.pt", "zip"))
    assert found.keys() == WEIGHTS.keys()
    assert found["weight"].dtype == torch.float32


def test_one_of_several_entries(tmp_path: Path) -> None:
    path = write({"step": 3, "ema": WEIGHTS}, tmp_path / "a.pt", "zip")
    assert torch.equal(read_tensors(path, key="ema")["bias"], WEIGHTS["bias"])
    assert "step, ema" in refusal(lambda: read_tensors(path))
    assert "step, ema" in refusal(lambda: read_tensors(path, key="model"))
    assert "it is a list" in refusal(lambda: read_tensors(write([1], tmp_path / "b.pt", "zip")))


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_nothing_in_a_malicious_pickle_runs(tmp_path: Path, how: str) -> None:
    mark = tmp_path / "mark"
    path = write({**WEIGHTS, "extra": Evil(mark)}, tmp_path / "a.pt", how)
    words = refusal(lambda: read_tensors(path))
    assert all(part in words for part in ("it names", "none of its code was run", "trust_pickle=true"))
    refusal(lambda: read_tensors(path, trust_pickle=True))
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists(), "it would have left its mark"


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_weights_of_a_pickled_network_need_an_opt_in(tmp_path: Path, how: str) -> None:
    path = write(Foreign(3, 2), tmp_path / "a.pt", how)
    assert "Foreign" in refusal(lambda: read_tensors(path))
    found = read_tensors(path, trust_pickle=True)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {"weight": (2, 3), "bias": (2,)}


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, how: str) -> None:
    for keep in [0, 1, 40, 0.5, 0.98]:
        large = {"weight": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))}
        path = write(large, tmp_path / f"a.{'safetensors' if how == 'safetensors' else 'pt'}", how)
        data = path.read_bytes()
        path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
        for trust_pickle in (False, True):
            words = refusal(lambda: read_checkpoint(path, trust_pickle=trust_pickle))  # noqa: B023, called at once
            assert "cannot be read" in words
            assert str(path) in words


def test_a_header_that_lies_about_its_length(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "cannot be read" in refusal(lambda: read_checkpoint(path))


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    for bad in [float("nan"), float("inf")]:
        path = write({**WEIGHTS, "bias": torch.tensor([1.0, bad])}, tmp_path / "a.pt", "zip")
        words = refusal(partial(read_tensors, path))
        assert "NaN or infinity in bias" in words


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"weight": WEIGHTS["weight"]}, "lacks bias"),
        ({**WEIGHTS, "scale": torch.ones(1)}, "has no scale"),
        ({**WEIGHTS, "weight": torch.ones(2, 4)}, r"weight is (2, 4) instead of (2, 3)"),
    ],
)
def test_the_first_weight_that_does_not_fit_is_named(weights: dict[str, Tensor], words: str) -> None:
    assert words in refusal(lambda: build(lambda: nn.Linear(3, 2), weights, "a.pt"))


def test_a_network_is_built_without_random_numbers() -> None:
    before = torch.get_rng_state()
    network = build(lambda: nn.Linear(3, 2), WEIGHTS, "a.pt")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(network.weight, WEIGHTS["weight"])
    assert not network.training
    assert not network.weight.requires_grad


def test_a_missing_file_says_where_it_is_to_be_had(tmp_path: Path) -> None:
    words = refusal(lambda: read_checkpoint(tmp_path / "ffhq_10m.pt"))
    assert SOURCES["ffhq_10m.pt"].page in words
    assert "not found" in refusal(lambda: read_checkpoint(tmp_path / "mine.pt"))


def test_a_hash_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    path = write(WEIGHTS, tmp_path / "a.pt", "zip")
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_tensors(path, sha256=right.upper()).keys() == WEIGHTS.keys()
    path.write_bytes(path.read_bytes()[:-1])
    words = refusal(lambda: read_tensors(path, sha256=right))
    now = hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(part in words for part in ("another file", str(path), right, now, "sha256=null"))


def test_every_file_that_a_config_names_has_a_known_source() -> None:
    folder = Path(next(iter(invdiff.configs.__path__))) / "prior"
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")}
    named = {name: str(config.get("weights") or config.get("path")) for name, config in configs.items()}
    named = {name: file for name, file in named.items() if file.endswith((".pt", ".pth", ".pkl"))}
    assert {"adm_ffhq", "adm_imagenet256", "edm_ffhq64", "inversebench_fwi", "ncsnpp_celebahq256"} <= named.keys()
    assert set(named.values()) <= SOURCES.keys()
    for name in named:
        assert "sha256" in configs[name], f"configs/prior/{name}.yaml says no hash, null where none is known"
