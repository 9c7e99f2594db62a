"""A reader that leaves, as `head` does, and a full disk behind `>`: silence, and one line."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FULL = Path("/dev/full")
SAMPLERS = ["list", "samplers"]  # printed by rich, and the help of a command by hydra


@pytest.fixture
def nobody() -> Iterator[int]:
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def invdiff(words: list[str], folder: Path, stdout: int, unbuffered: bool) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "invdiff", *words],
        cwd=folder,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1" if unbuffered else ""},
        timeout=240,
        check=False,
    )
    return done.returncode, done.stderr


CASES = [(["--help"], False), (["--help"], True), (["list", "--help"], False), (["list", "--help"], True)]


@pytest.mark.parametrize(("words", "unbuffered"), [*CASES, (SAMPLERS, True)])
def test_a_reader_that_leaves_is_told_nothing(tmp_path: Path, nobody: int, words: list[str], unbuffered: bool) -> None:
    assert invdiff(words, tmp_path, nobody, unbuffered) == (1, "")


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(("words", "unbuffered"), CASES[:3])
def test_a_full_disk_behind_standard_output(tmp_path: Path, words: list[str], unbuffered: bool) -> None:
    with FULL.open("w") as file:
        code, told = invdiff(words, tmp_path, file.fileno(), unbuffered)
    assert (code, told) == (2, "invdiff: error: No space left on device: standard output\n")
