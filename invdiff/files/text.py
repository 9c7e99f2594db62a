"""Tables of numbers in text files: `.csv` and `.txt`."""

from pathlib import Path

import numpy as np

from invdiff.files.choice import Choice
from invdiff.files.errors import BadInput, reading
from invdiff.files.limits import check_size


def read_text(path: Path, choose: Choice) -> dict[str, np.ndarray]:
    """Rows of numbers separated by commas, semicolons, tabs or spaces, (rows, columns); `#` begins a comment.

    Complex numbers are written as in Python, 1+2j. Raises BadInput for a header, for decimal commas and for rows of
    different lengths.
    """
    choose([""])
    with reading(path, "text"):
        check_size(8 * path.stat().st_size, path)
        text = path.read_text(encoding="utf-8-sig")
        lines = [line for line in text.splitlines() if line.split("#")[0].strip()]
        if not lines:
            raise BadInput(f"the file holds no numbers: {path}")
        separator = next((mark for mark in ";,\t" if mark in lines[0]), None)
        kind = complex if any("j" in line.split("#")[0] for line in lines) else float
        try:
            return {"": np.loadtxt(lines, dtype=kind, delimiter=separator, ndmin=2)}
        except ValueError as error:
            words = str(error).splitlines()[0].partition("; ")[0]
            raise BadInput(f"not a table of numbers alone: {path} ({words})") from error
