"""One run in a folder at a time: a lock that dies with its process."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from invdiff.io import BadInput

NAME = ".lock"


@contextmanager
def only_run(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Hold the lock of a folder; `say` is told where the run before this one did not end by itself.

    Raises BadInput, naming the process, where another run holds it. The system releases the lock of a process that
    dies, however it dies; the file that it leaves is no lock any more. A record lock and not `flock`: forked workers
    that outlive their process do not inherit it, and it holds between machines on a network file system.
    """
    path = folder / NAME
    file = _locked(path, say)
    try:
        file.seek(0)
        earlier = file.read()
        if earlier:
            say(f"the run before this one did not end by itself ({_holder(earlier)}); going on from what it stored")
        file.seek(0)
        file.truncate()
        file.write(
            json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        )
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still held: nobody else can have put a file of his own there
        file.close()


def _locked(path: Path, say: Callable[[str], object]) -> IO[str]:
    while True:
        file = path.open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = _holder(file.read())
            file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BadInput(
                    f"another run is writing into {path.parent} ({holder}); wait for it, or give another output="
                ) from error
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            say(f"the file system of {path.parent} knows no locks: take care that no other run writes there")
            return path.open("a+")
        # The holder before us may have removed the file between our opening and our locking it.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def _holder(words: str) -> str:
    try:
        told = json.loads(words)
        return f"process {told['pid']} on {told['host']}, since {told['since']}"
    except (ValueError, KeyError, TypeError):
        return "process unknown"
