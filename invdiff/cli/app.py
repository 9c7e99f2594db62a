"""What the hydra commands share: running a task under hydra, and saying what went wrong in one line."""

import functools
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from invdiff.cli.output import FULL_DISK, NOBODY_READS, nobody_reads
from invdiff.cli.signals import exit_code, raising

Task = Callable[[DictConfig, Path], object]

# Where every command starts, whatever its primary configuration is: hydra makes no folders and no logs of its own, so
# that `--config-dir OUTPUT --config-name config` repeats a run and leaves nothing else.
HYDRA = (
    "hydra/job_logging=disabled",
    "hydra/hydra_logging=disabled",
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra.sweep.dir=${output}",
    "hydra.sweep.subdir=${hydra.job.num}",
)


class CheckFailed(Exception):
    """A check was made, and its answer is no: one line like an error, but exit code 1."""


_VALUES = "_values"  # where plain values travel past hydra's groups

_SWITCHES = (
    "--help",
    "-h",
    "--hydra-help",
    "--resolve",
    "--run",
    "-r",
    "--multirun",
    "-m",
    "--shell-completion",
    "-sc",
)
_WITH_VALUE: dict[str, tuple[str, ...]] = {  # and what it may be, where that is known
    **dict.fromkeys(("--cfg", "-c"), ("job", "hydra", "all")),
    **dict.fromkeys(("--info", "-i"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
    **dict.fromkeys(("--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"), ()),
}


def command(
    config_name: str, *, values: tuple[str, ...] = (), one_folder: bool = False
) -> Callable[[Task], Callable[[], None]]:
    """Make `task(config, output folder)` a hydra application on `configs/<config_name>.yaml`.

    A job that fails does not keep the other jobs of a sweep from running; its error is raised when all have run, in an
    ExceptionGroup that names the job. Folders that a job made and left empty are removed.

    values      keys that hold a plain value in this command although other commands have a group of that name: hydra
                would take `data=photos/` for the choice of a group
    one_folder  the jobs of a sweep write into one folder, and not into one each
    """

    def decorate(task: Task) -> Callable[[], None]:
        failures: list[Exception] = []
        here = os.getpid()

        @hydra.main(version_base="1.3", config_path="pkg://invdiff.configs", config_name=config_name)
        @functools.wraps(task)
        def run(config: DictConfig) -> None:
            job = HydraConfig.get()
            sweep = job.mode == RunMode.MULTIRUN
            try:
                with open_dict(config):
                    config.update(config.pop(_VALUES, {}))
                    output = Path(job.runtime.output_dir) if sweep else _output_folder(config)
                    config.output = str(output)
                with removed_if_empty(output, made_for_it=sweep and not one_folder):
                    task(config, output)
            except Exception as error:
                if sweep:
                    words = [word.removeprefix(f"++{_VALUES}.") for word in job.overrides.task]
                    error.add_note(f"job {job.job.num} ({' '.join(words)})")
                if os.getpid() != here:
                    raise  # in a worker of another launcher: only hydra can carry it home
                # Raised inside, hydra would print the overrides and a traceback on top of our line.
                failures.append(error)

        def main() -> None:
            failures.clear()
            flags, options = split_arguments(sys.argv[1:])
            options = [f"++{_VALUES}.{o}" if o.partition("=")[0] in values else o for o in options]
            folder = ("hydra.sweep.subdir=.",) if one_folder else ()
            sys.argv = [sys.argv[0], *flags, *HYDRA, *folder, *options]
            run()
            if failures and getattr(failures[0], "__notes__", None):
                raise ExceptionGroup(f"{len(failures)} job(s) failed", failures)
            if failures:
                raise failures[0]

        return main

    return decorate


def job_number() -> int | None:
    """Which job of a sweep this is; None where there is no sweep."""
    job = HydraConfig.get()
    return job.job.num if job.mode == RunMode.MULTIRUN else None


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags, with their values, and the key=value options, in whatever order they were given.

    Raises ValueError for unknown flags: left to argparse, they would bring its usage message along; and it does not
    take options on both sides of a flag.
    """
    flags, options = [], []
    rest = iter(arguments)
    for word in rest:
        name, has_value, value = word.partition("=")
        if not word.startswith("-"):
            options.append(word)
        elif name in _WITH_VALUE:
            value = value if has_value else next(rest, "")
            if not value or (_WITH_VALUE[name] and value not in _WITH_VALUE[name]):
                wanted = ", ".join(_WITH_VALUE[name]) or "a value"
                raise ValueError(f"{name} takes {wanted}" + (f", got {value!r}" if value else ""))
            flags += [name, value]
        elif word in _SWITCHES:
            flags.append(word)
        else:
            raise ValueError(f"unknown flag {word!r}; options are written key=value, without dashes")
    return flags, options


def _output_folder(config: DictConfig) -> Path:
    if config.output is None:
        raise ValueError("output must be a folder, got null")
    return Path(str(config.output))


@contextmanager
def removed_if_empty(folder: Path, *, made_for_it: bool = False) -> Iterator[None]:
    """What is created on the way to `folder`, itself included, goes again if it is empty at the end.

    made_for_it  the folder is there already, but only because hydra made it a moment ago
    """
    created = [path for path in (folder, *folder.parents) if not path.exists() or (made_for_it and path == folder)]
    try:
        yield
    finally:
        for path in created:
            with suppress(OSError):  # it holds something, or was never made
                path.rmdir()


def guarded(main: Callable[[], None]) -> int:
    """Run a command and give its exit code: expected failures become one line each on stderr and 2, checks that fail
    likewise and 1, Ctrl-C gives 130, SIGTERM 143. Where nobody reads the output any more there is nobody to tell: 1.

    With HYDRA_FULL_ERROR=1 in the environment everything comes with its traceback instead.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        with raising():
            main()
        return 0
    # Hydra prints and exits by itself unless this is set; with it, errors reach us and we say them in one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with raising():
            main()
    except KeyboardInterrupt as stop:
        return report(str(stop) or "interrupted", code=exit_code(stop))
    except Exception as error:
        errors = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
        if any(isinstance(e, BrokenPipeError) for e in errors) and nobody_reads():
            return NOBODY_READS
        messages = [explain(e) for e in errors]
        if None in messages:
            raise
        for e, message in zip(errors, messages, strict=True):
            kind = [] if isinstance(e, CheckFailed) else ["error"]
            report(": ".join([*kind, *getattr(e, "__notes__", []), str(message)]))
        return 1 if all(isinstance(e, CheckFailed) for e in errors) else 2
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
    return 0


def explain(error: BaseException) -> str | None:
    """What went wrong in one line, for errors that a user can cause; None for those that are ours."""
    if isinstance(error, InstantiationException):
        # What the constructor said is worth more than hydra's report of where it was called.
        cause = error.__cause__
        return _one_line(cause if isinstance(cause, (ValueError, TypeError, OSError)) else error)
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read {error.override!r}; options are written key=value, 'key=\"a value\"' with spaces or brackets"
        )
    if isinstance(error, HydraException):
        return _explain_hydra(_one_line(error))
    if isinstance(error, OmegaConfBaseException):
        return str(error).splitlines()[0]  # the rest is about omegaconf
    if isinstance(error, (ValueError, FloatingPointError, CheckFailed)):
        return _one_line(error)
    if isinstance(error, (EOFError, pickle.UnpicklingError)):
        return f"a file is damaged or of another kind than its name says: {_one_line(error)[:200]}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; compute.max_rows=1 takes the least, a smaller size= less"
    if isinstance(error, OSError):
        kept = "; what is stored in the output folder stays" if error.errno in FULL_DISK else ""
        return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "") + kept
    return None


def _explain_hydra(message: str) -> str:
    unknown = re.search(r"Could not (?:override|delete) '([^']+)'", message)
    if unknown:
        return f"unknown option {unknown[1]!r}; --cfg job shows the known ones, with the same groups chosen"
    choice = re.search(
        r"Could not find '([^']+)/([^'/]+)'(?: Available options in '[^']+': (.*?))?(?: Config search path.*)?$",
        message,
    )
    if choice:
        return f"unknown {choice[1]} {choice[2]!r}; there are {', '.join((choice[3] or 'none').split())}"
    sweep = re.search(r"Ambiguous value for argument '(.*?)' 1\.", message)
    if sweep:
        return f"{sweep[1]!r} holds a comma: add -m to sweep over the values, or write [a,b] for a list"
    return message.split(" See https://")[0]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def report(message: str, code: int = 2) -> int:
    print(f"invdiff: {message}", file=sys.stderr)
    return code
