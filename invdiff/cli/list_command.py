"""`invdiff list [group]`: names to choose from, with a line on each, and what each sampler can solve."""

import sys
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from invdiff.cli.groups import described
from invdiff.cli.slips import closest

GROUPS = {
    "operators": ("operator",),
    "noises": ("noise",),
    "samplers": ("sampler",),
    "priors": ("prior",),
    "data": ("data",),
    "experiments": ("experiment", "experiment/paper", "experiment/posterior"),
}
USAGE = f"""usage: invdiff list [{"|".join(GROUPS)}] [--config-dir=FOLDER] [sampler.file=mine.py] [--markdown]

  invdiff list samplers                          names, and what each sampler can solve
  invdiff list samplers sampler.file=mine.py     a sampler of your own among them
  invdiff list samplers --markdown               what each sampler can solve, as a table in Markdown
  invdiff list                                   everything; names are used as group=name"""


def main() -> None:
    wanted, folders, markdown = [], [], False
    words = iter(sys.argv[1:])
    for word in words:
        flag, _, value = word.partition("=")
        if word in ("-h", "--help"):
            print(USAGE)
            return
        if flag in ("--config-dir", "-cd"):
            folders.append(Path(value or next(words, "")))
            _read(folders[-1])
        elif flag == "sampler.file":
            from invdiff.samplers.from_file import sampler_in  # torch is slow to import

            sampler_in(value)
        elif flag == "trust":
            continue  # targets.py reads it
        elif word == "--markdown":
            markdown = True
        elif word in GROUPS:
            wanted.append(word)
        else:
            named = any(word in described(group) for group in ("operator", "noise", "sampler", "prior"))
            hint = f"; invdiff help {word} explains it" if named else closest(word, list(GROUPS))
            raise ValueError(f"unknown list {word!r}{hint} (lists: {', '.join(GROUPS)})")
    if markdown:
        if set(wanted) - {"samplers"}:
            raise ValueError("--markdown must go with samplers, the only list with such a table")
        from invdiff.report.compatibility import markdown as in_markdown

        print(in_markdown())
        return
    console = Console(highlight=False)
    for heading in wanted or GROUPS:
        for group in GROUPS[heading]:
            console.print(_names(heading, group, tuple(folders)))
            console.print()
        if heading == "samplers":
            from invdiff.report.compatibility import table

            console.print(table())
            console.print()


def _read(folder: Path) -> None:
    """Make the samplers of a folder, so that the table has those of other modules too."""
    from omegaconf import DictConfig, OmegaConf

    from invdiff.cli.targets import make

    for file in sorted(folder.glob("sampler/*.yaml")):
        make(cast(DictConfig, OmegaConf.load(file)), f"sampler/{file.stem}")


def _names(heading: str, group: str, folders: tuple[Path, ...]) -> Table:
    key, _, inside = group.partition("/")
    chosen = f"{key}={inside}/" if inside else f"{key}="
    table = Table(title=f"{heading}, chosen with {chosen}", title_justify="left", box=None, show_header=False)
    for name, line in described(group, folders).items():
        table.add_row(f"  [bold]{name}[/bold]", escape(line))
    return table
