"""How the tests run the command: in this process where they can, for a start of the interpreter takes seconds."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra._internal.hydra import Hydra
from PIL import Image

from invdiff.cli.main import main
from invdiff.priors import load_prior
from invdiff.priors.networks.edm import EDMPrior
from invdiff.priors.networks.unet import UNet, UNetSpec
from invdiff.priors.ode import generate


@dataclass(frozen=True)
class Ran:
    """What a command left on the terminal and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def invdiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`invdiff(*words)` runs the command in this process, in the temporary folder; file descriptors are captured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    # Hydra composes every configuration twice, the first time only to read hydra.mode, which is unset here.
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None, raising=False)

    def run(*words: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["invdiff", *words])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def reconstruct(invdiff: Callable[..., Ran]) -> Callable[..., Ran]:
    """`invdiff reconstruct` with the prior of digits, three steps of DAPS and a folder `out`; later words overrule."""

    def run(*words: str) -> Ran:
        sampler = [] if any(word.startswith("sampler=") for word in words) else ["sampler=daps"]
        return invdiff(
            "reconstruct", "prior=digits", *sampler, "sampler.schedule.steps=3", "output=out", "overwrite=true", *words
        )

    return run


@pytest.fixture
def without_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """No comparison.png: drawing it takes half of the time of such small runs."""
    monkeypatch.setattr("invdiff.report.comparison.save_figure", lambda figure, path: None)


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """Three images that the bundled prior takes for digits, uint8 (3, 32, 32)."""
    noise = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    images = generate(load_prior("digits"), noise, steps=8).clamp(0, 1)
    return (255 * images[:, 0]).round().to(torch.uint8).numpy()


@pytest.fixture
def pictures(tmp_path: Path, digits: np.ndarray) -> Path:
    """A folder with the three digits: a.png, b.png, c.png."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, image in zip("abc", digits, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def colour_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny untrained network for colour images of any size, like the bundled `photo`."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "colour.safetensors"
    EDMPrior(UNet(UNetSpec(channels=3, patch=2, widths=(8, 16), blocks=(1, 1)))).save(path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> Callable[[], set[str]]:
    """Everything below the temporary folder, folders with a slash at the end."""

    def listing() -> set[str]:
        return {str(p.relative_to(tmp_path)) + ("/" if p.is_dir() else "") for p in tmp_path.rglob("*")}

    return listing


def _metrics(folder: str | os.PathLike[str]) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"metrics.json holds {constant}, which is no JSON")

    return json.loads((Path(folder) / "metrics.json").read_text(), parse_constant=refuse)


@pytest.fixture(scope="session")
def metrics() -> Callable[[str | os.PathLike[str]], dict[str, Any]]:
    """The metrics of an output folder, parsed strictly."""
    return _metrics


@pytest.fixture(scope="session")
def arrays() -> Callable[[str | os.PathLike[str]], dict[str, np.ndarray]]:
    """The arrays of an output folder."""

    def load(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
        with np.load(Path(folder) / "samples.npz", allow_pickle=False) as file:
            return dict(file)

    return load
