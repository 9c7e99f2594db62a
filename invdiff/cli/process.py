"""How the process ends: Ctrl-C, SIGTERM (of SLURM, docker, `timeout`), a closed pipe, a full disk behind `>`.

Imports nothing slow: the handlers stand before the rest is imported.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_Handler = Callable[[int, FrameType | None], object]


class Terminated(KeyboardInterrupt):
    """SIGTERM; a command keeps what is finished, as after Ctrl-C."""


def exit_code(stop: BaseException) -> int:
    """128 + the signal, as in a shell: 143 where SIGTERM is behind an interrupt, else 130."""
    error: BaseException | None = stop
    while error is not None:
        if isinstance(error, Terminated):
            return 128 + signal.SIGTERM
        error = error.__cause__ or error.__context__
    return 128 + signal.SIGINT


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Both signals end the process with one line. No exception: packages that are being imported may swallow it."""

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, b"invdiff: interrupted\n")
        os._exit(128 + number)

    try:
        with _handled(end, end):
            yield
    finally:
        atexit.register(_quiet_at_exit)  # registered last, called first


@contextmanager
def raising() -> Iterator[None]:
    """The signals raise KeyboardInterrupt and Terminated, so that a command can keep finished work."""
    here = os.getpid()

    def terminate(number: int, frame: FrameType | None) -> None:
        if os.getpid() != here:  # a forked worker dies of the signal, as its parent expects
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        raise Terminated

    with _handled(signal.default_int_handler, terminate):
        yield


@contextmanager
def _handled(interrupt: _Handler, terminate: _Handler) -> Iterator[None]:
    """Handle both signals in the main thread, except those that the parent process ignores (background jobs)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signal.SIGINT: interrupt, signal.SIGTERM: terminate}
    before = {number: signal.getsignal(number) for number in handlers}
    mine = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    try:
        for number in mine:
            signal.signal(number, handlers[number])
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])


def _quiet_at_exit() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while the interpreter shuts down


def flushed(run: Callable[[], int]) -> int:
    """The exit code of `run`; 1 where the reader of the output has left, 2 where its disk is full.

    The interpreter itself would flush at its end, and fail with a message of its own and exit code 120.
    """
    code = 0
    try:
        try:
            code = run()
        except SystemExit as stop:  # of hydra, after its help
            code = stop.code if isinstance(stop.code, int) else 0
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            return 1
        if code == 0:
            print(f"invdiff: error: {error.strerror}: standard output", file=sys.stderr)
        return code or 2
    return code
