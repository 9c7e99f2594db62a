"""Real measurements on the command line: nothing of the operator is drawn at random, units and truths are kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from helpers import assert_refused
from invdiff.cli import reconstruct_command
from invdiff.cli.inputs import make_prior
from invdiff.operators.mri.coil_maps import simulated_maps
from invdiff.operators.mri.kspace import to_kspace
from invdiff.priors import Prior

Run = Callable[..., Any]
MASK = np.random.default_rng(0).random((32, 32)) < 0.5

pytestmark = pytest.mark.usefixtures("without_comparison")


@pytest.fixture
def image(tmp_path: object, digits: np.ndarray) -> np.ndarray:
    """A digit without a black pixel, in [0, 1]."""
    return np.maximum(digits[0], 3) / 255


@pytest.mark.slow
def test_exact_zeros_of_y_are_the_mask(reconstruct: Run, image: np.ndarray, arrays: Run) -> None:
    np.save("y.npy", np.where(MASK, image, 0))
    np.save("nan.npy", np.where(MASK, image, np.nan))
    np.save("mask.npy", MASK)
    given = reconstruct("measurement=y.npy", "operator.mask=mask.npy", "num_samples=1", "output=given")
    assert "counts as not measured" not in given.out
    for name, words in (("nan", []), ("y", ["operator.keep=0.5"])):
        done = reconstruct(f"measurement={name}.npy", "num_samples=1", *words)
        assert (done.code, done.err) == (0, "")
        assert f"{name}.npy: {1 - MASK.mean():.0%} of it is exactly 0 and counts as not measured" in done.out
        assert np.array_equal(arrays("out")["samples"], arrays("given")["samples"])


DRAWN = {
    "inpainting": (["operator=inpainting"], ["mask", "operator.mask=FILE", "none of y.npy is exactly 0"]),
    "motion blur": (["operator=motion_blur"], ["kernel", "operator=blur operator.kernel=FILE", "operator.seed="]),
    "parts": (
        ["operator=composition", "operator.parts=[{_target_:invdiff.operators.MotionBlur,kernel_size:5}]"],
        ["composition: the kernel", "give it in operator.parts, or the seed there"],
    ),
}


@pytest.mark.parametrize("case", DRAWN)
def test_what_would_be_drawn_is_refused(reconstruct: Run, image: np.ndarray, case: str) -> None:
    words, said = DRAWN[case]
    np.save("y.npy", image)
    done = reconstruct("measurement=y.npy", *words)
    assert_refused(done, "of a real measurement must be known, got one drawn at random", *said)


def test_a_stated_draw_is_a_choice(reconstruct: Run, image: np.ndarray) -> None:
    """The seed of a simulation; a part of what was measured whole."""
    np.save("y.npy", image)
    words = ["measurement=y.npy", "num_samples=1"]
    assert reconstruct(*words, "operator=motion_blur", "operator.kernel_size=5", "operator.seed=0").code == 0
    assert "leaves some of it out" in reconstruct(*words, "operator.keep=0.5").out


@pytest.mark.slow
def test_kspace_in_an_array(reconstruct: Run, image: np.ndarray, arrays: Run) -> None:
    """Its mask is told by its zeros, its coil maps by its centre; sampled everywhere, no line is left out."""
    lines = torch.ones(32, dtype=torch.bool)
    lines[1:10:2] = False
    maps = simulated_maps(4, (32, 32))
    k = to_kspace(maps * torch.from_numpy(image))
    np.save("k.npy", (k * lines).numpy())
    np.save("whole.npy", to_kspace(torch.from_numpy(image)).numpy())
    done = reconstruct("measurement=k.npy", "operator=multicoil_mri", "num_samples=1", "noise.sigma=0.01")
    assert (done.code, done.err) == (0, "")
    assert "k.npy: 16% of it is exactly 0" in done.out
    assert "k.npy: coil maps estimated from" in done.out
    Path("seed").mkdir()
    np.save("seed/maps.npy", maps.numpy())
    words = ["measurement=k.npy", "operator=multicoil_mri", "operator.maps=seed/maps.npy"]  # which states no seed
    done = reconstruct(*words, "num_samples=1", "noise.sigma=0.01", "output=folder")
    assert "k.npy: 16% of it is exactly 0" in done.out
    done = reconstruct("measurement=whole.npy", "operator=mri", "num_samples=1", "noise.sigma=0.001", "output=whole")
    assert "whole.npy: sampled everywhere; operator.acceleration= leaves some of it out" in done.out
    assert np.abs(arrays("whole")["mean"][0, 0] - image).mean() < 0.01


def test_a_mask_in_the_file_and_a_rule_for_another(reconstruct: Run, image: np.ndarray) -> None:
    np.savez("both.npz", y=np.where(MASK, image, 0), mask=MASK)
    done = reconstruct("measurement=both.npz", "operator.keep=0.3", "num_samples=1")
    assert_refused(done, "got keep and mask; both.npz holds mask: leave out the option")


def test_a_picture_is_refused_where_the_prior_has_another_unit(
    reconstruct: Run, digits: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TIFF of floats has values of its own."""

    def of_fields(config: DictConfig) -> Prior:
        prior = make_prior(config)
        prior.value_range = (-3.0, 3.0)
        return prior

    monkeypatch.setattr(reconstruct_command, "make_prior", of_fields)
    words = ["operator=denoising", "num_samples=1", "checks=false"]
    Image.fromarray(digits[0]).save("a.png")
    done = reconstruct("measurement=a.png", *words)
    assert_refused(done, "the unit of the prior's images, -3 to 3, got grey levels that were scaled to 0 to 1")
    Image.fromarray(digits[0].astype(np.float32) / 40 - 3).save("a.tif")
    done = reconstruct("measurement=a.tif", *words)
    assert (done.code, done.err) == (0, "")
    assert "a.tif: read as the measurement itself\n" in done.out


@pytest.mark.slow
def test_a_picture_is_y_itself(reconstruct: Run, digits: np.ndarray, arrays: Run, metrics: Run) -> None:
    """Grey and in disguise, restored in grey levels, scored by truth=."""
    Image.fromarray(digits[0]).save("a.png")
    Image.fromarray(np.stack([digits[0]] * 3, -1)).save("b.png")
    for name in "ab":
        done = reconstruct(f"measurement={name}.png", "operator=denoising", "num_samples=1", "truth=a.png")
        assert (done.code, done.err) == (0, "")
        assert f"{name}.png: read as the measurement itself" in done.out
        kept = arrays("out")
        np.testing.assert_allclose(kept["y"][0, 0], digits[0] / 255, rtol=1e-6)
        np.testing.assert_allclose(kept["x"], kept["y"])
        assert (kept["scale"].tolist(), kept["offset"].tolist()) == ([255], [0])
        assert metrics("out")["images"][0]["psnr_mean"] > 20
    scipy.io.savemat("y.mat", {"y": digits[0] / 255})
    np.savez("truth.npz", x=digits[:1, None] / 255)
    assert reconstruct("measurement=y.mat", "operator=denoising", "num_samples=1", "truth=truth.npz").code == 0
    assert "scale" not in arrays("out")
    assert reconstruct("truth=a.png").err.endswith("an image of input= is its own truth\n")


def test_a_folder_of_pictures(reconstruct: Run, digits: np.ndarray, arrays: Run, tmp_path: Any) -> None:
    (tmp_path / "seen").mkdir()
    for i, name in enumerate(("a.png", "a.bmp", "c.tif")):
        Image.fromarray(digits[i]).save(tmp_path / "seen" / name)
    assert reconstruct("measurement=seen", "operator=denoising", "num_samples=1").code == 0
    kept = arrays("out")
    assert list(kept["names"]) == ["a.bmp", "a.png", "c.tif"]
    np.testing.assert_allclose(kept["y"][:, 0], digits[[1, 0, 2]] / 255, rtol=1e-6)


@pytest.mark.slow
def test_input_is_said_to_simulate(reconstruct: Run, digits: np.ndarray, arrays: Run) -> None:
    Image.fromarray(digits[0].astype(np.uint16) * 16).save("twelve.png")
    done = reconstruct("input=twelve.png", "operator=denoising", "num_samples=1")
    assert "input= SIMULATES: the picture is taken as the truth and measured first" in done.out
    assert "of 65535; if 4095 is white, give volume.window=[2047.5,4095]" in done.out
    done = reconstruct("input=twelve.png", "operator=denoising", "num_samples=1", "volume.window=[2047.5,4095]")
    kept = arrays("out")
    np.testing.assert_allclose(kept["x"][0, 0] * kept["scale"][0] + kept["offset"][0], digits[0] * 16.0, rtol=1e-5)
    assert "SIMULATES" not in reconstruct("data=generated", "operator=denoising", "num_samples=1").out


@pytest.mark.slow
def test_each_size_by_itself(invdiff: Run, tmp_path: Any, metrics: Run, arrays: Run) -> None:
    """With a prior for images of any size; a saved configuration repeats one of them."""
    (tmp_path / "in").mkdir()
    (tmp_path / "clean").mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    for folder in ("in", "clean"):
        for name, side in (("a", 16), ("b", 40), ("c", 16)):
            Image.fromarray(colours[:side]).save(tmp_path / folder / f"{name}.png")
    words = ["sampler=daps", "sampler.schedule.steps=2", "num_samples=1", "operator=denoising", "truth=clean"]
    done = invdiff("reconstruct", "measurement=in", *words, "output=out")
    assert (done.code, done.err) == (0, "")
    assert arrays("out/24x16")["x"].shape == (2, 3, 16, 24)
    assert [row["name"] for row in metrics("out/24x16")["images"]] == ["a", "c"]
    assert [row["name"] for row in metrics("out/24x40")["images"]] == ["b"]
    done = invdiff("reconstruct", "--config-dir=out/24x16", "--config-name=config", "output=again")
    assert done.code == 0, done.err
    assert np.array_equal(arrays("again")["samples"], arrays("out/24x16")["samples"])
    done = invdiff("benchmark", "input=in", "prior=photo", "samplers=[dps]", "operators=[denoising]", "output=no")
    assert "images differ in size: a is 16x24, b is 40x24" in done.err


@pytest.mark.slow
def test_a_photograph_goes_on_outside_its_frame(reconstruct: Run, arrays: Run) -> None:
    """`boundary=valid` is taken for a blur where the user chose none and the prior is for images of any size."""
    pixels = np.random.default_rng(0).integers(90, 160, (24, 28, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    words = ["prior=photo", "operator=gaussian_blur", "operator.std=0.8", "sampler=daps", "sampler.schedule.steps=2"]
    done = reconstruct("measurement=photo.png", *words, "num_samples=1", "checks=false")
    assert (done.code, done.err) == (0, "")
    assert "operator.boundary=valid: the scene goes on outside the frame; operator.boundary=reflect is for" in done.out
    saved = arrays("out")
    assert saved["samples"].shape == (1, 1, 3, 24, 28)
    assert saved["y"].shape == (1, 3, 24, 28)
    assert OmegaConf.load("out/config.yaml").operator.boundary == "valid"
    chosen = reconstruct("measurement=photo.png", *words, "num_samples=1", "operator.boundary=zero", "output=own")
    assert "operator.boundary=valid" not in chosen.out
    assert OmegaConf.load("own/config.yaml").operator.boundary == "zero"


@pytest.mark.slow
def test_coil_maps_are_estimated_in_numpy_order(reconstruct: Run, image: np.ndarray, arrays: Run) -> None:
    """The same scan in both conventions gives the same image, mask and maps told by y."""
    coils = simulated_maps(4, (32, 32))[0].to(torch.complex64) * torch.from_numpy(image).float()
    lines = np.arange(32) % 3 == 0
    lines[10:22] = True
    np.save("centred.npy", to_kspace(coils).numpy() * lines)
    np.save("numpy.npy", np.fft.fft2(coils.numpy()).astype(np.complex64) * np.fft.ifftshift(lines))
    means = []
    for name, sigma in (("centred", 0.01), ("numpy", 0.32)):
        words = [] if name == "centred" else ["operator.fft=numpy", "operator.norm=backward"]
        done = reconstruct(
            f"measurement={name}.npy", "operator=multicoil_mri", f"noise.sigma={sigma}", f"output={name}", *words
        )
        assert (done.code, done.err) == (0, "")
        assert "coil maps estimated from 12 lines" in done.out
        means.append(arrays(name)["mean"][0, 0])
    assert np.sqrt(np.mean((means[0] - image) ** 2)) < 0.1
    assert np.sqrt(np.mean((means[1] - means[0]) ** 2)) < 0.02


@pytest.mark.parametrize("suffix", [".npy", pytest.param(".jpg", marks=pytest.mark.slow)])
def test_sigma_is_estimated_from_y(invdiff: Run, colour_weights: Path, suffix: str) -> None:
    """Once from y, with a standard error, once by the tables of a JPEG; the saved configuration holds the number."""
    rng = np.random.default_rng(0)
    smooth = 0.5 + 0.3 * np.sin(np.linspace(0, 6, 96))[:, None, None] * np.ones((1, 96, 3))
    noisy = smooth + 0.05 * rng.standard_normal(smooth.shape)
    if suffix == ".jpg":
        Image.fromarray(np.rint(255 * noisy.clip(0, 1)).astype(np.uint8)).save("y.jpg", quality=75)
    else:
        np.save("y.npy", noisy)
    words = (f"prior.weights={colour_weights}", "operator=denoising", "sampler=daps", "sampler.schedule.steps=2")
    done = invdiff("reconstruct", f"measurement=y{suffix}", "noise.sigma=auto", "num_samples=1", *words, "output=out")
    assert (done.code, done.err) == (0, "")
    found = float(OmegaConf.load("out/config.yaml").noise.sigma)
    assert f"noise.sigma=auto: {found:g}, " in done.out
    if suffix == ".jpg":
        assert found < 0.045
        assert "JPEG" in done.out
    else:
        assert found == pytest.approx(0.05, rel=0.05)
        assert "with a standard error of 0.000" in done.out


def test_sigma_that_y_does_not_show(reconstruct: Run, image: np.ndarray) -> None:
    np.save("y.npy", image)
    done = reconstruct("measurement=y.npy", "operator=denoising", "noise.sigma=auto")
    assert_refused(done, "noise.sigma=auto: ", "; give noise.sigma=")


@pytest.mark.slow
def test_the_ensemble_as_samples(reconstruct: Run, pictures: Path, arrays: Run, metrics: Run) -> None:
    """Each image has one ensemble behind its samples, whose first particle is the sample without it."""
    words = ("input=pictures", "operator=denoising", "sampler=enkg", "sampler.ensemble=4")
    assert reconstruct(*words, "num_samples=1", "output=one").code == 0
    done = reconstruct(*words, "num_samples=3", "clouds=true")
    assert done.code == 0
    assert "particles of one ensemble, not independent" in done.out
    assert "90 % intervals: of particles of one ensemble of 4, not independent: likely too narrow" in done.out
    assert "invdiff calibrate" not in done.out
    found, one = arrays("out")["samples"], arrays("one")["samples"]
    assert found.shape[1] == 3
    np.testing.assert_allclose(found[:, :1], one, atol=1e-4)
    assert metrics("out")["cost"]["forwards"] == metrics("one")["cost"]["forwards"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sampler=daps"], "clouds=true needs a sampler with an ensemble, "),
        (
            ["sampler=enkg", "sampler.ensemble=2", "num_samples=3"],
            "num_samples must be at most the ensemble of 2, got 3",
        ),
    ],
)
def test_no_such_ensemble(reconstruct: Run, words: list[str], said: str) -> None:
    assert_refused(reconstruct("data=generated", "data.steps=1", "clouds=true", *words), said)
