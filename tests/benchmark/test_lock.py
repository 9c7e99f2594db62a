"""One run in a folder at a time, or the jobs of a sweep; the lock of a dead process is none."""

import errno
import fcntl
import io
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from invdiff.benchmark.lock import NAME, Lock, _sign, job_of_sweep, only_run
from invdiff.io import BadInput


@contextmanager
def holder(
    folder: Path, hold: Callable[..., Any] = only_run, then: Callable[[Lock], object] = lambda lock: None
) -> Iterator[int]:
    """A process that holds the lock of a folder, and has done something with it, until it is killed."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with hold(folder, lambda _: None) as lock:
            then(lock)
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


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left") as caught:
        _sign(Full(), tmp_path / NAME)
    assert caught.value.filename == str(tmp_path / NAME)


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


# -- the jobs of a sweep -----------------------------------------------------------------------------------------------


def test_jobs_of_a_sweep_work_side_by_side(tmp_path: Path) -> None:
    with holder(tmp_path, job_of_sweep, lambda lock: lock.claim(["a1"])) as child:
        with job_of_sweep(tmp_path, pytest.fail) as lock:
            lock.claim(["b2", "c3"])
            with pytest.raises(BadInput, match="another job computes run a1 into"):
                lock.claim(["a1"])
        assert (tmp_path / NAME).exists(), "the first to end has taken the lock of the others away"
        with pytest.raises(BadInput, match=f"another run is writing into .*process {os.getpid()}"):  # noqa: SIM117
            with only_run(tmp_path, pytest.fail):
                pass
    assert child
    with job_of_sweep(tmp_path, pytest.fail) as lock:
        lock.claim(["a1"])
    assert list(tmp_path.iterdir()) == [], "the last one clears up"


def test_a_job_waits_for_its_turn(tmp_path: Path) -> None:
    with holder(tmp_path, job_of_sweep) as idle, job_of_sweep(tmp_path, pytest.fail) as lock:
        with lock.turn():
            pass
        assert idle
        ours = os.fork()
        if ours == 0:
            with job_of_sweep(tmp_path, lambda _: None) as other, other.turn():
                (tmp_path / "in").touch()
                time.sleep(0.5)
                (tmp_path / "out").touch()
                os._exit(0)
        while not (tmp_path / "in").exists():
            time.sleep(0.01)
        with lock.turn():
            assert (tmp_path / "out").exists(), "two have their turn at once"
        os.waitpid(ours, 0)


def test_the_last_job_knows_that_it_is(tmp_path: Path) -> None:
    def leave(lock: Lock) -> None:
        with lock.turn():
            assert not lock.last()

    with job_of_sweep(tmp_path, pytest.fail) as lock:
        with holder(tmp_path, job_of_sweep), lock.turn():
            assert not lock.last(), "another one is at work"
        with lock.turn():
            assert lock.last(), "it has died"
    with job_of_sweep(tmp_path, pytest.fail) as lock, holder(tmp_path, job_of_sweep, leave), lock.turn():
        assert lock.last(), "the other one has signed off"


def test_no_job_beside_a_run_that_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("invdiff.benchmark.lock.PATIENCE", 0.1)
    with holder(tmp_path) as child, pytest.raises(BadInput, match=f"another run is writing into .*process {child}"):  # noqa: SIM117
        with job_of_sweep(tmp_path, pytest.fail):
            pass


@pytest.mark.parametrize("hold", [only_run, job_of_sweep])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Callable[..., Any]) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    said: list[str] = []
    with hold(tmp_path, said.append) as lock, lock.turn():
        lock.claim(["a1"])
    assert len(said) == 1
    assert "knows no locks" in said[0]
