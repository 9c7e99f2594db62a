"""The folder of a run: a kill at any moment loses nothing, and nothing is touched that no run has written."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invdiff.io import BadInput
from invdiff.io.output import MANIFEST, Output, check_apart, file_stem, fresh_folder, opened

FILES = ("config.yaml", "samples.npz", "samples/a_000.png", "samples/b_000.png")


@contextmanager
def held(folder: Path, run: str = "run1", files: tuple[str, ...] = FILES, **options: Any) -> Iterator[Output]:
    with opened(folder, run, files, **{"overwrite": False, "config": run.encode(), **options}) as output:
        yield output


def work(folder: Path, run: str = "run1", files: tuple[str, ...] = FILES, **options: Any) -> list[int]:
    """A run of two images; what it computes is told by its name. Returns the images that were not kept."""
    with held(folder, run, files, **options) as output:
        computed = [] if output.finished else [i for i in (0, 1) if i not in output.kept()]
        for i in computed:
            output.keep(i, {"x": np.array([i])})
            output.write(files[2 + i], run.encode())
        if not output.finished:
            kept = output.kept()
            assert [int(kept[i]["x"][0]) for i in (0, 1)] == [0, 1]
            for name in files[1:]:
                if not output.has(name):
                    output.write(name, run.encode())
            output.finish()
    return computed


def contents(folder: Path) -> dict[str, str]:
    """Every file but the state, with its text."""
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST}
    return {name: path.read_text(errors="replace") for name, path in found.items()}


def killed_at(moment: int, run: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run in a process that dies at its n-th change of a file system; whether it came so far."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    count = 0

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == moment:
                os._exit(9)
            return change(*args, **named)

        return call

    for where, name in ((Path, "replace"), (Path, "unlink"), (Path, "mkdir"), (Path, "rmdir"), (os, "fsync")):
        monkeypatch.setattr(where, name, counted(getattr(where, name)))
    for name in ("unlink", "rmdir"):  # of shutil.rmtree
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    run()
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [None, "run0", "run1"])
def test_a_kill_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: str | None) -> None:
    old = ("config.yaml", "samples.npz", "samples/a_000.png", "samples/c_000.png")
    wanted = dict.fromkeys(FILES, "run1")
    moment, more = 0, True
    while more:
        moment += 1
        folder = tmp_path / str(moment)
        if earlier is not None:
            work(folder, earlier, old if earlier == "run0" else FILES)
        before = contents(folder)
        more = killed_at(moment, partial(work, folder, overwrite=earlier is not None), monkeypatch)
        kept = len(list(folder.glob(".parts-run1/[0-9]*.npz")))
        state = json.loads((folder / MANIFEST).read_text()) if (folder / MANIFEST).exists() else None
        if state is not None and state["run"] == earlier and state["finished"]:
            after = contents(folder)
            assert {name: after[name] for name in before} == before or (earlier == "run1" and not kept)
        done = state is not None and state["run"] == "run1" and state["finished"]
        computed = work(folder, overwrite=earlier is not None and not done)
        assert len(computed) == (0 if done else 2 - kept)
        assert contents(folder) == wanted
        assert work(folder) == []
    assert moment > 20


def test_a_full_disk_leaves_the_earlier_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work(tmp_path, "run0")
    before, state = contents(tmp_path), (tmp_path / MANIFEST).read_text()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with held(tmp_path, overwrite=True) as output:
        output.keep(0, {"x": np.array([0])})
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as stop:
            output.keep(1, {"x": np.array([1])})
        assert str(stop.value.filename).endswith("000001.npz")
        with pytest.raises(OSError, match="No space left"), output.written("samples.npz", durable=True) as file:
            file.write(b"new")
    shown = {name: text for name, text in contents(tmp_path).items() if not name.startswith((".parts", ".new"))}
    assert (shown, (tmp_path / MANIFEST).read_text()) == (before, state)
    monkeypatch.undo()
    assert work(tmp_path, overwrite=True) == [1]


def test_another_run_is_refused(tmp_path: Path) -> None:
    work(tmp_path, "run0")
    before = contents(tmp_path)
    with pytest.raises(BadInput, match="holds results of another configuration; set another output=, or overwrite="):
        work(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["samples.npz", "samples/b_000.png"])
@pytest.mark.parametrize("kind", ["file", "link"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_no_run_has_written_stay(tmp_path: Path, name: str, kind: str, overwrite: bool) -> None:
    other = tmp_path / "mine.txt"
    other.write_text("mine")
    (tmp_path / "out/samples").mkdir(parents=True)
    if kind == "file":
        shutil.copy(other, tmp_path / "out" / name)
    else:
        (tmp_path / "out" / name).symlink_to(other)
    with pytest.raises(BadInput, match=f"{name} was not written by an earlier run"):
        work(tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out" / name).read_text() == other.read_text() == "mine"
    assert contents(tmp_path / "out") == {name: "mine"}


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("samples", ".parts-run1", ".run.json", ".lock"):
        folder = tmp_path / f"out{name}"
        folder.mkdir()
        target = outside / "target"
        target.write_text("kept") if name.endswith(("json", "lock")) else target.unlink(missing_ok=True)
        (folder / name).symlink_to(target if target.exists() else outside)
        with pytest.raises((BadInput, OSError)):
            work(folder)
        assert not target.exists() or target.read_text() == "kept"
        assert {p.name for p in outside.iterdir()} <= {"target"}


def test_a_link_planted_later_is_replaced(tmp_path: Path) -> None:
    work(tmp_path / "out", "run0")
    target = tmp_path / "target"
    target.write_text("kept")
    for name in FILES[1:]:
        (tmp_path / "out" / name).unlink()
        (tmp_path / "out" / name).symlink_to(target)
    work(tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == dict.fromkeys(FILES, "run1")
    assert target.read_text() == "kept"


@pytest.mark.parametrize("name", ["../mine.txt", "/etc/mine.txt", "samples/../../mine.txt", "a/b/c", "..", "C:\\a", ""])
def test_a_poisoned_state_removes_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    work(tmp_path / "out", "run0")
    place = tmp_path / "out" / MANIFEST
    place.write_text(json.dumps({"run": "run0", "finished": True, "files": [*FILES, name]}))
    with pytest.raises(BadInput, match="names a file that no run writes"):
        work(tmp_path / "out", overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert contents(tmp_path / "out") == dict.fromkeys(FILES, "run0")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"run": "a"}', '{"run": 1, "finished": 1, "files": 5}'])
def test_a_damaged_state(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BadInput, match="is damaged"):
        work(tmp_path, overwrite=True)


def test_a_part_that_is_damaged(tmp_path: Path) -> None:
    with held(tmp_path) as output:
        output.keep(0, {"x": np.array([0])})
    (tmp_path / ".parts-run1/000000.npz").write_bytes(b"PK broken")
    with pytest.raises(BadInput, match=r"cannot be read: .*000000\.npz .*; remove this file"):
        work(tmp_path)


def test_nothing_finished_leaves_nothing(tmp_path: Path) -> None:
    with held(tmp_path / "out") as output:
        output.glimpse("samples/a_000.png", b"so far")
    assert list((tmp_path / "out").iterdir()) == []
    work(tmp_path / "old", "run0")
    before = contents(tmp_path / "old")
    with held(tmp_path / "old", overwrite=True) as output:
        output.write("samples.npz", b"new")
    assert contents(tmp_path / "old") == before


def test_a_glimpse_goes_at_the_end(tmp_path: Path) -> None:
    files = (*FILES, "preview.png")
    for run in ("run0", "run1"):
        with held(tmp_path, run, files, overwrite=True) as output:
            output.keep(0, {"x": np.array([0])})
            output.glimpse("preview.png", b"so far")
            assert (tmp_path / "preview.png").read_bytes() == b"so far"
        work(tmp_path, run, FILES, overwrite=True)
        assert contents(tmp_path) == dict.fromkeys(FILES, run)


def test_inputs_in_the_output(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    (scans / "samples").mkdir(parents=True)
    for name in ("a.png", "samples/b.png"):
        (scans / name).touch()
    for path in (scans, scans / "a.png", scans / "samples/b.png", scans / "samples"):
        with pytest.raises(BadInput, match="holds an input of this run"):
            check_apart(tmp_path / "x/../scans", [path])
    (tmp_path / "link").symlink_to(scans)
    with pytest.raises(BadInput, match="holds an input"):
        check_apart(tmp_path / "link", [scans / "a.png"])
    check_apart(scans / "out", [scans, scans / "a.png"])


def test_folders_of_the_same_second(tmp_path: Path) -> None:
    made = [fresh_folder(tmp_path / "runs/12-00-00") for _ in range(3)]
    assert [path.name for path in made] == ["12-00-00", "12-00-00_2", "12-00-00_3"]
    assert all(path.is_dir() for path in made)


def test_names_of_files() -> None:
    names = ["a", "a.b", "../a", "..\\a", "a:b", "a\nb", "é" * 200, "é" * 201]
    stems = [file_stem(name) for name in names]
    assert stems[:2] == ["a", "a.b"]
    assert len(set(stems)) == len(names)
    assert all(
        not set(stem) & set("/\\:\n") and len(f".samples_{stem}_mean.png.123456.partial".encode()) < 256
        for stem in stems
    )
