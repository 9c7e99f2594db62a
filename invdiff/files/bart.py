"""Arrays of BART: dimensions as text in `.hdr`, complex64 in column-major order in `.cfl`.

Spec    https://bart-doc.readthedocs.io, "CFL file format".
"""

import math
from pathlib import Path

import numpy as np

from invdiff.files.choice import Choice
from invdiff.files.errors import BadInput, must_be_a_file, reading


def read_cfl(path: Path, choose: Choice) -> dict[str, np.ndarray]:
    """complex64 with BART's axes (readout, phase 1, phase 2, coils, maps, ...), those of length 1 at the end dropped.

    path  the `.cfl` or the `.hdr` file
    """
    choose([""])
    header, data = path.with_suffix(".hdr"), path.with_suffix(".cfl")
    for file in (header, data):
        must_be_a_file(file, "a file of BART")
    with reading(path, "BART"):
        lines = header.read_text().splitlines()[:1000]
        words = lines[lines.index("# Dimensions") + 1].split() if "# Dimensions" in lines else []
        if not words or not all(word.isdecimal() for word in words):
            raise BadInput(f"it must name its dimensions below '# Dimensions': {header}")
        shape = [int(word) for word in words]
        if 8 * math.prod(shape) != data.stat().st_size:
            raise BadInput(f"{data} holds {data.stat().st_size} bytes, not {'x'.join(words)} complex64, see {header}")
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()
        return {"": np.fromfile(data, "<c8").reshape(shape, order="F")}
