"""`invdiff list [group]`: what can be chosen, with a line on each, and what each sampler can solve."""

import sys
from importlib.resources import files

from rich.console import Console
from rich.markup import escape
from rich.table import Table

GROUPS = {"operators": "operator", "noises": "noise", "samplers": "sampler", "priors": "prior", "data": "data"}


def main() -> None:
    wanted = sys.argv[1:]
    if any(word in ("-h", "--help") for word in wanted):
        print(
            f"usage: invdiff list [{'|'.join(GROUPS)}] [--markdown]\n"
            "Without a word, everything. Names are used as group=name.\n"
            "`invdiff list samplers --markdown`: what each sampler can solve, as the table of the README."
        )
        return
    if wanted and wanted[-1] == "--markdown" and set(wanted[:-1]) <= {"samplers"}:
        from invdiff.report.compatibility import markdown

        print(markdown())
        return
    unknown = [word for word in wanted if word not in GROUPS]
    if unknown:
        raise ValueError(f"unknown list {unknown[0]!r}; there are {', '.join(GROUPS)}")
    console = Console(highlight=False)
    for heading in wanted or GROUPS:
        table = Table(
            title=f"{heading}, chosen with {GROUPS[heading]}=", title_justify="left", box=None, show_header=False
        )
        for name, line in entries(GROUPS[heading]).items():
            table.add_row(f"  [bold]{name}[/bold]", escape(line))
        console.print(table)
        console.print()
        if heading == "samplers":
            console.print(what_each_can_solve())
            console.print()


def what_each_can_solve() -> Table:
    """Operator, noise and prior that each sampler takes, and its cost."""
    from invdiff.report.compatibility import cells, compatibility, headings  # torch is slow to import

    title = "what each can solve, and network calls of a sample with its defaults"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for number, words in enumerate(headings()):
        table.add_column(words, justify="right" if number >= len(headings()) - 2 else "left")
    for row in compatibility():
        table.add_row(*cells(row))
    return table


def entries(group: str) -> dict[str, str]:
    """Names of a config group with the first comment line of each file."""
    folder = files("invdiff.configs") / group
    found = {}
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            first = entry.read_text().partition("\n")[0]
            found[entry.name.removesuffix(".yaml")] = first.removeprefix("#").strip() if first.startswith("#") else ""
    return found
