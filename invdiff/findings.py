"""What a check of a measurement or of a result found: one line for the user."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Args:
        kind: machine-readable name of the finding, such as `"misfit"`.
        words: one line for the user: what was found, what fits better, and the option to give.
        severe: whether the result is likely wrong; `strict=true` then ends with exit code 3.
    """

    kind: str
    words: str
    severe: bool
