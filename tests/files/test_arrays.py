"""Every kind of file of arrays gives the numbers that were written, by name where there are several."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import tifffile
import torch
from PIL import Image

from invdiff.files import READERS, BadInput, read_array, split_name
from invdiff.files.choice import only

RNG = np.random.default_rng(0)
REAL = RNG.random((5, 7))
COMPLEX = REAL + 1j * REAL[::-1]


def _hdf5(path: Path, userblock: int = 0, **arrays: np.ndarray) -> Path:
    with h5py.File(path, "w", userblock_size=userblock) as file:
        for name, array in arrays.items():
            file[name.replace("__", "/")] = array
    return path


def _matlab73(path: Path, **arrays: np.ndarray) -> Path:
    """As MATLAB writes it: a text before HDF5, axes in reverse order, complex numbers as pairs."""
    pairs = [("real", "f8"), ("imag", "f8")]
    stored = {k: a.T if a.dtype.kind != "c" else np.stack([a.T.real, a.T.imag], -1).view(pairs)[..., 0]
              for k, a in arrays.items()}  # fmt: skip
    _hdf5(path, 512, **stored)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")
    return path


def _cfl(path: Path, array: np.ndarray) -> Path:
    shape = " ".join(str(n) for n in (*array.shape, 1, 1))
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{shape}\n# Command\nphantom\n")
    array.astype("<c8").ravel(order="F").tofile(path)
    return path


def _torch(path: Path, thing: object) -> Path:
    torch.save(thing, path)
    return path


def _call(path: Path, write: object, *args: object, **options: object) -> Path:
    write(path, *args, **options)  # type: ignore[operator]
    return path


WRITTEN = {
    "npy": lambda d: _call(d / "a.npy", np.save, REAL),
    "npy, column-major": lambda d: _call(d / "a.npy", np.save, np.asfortranarray(REAL)),
    "npy, big endian": lambda d: _call(d / "a.npy", np.save, REAL.astype(">f8")),
    "npz": lambda d: _call(d / "a.npz", np.savez, whatever=REAL),
    "npz, by name": lambda d: _call(d / "a.npz", np.savez_compressed, other=1 - REAL, wanted=REAL),
    "pt": lambda d: _torch(d / "a.pt", torch.from_numpy(REAL)),
    "mat": lambda d: _call(d / "a.mat", scipy.io.savemat, {"wanted": REAL, "note": "text"}),
    "mat, compressed": lambda d: _call(d / "a.mat", scipy.io.savemat, {"a": REAL}, do_compression=True),
    "mat 7.3": lambda d: _matlab73(d / "a.mat", wanted=REAL, other=1 - REAL),
    "mat 7.3 without its text": lambda d: _hdf5(d / "a.mat", 512, only=REAL.T),
    "h5": lambda d: _hdf5(d / "a.h5", group__wanted=1 - REAL, wanted=REAL),
    "csv": lambda d: _call(d / "a.csv", np.savetxt, REAL, delimiter=","),
    "csv, semicolons": lambda d: _call(d / "a.csv", np.savetxt, REAL, delimiter=";"),
    "txt": lambda d: _call(d / "a.txt", np.savetxt, REAL, header="time x"),
    "double TIFF": lambda d: _call(d / "a.tif", tifffile.imwrite, REAL),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN)
def test_numbers_are_exact(tmp_path: Path, kind: str) -> None:
    found = read_array(WRITTEN[kind](tmp_path), "thing", "wanted")
    assert found.shape == REAL.shape
    np.testing.assert_allclose(found, REAL, rtol=1e-6 if "TIFF" in kind else 0)
    torch.from_numpy(found)  # the byte order is that of this machine


COMPLEX_WRITTEN = {
    "npy": lambda d: _call(d / "a.npy", np.save, COMPLEX),
    "mat": lambda d: _call(d / "a.mat", scipy.io.savemat, {"a": COMPLEX}),
    "mat 7.3": lambda d: _matlab73(d / "a.mat", a=COMPLEX),
    "h5": lambda d: _hdf5(d / "a.h5", a=COMPLEX),
    "cfl": lambda d: _cfl(d / "a.cfl", COMPLEX),
    "hdr": lambda d: _cfl(d / "a.cfl", COMPLEX).with_suffix(".hdr"),
    "csv": lambda d: _call(d / "a.csv", np.savetxt, COMPLEX, delimiter=",", fmt="%s"),
}


@pytest.mark.parametrize("kind", COMPLEX_WRITTEN)
def test_complex_numbers(tmp_path: Path, kind: str) -> None:
    np.testing.assert_allclose(read_array(COMPLEX_WRITTEN[kind](tmp_path), "thing", "a"), COMPLEX, rtol=1e-6)


def test_a_letter_j_in_any_row(tmp_path: Path) -> None:
    """Numbers are complex where one of them is; a comment may have letters."""
    (tmp_path / "a.csv").write_text("1,2\n3,4+5j\n")
    assert read_array(tmp_path / "a.csv", "thing", "a").tolist() == [[1, 2], [3, 4 + 5j]]
    (tmp_path / "a.csv").write_text("1,2 # in june\n")
    assert read_array(tmp_path / "a.csv", "thing", "a").dtype == np.float64


@pytest.mark.parametrize("kind", ["npz", "mat", "mat73", "h5"])
def test_an_array_named_behind_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind[:3]}"
    arrays = {"one": REAL, "two": 1 - REAL}
    if kind == "npz":
        np.savez(path, **arrays)
    elif kind == "mat":
        scipy.io.savemat(path, arrays)
    elif kind == "mat73":
        _matlab73(path, **arrays)
    else:
        _hdf5(path, **{f"deep__{name}": array for name, array in arrays.items()})
    name = "/deep/two" if kind == "h5" else "two"
    np.testing.assert_allclose(read_array(f"{path}:{name}", "thing", "one"), 1 - REAL)
    with pytest.raises(BadInput, match=r"thing: .*(one, two|deep/one, deep/two); name one 'three', or add :NAME"):
        read_array(path, "thing", "three")
    with pytest.raises(BadInput, match=r"thing: .*there is no array 'four', only"):
        read_array(f"{path}:four", "thing", "one")


def test_names_of_files_and_arrays() -> None:
    assert split_name("scan.h5:/a/b") == (Path("scan.h5"), "a/b")
    assert split_name("C:\\data\\scan.h5") == (Path("C:\\data\\scan.h5"), None)
    assert split_name("y.npy:0") == (Path("y.npy:0"), None)
    assert only("y")([""]) == [""]


def test_pages_of_a_tiff(tmp_path: Path) -> None:
    pages = RNG.random((3, 4, 5)).astype(np.float32)
    tifffile.imwrite(tmp_path / "floats.tif", pages, photometric="minisblack")
    assert np.array_equal(read_array(tmp_path / "floats.tif", "thing", "a"), pages)
    deep = (pages * 65535).astype(np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="minisblack")
    np.testing.assert_allclose(read_array(tmp_path / "deep.tif", "thing", "a"), deep / 65535, rtol=1e-6)
    with tifffile.TiffWriter(tmp_path / "mixed.tif") as file:
        file.write(pages[0])
        file.write(pages[0, :2])
    with pytest.raises(BadInput, match=r"thing: the pages of .*mixed\.tif differ"):
        read_array(tmp_path / "mixed.tif", "thing", "a")


def test_pictures_are_grey_levels(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, (4, 5), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_array(tmp_path / "a.png", "thing", "a"), grey / 255, rtol=1e-6)
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "a.bmp")
    assert read_array(tmp_path / "a.bmp", "thing", "a").shape == (3, 4, 5)


REFUSED = {
    "dates": (lambda d: _call(d / "a.npy", np.save, np.array(["2020-01-01"], "M8[D]")), "must be numeric"),
    "text": (lambda d: _call(d / "a.npy", np.save, np.array(["a"])), "must be numeric"),
    "nothing": (lambda d: _call(d / "a.npy", np.save, np.zeros((0, 3))), r"is empty.*\(0, 3\)"),
    "header in csv": (lambda d: _call(d / "a.csv", Path.write_text, "x,y\n1,2\n"), "not a table of numbers"),
    "ragged csv": (lambda d: _call(d / "a.csv", Path.write_text, "1,2\n3\n"), "not a table of numbers"),
    "empty csv": (lambda d: _call(d / "a.csv", Path.write_text, "# nothing\n"), "no numbers"),
    "binary csv": (lambda d: _call(d / "a.csv", Path.write_bytes, bytes(range(256))), "cannot be read"),
    "structs": (lambda d: _call(d / "a.mat", scipy.io.savemat, {"s": {"a": REAL}}), "arrays none"),
    "no mat": (lambda d: _call(d / "a.mat", Path.write_bytes, b"0" * 200), "the MATLAB file cannot be read"),
    "cfl without header": (lambda d: _call(d / "a.cfl", Path.write_bytes, b"\0" * 8), r"no such file: .*a\.hdr"),
    "another suffix": (lambda d: _call(d / "a.xyz", Path.write_text, "1"), r"must be one of \.npy"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(tmp_path: Path, case: str) -> None:
    make, words = REFUSED[case]
    with pytest.raises(BadInput, match=f"^thing.*{words}") as caught:
        read_array(make(tmp_path), "thing", "a")
    assert "\n" not in str(caught.value)


PICTURES = {".jpg": {"quality": 100}, ".jpeg": {"quality": 100}, ".webp": {"lossless": True}}  # and how to keep levels


def test_every_reader_is_tried(tmp_path: Path) -> None:
    """A suffix without a file above must be that of a picture, which is written and read here."""
    made = {make(tmp_path).suffix for make in (*WRITTEN.values(), *COMPLEX_WRITTEN.values())}
    grey = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[:, None], 64, 1)
    for suffix in {*READERS} - made - {".hdf5", ".tiff"}:
        Image.fromarray(grey).save(tmp_path / f"a{suffix}", **PICTURES.get(suffix, {}))
        found = read_array(tmp_path / f"a{suffix}", "thing", "a")
        np.testing.assert_allclose(found if found.ndim == 2 else found[0], grey / 255, atol=0.01)
    assert READERS[".hdf5"] is READERS[".h5"]
    assert READERS[".tiff"] is READERS[".tif"]
