"""The store of a benchmark's rows: one Parquet dataset that only grows, a file for each batch.

A file exists whole or not at all, and never changes. Its name is that of the run and the first image, so that a batch
that is computed again replaces itself. Any reader of Parquet opens the folder as one table:
`pandas.read_parquet("results.parquet")`.
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from invdiff.io import BadInput
from invdiff.io.atomic import PARTIAL, write_atomically
from invdiff.scores.of_images import COVERAGES
from invdiff.scores.proper import PROPER
from invdiff.scores.truth import DISTANCES, FLOORS

DATASET, RECORDS, DAMAGED = "results.parquet", "runs", "damaged"
VERSION = 2  # of the columns; files of another one are not read
OF_RECORD = {"run", "sampler", "operator", "task", "reason", "fitted", "fits", "settings"}  # keys that readers rely on
_MARK = b"invdiff.results"  # the key in the metadata of our files

PER_SAMPLE = ("forwards", "vjps", "operator_calls", "seconds")  # fields of `Cost`

_word = pa.dictionary(pa.int32(), pa.string())  # repeats from row to row: stored once a file
SCHEMA = pa.schema(
    [
        # which one
        ("run", _word),  # fingerprint of everything that determines its rows but the image
        ("sampler", _word),
        ("operator", _word),
        ("image", pa.int32()),
        ("image_key", _word),  # fingerprint of the true image
        ("name", _word),
        ("sample", pa.int32()),
        ("seed", pa.int64()),
        # scores of the sample; null where it diverged, or where `notes` says why
        ("diverged_at", pa.int32()),  # step; null: it did not diverge
        ("psnr", pa.float64()),
        ("ssim", pa.float64()),
        ("lpips", pa.float64()),
        ("misfit", pa.float64()),
        ("psnr_raw", pa.float64()),
        # scores of the image, the same for each of its samples
        *((name, pa.float64()) for name in PROPER),
        ("rmse_mean", pa.float64()),  # root mean square error of the posterior mean, image units
        ("psnr_mean", pa.float64()),
        ("diversity", pa.float64()),
        ("baseline_psnr", pa.float64()),
        *((name, pa.float64()) for name in COVERAGES),  # share of the pixels whose credible interval holds the truth
        *((name, pa.float64()) for name in (*DISTANCES, *FLOORS)),  # of all its samples, to the exact posterior
        # costs of the sample: those of its batch, shared out evenly
        *((name, pa.float64()) for name in PER_SAMPLE),
        ("peak_memory_mb", pa.float64()),  # of its batch
        ("vjp_weight", pa.float64()),  # cost of a VJP through the network in forwards; null: it has none
        ("rows_at_once", pa.int32()),
        # where it comes from
        ("invdiff", _word),
        ("torch", _word),
        ("git_revision", _word),
        ("device", _word),
        ("created", pa.timestamp("ms", tz="UTC")),
        ("notes", _word),  # JSON
    ],
    metadata={_MARK: str(VERSION).encode()},
)
KEY = ("run", "image", "image_key", "sample")
# Columns in which two runs of the same differ.
MEASURED = ("seconds", "peak_memory_mb", "vjp_weight", "created", "device", "rows_at_once")


@dataclass
class Store:
    """The results in a folder.

    messages  a line for each problem that was found in the folder
    """

    folder: Path
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dataset, self.records = self.folder / DATASET, self.folder / RECORDS

    def open(self, *, alone: bool = True) -> None:
        """Make the folders, remove files that a kill left half written, and check all others.

        alone  no other process writes here; otherwise half written files stay, which may be in use

        A damaged file is moved to `damaged/`, and its rows are computed again. Files of others stay.
        Raises BadInput where a file stands in the way of a folder, OSError where nothing can be written.
        """
        for folder in (self.dataset, self.records):
            if folder.exists() and not folder.is_dir():
                raise BadInput(f"{folder} must be a folder of a benchmark, got a file; set another output=")
            folder.mkdir(parents=True, exist_ok=True)
            for partial in folder.glob(f".*{PARTIAL}") if alone else ():
                partial.unlink()
        for path in sorted(self.dataset.iterdir()):
            self._look_at(path)
        for path in sorted(self.records.glob("*.json")):
            if _record(path) is None:
                self._set_aside(path, "the record of the run is made again")

    def _look_at(self, path: Path) -> None:
        name = f"{DATASET}/{path.name}"
        if path.suffix != ".parquet" or not path.is_file():
            if not path.name.startswith((".", "_")):  # readers of datasets skip those
                self.messages.append(f"{name} is not a file of invdiff; left alone, but may disturb other readers")
            return
        try:
            metadata = _metadata(path)
            if _MARK in metadata:
                _read(path)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk or permissions: the file may be sound
            self._set_aside(path, "its rows are computed again")
            return
        if _MARK not in metadata:
            self.messages.append(f"{name} holds no results of invdiff; it was left alone and is not read")
        elif metadata[_MARK] != str(VERSION).encode():
            raise BadInput(
                f"{name} was written by another version of invdiff (format {metadata[_MARK].decode()}, "
                f"this is {VERSION}); set another output="
            )

    def _set_aside(self, path: Path, then: str) -> None:
        place = self.folder / DAMAGED / path.name
        place.parent.mkdir(exist_ok=True)
        path.replace(place)
        self.messages.append(f"{path.parent.name}/{path.name} is damaged: moved to {DAMAGED}/, {then}")

    # -- rows ----------------------------------------------------------------------------------------------------------

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add the rows of a batch, all of one run; they are on the disk when this returns."""
        first = rows[0]
        data = io.BytesIO()
        table = pa.Table.from_pylist([dict(row) for row in rows], SCHEMA)
        pq.write_table(table, data, write_page_checksum=True, compression="zstd")
        name = f"{first['run']}-{first['image']:06d}-{first['image_key']}.parquet"
        write_atomically(self.dataset / name, data.getvalue())

    def table(self, columns: Iterable[str] | None = None) -> pa.Table:
        """All rows, none twice, in the order of run, image and sample."""
        wanted = list(dict.fromkeys([*KEY, *(SCHEMA.names if columns is None else columns)]))
        parts = []
        for path in sorted(self.dataset.glob("*.parquet")):
            if _MARK in _metadata(path):
                try:
                    parts.append(_read(path, wanted).cast(pa.schema([SCHEMA.field(name) for name in wanted])))
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError, ValueError) as error:
                    words = " ".join(str(error).split())[:200]
                    raise BadInput(f"{path} is not a part of this benchmark: remove it ({words})") from error
        empty = pa.schema([SCHEMA.field(name) for name in wanted]).empty_table()
        table = pa.concat_tables([empty, *parts], promote_options="permissive").unify_dictionaries()
        keys = list(zip(*(table[name].to_pylist() for name in KEY), strict=True))
        # A copied file holds the same rows twice.
        place = {key: i for i, key in reversed(list(enumerate(keys)))}
        order = [place[key] for key in sorted(place)]
        return table.take(pa.array(order, pa.int64()))

    def done(self) -> dict[tuple[str, int, str], int]:
        """Number of samples of each (run, image, image key)."""
        counts: dict[tuple[str, int, str], int] = {}
        table = self.table(KEY)
        for key in zip(*(table[name].to_pylist() for name in KEY[:3]), strict=True):
            counts[key] = counts.get(key, 0) + 1
        return counts

    # -- runs ----------------------------------------------------------------------------------------------------------

    def record(self, run: str) -> dict[str, Any] | None:
        """The record of a run: labels and settings, the reason why it is impossible, measurements of its cost."""
        path = self.records / f"{run}.json"
        return _record(path) if path.exists() else None

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Add or update the record of a run."""
        before = self.record(record["run"])
        if before != record:
            write_atomically(self.records / f"{record['run']}.json", (json.dumps(record, indent=1) + "\n").encode())

    def config(self, run: str) -> str | None:
        """The configuration that makes a run alone, YAML; None where the run was asked for without one."""
        path = self.records / f"{run}.yaml"
        return path.read_text(encoding="utf-8") if path.exists() else None

    def write_config(self, run: str, config: Mapping[str, Any]) -> None:
        text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
        if self.config(run) != text:
            write_atomically(self.records / f"{run}.yaml", text.encode())

    def all_records(self) -> dict[str, dict[str, Any]]:
        """The records of all runs by their fingerprints; other files are skipped."""
        found = {path.stem: _record(path) for path in sorted(self.records.glob("*.json"))}
        return {run: record for run, record in found.items() if record is not None}


def _record(path: Path) -> dict[str, Any] | None:
    """The record in a file; None where it holds none."""
    try:
        record = json.loads(path.read_text())
    except (ValueError, RecursionError):  # no JSON, or nested without end
        return None
    whole = isinstance(record, dict) and record.keys() >= OF_RECORD and record["run"] == path.stem
    return record if whole else None


def _metadata(path: Path) -> dict[bytes, bytes]:
    return pq.read_schema(path).metadata or {}


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    # `pq.read_table` would take a folder called seed=0 for a column.
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(columns)
