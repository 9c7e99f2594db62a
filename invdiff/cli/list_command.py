"""`invdiff list [group]`: what can be chosen, with a line on each, read from the first comment of each config file."""

import sys
from importlib.resources import files

from rich.console import Console
from rich.markup import escape
from rich.table import Table

GROUPS = {"operators": "operator", "noises": "noise", "samplers": "sampler", "priors": "prior", "data": "data"}


def main() -> None:
    wanted = sys.argv[1:]
    if any(word in ("-h", "--help") for word in wanted):
        print(f"usage: invdiff list [{'|'.join(GROUPS)}]\nWithout a word, everything. Names are used as group=name.")
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


def entries(group: str) -> dict[str, str]:
    """Names of a config group with the first comment line of each."""
    folder = files("invdiff.configs") / group
    found = {}
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            first = entry.read_text().partition("\n")[0]
            found[entry.name.removesuffix(".yaml")] = first.removeprefix("#").strip() if first.startswith("#") else ""
    return found
