"""`invdiff help NAME`: what an operator, noise model, sampler or prior is, and its options."""

import inspect
import sys

import hydra

from invdiff.cli import groups
from invdiff.cli.explained import with_notes
from invdiff.cli.slips import closest
from invdiff.cli.targets import resolved

GROUPS = ("operator", "noise", "sampler", "prior")


def main() -> None:
    """Print the documentation of every name that was given; raises ValueError for one that is not known."""
    groups.register()
    for name in sys.argv[1:]:
        found = [group for group in GROUPS if name in groups.described(group)]
        if not found:
            known = [known for group in GROUPS for known in groups.described(group)]
            raise ValueError(f"nothing is called {name!r}{closest(name, known)} (invdiff list shows all names)")
        for group in found:
            print(_explained(group, name))


def _explained(group: str, name: str) -> str:
    with hydra.initialize_config_module("invdiff.configs", version_base="1.3"):
        config = hydra.compose(overrides=[f"+{group}={name}"])
    docs = inspect.getdoc(resolved(config[group], group)) or ""
    line = groups.described(group)[name]
    title = f"{group}={name}" if line in docs else f"{group}={name}: {line}"
    options = with_notes(config, {group: name})
    return f"{title}\n\n{docs}\n\noptions, each of which can be overridden as {group}.NAME=value:\n\n{options}\n"
