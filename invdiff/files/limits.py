"""The size that a file declares, compared with the file and with memory before anything is expanded."""

from pathlib import Path

import psutil

from invdiff.files.errors import BadInput

SMALL = 2**30  # bytes that any file may expand to
RATIO = 200  # of values to file beyond that: images and arrays that people have are compressed less


def check_size(size: int, path: Path, *, stored: int | None = None) -> None:
    """Raise BadInput where values of `size` bytes do not fit into memory, or could only come from a bomb.

    stored  bytes that they take now; None: as many as the file
    """
    stored, room = path.stat().st_size if stored is None else stored, psutil.virtual_memory().available
    if size > room:
        raise BadInput(f"{path} declares {_in_gib(size)} of values; {_in_gib(room)} of memory are free")
    if size > SMALL and size > RATIO * stored:
        raise BadInput(
            f"{path} declares {_in_gib(size)} of values in {_in_gib(stored)}, {RATIO} times smaller or more: it is "
            "taken for a decompression bomb; save it uncompressed"
        )


def _in_gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
