"""When standard output takes no more: a reader such as `head` that has left, a full disk."""

import errno
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import NoneType

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
STDOUT = "standard output"  # its name in messages
NOBODY_READS = 1  # what Python's manual advises, and rich exits with


def nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has left."""
    with suppress(OSError, ValueError):  # it is no file
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


@contextmanager
def to_stdout() -> Iterator[None]:
    """What cannot be written in here has a name in the message."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or STDOUT
        raise


def flushed(run: Callable[[], int]) -> int:
    """The exit code of `run`, another one where its output cannot be written.

    The interpreter would write what is left at its end, with a message of its own and exit code 120.
    """
    code = 0
    try:
        try:
            code = run()
        except SystemExit as stop:  # hydra's, after its help
            if not isinstance(stop.code, (int, NoneType)):
                raise
            code = stop.code or 0
        with to_stdout():
            sys.stdout.flush()
    except OSError as error:
        if error.filename != STDOUT:
            raise
        with suppress(OSError, ValueError):  # nor can it be written later
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            return NOBODY_READS
        if code == 0:
            print(f"invdiff: error: {error.strerror}: {STDOUT}", file=sys.stderr)
        return code or 2
    return code
