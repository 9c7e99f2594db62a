"""Bad input: one line on stderr that says what and what to do, exit code 2, nothing left behind."""

import errno
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from invdiff.engine.driver import Interrupted
from invdiff.samplers import DAPS

Run = Callable[..., Any]


def _array(path: str, array: np.ndarray) -> None:
    np.save(path, array)


def _deep_colour(path: str) -> None:
    """A 16-bit RGB PNG, which Pillow would open with half of its bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\x12\x34" * 3 * 32) * 32
    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + data)


@pytest.fixture
def inputs(tmp_path: Path, digits: np.ndarray, colour_weights: Path) -> None:
    """Everything that the cases below point at."""
    os.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").write_text("not a folder\n")
    Path("text.png").write_text("not an image\n")
    Path("text.safetensors").write_text("not weights, and longer than the header of such a file would be\n")
    image = Image.fromarray(digits[0])
    image.save("digit.png")
    Path("cut.png").write_bytes(Path("digit.png").read_bytes()[:-80])
    Image.fromarray(np.zeros((40, 60), np.uint8)).save("large.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save("colour.png")
    _deep_colour("deep.png")
    Path("mixed").mkdir()
    image.save("mixed/a.png")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save("mixed/b.png")
    y = digits[:1, None] / 255
    _array("y.npy", y)
    _array("square.npy", y[..., :30])
    _array("flat.npy", y.reshape(-1))
    _array("complex.npy", y.astype(np.complex64))
    _array("negative.npy", y - 0.5)
    _array("nan.npy", np.where(np.arange(1024).reshape(1, 1, 32, 32) == 5, np.nan, y))
    _array("objects.npy", np.array([{}], dtype=object))
    _array("mask.npy", np.ones((16, 16)))
    tensors = load_file(colour_weights)
    save_file(tensors, "headless.safetensors")
    weights = Path(colour_weights).read_bytes()
    Path("cut.safetensors").write_bytes(weights[: len(weights) // 2])
    Path("nan.safetensors").write_bytes(weights[:-2] + np.array(np.nan, np.float16).tobytes())
    Path("colour.safetensors").write_bytes(weights)


DIGIT = "input=digit.png"
COLOUR = "prior.weights=colour.safetensors"
CASES: dict[str, tuple[list[str], list[str]]] = {
    "missing file": (["input=absent.png"], ["no such file or folder: absent.png"]),
    "corrupt image": (["input=cut.png"], ["not an image: cut.png"]),
    "several inputs": (["input=[digit.png,large.png]"], ["digit is 32x32, large is 40x60"]),
    "size of the prior": (["input=large.png"], ["(1, 32, 32)", "(1, 40, 60)", "size=32"]),
    "example of another prior": (["data=cat"], ["cat is colour", "data=generated"]),
    "both": ([DIGIT, "measurement=y.npy"], ["input=", "measurement=", "not both"]),
    "missing measurement": (["measurement=absent.npy"], ["no such file: absent.npy"]),
    "pickled measurement": (["measurement=objects.npy"], ["objects.npy", "run code"]),
    "wrong measurement": (["measurement=square.npy"], ["1x1x32x30", "1x32x32"]),
    "unknown operator": (["operator=mri3"], ["unknown operator 'mri3'", "inpainting"]),
    "unknown sampler": (
        ["sampler=dapss"],
        ["unknown sampler 'dapss'; did you mean daps?", "invdiff list shows all"],
    ),
    "unknown option": (
        ["sampler=dps", "sampler.zta=1"],
        ["unknown option 'sampler.zta'; did you mean sampler.zeta?", "--cfg job"],
    ),
    "unknown group": (["smapler=dps"], ["unknown option 'smapler'; did you mean sampler?"]),
    "a space": (["output=a b("], ["key=value"]),
    "a sweep without -m": (["seed=1,2"], ["'seed=1,2'", "-m"]),
    "dashes": (["--num_samples=3"], ["without dashes: num_samples=3"]),
    "half a flag": (["--cfg"], ["--cfg", "expected one argument"]),
    "no sample": (["num_samples=0"], ["num_samples", "integer >= 1, got 0"]),
    "no evaluation": (["evaluation=null"], ["evaluation.best_of must be true or false"]),
    "mask": ([DIGIT, "operator.mask=mask.npy"], ["mask is 16x16", "32x32"]),
    "a word for a number": ([DIGIT, "operator.keep=much"], ["operator.keep must be a number", "much"]),
    "half a step": (
        [DIGIT, "sampler=daps", "sampler.schedule.steps=2.5"],
        ["sampler.schedule.steps must be an integer", "got 2.5"],
    ),
    "no noise": ([DIGIT, "noise.sigma=0"], ["sigma must be positive", "got 0"]),
    "an impossible pair": (
        [DIGIT, "noise=poisson", "sampler=daps", "sampler.inner=closed_form", "recommended=false"],
        ["DAPS needs Gaussian noise (this is PoissonNoise)", "compatible samplers: ", "dps"],
    ),
    "no such device": ([DIGIT, "compute.device=foo"], ["compute.device=foo"]),
    "corrupt weights": ([DIGIT, "prior.weights=text.safetensors"], ["cannot be read: text.safetensors"]),
    "output under a file": ([DIGIT, "output=file/deeper/out"], ["file/deeper/out"]),
    "no output": ([DIGIT, "output=null"], ["output", "null"]),
}


@pytest.mark.usefixtures("inputs")
@pytest.mark.parametrize("case", CASES)
def test_bad_input(reconstruct: Run, files: Run, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words, said = CASES[case]
    before = files()
    # No case may come as far as the first network call of the sampler.
    monkeypatch.setattr("invdiff.samplers.base.run", lambda *_, **__: pytest.fail("work began"))
    done = reconstruct("output=some/new/folder", *words)
    assert done.code == 2
    assert all(line.startswith("input= SIMULATES") for line in done.out.splitlines())
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("invdiff: error: ")
    for part in said:
        assert part in lines[0]
    assert len(lines[0]) < 500
    assert files() == before, "something was left behind"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.usefixtures("inputs")
def test_cuda_where_there_is_none(reconstruct: Run, files: Run) -> None:
    before = files()
    done = reconstruct(DIGIT, "compute.device=cuda")
    assert done.code == 2
    assert done.err.startswith("invdiff: error: compute.device=cuda cannot be used here")
    assert done.err.count("\n") == 1
    assert files() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frobnicate"], ["unknown command 'frobnicate'", "commands: reconstruct, "]),
        (["list", "foo"], ["unknown list 'foo'", "samplers"]),
        (["--foo"], ["--foo"]),
        (["train"], ["give data="]),
        (["train", "data=absent.npz"], ["absent.npz"]),
        (["train", "data=bad.npz"], ["cannot be read", "bad.npz"]),
        (["train", "data=small", "recipe=digits", "recipe.held_out=1"], ["28x28", "pad_to=32"]),
        (["train", "data=small", "recipe=digits", "pad_to=32"], ["hold out 64 of 3"]),
        (["train", "data=small", "recipe=digits", "recipe.batch=x"], ["recipe.batch must be an integer"]),
        (["train", "data=small", "recipe=digits", "grid=0"], ["grid must be an integer >= 1, got 0"]),
    ],
)
def test_bad_input_elsewhere(invdiff: Run, files: Run, words: list[str], said: list[str]) -> None:
    Path("small").mkdir()
    for name in "abc":
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(f"small/{name}.png")
    Path("text").mkdir()
    for name in ("file", "bad.npz", "bad.tar", "text/a.png"):
        Path(name).write_text("PK, but not really")
    before = files()
    done = invdiff(*words, *(["output=new/folder"] if words[0] == "train" else []))
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("invdiff: error: ")
    assert done.err.count("\n") == 1, done.err
    for part in said:
        assert part in done.err
    assert files() == before


@pytest.mark.usefixtures("inputs")
def test_traceback_on_request(reconstruct: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="seed must be"):
        reconstruct("seed=-1")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_our_own_mistakes_keep_their_traceback(reconstruct: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AttributeError("a bug")

    monkeypatch.setattr(DAPS, "sample", broken)
    with pytest.raises(AttributeError, match="a bug"):
        reconstruct("data=generated", "data.steps=1")
    assert "HYDRA_FULL_ERROR" not in os.environ
    assert not Path("out").exists()


OUT_OF_MEMORY = [
    (torch.OutOfMemoryError("CUDA"), "max_rows"),
    (MemoryError(), "memory"),
    (
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        "memory",
    ),
]


@pytest.mark.parametrize(("error", "words"), OUT_OF_MEMORY)
def test_out_of_memory(reconstruct: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(DAPS, "sample", full)
    done = reconstruct("data=generated", "data.steps=1")
    assert done.code == 2
    assert done.err.startswith("invdiff: error: out of memory")
    assert words in done.err
    assert not Path("out").exists()


def test_an_unwritable_folder(reconstruct: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before the work, not after it. (Root may write everywhere: the system is asked through a stand-in.)"""
    Path("out").mkdir()

    def refused(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("invdiff.io.output.held", refused)
    monkeypatch.setattr(DAPS, "sample", lambda *_, **__: pytest.fail("work began"))
    done = reconstruct("data=generated", "data.steps=1")
    assert (done.code, done.err) == (2, "invdiff: error: Permission denied: out\n")
    assert Path("out").is_dir(), "a folder of the user's was removed"


def test_nothing_finished_leaves_nothing(reconstruct: Run, monkeypatch: pytest.MonkeyPatch, files: Run) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise Interrupted(None, 0)

    monkeypatch.setattr(DAPS, "sample", interrupted)
    done = reconstruct("data=generated", "data.steps=1", "output=some/new/folder")
    assert done.code == 130
    assert done.err == "invdiff: interrupted after 0 finished image(s)\n"
    assert files() == set()
