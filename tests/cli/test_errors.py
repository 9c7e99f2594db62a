"""Bad input: one line on stderr that says what and what to do, exit code 2, nothing left behind."""

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
    # what goes in
    "missing file": (["input=absent.png"], ["no such file or folder: absent.png"]),
    "folder without images": (["input=empty"], ["no images in empty", ".png"]),
    "not an image": (["input=text.png"], ["not an image: text.png"]),
    "not a picture's name": (["input=file"], ["not an image: file"]),
    "corrupt image": (["input=cut.png"], ["not an image: cut.png"]),
    "16-bit colour": (["input=deep.png"], ["without loss", "deep.png"]),
    "several inputs": (["input=[digit.png,large.png]"], ["input must be one file or a folder"]),
    "images of several sizes": (["input=mixed"], ["a is 32x32, b is 40x40", "size="]),
    "size of the prior": (["input=large.png"], ["(1, 32, 32)", "(1, 40, 60)", "size=32"]),
    "channels of the prior": (["input=colour.png"], ["colour is colour (3 channels)", "grey (1 channels)"]),
    "example of another prior": (["data=cat"], ["cat is colour", "data=generated"]),
    "grey image, colour prior": ([DIGIT, COLOUR], ["digit is grey", "prior="]),
    "generated without a shape": (["data=generated", COLOUR], ["data=generated", "fixed size", "input="]),
    "none generated": (["data=generated", "data.count=0"], ["count", "got 0"]),
    "both": ([DIGIT, "measurement=y.npy"], ["input=", "measurement=", "not both"]),
    "missing measurement": (["measurement=absent.npy"], ["no such file: absent.npy"]),
    "image as measurement": (["measurement=digit.png"], ["digit.png", "input="]),
    "NaN measurement": (["measurement=nan.npy", "operator=denoising"], ["1 NaN or infinite value"]),
    "pickled measurement": (["measurement=objects.npy"], ["objects.npy", "run code"]),
    "wrong measurement": (["measurement=square.npy"], ["1x1x32x30", "1x32x32"]),
    "wrong axes": (["measurement=flat.npy"], ["1024", "1x32x32"]),
    "measurement of another prior": (["measurement=y.npy", COLOUR], ["3 channel", "got 1"]),
    "measurement of any size": (["measurement=flat.npy", COLOUR], ["1024", "(C, H, W)"]),
    "complex where real is needed": (
        ["measurement=complex.npy", "operator=denoising"],
        ["Denoising measures real numbers, but y is complex"],
    ),
    "real where complex is needed": (["measurement=y.npy", "operator=mri"], ["MRI measures complex numbers, but y is"]),
    "counts below zero": (["measurement=negative.npy", "operator=denoising", "noise=poisson"], ["must be >= 0"]),
    "counts of a complex measurement": ([DIGIT, "operator=mri", "noise=poisson"], ["got a complex one"]),
    # what is chosen
    "no views": ([DIGIT, "operator=ct", "operator.views=0"], ["views", "from 1 on, got 0"]),
    "no kernel": ([DIGIT, "operator=blur"], ["kernel is required", "operator.kernel=kernel.npy"]),
    "too much acceleration": ([DIGIT, "operator=mri", "operator.acceleration=0.5"], ["at least 1", "0.5"]),
    "unknown operator": (["operator=mri3"], ["unknown operator 'mri3'", "inpainting"]),
    "unknown sampler": (["sampler=foo"], ["unknown sampler 'foo'", "auto, daps, dps"]),
    "unknown prior": (["prior=foo"], ["unknown prior 'foo'", "digits"]),
    "unknown noise": (["noise=foo"], ["unknown noise 'foo'", "gaussian"]),
    "unknown data": (["data=foo"], ["unknown data 'foo'", "generated"]),
    "unknown experiment": (["experiment=foo"], ["unknown experiment 'foo'"]),
    "unknown option": (["sampler.zeta=1"], ["unknown option 'sampler.zeta'", "--cfg job"]),
    "unknown group": (["smapler=dps"], ["unknown option 'smapler'"]),
    "no equals sign": (["foo"], ["'foo'", "key=value"]),
    "a space": (["output=a b("], ["key=value"]),
    "a sweep without -m": (["seed=1,2"], ["'seed=1,2'", "-m"]),
    "dashes": (["--num_samples=3"], ["unknown flag '--num_samples=3'", "without dashes"]),
    "half a flag": (["--cfg"], ["--cfg takes job, hydra, all"]),
    # values
    "no sample": (["num_samples=0"], ["num_samples", "integer >= 1, got 0"]),
    "half a sample": (["num_samples=1.5"], ["num_samples", "got 1.5"]),
    "a truth value": (["num_samples=true"], ["num_samples", "got True"]),
    "negative seed": (["seed=-1"], ["seed", "integer >= 0, got -1"]),
    "no number": (["seed=x"], ["seed", "got x"]),
    "no truth value": (["evaluation.best_of=4"], ["evaluation.best_of must be true or false, got 4"]),
    "no evaluation": (["evaluation=null"], ["evaluation.best_of must be true or false"]),
    "small size": (["size=3"], ["size", "got 3"]),
    "keep": ([DIGIT, "operator.keep=1.5"], ["keep", "(0, 1]", "1.5"]),
    "keep and box": ([DIGIT, "operator.keep=0.5", "operator.box=4"], ["one of keep, box, lines, text and mask"]),
    "box": ([DIGIT, "operator.box=300"], ["box", "32x32"]),
    "mask": ([DIGIT, "operator.mask=mask.npy"], ["mask is 16x16", "32x32"]),
    "missing mask": ([DIGIT, "operator.mask=absent.png"], ["absent.png"]),
    "factor": ([DIGIT, "operator=super_resolution", "operator.factor=5"], ["factor=5", "32x32"]),
    "a word for a number": ([DIGIT, "operator.keep=much"], ["operator.keep must be a number", "much"]),
    "half a step": (
        [DIGIT, "sampler=daps", "sampler.schedule.steps=2.5"],
        ["sampler.schedule.steps", "whole number", "2.5"],
    ),
    "no step": ([DIGIT, "sampler=daps", "sampler.schedule.steps=0"], ["steps"]),
    "too many steps": ([DIGIT, "sampler=dps", "sampler.schedule.steps=2000"], ["1000", "2000"]),
    "negative weight": ([DIGIT, "sampler=dps", "sampler.zeta=-1"], ["zeta", "-1"]),
    "no tau": ([DIGIT, "sampler=daps", "sampler.tau=0"], ["tau", "got 0"]),
    "another inner step": ([DIGIT, "sampler=daps", "sampler.inner=foo"], ["sampler.inner", "closed_form", "foo"]),
    "no noise": ([DIGIT, "noise.sigma=0"], ["sigma must be positive", "got 0"]),
    "negative noise": ([DIGIT, "noise.sigma=-0.1"], ["sigma must be positive"]),
    "NaN noise": ([DIGIT, "noise.sigma=nan"], ["sigma must be positive"]),
    # what cannot be done
    "an impossible pair": (
        [DIGIT, "noise=poisson", "sampler=daps", "sampler.inner=closed_form"],
        ["DAPS needs Gaussian noise (this is PoissonNoise)", "samplers that would do: ", "dps"],
    ),
    "no such precision": ([DIGIT, "compute.precision=foo"], ["precision", "bfloat16", "foo"]),
    "no such device": ([DIGIT, "compute.device=foo"], ["compute.device=foo"]),
    "no rows": ([DIGIT, "compute.max_rows=0"], ["max_rows", "0"]),
    # weights
    "missing weights": ([DIGIT, "prior.weights=absent.safetensors"], ["not found: absent.safetensors"]),
    "corrupt weights": ([DIGIT, "prior.weights=text.safetensors"], ["cannot be read: text.safetensors"]),
    "truncated weights": ([DIGIT, "prior.weights=cut.safetensors"], ["cannot be read: cut.safetensors"]),
    "foreign weights": ([DIGIT, "prior.weights=headless.safetensors"], ["headless.safetensors", "invdiff train"]),
    "NaN weights": ([DIGIT, "prior.weights=nan.safetensors"], ["NaN or infinity", "nan.safetensors"]),
    "image as weights": ([DIGIT, "prior.weights=digit.png"], ["cannot be read: digit.png"]),
    # what comes out
    "output under a file": ([DIGIT, "output=file/deeper/out"], ["file/deeper/out"]),
    "output is a file": ([DIGIT, "output=file"], ["file"]),
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
    assert done.out == ""
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
        (["frobnicate"], ["unknown command 'frobnicate'", "commands are reconstruct, "]),
        (["list", "foo"], ["unknown list 'foo'", "samplers"]),
        (["--foo"], ["--foo"]),
        (["train"], ["give data="]),
        (["train", "data=absent.npz"], ["absent.npz"]),
        (["train", "data=absent"], ["folder", "absent"]),
        (["train", "recipe=foo", "data=x"], ["unknown recipe 'foo'", "digits"]),
        (["train", "data=file"], ["file"]),
        (["train", "data=bad.npz"], ["damaged", "bad.npz"]),
        (["train", "data=bad.tar"], ["damaged", "bad.tar"]),
        (["train", "data=text", "recipe=digits"], ["not an image", "a.png"]),
        (["train", "data=small", "recipe=digits", "recipe.held_out=1"], ["28x28", "pad_to=32"]),
        (["train", "data=small", "recipe=digits", "recipe.held_out=9"], ["pad_to=32"]),
        (["train", "data=small", "recipe=digits", "pad_to=32"], ["hold out 64 of 3"]),
        (["train", "data=small", "recipe=digits", "recipe.batch=x"], ["recipe.batch", "whole number"]),
        (["train", "data=small", "recipe=digits", "recipe.crop=33"], ["crop=33", "multiple of 8"]),
        (["train", "data=small", "recipe=digits", "grid=0"], ["grid", "got 0"]),
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


@pytest.mark.parametrize(("error", "words"), [(torch.OutOfMemoryError("CUDA"), "max_rows"), (MemoryError(), "memory")])
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
    monkeypatch.setattr(os, "access", lambda *_: False)
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
