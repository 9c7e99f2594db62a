"""The store: rows are there whole or not at all, and whatever else lies in the folder harms none of them."""

import errno
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from invdiff.benchmark.store import DATASET, Store
from invdiff.io import BadInput


def batch(run: str = "a", image: int = 0, samples: int = 2) -> list[dict[str, Any]]:
    shared = {"run": run, "image": image, "image_key": f"key{image}", "sampler": "dps", "created": datetime.now(UTC)}
    return [shared | {"sample": s, "psnr": 20.0 + s + image} for s in range(samples)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "out")
    store.open()
    store.append(batch("a", 0))
    store.append(batch("a", 1))
    return store


def reopened(store: Store) -> Store:
    again = Store(store.folder)
    again.open()
    return again


def parts(store: Store) -> list[Path]:
    return sorted(store.dataset.glob("*.parquet"))


def test_what_was_added_is_there(store: Store) -> None:
    store.append(batch("b", 7, samples=1))
    again = reopened(store)
    assert again.messages == []
    assert again.done() == {("a", 0, "key0"): 2, ("a", 1, "key1"): 2, ("b", 7, "key7"): 1}
    table = again.table(["psnr", "lpips"])
    assert table["psnr"].to_pylist() == [20, 21, 21, 22, 27]
    assert table["lpips"].null_count == 5
    assert set(pq.read_table(store.dataset)["run"].to_pylist()) == {"a", "b"}, "any reader opens the folder"


def test_a_batch_that_is_computed_again_replaces_itself(store: Store) -> None:
    before = store.table()
    store.append(batch("a", 1))
    assert store.table().drop_columns("created") == before.drop_columns("created")


def test_a_copied_file_adds_no_rows(store: Store) -> None:
    before = store.table()
    shutil.copy(parts(store)[0], store.dataset / "copy of that.parquet")
    assert reopened(store).table() == before


def test_a_folder_name_is_no_column(tmp_path: Path) -> None:
    store = Store(tmp_path / "seed=3")
    store.open()
    store.append(batch())
    assert store.table().num_rows == 2


@pytest.mark.parametrize("moment", ["write", "fsync", "rename"])
def test_a_full_disk(store: Store, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    before = store.table()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(*{"write": (Path, "open"), "fsync": (os, "fsync"), "rename": (Path, "replace")}[moment], full)
        with pytest.raises(OSError, match="No space left") as caught:
            store.append(batch("c", 0))
    assert caught.value.filename == str(store.dataset / "c-000000-key0.parquet")
    assert {p.name for p in store.dataset.iterdir()} == {p.name for p in parts(store)}, (
        "something half written was left"
    )
    assert store.table() == before


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped"])
def test_a_damaged_file_is_set_aside(store: Store, damage: str) -> None:
    victim, data = parts(store)[1], bytearray(parts(store)[1].read_bytes())
    flipped = bytes([*data[:200], data[200] ^ 0xFF, *data[201:]])
    contents = {"empty": b"", "truncated": bytes(data[:-100]), "flipped": flipped}[damage]
    victim.write_bytes(contents)
    again = reopened(store)
    assert again.done() == {("a", 0, "key0"): 2}
    assert again.messages == [f"{DATASET}/{victim.name} is damaged: moved to damaged/, its rows are computed again"]
    assert (store.folder / "damaged" / victim.name).read_bytes() == contents, "nothing is thrown away"
    assert reopened(store).messages == []


def test_foreign_files_are_left_alone(store: Store) -> None:
    before = store.table()
    (store.dataset / "notes.txt").write_text("mine")
    pq.write_table(pa.table({"x": [1.0]}), store.dataset / "mine.parquet")
    again = reopened(store)
    assert again.table() == before
    assert (store.dataset / "notes.txt").exists()
    assert (store.dataset / "mine.parquet").exists()
    assert [message.partition(" ")[0] for message in again.messages] == [
        f"{DATASET}/mine.parquet",
        f"{DATASET}/notes.txt",
    ]
    assert all("left alone" in message for message in again.messages)


def test_another_format_is_refused(store: Store) -> None:
    path = parts(store)[0]
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"invdiff.results": b"99"}), path)
    with pytest.raises(BadInput, match=r"another version of invdiff \(format 99, this is 2\)"):
        reopened(store)


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / DATASET).write_text("mine")
    with pytest.raises(BadInput, match=f"{DATASET} must be a folder of a benchmark, got a file"):
        Store(tmp_path).open()
    assert (tmp_path / DATASET).read_text() == "mine"


def test_what_a_kill_left_half_written_goes(store: Store) -> None:
    (store.dataset / ".a-000002-key2.parquet.123.partial").write_bytes(b"PAR1")
    before = store.table()
    assert reopened(store).table() == before
    assert not list(store.dataset.glob(".*"))


def record(run: str, reason: str | None = None) -> dict[str, Any]:
    of_run = {"run": run, "sampler": "dps", "operator": "blur", "task": "t", "settings": {}}
    return of_run | {"reason": reason, "fitted": False, "fits": {}}


def test_records_of_runs(store: Store) -> None:
    assert store.record("a") is None
    store.write_record(record("a"))
    store.write_record(record("b", "no"))
    assert reopened(store).all_records() == {"a": record("a"), "b": record("b", "no")}


@pytest.mark.parametrize("contents", ["{", "[1]", json.dumps(record("y"))], ids=["cut off", "a list", "of another run"])
def test_what_is_no_record_of_a_run_is_set_aside(store: Store, contents: str) -> None:
    store.write_record(record("b"))
    (store.records / "x.json").write_text(contents)
    assert store.all_records() == {"b": record("b")}, "what appears while a run is at work is passed over"
    again = reopened(store)
    assert set(again.all_records()) == {"b"}
    assert again.messages == ["runs/x.json is damaged: moved to damaged/, the record of the run is made again"]
    assert (store.folder / "damaged" / "x.json").read_text() == contents
