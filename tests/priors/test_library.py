"""Loading priors: by name, and from files of either kind."""

from pathlib import Path

import pytest

from invdiff import load_prior
from invdiff.priors import EDMPrior
from invdiff.priors.closed_form.low_rank import LowRankMixturePrior


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
