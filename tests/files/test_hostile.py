"""Files that lie: nothing of another file is read, nothing large is expanded, nothing crashes the process."""

import gzip
import io
import json
import math
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse
import torch
from PIL import Image
from safetensors.torch import save_file

from invdiff import load_prior
from invdiff.files import BadInput, limits, read_array
from invdiff.io import load_measurement
from invdiff.io.volumes import read_slices
from invdiff.operators import Blur, Inpainting, MatrixOperator
from invdiff.priors import EDMPrior


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb of a megabyte is as good as one of gigabytes."""
    monkeypatch.setattr(limits, "SMALL", 2**18)


def _npy(shape: str, descr: str = "<f8", data: bytes = b"") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def _bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _zip(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def _png(path: Path, side: int) -> Path:
    """One black square, tiny as a file."""
    with io.BytesIO() as data:
        Image.new("L", (side, side)).save(data, "PNG")
        return _bytes(path, data.getvalue())


SHAPES = ["(4611686018427387904,)", "(65536, 65536, 65536, 65536)", "(-1,)", "(-3, -5)", "(10, 10)", "(2, -2)"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_headers_of_numpy_that_declare_more_than_there_is(tmp_path: Path, shape: str, suffix: str) -> None:
    data = _npy(shape, data=b"\0" * 64)
    path = _bytes(tmp_path / "a.npy", data) if suffix == "npy" else _zip(tmp_path / "a.npz", a=data)
    for read in (lambda: read_array(path, "mask", "a"), lambda: load_measurement(path), lambda: Blur(path)):
        with pytest.raises(BadInput, match="cannot be read"):
            read()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["a.npz", "a.png", "a.nii.gz"])
def test_bombs_are_refused_by_the_size_that_they_declare(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.npz":
        _zip(path, a=_npy(f"({2**18},)", data=b"\0" * 2**21))
    elif name == "a.png":
        _png(path, 3000)
    else:
        header = bytearray(352)
        struct.pack_into("<i", header, 0, 348)
        struct.pack_into("<8h", header, 40, 3, 64, 64, 256, 1, 1, 1, 1)
        struct.pack_into("<hh", header, 70, 16, 32)
        struct.pack_into("<f", header, 108, 352)
        header[344:348] = b"n+1\0"
        path.write_bytes(gzip.compress(bytes(header) + b"\0" * (4 * 64 * 64 * 256)))
    read: Callable[[], object] = (lambda: read_slices(path)) if "nii" in name else lambda: Inpainting(mask=path)
    with pytest.raises(BadInput, match="taken for a decompression bomb"):
        read()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("zeros", [2**10, 2**24])
def test_a_deflated_dicom_is_counted_before_pydicom_inflates_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zeros: int
) -> None:
    """The bomb is no pixel: no size that the file states tells it."""
    pydicom = pytest.importorskip("pydicom")
    whole = pydicom.Dataset()
    whole.file_meta = pydicom.dataset.FileMetaDataset()
    whole.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    whole.file_meta.MediaStorageSOPClassUID = whole.SOPClassUID = pydicom.uid.CTImageStorage
    whole.file_meta.MediaStorageSOPInstanceUID = whole.SOPInstanceUID = "1.2.3"
    whole.Rows = whole.Columns = 8
    whole.BitsAllocated = whole.BitsStored = 8
    whole.HighBit, whole.PixelRepresentation, whole.SamplesPerPixel = 7, 0, 1
    whole.PhotometricInterpretation = "MONOCHROME2"
    whole.PixelData = bytes(range(64))
    whole.EncapsulatedDocument = bytes(zeros)
    whole.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    if zeros == 2**10:
        assert read_slices(tmp_path / "a.dcm").images[0].shape == (8, 8, 1)
        return
    monkeypatch.setattr(pydicom, "dcmread", lambda path: pytest.fail("it was inflated"))
    with pytest.raises(BadInput, match="taken for a decompression bomb"):
        read_slices(tmp_path / "a.dcm")


def test_a_header_of_nifti_that_is_a_bomb(tmp_path: Path) -> None:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<f", header, 108, 2.0**31)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(bytes(header)))
    with pytest.raises(BadInput, match=r"the header of .* bytes long"):
        read_slices(path)


def test_more_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = type("Memory", (), {"available": 1000})
    monkeypatch.setattr(limits.psutil, "virtual_memory", lambda: memory)
    np.savez(tmp_path / "a.npz", a=np.zeros(1000))
    with pytest.raises(BadInput, match=r"declares .* of values; .* of memory are free"):
        read_array(tmp_path / "a.npz", "mask", "a")


# -- sparse matrices whose indices lead outside ------------------------------------------------------------------------


def _sparse(path: Path, kind: str, **changes: np.ndarray) -> Path:
    matrix = scipy.sparse.random_array((8, 16), density=0.3, format=kind, rng=np.random.default_rng(0))
    if kind == "bsr":
        matrix = scipy.sparse.bsr_array(matrix, blocksize=(2, 2))
    scipy.sparse.save_npz(path, matrix)
    with np.load(path) as file:
        parts = dict(file)
    np.savez(path, **{name: changes.get(name, part) for name, part in parts.items()})
    return path


@pytest.mark.parametrize("kind", ["csr", "csc", "bsr", "coo", "dia"])
def test_honest_sparse_matrices(tmp_path: Path, kind: str) -> None:
    path = _sparse(tmp_path / "m.npz", kind)
    dense = scipy.sparse.load_npz(path).toarray()
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    wanted = x.flatten(1) @ torch.from_numpy(dense).float().T
    torch.testing.assert_close(MatrixOperator(path, image_shape=(1, 4, 4))(x), wanted)


@pytest.mark.parametrize("kind", ["csr", "csc", "bsr", "coo"])
@pytest.mark.parametrize("value", [2**30, -5, 16])
def test_indices_that_lie(tmp_path: Path, kind: str, value: int) -> None:
    path = _sparse(tmp_path / "m.npz", kind)
    name = "col" if kind == "coo" else "indices"
    with np.load(path) as file:
        bad = file[name].copy()
    bad[len(bad) // 2] = value
    _sparse(path, kind, **{name: bad})
    with pytest.raises(BadInput, match=r"^matrix: the sparse matrix file cannot be read"):
        MatrixOperator(path, image_shape=(1, 4, 4))


@pytest.mark.parametrize("change", ["indptr", "shape", "format", "data"])
def test_other_parts_that_lie(tmp_path: Path, change: str) -> None:
    values = {
        "indptr": np.array([0, 2**30, *[3] * 7], np.int32),
        "shape": np.array([2**60, 16]),
        "format": np.array(b"rar"),
        "data": np.array(["a"] * 38),
    }
    path = _sparse(tmp_path / "m.npz", "csr", **{change: values[change]})
    with pytest.raises(BadInput, match=r"^matrix: "):
        MatrixOperator(path, image_shape=(1, 4, 4))


# -- HDF5 that leads to other files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["link", "link of a group", "soft link", "storage", "virtual"])
@pytest.mark.parametrize("name", ["kspace", "y"])
def test_hdf5_reads_no_other_file(tmp_path: Path, how: str, name: str) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["inner/values"] = np.ones((1, 8, 8), np.complex64)
    (tmp_path / "secret.txt").write_bytes(b"password" * 100)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        if how == "link":
            file[name] = h5py.ExternalLink("secret.h5", "/inner/values")
        elif how == "link of a group":
            file["group"] = h5py.ExternalLink("secret.h5", "/inner")
            file[name] = h5py.SoftLink("/group/values")
        elif how == "soft link":
            file["other"] = h5py.ExternalLink("secret.h5", "/inner/values")
            file[name] = h5py.SoftLink("other")
        elif how == "storage":
            external = [(str(tmp_path / "secret.txt"), 0, 512)]
            file.create_dataset(name, (1, 8, 8), "c8", external=external)
        else:
            layout = h5py.VirtualLayout((1, 8, 8), "c8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "inner/values", (1, 8, 8))
            file.create_virtual_dataset(name, layout)
    for file_name in (path, f"{path}:{name}"):
        with pytest.raises(BadInput) as caught:
            load_measurement(file_name)
        assert any(words in str(caught.value) for words in ("other file", "another file", "arrays none", "no array"))


def test_groups_that_hold_each_other(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        one = file.create_group("one")
        for k in range(10):
            one[f"again{k}"] = file["/"]
        file["mine"] = np.ones((2, 3))
        file["round"] = h5py.SoftLink("/round")
    assert read_array(tmp_path / "a.h5", "y", "mine").shape == (2, 3)
    with pytest.raises(BadInput):
        read_array(tmp_path / "a.h5:/round", "y", "mine")


# -- scripts and weights -----------------------------------------------------------------------------------------------


def test_a_script_under_the_name_of_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    path = (tmp_path / "a.eps").rename(tmp_path / "a.png")
    for read in (lambda: Inpainting(mask=path), lambda: Blur(path), lambda: load_measurement(path)):
        with pytest.raises(BadInput, match=r"no PNG, JPEG, TIFF, BMP, WebP or GIF"):
            read()


SPEC = {"channels": 1, "patch": 2, "widths": [8, 16], "blocks": [1, 1]}
HEADER = {"unet": SPEC, "shape": [1, 16, 16], "sigma_data": 0.25, "sigma_range": [0.002, 80], "value_range": [0, 1]}
LIES = {
    "blocks": {"unet": {**SPEC, "blocks": [10**8, 1]}},
    "no blocks": {"unet": {**SPEC, "blocks": [0, 1]}},
    "words": {"unet": {**SPEC, "blocks": ["many", 1]}},
    "channels": {"unet": {**SPEC, "channels": 10**9}},
    "negative": {"unet": {**SPEC, "channels": -1}},
    "wide": {"unet": {**SPEC, "widths": [10**7, 16]}},
    "levels": {"unet": {**SPEC, "widths": [8] * 10**4, "blocks": [1] * 10**4}},
    "patch": {"unet": {**SPEC, "patch": 0}},
    "shape": {"shape": [1, 10**12, 16]},
    "colours": {"shape": [3, 16, 16]},
    "sigma_data": {"sigma_data": -1},
    "infinite": {"sigma_data": math.inf},
    "sigma_range": {"sigma_range": [80, 0.002]},
    "value_range": {"value_range": [1, 1]},
    "NaN": {"value_range": [0, math.nan]},
    "mean": {"mean": [0.1, 0.2]},
    "list": {"unet": [1, 2]},
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_of_weights_that_lie(tmp_path: Path, lie: str) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in EDMPrior.example().network.state_dict().items()}
    begun = time.monotonic()
    save_file(tensors, tmp_path / "w.safetensors", metadata={"invdiff": json.dumps(HEADER | LIES[lie])})
    with pytest.raises(ValueError, match=r"prior weights (have an unusable|do not fit their) header") as caught:
        load_prior(weights=tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 5


def test_the_honest_header(tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in EDMPrior.example().network.state_dict().items()}
    save_file(tensors, tmp_path / "w.safetensors", metadata={"invdiff": json.dumps(HEADER)})
    assert load_prior(weights=tmp_path / "w.safetensors").shape == (1, 16, 16)


def test_a_tiny_file_without_tensors(tmp_path: Path) -> None:
    header = HEADER | {"unet": {**SPEC, "blocks": [10**8, 1]}}
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors", metadata={"invdiff": json.dumps(header)})
    with pytest.raises(ValueError, match="do not fit their header"):
        load_prior(weights=tmp_path / "w.safetensors")


def test_a_text_chunk_in_a_png_that_is_a_bomb(tmp_path: Path) -> None:
    """Pillow's own limit; it must come out in one line."""
    _png(tmp_path / "a.png", 4)
    data = (tmp_path / "a.png").read_bytes()
    body = b"zTXt" + b"note\0\0" + zlib.compress(b"\0" * 2**24)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])
    with pytest.raises(BadInput, match="not an image"):
        Inpainting(mask=tmp_path / "a.png")
