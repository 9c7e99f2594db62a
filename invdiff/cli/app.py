"""What the hydra commands share: running a task under hydra, and saying what went wrong in one line."""

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

Task = Callable[[DictConfig, Path], object]


def command(config_name: str) -> Callable[[Task], Callable[[], None]]:
    """Make `task(config, output folder)` a hydra application on `configs/<config_name>.yaml`.

    A job that fails does not keep the other jobs of a sweep from running; its error is raised when all have run.
    """

    def decorate(task: Task) -> Callable[[], None]:
        failures: list[Exception] = []

        @hydra.main(version_base="1.3", config_path="pkg://invdiff.configs", config_name=config_name)
        @functools.wraps(task)
        def run(config: DictConfig) -> None:
            output = _output_folder(config)
            try:
                task(config, output)
            except Exception as error:
                # Raised inside, hydra would print the overrides and a traceback on top of our line.
                failures.append(error)
                if output.is_dir() and not any(output.iterdir()):
                    output.rmdir()

        def main() -> None:
            failures.clear()
            run()
            if failures:
                raise failures[0]

        return main

    return decorate


def _output_folder(config: DictConfig) -> Path:
    run = HydraConfig.get()
    return Path(run.runtime.output_dir if run.mode == RunMode.MULTIRUN else config.output)


def guarded(main: Callable[[], None]) -> int:
    """Run a command and give its exit code: expected failures become one line on stderr and 2, Ctrl-C gives 130.

    With HYDRA_FULL_ERROR=1 in the environment everything comes with its traceback instead.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        main()
        return 0
    # Hydra prints and exits by itself unless this is set; with it, errors reach us and we say them in one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main()
    except KeyboardInterrupt as stop:
        return report(str(stop) or "interrupted", code=130)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        return report(f"error: {message}")
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
    return 0


def explain(error: BaseException) -> str | None:
    """What went wrong in one line, for errors that a user can cause; None for those that are ours."""
    if isinstance(error, InstantiationException):
        # What the constructor said is worth more than hydra's report of where it was called.
        cause = error.__cause__
        return _one_line(cause if isinstance(cause, (ValueError, TypeError, OSError)) else error)
    if isinstance(error, HydraException):
        return _explain_hydra(_one_line(error))
    if isinstance(error, (OmegaConfBaseException, ValueError, FloatingPointError)):
        return _one_line(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return None


def _explain_hydra(message: str) -> str:
    unknown = re.search(r"Could not override '([^']+)'", message)
    if unknown:
        return f"unknown option {unknown[1]!r}; --cfg job shows the known ones, with the same groups chosen"
    choice = re.search(
        r"Could not find '([^']+)/([^'/]+)' Available options in '[^']+': (.*?)( Config search path.*)?$", message
    )
    if choice:
        return f"unknown {choice[1]} {choice[2]!r}; there are {', '.join(choice[3].split())}"
    return message.split(" See https://")[0]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def report(message: str, code: int = 2) -> int:
    print(f"invdiff: {message}", file=sys.stderr)
    return code
