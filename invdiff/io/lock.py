"""One run at a time in a folder, or the jobs of one sweep side by side; a lock ends with its process.

.lock           held by a run that has the folder alone, and for a moment by a job that joins or leaves
.lock-PID@HOST  held by every run and job at work
.lock-turn      held by the job that does what only one job may do at a time
.lock-run-ID    held by the job that computes this run of the grid
"""

import errno
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from invdiff.io import BadInput

NAME = ".lock"
PATIENCE = 4.0  # seconds a job waits to join: other jobs hold the folder for a moment, a run alone to its end


@dataclass
class Lock:
    """A folder that is held, `alone` by one run or by a job of a sweep beside others."""

    folder: Path
    alone: bool
    _own: list[BaseFileLock] = field(default_factory=list)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other job has its turn, and take it."""
        with _waited(self.folder / f"{NAME}-turn", skip=self.alone):
            yield

    def last(self) -> bool:
        """Whether no other job is at work; if one is, this job counts as done, so that the other one may be last."""
        with _waited(self.folder / NAME, skip=self.alone):
            others = _others(self.folder)[0]
            if others:
                self.leave()
        return not others

    def claim(self, runs: Iterable[str]) -> None:
        """Take runs of the grid, by their fingerprints; raises BadInput where another job computes one of them."""
        for run in () if self.alone else runs:
            if not self.take(f"run-{run}"):
                raise BadInput(f"another job computes run {run} into {self.folder}; wait for it or set another output=")

    def take(self, name: str) -> bool:
        lock = _acquired(self.folder / f"{NAME}-{name}")
        self._own += [] if lock is None else [lock]
        return lock is not None

    def leave(self) -> None:
        while self._own:
            self._own.pop().release()


@contextmanager
def held(folder: Path, say: Callable[[str], object], *, alone: bool) -> Iterator[Lock]:
    """Hold a folder alone, or as a job of a sweep beside other jobs.

    say  called with a line where an earlier run was killed, and where the file system has no locks

    Raises BadInput, naming the process, where another run holds the folder.
    """
    no_locks = f"the file system of {folder} has no locks: make sure that no other run writes there"
    guard = _acquired(folder / NAME, 0 if alone else PATIENCE, unsupported=lambda: say(no_locks))
    others, killed = _others(folder)
    if guard is None or (alone and others):
        if guard is not None:
            guard.release()
        who = f" ({others[0]})" if others else ""
        raise BadInput(f"another run is writing into {folder}{who}; wait for it or set another output=")
    lock = Lock(folder, alone)
    try:
        if alone and killed:
            say(f"the run before this one was killed ({killed[0]}); resuming from what it stored")
        lock.take(_me())
        if not alone:
            guard.release()
        yield lock
    finally:
        with _waited(folder / NAME, skip=alone):
            lock.leave()
            if not _others(folder)[0]:
                for path in folder.glob(f"{NAME}*"):
                    with suppress(PermissionError):  # Windows keeps files that are open
                        path.unlink(missing_ok=True)
        guard.release()


def _me() -> str:
    return f"{os.getpid()}@{socket.gethostname()}"


def _others(folder: Path) -> tuple[list[str], list[str]]:
    """Other processes that are at work, and those that were killed: the system has released their locks."""
    alive: list[str] = []
    killed: list[str] = []
    for path in folder.glob(f"{NAME}-*@*"):
        name = path.name.removeprefix(f"{NAME}-")
        if name != _me():
            lock = _acquired(path)
            (alive if lock is None else killed).append("process {} on {}".format(*name.split("@", 1)))
            if lock is not None:
                lock.release()
    return alive, killed


@contextmanager
def _waited(path: Path, *, skip: bool) -> Iterator[None]:
    lock = None if skip else _acquired(path, timeout=-1)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _acquired(
    path: Path, timeout: float = 0, *, unsupported: Callable[[], object] = lambda: None
) -> BaseFileLock | None:
    """The lock, None where another process keeps it for `timeout` seconds (-1: wait).

    Where the file system has no locks every lock is given, after a call of `unsupported`.
    """
    lock = FileLock(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # that it falls back to files that stand for locks
            lock.acquire(timeout=timeout)
    except Timeout:
        return None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        unsupported()
    return lock
