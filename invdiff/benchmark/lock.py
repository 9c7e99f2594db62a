"""Who may write into a folder: one run at a time, or the jobs of one sweep. Locks that die with their process.

Record locks and not `flock`: forked workers that outlive their process do not inherit them, and they hold between
machines on a network file system. They are on bytes of one file, which may lie beyond its end:

    all of them   a run that has the folder for itself
    0             shared: a job of a sweep is at work
    1             the job whose turn it is to do what only one may do at a time
    2 and on      a run of the grid, by its fingerprint
"""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from invdiff.io import BadInput

NAME = ".lock"
PATIENCE = 2.0  # seconds for which the last job of a sweep may hold the folder to clear it up
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@dataclass
class Lock:
    """A folder that is held.

    alone  by one run, and not by a job beside others
    """

    folder: Path
    file: IO[str]
    alone: bool

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other job has its turn; it is ours in here."""
        if self.alone:
            yield
            return
        _lock(self.file, fcntl.LOCK_EX, 1, 1)
        try:
            yield
        finally:
            _lock(self.file, fcntl.LOCK_UN, 1, 1)

    def last(self) -> bool:
        """In our turn: whether no other job is at work. Else we sign off, so that one that asks later may be last."""
        if self.alone:
            return True
        last = _lock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        _lock(self.file, fcntl.LOCK_SH if last else fcntl.LOCK_UN, 1)  # a job that comes now waits for its turn
        return last

    def claim(self, runs: Iterable[str]) -> None:
        """Take runs of the grid, by their fingerprints; raises BadInput where another job has one of them."""
        if self.alone:
            return
        for run in runs:
            if not _lock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2 + int(run, 16) % 2**62):
                raise BadInput(
                    f"another job computes run {run} into {self.folder}; wait for it, or give another output="
                )


@contextmanager
def only_run(folder: Path, say: Callable[[str], object]) -> Iterator[Lock]:
    """Hold a folder alone; `say` is told where the run before this one did not end by itself.

    Raises BadInput, naming the process, where another run holds it. The system releases the lock of a process that
    dies, however it dies; the file that it leaves is no lock any more.
    """
    file = _locked(folder / NAME, say, fcntl.LOCK_EX, 0)
    try:
        file.seek(0)
        earlier = file.read()
        if earlier:
            say(f"the run before this one did not end by itself ({_holder(earlier)}); going on from what it stored")
        _sign(file, folder / NAME)
        yield Lock(folder, file, alone=True)
    finally:
        (folder / NAME).unlink(missing_ok=True)  # while it is held: nobody else can have put a file of his own there
        file.close()


@contextmanager
def job_of_sweep(folder: Path, say: Callable[[str], object]) -> Iterator[Lock]:
    """Hold a folder beside other jobs of a sweep; raises BadInput, naming the process, where a run has it alone."""
    began = time.monotonic()
    while True:
        try:
            file = _locked(folder / NAME, say, fcntl.LOCK_SH, 1)
            break
        except BadInput:
            if time.monotonic() - began > 2 * PATIENCE:
                raise
            time.sleep(0.05)
    lock = Lock(folder, file, alone=False)
    try:
        with lock.turn():
            _sign(file, folder / NAME)
        yield lock
    finally:
        began = time.monotonic()
        # The last one clears up; one that has signed off may still be on its way out, and there is no harm in waiting.
        while _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1) and time.monotonic() - began < PATIENCE:
            if _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                (folder / NAME).unlink(missing_ok=True)
                break
            time.sleep(0.05)
        file.close()


def _locked(path: Path, say: Callable[[str], object], kind: int, length: int) -> IO[str]:
    """The file, with a lock on so many bytes from its beginning, 0 for all."""
    unknown = f"the file system of {path.parent} knows no locks: take care that no other run writes there"
    while True:
        file = path.open("a+")
        if not _lock(file, kind | fcntl.LOCK_NB, length, none=lambda: say(unknown)):
            file.seek(0)
            holder = _holder(file.read())
            file.close()
            raise BadInput(
                f"another run is writing into {path.parent} ({holder}); wait for it, or give another output="
            )
        # The holder before us may have removed the file between our opening and our locking it.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def _lock(
    file: IO[str], kind: int, length: int = 0, start: int = 0, *, none: Callable[[], object] = lambda: None
) -> bool:
    """Whether it was to be had; where the file system knows no locks it was, and `none` is called."""
    try:
        fcntl.lockf(file, kind, length, start)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in _NO_LOCKS:
            raise
        none()
    return True


def _sign(file: IO[str], path: Path) -> None:
    """Raises OSError, naming the file, where it cannot be written."""
    words = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    try:
        file.seek(0)
        file.truncate()
        file.write(json.dumps(words))
        file.flush()
    except OSError as error:
        error.filename = str(path)
        raise


def _holder(words: str) -> str:
    try:
        told = json.loads(words)
        return f"process {told['pid']} on {told['host']}, since {told['since']}"
    except (ValueError, KeyError, TypeError):
        return "process unknown"
