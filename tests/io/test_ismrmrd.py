"""ISMRMRD files by their layout: lines go where the header says; what is not understood is refused."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from invdiff.io import BadInput, Slicing, load_measurement

RNG = np.random.default_rng(0)
SLICES, COILS, WIDTH, LINES = 2, 3, 8, 6
KSPACE = (RNG.standard_normal((SLICES, COILS, WIDTH, LINES, 2)).astype(np.float32).view(np.complex64))[..., 0]
INDEX = [(name, "u2") for name in (
    "kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast", "phase", "repetition", "set",
)]  # fmt: skip
HEAD = [("flags", "u8"), ("number_of_samples", "u2"), ("active_channels", "u2"), ("discard_pre", "u2"),
        ("discard_post", "u2"), ("center_sample", "u2"), ("idx", INDEX)]  # fmt: skip
XML = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>8</x><y>6</y><z>1</z></matrixSize></encodedSpace>
<encodingLimits><kspace_encoding_step_1><center>2</center></kspace_encoding_step_1></encodingLimits>
<trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"""


def write(path: Path, xml: str = XML, skip: int = 1, **changes: Any) -> Path:
    """The lines of `KSPACE` but for one, behind a noise scan; `changes` of heads or indices of the last line."""
    row = np.dtype([("head", HEAD), ("data", h5py.vlen_dtype(np.float32))])
    kept = [(s, line) for s in range(SLICES) for line in range(1, LINES) if line != skip]
    rows = np.zeros(1 + len(kept), row)
    rows[0]["head"]["flags"], rows[0]["data"] = 1 << 18, np.ones(5, np.float32)
    for i, (s, line) in enumerate(kept, 1):
        head = rows[i]["head"]
        head["number_of_samples"], head["active_channels"], head["center_sample"] = WIDTH, COILS, WIDTH // 2
        head["idx"]["slice"], head["idx"]["kspace_encode_step_1"] = s, line - 1  # whose centre, 2, is line 3
        rows[i]["data"] = np.ascontiguousarray(KSPACE[s, :, :, line]).view(np.float32).reshape(-1)
    for name, value in changes.items():
        (rows[-1]["head"] if name in dict(HEAD) else rows[-1]["head"]["idx"])[name] = value
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset/data", data=rows)
        file.create_dataset("dataset/xml", data=[xml], dtype=h5py.string_dtype())
    return path


def test_lines_lie_where_they_were_acquired(tmp_path: Path) -> None:
    found = load_measurement(write(tmp_path / "scan.h5"), parameters=("mask",), slicing=Slicing(slices="all"))
    wanted = KSPACE.copy()
    wanted[..., [0, 1]] = 0  # before the first line, and the one that was left out
    scale = np.array([unit[0] for unit in found.units if unit is not None])
    np.testing.assert_allclose(found.y.numpy() * scale[:, None, None, None], wanted, rtol=1e-5, atol=1e-6)
    assert found.names == ["scan_000", "scan_001"]


REFUSED = {
    "radial": ({"xml": XML.replace("cartesian", "radial")}, "must be cartesian, got radial"),
    "volume": ({"xml": XML.replace("<z>1", "<z>4")}, "must be two-dimensional"),
    "two encodings": ({"xml": XML.replace("</ism", "<encoding/></ism")}, "one encoding, got 2"),
    "entities": ({"xml": "<!DOCTYPE a [<!ENTITY b 'c'>]>" + XML}, "must not define entities"),
    "no XML": ({"xml": "text"}, "cannot be read"),
    "asymmetric echo": ({"center_sample": 2}, "center_sample must be 4"),
    "repetitions": ({"repetition": 1}, "several repetition"),
    "another length": ({"number_of_samples": 4}, "number_of_samples must be 8"),
    "reversed": ({"flags": 1 << 21}, "reversed acquisitions"),
    "outside": ({"kspace_encode_step_1": 60000}, "must lie in the encoded matrix"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(tmp_path: Path, case: str) -> None:
    changes, words = REFUSED[case]
    with pytest.raises(BadInput, match=words) as caught:
        load_measurement(write(tmp_path / "scan.h5", **changes))
    assert "\n" not in str(caught.value)
