"""The outcome of rules on the terminal, and as the exit code of a command."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from invdiff.cli.app import CheckFailed
from invdiff.contracts.verdict import Rule, Verdict, judged
from invdiff.engine.progress import progress_bar

_STYLES = {"passed": "green", "warning": "yellow", "failed": "bold red", "n/a": "dim"}


def judged_behind_a_bar(rules: Iterable[Rule], name: str) -> list[Verdict]:
    rules = list(rules)
    with progress_bar(len(rules), "rule", name) as bar:
        return judged(rules, bar.update)


def print_verdicts(console: Console, title: str, verdicts: Sequence[Verdict]) -> None:
    table = Table(title=Text(title), title_justify="left")
    for heading in ("rule", "result", "reason"):
        table.add_column(heading, overflow="fold")
    for verdict in verdicts:
        result = "FAILED" if verdict.result == "failed" else verdict.result
        table.add_row(Text(verdict.rule), Text(result, _STYLES[verdict.result]), Text(verdict.words))
    console.print(table)


def fail_if_broken(name: str, verdicts: Sequence[Verdict], hint: str = "") -> None:
    """Raise `CheckFailed` with the broken rules; `hint` ends the line."""
    broken = [verdict.rule for verdict in verdicts if verdict.result == "failed"]
    if broken:
        rules = "a rule" if len(broken) == 1 else f"{len(broken)} rules"
        raise CheckFailed(f"{name} breaks {rules}: {', '.join(broken)}{hint}")
