"""Files of scanners on the command line: k-space and volumes, their masks, slices and units."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import torch

from helpers import assert_refused
from invdiff.io.truth import true_images
from invdiff.operators.mri.kspace import to_kspace
from invdiff.priors.networks.edm import EDMPrior
from invdiff.priors.networks.unet import UNet, UNetSpec

Run = Callable[..., Any]

LINES = torch.ones(32, dtype=torch.bool)
LINES[1::4] = False

pytestmark = pytest.mark.usefixtures("without_comparison")


@pytest.fixture
def scan(tmp_path: Path, digits: np.ndarray) -> Path:
    """Single-coil k-space of the three digits, three of four lines, in the unit of some scanner."""
    kspace = 5e-4 * to_kspace(torch.from_numpy(digits / 255.0)) * LINES
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"], file["mask"] = kspace.numpy().astype(np.complex64), LINES.numpy()
    return tmp_path / "scan.h5"


def test_kspace(reconstruct: Run, scan: Path, digits: np.ndarray, metrics: Run, arrays: Run) -> None:
    """Image, mask and unit come out of the file; what was chosen is said and kept."""
    done = reconstruct("measurement=scan.h5", "operator=mri", "noise.sigma=0.005", "num_samples=1")
    assert (done.code, done.err) == (0, "")
    assert "scan.h5: slice 1, the middle one of 3" in done.out
    assert "75% of k-space is sampled" in done.out
    found, kept = metrics("out"), arrays("out")
    assert list(kept["names"]) == ["scan_001"]
    assert len(found["notes"]["files"]) == 3
    image = kept["samples"][0, 0, 0] * found["notes"]["scale"]["scan_001"] / 5e-4
    assert np.abs(image - digits[1] / 255).mean() < 0.02
    assert np.array_equal(kept["y"][0, 0] != 0, LINES.expand(32, 32))


def test_slices_and_a_mask_of_the_user(reconstruct: Run, scan: Path, arrays: Run) -> None:
    words = ("measurement=scan.h5", "operator=mri", "num_samples=1", "volume.slices=[2,0]")
    np.save("half.npy", LINES.numpy() & (np.arange(32) > 8))
    assert reconstruct(*words).code == 0
    done = reconstruct(*words, "operator.mask=half.npy", "output=half")
    assert "of k-space is sampled" not in done.out  # the mask of the file is not used
    assert list(arrays("half")["names"]) == ["scan_002", "scan_000"]
    assert not np.array_equal(arrays("out")["samples"], arrays("half")["samples"])


def test_coil_maps_are_estimated(reconstruct: Run, scan: Path, arrays: Run) -> None:
    """k-space with a phase, which a real image alone could not explain."""
    with h5py.File("scan.h5", "a") as file:
        file["kspace"][...] = file["kspace"][...] * 1j
        file["mask"][...] = True
    done = reconstruct("measurement=scan.h5", "operator=multicoil_mri", "num_samples=1")
    assert (done.code, done.err) == (0, "")
    assert "coil maps estimated from 32 lines" in done.out


def test_a_mask_beside_y(reconstruct: Run, digits: np.ndarray, arrays: Run) -> None:
    mask = np.random.default_rng(0).random((32, 32)) < 0.5
    np.savez("both.npz", y=digits[0] / 255 * mask, mask=mask)
    np.save("y.npy", digits[0] / 255 * mask)
    np.save("mask.npy", mask)
    assert "its mask goes to the operator" in reconstruct("measurement=both.npz", "num_samples=1").out
    reconstruct("measurement=y.npy", "operator.mask=mask.npy", "num_samples=1", "output=apart")
    assert np.array_equal(arrays("out")["samples"], arrays("apart")["samples"])


@pytest.mark.slow
def test_volumes(reconstruct: Run, digits: np.ndarray, arrays: Run, metrics: Run) -> None:
    """As images to measure, and as measurements."""
    volume = np.stack([digits[i][::-1, ::-1].T for i in range(3)], axis=-1).astype(np.int16) - 100
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), "head.nii.gz")
    words = ("operator=denoising", "num_samples=1", "volume.window=[27.5,255]")
    done = reconstruct("input=head.nii.gz", "volume.slices=all", *words)
    assert (done.code, done.err) == (0, "")
    np.testing.assert_allclose(arrays("out")["x"][:, 0], digits / 255, atol=1e-6)
    assert list(arrays("out")["names"]) == ["head_000", "head_001", "head_002"]
    done = reconstruct("measurement=head.nii.gz", "output=given", *words)
    assert "slice 1, the middle one of 3" in done.out
    assert list(arrays("given")["names"]) == ["head_001"]
    np.testing.assert_allclose(arrays("given")["y"][0, 0], digits[1] / 255, atol=1e-6)
    assert len(metrics("given")["notes"]["files"]) == 2


def test_images_of_a_prior_with_another_range(tmp_path: Path) -> None:
    """Black and white of a file are the ends of the range in which the prior knows images."""
    nibabel.save(nibabel.Nifti1Image(np.arange(64.0).reshape(8, 8, 1), np.eye(4)), tmp_path / "head.nii")
    network = UNet(UNetSpec(channels=1, patch=2, widths=(8, 16), blocks=(1, 1)))
    truth, names, *_ = true_images(EDMPrior(network, value_range=(-1.0, 3.0)), files=str(tmp_path / "head.nii"))
    assert (names, float(truth.min()), float(truth.max())) == (["head"], -1, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["volume.slices=7"], "there is no slice 7: scan.h5 has 3, counted from 0"),
        (["volume.plane=top"], "volume.plane must be one of axial, coronal, sagittal"),
        (["size=16"], "the mask is 16 lines, the image 32x32"),
        (["prior=brain"], "the mask is 32 lines, the image 128x128; size=128 keeps as much of k-space"),
    ],
)
def test_refused_in_one_line(reconstruct: Run, scan: Path, words: list[str], said: str) -> None:
    assert_refused(reconstruct("measurement=scan.h5", "operator=mri", *words), said)
