"""The outcome of rules, one by one."""

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from invdiff.contracts.compare import Broken, NotApplicable
from invdiff.engine.progress import progress_bar

_TORCH = Path(torch.__file__).parent

Rule = tuple[str, Callable[[], None]]


@dataclass(frozen=True)
class Verdict:
    """The outcome of a rule and its reason; "n/a" where the rule is void."""

    rule: str
    result: Literal["passed", "warning", "failed", "n/a"]
    words: str = ""


def judged(rules: Iterable[Rule], on_rule: Callable[[], object] = lambda: None) -> list[Verdict]:
    """Run every rule. An error raised on the way is a broken rule, with the place where it was raised.

    on_rule  called after each rule
    """
    verdicts: list[Verdict] = []
    raised: dict[str, str] = {}
    for rule, run in rules:
        # What raises at its first call cannot be judged any further.
        hopeless = bool(raised) and not any(verdict.result == "passed" for verdict in verdicts[1:])
        verdicts.append(Verdict(rule, "n/a", "not checked") if hopeless else _judge(rule, run, raised))
        on_rule()
    return verdicts


def _judge(rule: str, run: Callable[[], None], raised: dict[str, str]) -> Verdict:
    try:
        run()
    except NotApplicable as reason:
        return Verdict(rule, "n/a", str(reason))
    except Broken as error:
        return Verdict(rule, "failed", str(error))
    except Exception as error:
        words = in_words(error)
        earlier = raised.setdefault(words, rule)
        return Verdict(rule, "failed", words if earlier == rule else f"as {earlier!r}")
    return Verdict(rule, "passed")


def in_words(error: Exception) -> str:
    """What was raised, with its text where it has one, and the last line outside torch that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not Path(frame.filename).is_relative_to(_TORCH)]
    frame = (own or frames)[-1]
    text = " ".join(str(error).split())[:300]
    return f"raises {type(error).__name__}{': ' * bool(text)}{text} ({Path(frame.filename).name}, line {frame.lineno})"


def judged_behind_a_bar(rules: Iterable[Rule], name: str) -> list[Verdict]:
    """Run every rule of something of this name, with a progress bar."""
    rules = list(rules)
    with progress_bar(len(rules), "rule", name) as bar:
        return judged(rules, bar.update)


def broken(verdicts: Iterable[Verdict]) -> list[str]:
    """The names of the rules that failed."""
    return [verdict.rule for verdict in verdicts if verdict.result == "failed"]
