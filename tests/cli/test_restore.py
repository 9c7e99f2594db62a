"""`invdiff restore` and `invdiff upscale`: what they find, what they write, and that the result is better."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from omegaconf import OmegaConf
from PIL import Image
from scipy.ndimage import gaussian_filter

from helpers import assert_refused
from invdiff.cli.restore_command import CANDIDATES
from invdiff.priors.networks.edm import EDMPrior
from invdiff.priors.networks.unet import UNet, UNetSpec

Run = Callable[..., Any]
FEW = ("sampler.schedule.steps=2", "sampler.iterations=1", "compute.progress=false", "output=out")

pytestmark = pytest.mark.usefixtures("without_comparison")


@pytest.fixture
def photo(tmp_path: Path, colour_weights: Path) -> list[str]:
    """A picture of 48x48, and the words that restore it in two steps of a tiny network."""
    rng = np.random.default_rng(0)
    image = gaussian_filter(skimage.data.astronaut()[60:108, 180:228] / 255, (1.4, 1.4, 0))
    image = (image + 0.03 * rng.standard_normal(image.shape)).clip(0, 1)
    Image.fromarray(np.rint(255 * image).astype(np.uint8)).save(tmp_path / "my photo.png")
    return ["my photo.png", f"prior.weights={colour_weights}", *FEW]


def saved(folder: str = "out") -> Any:
    return OmegaConf.load(Path(folder) / "config.yaml")


@pytest.mark.slow
def test_restore(invdiff: Run, photo: list[str], files: Run) -> None:
    done = invdiff("restore", *photo)
    assert (done.code, done.err) == (0, "")
    assert "my photo.png: noise about 0.0" in done.out
    assert "(by its calm parts), blur about " in done.out
    assert {"out/my photo_restored.png", "out/my photo_uncertainty.png", "out/metrics.json"} <= files()
    assert Image.open("out/my photo_restored.png").size == (48, 48)
    found = saved()
    assert found.noise.sigma == pytest.approx(0.03, rel=0.3)
    assert found.operator.boundary == "valid"
    assert "holds the results of this configuration" in invdiff("restore", *photo).out


def test_given_noise_and_blur_win(invdiff: Run, photo: list[str], metrics: Run) -> None:
    done = invdiff("restore", *photo, "blur=0", "sigma=0.05", "num_samples=1", "truth='my photo.png'")
    assert (done.code, done.err) == (0, "")
    assert "noise 0.05 as given, blur 0 pixels as given" in done.out
    assert saved().noise.sigma == 0.05
    assert saved().operator._target_.endswith("Denoising")
    assert metrics("out")["mean"]["psnr_mean"] > 0


@pytest.mark.slow
def test_config_of_the_output_repeats_the_run(invdiff: Run, photo: list[str]) -> None:
    assert invdiff("restore", *photo, "num_samples=1").code == 0
    done = invdiff("reconstruct", "--config-dir", "out", "--config-name", "config", "output=again")
    assert (done.code, done.err) == (0, "")
    first, second = (np.load(f"{folder}/samples.npz")["samples"] for folder in ("out", "again"))
    assert np.array_equal(first, second)


@pytest.mark.slow
def test_upscale(invdiff: Run, photo: list[str]) -> None:
    done = invdiff("upscale", *photo, "num_samples=1")
    assert (done.code, done.err) == (0, "")
    assert "blur 0 pixels as given" in done.out
    assert Image.open("out/my photo_restored.png").size == (96, 96)
    done = invdiff("upscale", *photo, "num_samples=1", "scale=4", "blur=0.7", "output=four")
    assert (done.code, done.err) == (0, "")
    assert Image.open("four/my photo_restored.png").size == (192, 192)
    assert saved("four").operator.parts[0].std == pytest.approx(2.8)


def test_sheet(invdiff: Run, photo: list[str], files: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []

    def drawn(pictures: dict[str, Any], value_range: object) -> None:
        labels.extend(pictures)
        assert all(picture.shape == (3, 48, 48) for picture in pictures.values())

    monkeypatch.setattr("invdiff.cli.restore_command.sheet", drawn)
    monkeypatch.setattr("invdiff.cli.restore_command.save_figure", lambda figure, file: file.write(b"drawn"))
    done = invdiff("restore", *photo, "blur=sheet")
    assert (done.code, done.err) == (0, "")
    assert labels == ["as it is", *(f"blur={std:g}" for std in CANDIDATES)]
    assert Path("out/sheet.png").read_bytes() == b"drawn"
    labels.clear()
    again = invdiff("restore", *photo, "blur=sheet", "compute.max_rows=2")
    assert (again.code, again.err, labels) == (0, "", [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["blur=-1"], "blur must be"),
        (["blur=sheets"], "blur must be"),
        (["sigma=none"], "sigma must be"),
        (["scale=3"], "scale must be"),
    ],
)
def test_values_are_checked(invdiff: Run, photo: list[str], words: list[str], said: str) -> None:
    assert_refused(invdiff("restore", *photo, *words), said)


def test_a_prior_in_other_units(invdiff: Run, photo: list[str]) -> None:
    EDMPrior(UNet(UNetSpec(channels=3, patch=2, widths=(8, 16), blocks=(1, 1))), value_range=(-1.0, 1.0)).save(
        "a.safetensors"
    )
    assert_refused(invdiff("restore", *photo, "prior.weights=a.safetensors"), "images in [0, 1]", "got [-1.0, 1.0]")


def test_no_photo(invdiff: Run, photo: list[str], tmp_path: Path) -> None:
    assert "photo" in invdiff("restore").err
    assert "nothing.png" in invdiff("restore", "nothing.png").err
    (tmp_path / "two").mkdir()
    for name in "ab":
        Image.open(photo[0]).save(tmp_path / "two" / f"{name}.png")
    assert "photo must be one picture" in invdiff("restore", "two").err
    Image.new("RGB", (50, 1)).save("row.png")
    assert "at least 2x2 pixels, got 1x3x1x50 from row.png" in invdiff("restore", "row.png").err
