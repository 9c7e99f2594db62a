"""Loading priors: by name, from files of either kind, and from installed packages."""

from pathlib import Path

import pytest

from invdiff import load_prior
from invdiff.priors import EDMPrior, GaussianPrior
from invdiff.priors.closed_form.low_rank import LowRankMixturePrior
from invdiff.priors.library import registered


@pytest.mark.parametrize(
    ("name", "shape", "components"), [("digits_mixture", (1, 32, 32), 40), ("brain_mixture", (1, 64, 64), 100)]
)
def test_bundled_mixtures(name: str, shape: tuple, components: int) -> None:
    prior = load_prior(name)
    assert isinstance(prior, LowRankMixturePrior)
    assert (prior.shape, prior.components, prior.value_range) == (shape, components, (0.0, 1.0))


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    network, mixture = tmp_path / "network.safetensors", tmp_path / "mixture.safetensors"
    EDMPrior.example().save(network)
    LowRankMixturePrior.example().save(mixture)
    assert isinstance(load_prior("brain_mixture", weights=network), EDMPrior)
    assert isinstance(load_prior("photo", weights=mixture), LowRankMixturePrior)


@pytest.mark.parametrize("contents", [None, b"", b"nothing of the kind"])
def test_files_that_cannot_be_read(tmp_path: Path, contents: bytes | None) -> None:
    path = tmp_path / "prior.safetensors"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(ValueError, match=r"prior weights (not found|cannot be read): .*prior\.safetensors"):
        load_prior(weights=path)


# -- entry points ------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package `other-priors` that registers priors."""
    (tmp_path / "other_priors.py").write_text(
        "from invdiff.priors import GaussianPrior\n"
        "make, number = GaussianPrior.example, lambda: 3\n"
        "def broken():\n    raise OSError('no file\\nhere')\n"
    )
    info = tmp_path / "other_priors-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-priors\nVersion: 1.0\n")
    names = ("smooth = other_priors:make", "number = other_priors:number", "broken = other_priors:broken")
    points = "\n".join((*names, "gone = other_priors:gone", "digits = other_priors:make"))
    (info / "entry_points.txt").write_text(f"[invdiff.priors]\n{points}\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_prior_of_an_installed_package(package: None) -> None:
    assert registered().keys() >= {"smooth", "number", "broken"}
    assert isinstance(load_prior("smooth"), GaussianPrior)
    assert isinstance(load_prior("digits"), EDMPrior), "bundled names come first"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("number", "prior number of other-priors: other_priors:number must return an invdiff Prior, got int"),
        ("broken", "prior broken of other-priors failed to load: OSError: no file here"),
        ("gone", "prior gone of other-priors failed to load: AttributeError"),
        ("nothing", "unknown prior 'nothing'; known are photo, .*smooth"),
    ],
)
def test_priors_of_packages_that_cannot_be_used(package: None, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        load_prior(name)
    assert "\n" not in str(error.value)
