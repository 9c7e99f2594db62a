"""Settings that stand in two places say the same: class and config, published numbers and paper experiment."""

from dataclasses import fields, replace
from importlib.resources import files

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from invdiff.samplers import all_samplers


def composed(*overrides: str) -> object:
    with initialize_config_module("invdiff.configs", version_base="1.3"):
        return instantiate(compose("reconstruct", list(overrides)).sampler)


@pytest.mark.parametrize("name", all_samplers())
def test_config_has_the_defaults_of_the_class(name: str) -> None:
    assert composed(f"sampler={name}", "operator=denoising") == all_samplers()[name]()  # nothing recommended there


@pytest.mark.parametrize("name", all_samplers())
def test_paper_experiment_has_the_published_settings(name: str) -> None:
    assert composed(f"experiment=paper/{name}_inpainting") == all_samplers()[name].published()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", all_samplers())
def test_a_setting_that_is_not_a_number_is_refused(name: str) -> None:
    sampler = all_samplers()[name]()
    settings = [f.name for f in fields(sampler) if isinstance(getattr(sampler, f.name), float)]
    for setting in settings:
        with pytest.raises(ValueError, match=setting):
            replace(sampler, **{setting: float("nan")})


def recommended() -> list[str]:
    folder = files("invdiff.configs") / "recommended"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


@pytest.mark.parametrize("pair", recommended())
def test_recommended_settings_are_taken_and_give_way(pair: str) -> None:
    """Of a sampler and an operator by the name of the file; a published experiment overrules them."""
    name, _, operator = pair.partition("_")
    assert composed(f"sampler={name}", f"operator={operator}") != all_samplers()[name]()
    published = composed(f"experiment=paper/{name}_inpainting", f"operator={operator}")
    assert published == all_samplers()[name].published()  # type: ignore[attr-defined]


def papers() -> list[str]:
    folder = files("invdiff.configs") / "experiment" / "paper"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


@pytest.mark.parametrize("name", papers())
def test_paper_experiments_compose_for_photographs_of_256_pixels(name: str) -> None:
    """With every value known to its class, and an operator that takes such photographs."""
    with initialize_config_module("invdiff.configs", version_base="1.3"):
        config = compose("reconstruct", [f"experiment=paper/{name}"])
    sampler, operator, noise = instantiate(config.sampler), instantiate(config.operator), instantiate(config.noise)
    assert type(sampler) is all_samplers()[name.partition("_")[0]]
    assert operator.mismatch((3, 256, 256)) is None
    assert float(noise.sigma) > 0
