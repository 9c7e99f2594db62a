"""Ctrl-C and SIGTERM, which SLURM, docker and `timeout` send: the command ends in one line, whatever it is at.

Imports nothing slow: it has to be at work before the rest is imported.
"""

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_Handler = Callable[[int, FrameType | None], object]


class Terminated(KeyboardInterrupt):
    """SIGTERM. Whatever a command does on Ctrl-C, to keep what is finished, it does now as well."""


def exit_code(stop: BaseException) -> int:
    """As a shell has it: 143 where SIGTERM is behind an interrupt, 130 where Ctrl-C is."""
    error: BaseException | None = stop
    while error is not None:
        if isinstance(error, Terminated):
            return 128 + signal.SIGTERM
        error = error.__cause__ or error.__context__
    return 128 + signal.SIGINT


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Where there is nothing to keep yet, or any more, both end the process in one line.

    No exception, which half of the packages that are imported here would turn into one of their own, or swallow.
    """

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, b"invdiff: interrupted\n")
        os._exit(128 + number)

    try:
        with _handled({signal.SIGINT: end, signal.SIGTERM: end}):
            yield
    finally:
        atexit.register(_by_default)  # now, not first: the last that is registered is the first that is called


@contextmanager
def raising() -> Iterator[None]:
    """Where there may be something to keep, they raise KeyboardInterrupt and Terminated."""
    here = os.getpid()

    def terminate(number: int, frame: FrameType | None) -> None:
        if os.getpid() != here:  # in a forked worker: who stops it expects it to die
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        raise Terminated

    with _handled({signal.SIGINT: signal.default_int_handler, signal.SIGTERM: terminate}):
        yield


@contextmanager
def _handled(handlers: dict[signal.Signals, _Handler]) -> Iterator[None]:
    """Not for those that whoever started us has us ignore, as a shell does for what runs in its background."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say
        return
    before = {number: signal.getsignal(number) for number in handlers}
    mine = {number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in mine:
            signal.signal(number, handlers[number])
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])


def _by_default() -> None:
    """While the interpreter shuts down, Ctrl-C ends it, and does not print where it was."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
