"""Ctrl-C and SIGTERM keep what is finished, say so in one line and exit with 130 and 143."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invdiff.priors.networks.edm import EDMPrior

Run = Callable[..., Any]

WORDS = [
    "reconstruct",
    "prior=digits",
    "input=pictures",
    "output=out",
    "sampler=daps",
    "sampler.schedule.steps=3",
    "num_samples=2",
    "checks=false",  # which call the network
]

# The process sends the signal to itself, at a network call: where it arrives does not depend on how fast things are.
SCRIPT = """
import os, signal, sys
from invdiff.cli.main import main
from invdiff.priors.networks.edm import EDMPrior

calls, plain = 0, EDMPrior.denoise

def denoise(self, x, sigma):
    global calls
    calls += 1
    if calls == {stop}:
        os.kill(os.getpid(), signal.{signal})
    return plain(self, x, sigma)

EDMPrior.denoise = denoise
sys.argv = ["invdiff", *{words!r}]
main()
"""


def check_one_image(metrics: Run, arrays: Run, files: Run) -> None:
    assert [row["name"] for row in metrics("out")["images"]] == ["a"]
    assert arrays("out")["samples"].shape == (1, 2, 1, 32, 32)
    assert np.isfinite(arrays("out")["samples"]).all()
    assert {"out/samples/a_000.png", "out/samples/a_001.png", "out/comparison.png", "out/config.yaml"} <= files()
    assert not any(name.startswith(("out/samples/b", "out/samples/c")) for name in files())


SIGNALS = [("SIGINT", 130), ("SIGTERM", 143)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), SIGNALS)
def test_a_signal(pictures: Path, tmp_path: Path, metrics: Run, arrays: Run, files: Run, name: str, code: int) -> None:
    # With one sample in flight, calls 1 to 6 finish the first image; the signal comes in the second one.
    done = python(SCRIPT.format(stop=8, signal=name, words=[*WORDS, "compute.max_rows=1"]), tmp_path)
    assert (done.returncode, done.stderr) == (code, "invdiff: interrupted after 1 finished image(s)\n")
    check_one_image_in(tmp_path, metrics, arrays, files)


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", code]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=240, check=False)


# The same while a module is looked for; as if nobody had caught it, where importing goes on and the signal is lost.
AT_AN_IMPORT = """
import os, signal, sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.{signal})
                sum(range(1000))
            except KeyboardInterrupt:
                raise ImportError("as a module in C may turn it into")

sys.meta_path.insert(0, Finder)
from invdiff.cli.main import main
sys.argv = ["invdiff", "benchmark", "output=out"]
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "code"),
    [
        *((module, "SIGINT", 130) for module in ("invdiff.cli.benchmark_command", "torch", "hydra", "invdiff.cli.app")),
        ("torch", "SIGTERM", 143),
    ],
)
def test_a_signal_at_an_import(tmp_path: Path, module: str, name: str, code: int) -> None:
    done = python(AT_AN_IMPORT.format(module=module, signal=name), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "invdiff: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_what_takes_signals_is_there_before_anything_slow() -> None:
    code = "import sys, invdiff.cli.main; print(*({'torch', 'numpy', 'hydra', 'omegaconf'} & set(sys.modules)))"
    assert python(code, Path.cwd()).stdout == "\n"


def test_a_signal_that_is_to_be_ignored_is(tmp_path: Path) -> None:
    """As a shell has it for what runs in its background."""
    code = """
import os, signal
from invdiff.cli.process import ending_at_once, raising
signal.signal(signal.SIGINT, signal.SIG_IGN)
with ending_at_once():
    os.kill(os.getpid(), signal.SIGINT)
    with raising():
        os.kill(os.getpid(), signal.SIGINT)
print("to its end")
"""
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "to its end\n", "")


def test_a_forked_worker_dies_of_sigterm_as_ever(tmp_path: Path) -> None:
    code = """
import os, signal, time
from invdiff.cli.process import ending_at_once, raising
with ending_at_once(), raising():
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b".")
        time.sleep(30)
        os._exit(0)
    os.read(reader, 1)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = python(code, tmp_path)
    assert (done.stdout, done.stderr) == (f"{-signal.SIGTERM}\n", "")


def check_one_image_in(folder: Path, metrics: Run, arrays: Run, files: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        check_one_image(metrics, arrays, files)


def interrupt_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = EDMPrior.denoise, iter(range(1, 10_000))

    def denoise(self: EDMPrior, x: Any, sigma: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return plain(self, x, sigma)

    monkeypatch.setattr(EDMPrior, "denoise", denoise)


@pytest.mark.slow
def test_finished_images_are_those_of_a_full_run(
    invdiff: Run, pictures: Path, metrics: Run, arrays: Run, files: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    invdiff(*WORDS, "output=full")
    interrupt_at(10, monkeypatch)
    done = invdiff(*WORDS, "compute.max_rows=1")
    assert (done.code, done.err) == (130, "invdiff: interrupted after 1 finished image(s)\n")
    check_one_image(metrics, arrays, files)
    np.testing.assert_allclose(arrays("out")["samples"], arrays("full")["samples"][:1], atol=1e-4)
    assert metrics("out")["cost"]["peak_memory_mb"] > 0


@pytest.mark.parametrize("call", [1, 2])
def test_nothing_finished(invdiff: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    interrupt_at(call, monkeypatch)
    done = invdiff(*WORDS)
    assert (done.code, done.err) == (130, "invdiff: interrupted after 0 finished image(s)\n")
    assert not Path("out").exists()


def test_in_a_sweep_no_job_follows(invdiff: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(2, monkeypatch)
    done = invdiff(*WORDS, "-m", "seed=0,1")
    assert done.code == 130
    assert done.err == "invdiff: interrupted after 0 finished image(s)\n"
    assert {p.name for p in Path("out").iterdir()} == {"multirun.yaml"}


def test_while_the_prior_draws_a_truth(invdiff: Run, monkeypatch: pytest.MonkeyPatch, files: Run) -> None:
    interrupt_at(3, monkeypatch)
    done = invdiff("reconstruct", "prior=digits", "data=generated", "output=out")
    assert (done.code, done.err) == (130, "invdiff: interrupted\n")
    assert files() == set()
