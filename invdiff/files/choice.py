"""Which arrays of a file with several are read."""

from collections.abc import Callable, Sequence

# From the names of the arrays in a file (one of no name is ""), those to read; raises ValueError where it cannot tell.
Choice = Callable[[Sequence[str]], Sequence[str]]


def only(name: str, given: str | None = None) -> Choice:
    """The array that was `given`, else the one called `name`, else the only one."""

    def choose(names: Sequence[str]) -> Sequence[str]:
        for wanted in (given,) if given is not None else (name,):
            if wanted in names:
                return [wanted]
        if given is None and len(names) == 1:
            return names
        found = ", ".join(sorted(names)[:8]) or "none"
        raise ValueError(
            f"there is no array {given!r}, only {found}"
            if given is not None
            else f"it has the arrays {found}; name one {name!r}, or add :NAME to the file"
        )

    return choose
