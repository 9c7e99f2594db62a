"""`invdiff check-operator`: the rules of a forward model one by one, and what it can be used with."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from invdiff.cli.app import CheckFailed, command
from invdiff.cli.values import check_kinds
from invdiff.contracts import NotApplicable, operator_checks
from invdiff.contracts.compare import measure
from invdiff.contracts.toys import WhitePrior
from invdiff.engine.progress import progress_bar
from invdiff.io import BadInput
from invdiff.operators import GaussianNoise, LinearOperator, Operator
from invdiff.priors import bundled, load_prior
from invdiff.samplers import Auto, all_samplers
from invdiff.shapes import describe_shape

# Sizes to try an operator on that does not say what it is for, the first one that it takes.
SIZES = ((1, 32, 32), (3, 32, 32), (1, 64, 64), (3, 64, 64), (1, 128, 128), (3, 128, 128), (1, 256, 256), (3, 256, 256))


@dataclass(frozen=True)
class Verdict:
    """What became of a rule; `passed` is None where it says nothing about this operator."""

    rule: str
    passed: bool | None
    words: str = ""


@command("check_operator")
def main(config: DictConfig, output: Path) -> None:
    """Check what the configuration says and print every rule; raises `CheckFailed` where one is broken."""
    check_kinds(config, "operator")
    given = _given_shape(config)
    operator: Operator = instantiate(config.operator)
    if not isinstance(operator, Operator):
        raise BadInput(
            f"operator={config.operator['_target_']} makes {type(operator).__name__}, no operator; subclass "
            "invdiff.operators.Operator, or use operator=callable"
        )
    shape = _fitting_shape(operator, given)
    verdicts = check(operator, shape)
    _print(operator, shape, verdicts)
    failed = [verdict for verdict in verdicts if verdict.passed is False]
    if failed:
        rules = "a rule" if len(failed) == 1 else f"{len(failed)} rules"
        message = f"{type(operator).__name__} breaks {rules}: {', '.join(v.rule for v in failed)}"
        if given is None and any(v.words.startswith("raises") for v in failed):
            message += f"; if {describe_shape(shape)} is no image for it, give image_shape=[C,H,W]"
        raise CheckFailed(message)


def _given_shape(config: DictConfig) -> tuple[int, ...] | None:
    """(C, H, W) of image_shape=, or of the operator's own option of that name."""
    for key, value in (("image_shape", config.image_shape), ("operator", config.operator.get("image_shape"))):
        if value is None:
            continue
        if isinstance(value, ListConfig) and len(value) == 3 and all(type(n) is int and n > 0 for n in value):
            return tuple(value)
        if key == "image_shape":
            raise BadInput(f"image_shape must be [C,H,W], each from 1 on, got {value}")
    return None


def _fitting_shape(operator: Operator, given: tuple[int, ...] | None) -> tuple[int, ...]:
    """A size that the operator takes, or its reason why not."""
    reasons = []
    for shape in SIZES if given is None else (given,):
        reason = operator.mismatch(shape)
        if reason is None:
            return shape
        reasons.append(reason)
    raise BadInput(reasons[0] + ("; give image_shape=[C,H,W]" if given is None else ""))


def check(operator: Operator, shape: tuple[int, ...]) -> list[Verdict]:
    """Every rule; what the operator raises on the way is a rule broken, with the place where it was raised."""
    rules = list(operator_checks(operator, shape))
    verdicts: list[Verdict] = []
    raised: dict[str, str] = {}
    with progress_bar(len(rules), "rule", type(operator).__name__) as bar:
        for rule, run in rules:
            # What raises at its first call cannot be judged any further.
            hopeless = bool(raised) and not any(verdict.passed for verdict in verdicts[1:])
            verdicts.append(Verdict(rule, None, "not checked") if hopeless else _judge(rule, run, raised))
            bar.update()
    return verdicts


def _judge(rule: str, run: Callable[[], None], raised: dict[str, str]) -> Verdict:
    try:
        run()
    except NotApplicable as reason:
        return Verdict(rule, None, str(reason))
    except AssertionError as error:
        return Verdict(rule, False, str(error))
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        words = " ".join(str(error).split())[:300]
        words = f"raises {type(error).__name__}: {words} ({Path(frame.filename).name}, line {frame.lineno})"
        earlier = raised.setdefault(words, rule)
        return Verdict(rule, False, words if earlier == rule else f"as {earlier!r}")
    return Verdict(rule, True)


# -- what comes out ----------------------------------------------------------------------------------------------------

_MARKS = {True: "passed", False: "FAILED", None: "n/a"}


def _print(operator: Operator, shape: tuple[int, ...], verdicts: list[Verdict]) -> None:
    console = Console(highlight=False, markup=False)
    name = type(operator).__name__
    table = Table(title=Text(f"{name} on images of {describe_shape(shape)}"), title_justify="left")
    for heading in ("rule", "", "why"):
        table.add_column(heading, overflow="fold")
    for verdict in verdicts:
        style = {True: "green", False: "bold red", None: "dim"}[verdict.passed]
        table.add_row(Text(verdict.rule), Text(_MARKS[verdict.passed], style), Text(verdict.words))
    console.print(table)
    sound = {verdict.rule for verdict in verdicts if verdict.passed}
    if {"shape of y", "an image fits its own y"} <= sound:  # else there is nothing to tell, or to use
        console.print(_describe(operator, shape, sound), soft_wrap=True)
        console.print(_uses(operator, shape))


def _describe(operator: Operator, shape: tuple[int, ...], sound: set[str]) -> str:
    """Traits, the shape of y, and how long those calls take that are sound."""
    one = operator.select(torch.zeros(1, dtype=torch.long))
    image = torch.full((1, *shape), 0.5)
    calls: dict[str, Callable[[], object]] = {"A": lambda: one(image)}
    with torch.no_grad():
        y = one(image)
        if isinstance(one, LinearOperator):
            calls |= {"adjoint": lambda: one.adjoint(y), "solve": lambda: one.solve(image, 0.1)}
        else:
            calls["gradient"] = lambda: one.vjp(image, y)
        seconds = {call: _seconds(run) for call, run in calls.items() if call == "A" or call in sound}
    linear = "linear" if operator.linear else "not linear"
    how = "spectral" if operator.spectral else "differentiable" if operator.differentiable else "a black box"
    numbers = "complex" if y.is_complex() else "real"
    times = ", ".join(f"{call} {1000 * s:.1f} ms" for call, s in seconds.items())
    own = f"; parameters for {operator.images} images" if operator.images > 1 else ""
    return f"{linear}, {how}{own}; y is {describe_shape(tuple(y.shape[1:]))}, {numbers}; one image takes: {times}"


def _seconds(run: Callable[[], object], limit: float = 0.3) -> float:
    """The shortest of a few calls, after one that fills what is kept."""
    run()
    times: list[float] = []
    while not times or (len(times) < 5 and sum(times) < limit):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def _uses(operator: Operator, shape: tuple[int, ...]) -> Table:
    """Which samplers can take it, with Gaussian noise, and which bundled priors know its images."""
    problem, prior = measure(operator, shape, GaussianNoise(0.1)), WhitePrior()
    table = Table(title=Text("can be used with"), title_justify="left", box=None, show_header=False)
    table.add_row("  sampler", "auto", Text(str(Auto().resolve(problem, prior)[1])))
    for name, cls in all_samplers().items():
        missing = cls().needs().missing(problem, prior)
        table.add_row("  sampler", name, Text(f"no: it needs {' and '.join(missing)}" if missing else "yes"))
    for name in bundled():
        reason = load_prior(name).mismatch(shape)
        table.add_row("  prior", name, Text("yes" if reason is None else f"no: {reason}"))
    return table
