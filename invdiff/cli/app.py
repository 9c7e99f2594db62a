"""What the hydra commands share: running a task under hydra, and one line for each error."""

import functools
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from errno import EDQUOT, ENOSPC
from pathlib import Path
from traceback import extract_tb, walk_tb
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from invdiff.cli import groups, paths
from invdiff.cli.folders import check_hydra_section, take_folders
from invdiff.cli.process import exit_code, raising
from invdiff.cli.slips import unknown, unknown_option
from invdiff.cli.values import check_config
from invdiff.io.atomic import removed_if_empty, write_atomically
from invdiff.io.output import check_apart, fresh_folder
from invdiff.user_module import file_of

Task = Callable[[DictConfig, Path], object]

# Where every command starts, whatever its primary configuration is: hydra makes no folders and no logs of its own, so
# that `--config-dir OUTPUT --config-name config` repeats a run and leaves nothing else.
HYDRA = (
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra.sweep.dir=${output}",
    "hydra.sweep.subdir=${hydra.job.num}",
)
OPEN = ("sampler.settings.", "operator.parameters.", "prior.parameters.", "prior.settings.")  # nodes that take new keys
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".pkl", ".bin")  # of checkpoints, in prior=PATH
PROMPTS, QUOTES = ("prior.prompt", "prior.negative_prompt"), ("'", '"')
_VALUES = "_values"  # where plain values travel past hydra's groups
_ADDED = "_added"  # where the entries of `samplers+=[mine]` do


class CheckFailed(Exception):
    """The answer of a check is no: one line like an error, but exit code 1."""

    code = 1


class VerdictFailed(CheckFailed):
    """With strict=true, a result that is likely wrong: it is saved, and the exit code is 3."""

    code = 3


def command(
    config_name: str,
    *,
    values: tuple[str, ...] = (),
    options: Mapping[str, Any] | None = None,
    one_folder: bool = False,
) -> Callable[[Task], Callable[[], None]]:
    """Make `task(config, output folder)` a hydra application on `configs/<config_name>.yaml`.

    A job that fails does not keep the other jobs of a sweep from running; its error is raised when all have run, in an
    ExceptionGroup that names the job. Folders that a job made and left empty are removed.

    values      keys that hold a plain value in this command although other commands have a group of that name: hydra
                would take `data=photos/` for the choice of a group
    options     types of the command's own options, by dotted name; see `check_config`
    one_folder  the jobs of a sweep write into one folder, not into one each
    """

    def decorate(task: Task) -> Callable[[], None]:
        failures: list[Exception] = []
        here = os.getpid()

        @hydra.main(version_base="1.3", config_path="pkg://invdiff.configs", config_name=config_name)
        @functools.wraps(task)
        def run(config: DictConfig) -> None:
            job = HydraConfig.get()
            sweep = job.mode == RunMode.MULTIRUN
            # Runs that start in the same second have the same name by default.
            timed = not sweep and "${now:" in str(config._get_node("output"))
            try:
                with open_dict(config):
                    config.update(config.pop(_VALUES, {}))
                    for key, value in config.pop(_ADDED, {}).items():
                        config[key] = [*_as_list(config.get(key)), *_as_list(value)]
                    config.pop("trust", None)  # read from the command line alone; see targets.py
                    if config.output is None:
                        raise ValueError("output must be a folder, got null")
                    output = Path(job.runtime.output_dir if sweep else str(config.output))
                    config.output = str(output)
                check_config(config, options or {})
                check_apart(output, paths.inputs(OmegaConf.to_container(config, resolve=True)))
                with removed_if_empty(output.parent):
                    if timed:
                        output = fresh_folder(output)
                        config.output = str(output)
                    with removed_if_empty(output, made_for_it=timed or (sweep and not one_folder)):
                        task(config, output)
            except Exception as error:
                if sweep:
                    error.add_note(f"job {job.job.num} ({' '.join(typed())})")
                if os.getpid() != here:
                    raise  # in a worker of another launcher: only hydra can carry it home
                failures.append(error)  # raised here, hydra would print the overrides and a traceback

        def main() -> None:
            failures.clear()
            groups.register()
            # As ${chosen:recipe} in a file; hydra reads `output` before a sweep has its first job and its choices.
            OmegaConf.register_new_resolver("chosen", lambda group: chosen_name(group) or group, replace=True)
            flags, words = split_arguments(sys.argv[1:])
            flags = take_folders(flags)
            given = [_for_hydra(word, values) for typed_word in words for word in checkpoint_words(typed_word)]
            fixed = [*HYDRA, *(("hydra.sweep.subdir=.",) if one_folder else ())]
            sys.argv = [sys.argv[0], *flags, *fixed, *given]
            try:
                read = get_args_parser().parse_known_args(flags)[0]
                sweep = read.multirun or any(word.startswith("hydra.mode=") for word in given)
                check_hydra_section(config_name, read.config_name or config_name, [*fixed, *given], sweep=sweep)
                run()
            except HydraException as error:
                raise _with_hint(error, config_name, given) from error
            if failures and getattr(failures[0], "__notes__", None):
                raise ExceptionGroup(f"{len(failures)} job(s) failed", failures)
            if failures:
                raise failures[0]

        return main

    return decorate


def checkpoint_words(word: str) -> list[str]:
    """`prior=PATH` as the two options that hydra has for it, text of a prompt in quotes; any other word as it is."""
    key, _, value = word.partition("=")
    plain = value.strip("'\"")
    if key in PROMPTS and value != "null":  # with commas and brackets, which hydra would read
        return [f"{key}={_quoted(value[1:-1] if value[:1] == value[-1:] and value[:1] in QUOTES else value)}"]
    if key != "prior" or plain.startswith("["):
        return [word]
    file = plain.startswith("hf://") or Path(plain).suffix in SUFFIXES
    if not file and not ("/" in plain and Path(plain).expanduser().exists()):  # a group of --config-dir has slashes too
        return [word]
    return ["prior=checkpoint", f"prior.path={_quoted(plain)}"]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _for_hydra(word: str, values: tuple[str, ...]) -> str:
    values = (*values, "trust")
    if word.startswith(OPEN):
        return f"++{word}"
    if re.match(r"\w+\+=", word):
        return f"++{_ADDED}.{word.replace('+=', '=', 1)}"
    return f"++{_VALUES}.{word}" if word.partition("=")[0] in values else word


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, ListConfig) else [value]


def typed(below: str = "") -> list[str]:
    """The options of this job as typed, key=value; below a node, without its name."""
    if not HydraConfig.initialized():
        return []
    words = [word.removeprefix(f"++{_VALUES}.").lstrip("+") for word in HydraConfig.get().overrides.task]
    return [word.removeprefix(f"{below}.") for word in words if not below or word.startswith(f"{below}.")]


def chosen_name(group: str) -> str | None:
    """The name that was chosen in a group; None for a saved configuration, which holds the node alone."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    return choices.get(group)


def job_number() -> int | None:
    """Which job of a sweep this is; None where there is no sweep."""
    job = HydraConfig.get()
    return job.job.num if job.mode == RunMode.MULTIRUN else None


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags, with their values, and the options key=value, in any order.

    Raises ValueError for a flag that hydra does not have, and for one without its value.
    """
    parser = get_args_parser()

    def refuse(message: str) -> None:
        hint = "; options are written key=value, without dashes" if message.startswith("unrecognized") else ""
        raise ValueError(message + hint)

    parser.error = refuse  # type: ignore[method-assign, assignment]
    options: list[str] = parser.parse_intermixed_args(arguments).overrides
    return [word for word in arguments if word not in options], options


def write_config(config: DictConfig, folder: Path, *, without: tuple[str, ...] = (), name: str = "config.yaml") -> None:
    """Write a configuration as `config_as_yaml` gives it: whole, or not at all and the earlier file stays."""
    write_atomically(folder / name, config_as_yaml(config, without=without))


def config_as_yaml(config: DictConfig, *, without: tuple[str, ...] = ()) -> bytes:
    """A configuration as the contents of a file that repeats the run; see `saved_config`.

    without  top-level keys that this run does not use
    """
    kept = {key: value for key, value in saved_config(config).items() if key not in without}
    return OmegaConf.to_yaml(OmegaConf.create(kept)).encode()


def saved_config(config: DictConfig) -> dict[str, Any]:
    """A configuration as it is saved: interpolations resolved, paths absolute."""
    found: dict[str, Any] = paths.absolute(OmegaConf.to_container(config, resolve=True))
    return found


# -- errors ------------------------------------------------------------------------------------------------------------


def guarded(main: Callable[[], None]) -> int:
    """Run a command and return its exit code: expected errors become one line each on stderr and 2, checks that fail
    likewise and 1, `VerdictFailed` and 3, Ctrl-C gives 130, SIGTERM 143, a closed pipe behind standard output 1 without
    a line.

    With HYDRA_FULL_ERROR=1 in the environment all come with their traceback instead.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        with raising():
            main()
        return 0
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise hydra prints the error and exits by itself
    try:
        with raising():
            main()
    except KeyboardInterrupt as stop:
        return report(str(stop) or "interrupted", code=exit_code(stop))
    except Exception as error:
        errors = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
        if any(isinstance(e, BrokenPipeError) and e.filename is None for e in errors):
            raise  # of standard output
        messages = [explain(e) for e in errors]
        if None in messages:
            raise
        for e, message in zip(errors, messages, strict=True):
            kind = [] if isinstance(e, CheckFailed) else ["error"]
            report(": ".join([*kind, *getattr(e, "__notes__", []), str(message)]))
        codes = {e.code if isinstance(e, CheckFailed) else 2 for e in errors}
        return codes.pop() if len(codes) == 1 else 2
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
    return 0


def explain(error: BaseException) -> str | None:
    """The message for an error that a user can cause; None for a bug of ours."""
    if isinstance(error, InstantiationException):  # the words of the constructor instead of hydra's report
        cause = error.__cause__
        return _one_line(cause if isinstance(cause, (ValueError, TypeError, OSError)) else error)
    if isinstance(error, YAMLError):
        return f"a configuration is not plain YAML: {_one_line(error)[:300]}"
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read {error.override!r}; options are written key=value, 'key=\"a value\"' with spaces or brackets"
        )
    if isinstance(error, HydraException):
        return _explain_hydra(_one_line(error))
    if isinstance(error, OmegaConfBaseException):
        return str(error).splitlines()[0]  # the rest is about omegaconf
    allocator = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)  # torch has no class for it
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or allocator:
        return "out of memory; set compute.max_rows=1, or a smaller size="
    place = _in_a_file_of_the_user(error)
    if place is not None:
        return f"{place} raises {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if isinstance(error, (ValueError, FloatingPointError, CheckFailed)):
        return _one_line(error)
    if isinstance(error, (EOFError, pickle.UnpicklingError)):
        return f"a file is damaged, or not of the kind that its name says: {_one_line(error)[:200]}"
    if isinstance(error, OSError):
        kept = "; results stored in the output folder are kept" if error.errno in (ENOSPC, EDQUOT) else ""
        return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "") + kept
    return None


def _in_a_file_of_the_user(error: BaseException) -> str | None:
    """File and line where the error comes from a file of operator.file= and the like, or of a library it called."""
    for frame, line in reversed(list(walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__"))
        file = file_of(module)
        if file is not None:
            return f"{file.name}, line {line},"
        if module.partition(".")[0] == "invdiff":
            return None
    return None


def _explain_hydra(message: str) -> str:
    choice = re.search(
        r"Could not find '([^']+)/([^'/]+)'(?: Available options in '[^']+': (.*?))?(?: Config search path.*)?$",
        message,
    )
    if choice:
        return unknown(choice[1], choice[2], (choice[3] or "").split())
    sweep = re.search(r"Ambiguous value for argument '(.*?)' 1\.", message)
    if sweep:
        return f"{sweep[1]!r} holds a comma: add -m to sweep over the values, or write [a,b] for a list"
    return message.split(" See https://")[0]


def _with_hint(error: HydraException, config_name: str, words: list[str]) -> Exception:
    """An unknown option gets the closest known one, with the same groups chosen; other errors stay as they are."""
    word = re.search(r"Could not (?:override|delete) '([^']+)'", str(error))
    if word is None:
        return error
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("invdiff.configs", version_base="1.3"):
        chosen = [w for w in words if groups.is_choice(w)]
        config = hydra.compose(config_name, chosen)
    known = [*_names(config, ""), *groups.names()]
    return ValueError(unknown_option(word[1], known))


def _names(config: DictConfig, before: str) -> Iterator[str]:
    for key in map(str, config):
        yield f"{before}{key}"
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_interpolation()):
            yield from _names(node, f"{before}{key}.")


def _one_line(error: BaseException) -> str:
    words = " ".join(str(error).split())
    if words or error.__traceback__ is None:
        return words
    frame = extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} without words ({Path(frame.filename).name}, line {frame.lineno})"


def report(message: str, code: int = 2) -> int:
    print(f"invdiff: {message}", file=sys.stderr)
    return code


def fail_if_broken(name: str, broken: Sequence[str], hint: str = "") -> None:
    """Raise `CheckFailed` where there are broken rules; `hint` ends the line."""
    if broken:
        rules = "a rule" if len(broken) == 1 else f"{len(broken)} rules"
        raise CheckFailed(f"{name} breaks {rules}: {', '.join(broken)}{hint}")
