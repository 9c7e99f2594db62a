"""Files that are there whole or not at all, whatever happens in the middle of writing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"  # how the name of an unfinished file ends; it begins with a dot


def write_atomically(path: str | Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file as `written_atomically` does, from bytes."""
    with written_atomically(path, durable=durable) as file:
        file.write(data)


@contextmanager
def written_atomically(path: str | Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write beside its place, renamed at the end; an earlier file of that name stays until then.

    durable  wait until it is on the disk: it survives a loss of power too, and not only that of the process

    A link in its place is replaced, not followed. Raises OSError, naming the file, and leaves nothing, where it cannot
    be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        partial.unlink(missing_ok=True)
        with partial.open("xb") as file:  # exclusive: a link of that name is not followed
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        partial.replace(path)
        if durable:
            _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # not that of the partial file, which nobody knows
        raise


def _sync_folder(folder: Path) -> None:
    """The new name, and not only the contents behind it, reaches the disk; Windows opens no folders."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def removed_if_empty(folder: Path, *, made_for_it: bool = False) -> Iterator[None]:
    """Folders that are made on the way to `folder`, itself included, go again if they are empty at the end.

    made_for_it  the folder exists already, but hydra made it a moment ago
    """
    created = [path for path in (folder, *folder.parents) if not path.exists() or (made_for_it and path == folder)]
    try:
        yield
    finally:
        for path in created:
            with suppress(OSError):  # not empty, or never made
                path.rmdir()
