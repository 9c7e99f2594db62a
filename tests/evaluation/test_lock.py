"""One run in a folder at a time; the lock of a dead process is none."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from invdiff.evaluation.lock import NAME, only_run
from invdiff.io import BadInput


@contextmanager
def holder(folder: Path) -> Iterator[int]:
    """A process that holds the lock of a folder, until it is killed."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with only_run(folder, lambda _: None):
            os.write(tell, b"x")
            signal.pause()
        os._exit(0)
    os.read(ready, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)


def test_a_second_run_is_refused(tmp_path: Path) -> None:
    with holder(tmp_path) as child:
        with pytest.raises(BadInput, match=f"another run is writing into .*process {child} on .*output="):  # noqa: SIM117
            with only_run(tmp_path, pytest.fail):
                pass
        assert (tmp_path / NAME).exists(), "the refused run has taken the lock away"


def test_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    with holder(tmp_path) as child:
        pass
    said: list[str] = []
    with only_run(tmp_path, said.append):
        assert len(said) == 1
        assert f"process {child}" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_says_nothing(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("not ours")
    said: list[str] = []
    with only_run(tmp_path, said.append):
        assert "process unknown" in said[0]


def test_a_run_that_fails_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), only_run(tmp_path, pytest.fail):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
