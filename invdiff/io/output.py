"""The folder of a run: what it writes there, what of it is finished, and what may be replaced.

.run.json    the run that the folder belongs to, whether it is finished, and every file that it writes
.parts-RUN/  finished images of a run that goes on, until all its results are there
.new-RUN/    its results, where those of another run stand in their place until all are written

Nothing else is removed or replaced but files that `.run.json` names.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np

from invdiff.io import BadInput
from invdiff.io.atomic import PARTIAL, write_atomically, written_atomically
from invdiff.io.lock import held

MANIFEST, PARTS, NEW = ".run.json", ".parts-", ".new-"
_LONGEST = 150  # bytes of a name; file systems take 255, with all that is put before and behind it


@dataclass(frozen=True)
class _State:
    """What `.run.json` says."""

    run: str | None
    finished: bool
    files: tuple[str, ...]


@dataclass
class Output:
    """The folder of a run, held by this process; see `opened`.

    files     every file that the run writes, relative to the folder
    config    the contents of config.yaml, written with the first result
    finished  the results of this run are here
    replaces  results of another run are here, or of this one when it is done again: they stay until `finish`
    """

    path: Path
    run: str
    files: Sequence[str]
    config: bytes | None
    finished: bool
    replaces: bool
    _state: _State
    _claimed: bool = field(default=False, init=False)
    _written: set[str] = field(default_factory=set, init=False)
    _passing: set[str] = field(default_factory=set, init=False)

    @contextmanager
    def written(self, name: str, *, durable: bool = False) -> Iterator[BinaryIO]:
        """One of the files, to be written; see `written_atomically`."""
        if name not in self.files:
            raise KeyError(f"{name} is not among the files of this run")
        self._claim()
        place = self._within / name
        _own_folder(self._within)
        _own_folder(place.parent)
        with written_atomically(place, durable=durable) as file:
            yield file
        self._written.add(name)

    def write(self, name: str, data: bytes) -> None:
        with self.written(name) as file:
            file.write(data)

    def glimpse(self, name: str, data: bytes) -> None:
        """Write one of the files for the time of the run: it goes at the end. Earlier results stay."""
        if not self.replaces:
            self.write(name, data)
        else:
            self._set(replace(self._state, files=tuple({*self._state.files, name})))
            write_atomically(self.path / name, data, durable=False)
        self._passing.add(name)

    def has(self, name: str) -> bool:
        """Whether this process has written one of the files; what an earlier one left may be of another run."""
        return name in self._written

    # -- finished images -----------------------------------------------------------------------------------------------

    def keep(self, first: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Store what belongs to finished images; `first` is the index of the first one. All of it or nothing."""
        self._claim()
        _own_folder(self._parts)
        with written_atomically(self._parts / f"{first:06d}.npz", durable=True) as file:
            np.savez(file, allow_pickle=False, **arrays)

    def kept(self, *names: str) -> dict[int, dict[str, np.ndarray]]:
        """What `keep` has stored, by index, in this process or an earlier one; of these names, or all."""
        found = {}
        for path in sorted(self._parts.glob("*.npz")) if self._parts.is_dir() else ():
            try:
                with np.load(path, allow_pickle=False) as file:
                    found[int(path.stem)] = {name: file[name] for name in names or file.files}
            except (ValueError, KeyError, EOFError, BadZipFile) as error:
                raise BadInput(f"a finished image cannot be read: {path} ({error}); remove this file") from error
        return found

    @property
    def _parts(self) -> Path:
        return self.path / f"{PARTS}{self.run}"

    # -- the end -------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """All files are written: remove those of the earlier run that have no successor, and the parts."""
        if self.replaces:
            self._set(_State(self.run, False, tuple({*self.files, *self._state.files})))
            for name in self._written:
                _own_folder((self.path / name).parent)
                (self._within / name).replace(self.path / name)
        files = [name for name in self.files if name not in self._passing]
        self._remove(set(self._state.files) - set(files))
        self._set(_State(self.run, True, tuple(files)))
        self.finished = True
        self._clear()

    def _clear(self) -> None:
        """Remove what belongs to runs that go on."""
        for folder in (*self.path.glob(f"{PARTS}*"), *self.path.glob(f"{NEW}*")):
            if not folder.is_symlink():
                shutil.rmtree(folder)

    def close(self) -> None:
        """Where nothing was finished, remove what the run has written so far."""
        if self.finished or not self._claimed or self._parts.is_dir():
            return
        if not self.replaces:
            self._remove({*self._state.files, MANIFEST})
        elif self._within.is_dir():
            shutil.rmtree(self._within)

    @property
    def _within(self) -> Path:
        return self.path / f"{NEW}{self.run}" if self.replaces else self.path

    def _claim(self) -> None:
        """From here on the folder belongs to this run, unless results of another one stand in it."""
        if not self._claimed:
            if not self.replaces:
                self._set(_State(self.run, False, tuple({*self.files, *self._state.files})))
            self._claimed = True
            if self.config is not None:
                self.write("config.yaml", self.config)

    def _set(self, state: _State) -> None:
        if state != self._state:
            saved = json.dumps({**asdict(state), "files": sorted(state.files)}, indent=1)
            write_atomically(self.path / MANIFEST, f"{saved}\n".encode())
            self._state = state

    def _remove(self, names: Iterable[str]) -> None:
        folders = set()
        for place in (self.path / name for name in names):
            if not place.parent.is_symlink():
                place.unlink(missing_ok=True)
                folders.add(place.parent)
        for folder in folders - {self.path}:
            with suppress(OSError):  # not empty
                folder.rmdir()


@contextmanager
def opened(
    path: Path,
    run: str,
    files: Sequence[str],
    *,
    overwrite: bool,
    config: bytes | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Iterator[Output]:
    """Hold the folder of a run, alone; it is made where it does not exist.

    run        fingerprint of all that the results depend on
    files      see `Output`
    overwrite  replace the results of another run, and compute those of this one again
    config     the contents of config.yaml, written with the first result
    say        called with a line where an earlier run was killed, and where the file system has no locks

    Raises BadInput where another run is at work in the folder, where it holds results of another one and `overwrite` is
    False, and where a file or a link, which no run has written, stands in the place of a file of this run.
    """
    if path.exists() and not path.is_dir():
        raise BadInput(f"output must be a folder, got a file: {path}")
    path.mkdir(parents=True, exist_ok=True)
    with held(path, say, alone=True):
        state = _state_of(path)
        if state.run not in (None, run) and not overwrite:
            raise BadInput(
                f"{path} holds results of another configuration; set another output=, or overwrite=true to replace them"
            )
        for name in files:
            if os.path.lexists(path / name) and name not in state.files:
                raise BadInput(
                    f"{path / name} was not written by an earlier run and would be replaced; set another output="
                )
        for folder in {(path / name).parent for name in files} | {path / f"{PARTS}{run}", path / f"{NEW}{run}"}:
            if folder != path and (folder.is_symlink() or (folder.exists() and not folder.is_dir())):
                raise BadInput(f"{folder} must be a folder of {path}, got a link or a file; set another output=")
            for partial in folder.glob(f".*{PARTIAL}"):
                partial.unlink()
        done = state.run == run and state.finished
        replaces = state.run is not None and (state.run != run or (done and overwrite))
        output = Output(path, run, files, config, done and not overwrite, replaces, state)
        if output.finished:
            output._clear()  # a kill may have come before
        try:
            yield output
        finally:
            output.close()


def check_apart(output: Path, inputs: Iterable[Path], folders: Sequence[str] = ("samples",)) -> None:
    """Raise BadInput where results would be written beside the files that they are computed from.

    folders  that the run makes below `output`
    """
    own = {output.resolve(), *((output / name).resolve() for name in folders)}
    for path in inputs:
        if path.resolve() in own or path.resolve().parent in own:
            raise BadInput(f"output={output} holds an input of this run, {path}; set an output= of its own")


def fresh_folder(wanted: Path) -> Path:
    """A new folder of this name, or of this name with a number: no other process gets the same one."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def file_stem(name: str) -> str:
    """The name of an image as a part of a file name: without separators, and short enough."""
    plain = "".join("_" if c in "/\\:" or ord(c) < 32 else c for c in name)
    short = plain.encode()[:_LONGEST].decode(errors="ignore")
    return name if short == name else f"{short}~{sha256(name.encode()).hexdigest()[:8]}"


def _state_of(path: Path) -> _State:
    """The state of a folder, a plain one where no run has written into it."""
    place = path / MANIFEST
    if place.is_symlink():
        raise BadInput(f"{place} is a link; set another output=")
    try:
        saved = json.loads(place.read_text(encoding="utf-8"))
        state = _State(str(saved["run"]), bool(saved["finished"]), tuple(str(name) for name in saved["files"]))
    except FileNotFoundError:
        return _State(None, False, ())
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{place} is damaged ({type(error).__name__}); set another output=") from error
    for name in state.files:
        parts = name.split("/")
        if len(parts) > 2 or any(part in ("", ".", "..", MANIFEST) or set(part) & set("\\:\0") for part in parts):
            raise BadInput(f"{place} names a file that no run writes: {name!r}; set another output=")
    return state


def _own_folder(folder: Path) -> None:
    """Make a folder below that of the run. Raises BadInput for a link."""
    if folder.is_symlink():
        raise BadInput(f"{folder} is a link; set another output=")
    folder.mkdir(exist_ok=True)
