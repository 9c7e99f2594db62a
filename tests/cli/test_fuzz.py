"""Random edits of commands, options and files: one line or a result; no traceback, no hang, no file elsewhere."""

import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files as resources
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from invdiff.cli.slips import sampler_fields
from invdiff.io import BadInput

Run = Callable[..., Any]

SECONDS, MEMORY = 150, 6 << 30  # of the processor for one command; address space beyond what the process has
WAIT = 1500  # seconds on the clock: a command that waits for ever
NUMBERS = [
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1",
    "2",
    "3.5",
    "1e-300",
    "1e308",
    "1e19",
    "99999999999",
    "-0.0",
    "07",
    "1e9",
]
WORDS = [
    "much",
    "''",
    "null",
    "true",
    "[]",
    "{}",
    "[1,2,3]",
    "[[1]]",
    "{a:1}",
    "'a b'",
    "ü",
    "../x",
    "${seed}",
    "${oc.env:HOME}",
    "/",
    ".",
]
COMMANDS = {
    "reconstruct": ["prior=digits", "num_samples=1", "data=generated", "data.steps=1"],
    "check-measurement": ["prior=digits", "measurement=y.npy", "operator=denoising"],
    "restore": ["photo=pictures/a.png"],
    "check-operator": ["image_shape=[1,32,32]"],
    "check-prior": ["prior=digits", "grid=0", "contract=false", "images=1"],
    "benchmark": ["samplers=[dps]", "images=1", "num_samples=1"],
    "calibrate": ["images=20", "num_samples=2", "sampler=dps"],
    "tune": ["images=2", "num_samples=2", "trials=1"],
    "train": ["recipe=digits", "data=pictures"],
    "list": ["samplers"],
    "help": ["ct"],
}
SHARES = [8, 1, 1, 4, 2, 3, 1, 1, 2, 1, 1]
FILES = {
    "reconstruct": ["input", "measurement", "operator.mask", "prior.weights", "calibration", "data.name"],
    "check-measurement": ["measurement", "operator.mask", "prior.weights"],
    "restore": ["photo", "prior.weights"],
    "check-operator": ["operator.mask", "operator.file"],
    "check-prior": ["input", "prior.weights"],
    "benchmark": ["input", "prior.weights"],
    "calibrate": ["input"],
    "tune": ["input"],
    "train": ["data", "init"],
}


def _options() -> dict[str, dict[str, list[str]]]:
    """Option names by group and choice, and by command those of its own."""
    folder = Path(str(resources("invdiff.configs")))
    found: dict[str, dict[str, list[str]]] = {"sampler": sampler_fields()}
    for group in ("operator", "noise", "prior"):
        texts = {path.stem: yaml.safe_load(path.read_text()) for path in (folder / group).glob("*.yaml")}
        found[group] = {name: [key for key in node if key[0] != "_"] for name, node in texts.items()}
    for command in COMMANDS:
        path = folder / f"{command.replace('-', '_')}.yaml"
        node = yaml.safe_load(path.read_text()) if path.exists() else {}
        names = [name for name in node if name not in ("defaults", "hydra", "output")]
        nested = [f"{name}.{key}" for name in names if isinstance(node[name], dict) for key in node[name]]
        found[command] = {"": [*names, *(name for name in nested if "_target_" not in name)]}
    return found


def make_files() -> list[str]:
    """Valid files of every kind that commands read."""
    rng = np.random.default_rng(0)
    Path("pictures").mkdir()
    image = rng.integers(0, 256, (32, 32), dtype=np.uint8)
    for name in ("pictures/a.png", "pictures/b.jpg", "c.tif"):
        Image.fromarray(image).save(name)
    np.save("y.npy", (image / 255).astype(np.float32)[None, None])
    np.save("mask.npy", (image > 99).astype(np.uint8))
    np.savez("both.npz", y=(image / 255)[None, None], mask=image > 99)
    np.savez("images.npz", images=np.stack([image] * 4)[..., None])
    Path("calibration.json").write_text('{"calibrations": []}')
    Path("cam.py").write_text("def camera(x):\n    return 0.5 * x\n")
    Path("w.safetensors").write_bytes(
        Path(str(resources("invdiff.priors"))).joinpath("weights/digits.safetensors").read_bytes()
    )
    Path("best/sampler").mkdir(parents=True)
    Path("best/sampler/best.yaml").write_text("_target_: invdiff.samplers.DPS\nzeta: 1.0\n")
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def damaged(rng: random.Random, name: str) -> str:
    """The name of an edited copy of a file."""
    data = bytearray(Path(name).read_bytes())
    edit = rng.choice(["cut", "flip", "empty", "rename", "link", "loop", "folder", "unicode", "long", "same"])
    if edit == "cut":
        data = data[: rng.randrange(len(data))]
    elif edit == "empty":
        data = bytearray()
    elif edit == "flip":
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(min(len(data), 400))] = rng.randrange(256)
    suffix = Path(name).suffix
    if edit == "rename":
        suffix = rng.choice(
            [".png", ".npy", ".npz", ".pt", ".safetensors", ".nii", ".h5", ".dcm", ".mat", ".csv", ".yaml", ""]
        )
    path = Path({"unicode": "nämé 文", "long": 240 * "n"}.get(edit, f"edit{rng.randrange(10**9)}") + suffix)
    if edit in ("link", "loop"):
        path.symlink_to(name if edit == "link" else path.name)
    elif edit == "folder":
        path.mkdir()
    elif not path.exists():
        path.write_bytes(data)
    return str(path)


def edited(rng: random.Random, options: dict[str, dict[str, list[str]]], names: list[str]) -> list[str]:
    """A command with one to three edits."""
    command = rng.choices(list(COMMANDS), SHARES)[0]
    words = [command, *COMMANDS[command]]
    for _ in range(rng.randint(1, 3)):
        value = rng.choice([*NUMBERS, *WORDS])
        kind = rng.random()
        if kind < 0.45:
            group = rng.choice(["operator", "noise", "sampler", "prior"])
            name = rng.choice(list(options[group]))
            words += [f"{group}={name}"]
            if options[group][name]:
                words += [f"{group}.{rng.choice(options[group][name])}={value}"]
        elif kind < 0.65 and options[command][""]:
            words += [f"{rng.choice(options[command][''])}={value}"]
        elif kind < 0.9 and command in FILES:
            words += [f"{rng.choice(FILES[command])}='{damaged(rng, rng.choice(names))}'"]
        elif kind < 0.95:
            words += rng.choice(
                [["--config-dir=best", "sampler=best"], ["-m"], ["--cfg", "job"], ["--help"], ["sampler=best"]]
            )
        else:
            at = rng.randrange(len(words))
            letters = list(words[at])
            letters[rng.randrange(len(letters))] = rng.choice("=,'\"{}[]$ü~+ ")
            words[at] = "".join(letters)
    return words


class Hang(BaseException):
    """A command that does not end."""


@contextmanager
def limited() -> Iterator[None]:
    """Limits of time and memory for what runs inside."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    timers = ((signal.ITIMER_PROF, signal.SIGPROF, SECONDS), (signal.ITIMER_REAL, signal.SIGALRM, WAIT))
    handlers = [signal.signal(sent, stop) for _, sent, _ in timers]
    resource.setrlimit(resource.RLIMIT_AS, (pages + MEMORY, before[1]))
    for timer, _, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (timer, sent, _), handler in zip(timers, handlers, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(sent, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _tree() -> dict[str, int]:
    """Files beside the output folder, with their sizes."""
    return {str(p): p.lstat().st_size for p in Path("..").rglob("*") if "out" not in p.parts and "runs" not in p.parts}


def fuzz(invdiff: Run, seed: int, count: int) -> list[str]:
    """What `count` edited commands did wrong."""
    rng, options, names, wrong = random.Random(seed), _options(), make_files(), []
    for number in range(count):
        words = edited(rng, options, names)
        before = _tree()
        try:
            with limited():
                done = invdiff(*words, *([] if words[0] in ("list", "help") else ["output=out"]))
        except Hang:
            wrong.append(f"{number}: {words}: no end after {SECONDS} s of the processor")
            continue
        except Exception as error:
            wrong.append(f"{number}: {words}: {type(error).__name__}: {str(error)[:300]}")
            continue
        last = done.err.strip().splitlines()[-1:]
        if (
            done.code not in (0, 1, 2)
            or "Traceback" in done.err
            or (done.code == 2 and not last[0].startswith("invdiff: "))
        ):
            wrong.append(f"{number}: {words}: code {done.code}: {done.err[-500:]}")
        if _tree() != before:
            wrong.append(f"{number}: {words}: changed {set(_tree().items()) ^ set(before.items())}")
    return wrong


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling, training and long checks end in one line: what comes before them is under test."""

    def begin(*_: Any, **__: Any) -> None:
        raise BadInput("work begins")

    for name in (
        "invdiff.samplers.base.run",
        "invdiff.priors.training.training.Trainer.run",
        "invdiff.cli.check_prior_command.report_on",
        "invdiff.cli.check_operator_command.judged_behind_a_bar",
    ):
        monkeypatch.setattr(name, begin)


@pytest.mark.usefixtures("no_work")
def test_some_edits(invdiff: Run) -> None:
    assert fuzz(invdiff, seed=0, count=8) == []


KINDS = ["07", "null", "-1", "2.5", "[1,x]", "{a: 1}"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("list", "help")])
@pytest.mark.usefixtures("no_work")
def test_every_option_with_values_of_every_kind(invdiff: Run, command: str) -> None:
    options = _options()
    make_files()
    wrong = []
    for k, name in enumerate(options[command][""]):
        for value in KINDS if "INVDIFF_FUZZ" in os.environ else [KINDS[k % len(KINDS)]]:
            words = [command, *COMMANDS[command], f"{name}={value}", "output=out"]
            try:
                done = invdiff(*words)
            except Exception as error:
                wrong.append(f"{words}: {type(error).__name__}: {str(error)[:200]}")
                continue
            if done.code not in (0, 1, 2) or "Traceback" in done.err:
                wrong.append(f"{words}: code {done.code}: {done.err[-300:]}")
    assert wrong == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.usefixtures("no_work")
def test_more_edits(invdiff: Run) -> None:
    """`INVDIFF_FUZZ=1000 pytest -m slow tests/cli/test_fuzz.py` makes a thousand of them, within an hour."""
    assert fuzz(invdiff, seed=1, count=int(os.environ.get("INVDIFF_FUZZ", "30"))) == []
