"""Settings that stand in two places say the same: class and config, published numbers and paper experiment."""

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from invdiff.samplers import all_samplers


def composed(*overrides: str) -> object:
    with initialize_config_module("invdiff.configs", version_base="1.3"):
        return instantiate(compose("reconstruct", list(overrides)).sampler)


@pytest.mark.parametrize("name", all_samplers())
def test_config_has_the_defaults_of_the_class(name: str) -> None:
    assert composed(f"sampler={name}") == all_samplers()[name]()


@pytest.mark.parametrize("name", all_samplers())
def test_paper_experiment_has_the_published_settings(name: str) -> None:
    assert composed(f"experiment=paper/{name}_inpainting") == all_samplers()[name].published()  # type: ignore[attr-defined]
