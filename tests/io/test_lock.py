"""One run in a folder at a time, or the jobs of a sweep; the lock of a dead process is none."""

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from invdiff.io import BadInput
from invdiff.io.lock import NAME, Lock, held


@contextmanager
def holder(folder: Path, *, alone: bool = True, then: Callable[[Lock], object] = lambda lock: None) -> Iterator[int]:
    """A process that holds the lock of a folder, and has done something with it, until it is killed."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with held(folder, lambda _: None, alone=alone) as lock:
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


@contextmanager
def refused(child: int) -> Iterator[None]:
    with pytest.raises(BadInput, match=f"another run is writing into .*process {child} on .*output="):
        yield


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as child:
        with refused(child), held(tmp_path, pytest.fail, alone=True):
            pass
        with refused(child), held(tmp_path, pytest.fail, alone=True):  # the first refusal has not released the lock
            pass
    said: list[str] = []
    with held(tmp_path, said.append, alone=True):
        assert len(said) == 1
        assert f"was killed (process {child} on" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_leaves_no_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), held(tmp_path, pytest.fail, alone=True):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


# -- the jobs of a sweep -----------------------------------------------------------------------------------------------


def test_jobs_of_a_sweep_work_side_by_side(tmp_path: Path) -> None:
    with holder(tmp_path, alone=False, then=lambda lock: lock.claim(["a1"])) as child:
        with held(tmp_path, pytest.fail, alone=False) as lock:
            lock.claim(["b2", "c3"])
            with pytest.raises(BadInput, match="another job computes run a1 into"):
                lock.claim(["a1"])
        with refused(child), held(tmp_path, pytest.fail, alone=True):
            pass
    with held(tmp_path, pytest.fail, alone=False) as lock:
        lock.claim(["a1"])
    assert list(tmp_path.iterdir()) == [], "the last one clears up"


def test_a_job_waits_for_its_turn(tmp_path: Path) -> None:
    def slow(lock: Lock) -> None:
        with lock.turn():
            (tmp_path / "in").touch()
            time.sleep(0.5)
            (tmp_path / "out").touch()

    child = os.fork()
    if child == 0:
        with held(tmp_path, lambda _: None, alone=False) as lock:
            slow(lock)
        os._exit(0)
    while not (tmp_path / "in").exists():
        time.sleep(0.01)
    with held(tmp_path, pytest.fail, alone=False) as lock, lock.turn():
        assert (tmp_path / "out").exists(), "two have their turn at once"
    os.waitpid(child, 0)


def test_exactly_one_job_is_the_last(tmp_path: Path) -> None:
    def leave(lock: Lock) -> None:
        with lock.turn():
            assert not lock.last()

    with held(tmp_path, pytest.fail, alone=False) as lock:
        with holder(tmp_path, alone=False), lock.turn():
            assert not lock.last(), "another one is at work"
        with lock.turn():
            assert lock.last(), "it has died"
    with held(tmp_path, pytest.fail, alone=False) as lock, holder(tmp_path, alone=False, then=leave), lock.turn():
        assert lock.last(), "the other one is done"


def test_no_job_beside_a_run_that_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("invdiff.io.lock.PATIENCE", 0.1)
    with holder(tmp_path) as child, refused(child), held(tmp_path, pytest.fail, alone=False):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "no locks available"), NotImplementedError("no flock")])
@pytest.mark.parametrize("alone", [True, False])
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, alone: bool
) -> None:
    def none(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(FileLock, "acquire", none)
    said: list[str] = []
    with held(tmp_path, said.append, alone=alone) as lock, lock.turn():
        lock.claim(["a1"])
        assert lock.last()
    assert len(said) == 1
    assert "has no locks" in said[0]
    assert not list(tmp_path.glob(f"{NAME}*"))
