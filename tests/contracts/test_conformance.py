"""Every operator, prior and sampler that the packages hold keeps its contract; see `invdiff.contracts`."""

import json
from dataclasses import asdict

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

import invdiff
import invdiff.operators
import invdiff.priors
import invdiff.samplers
from invdiff.contracts import check_operator, check_pair, check_posterior, check_prior, check_sampler
from invdiff.contracts.compare import measure
from invdiff.contracts.law import Law, sampled_law
from invdiff.contracts.toys import Gain, WhitePrior
from invdiff.operators import GaussianNoise, Operator, PoissonNoise
from invdiff.priors import EDMPrior, Prior
from invdiff.samplers import Sampler, all_samplers

# -- operators ---------------------------------------------------------------------------------------------------------


def test_operator(operator_class: type[Operator]) -> None:
    check_operator(*operator_class.example())


def test_an_operator_with_parameters_per_image() -> None:
    """Every operator with parameters per image that can be made by hand, three images at once."""
    from invdiff.operators import GaussianBlur, Inpainting

    shape = (1, 16, 16)
    check_operator(Inpainting.random(shape, keep=0.5, seed=0, images=3), shape)
    check_operator(GaussianBlur(std=torch.tensor([0.6, 1.0, 1.5]), kernel_size=7), shape)
    check_operator(*Gain.example())


# -- priors ------------------------------------------------------------------------------------------------------------


def test_prior(prior_class: type[Prior]) -> None:
    check_prior(prior_class.example())


@pytest.mark.parametrize(
    "prior", [WhitePrior(), EDMPrior(EDMPrior.example().network, shape=None)], ids=["white", "free"]
)
def test_priors_of_any_size(prior: Prior) -> None:
    check_prior(prior)


def test_a_bundled_prior() -> None:
    check_prior(invdiff.load_prior("digits"))


# -- samplers ----------------------------------------------------------------------------------------------------------


def test_sampler(sampler_class: type[Sampler]) -> None:
    check_sampler(sampler_class.example())


def test_config_instantiates_to_the_sampler(sampler_class: type[Sampler]) -> None:
    """configs/sampler/<file name>.yaml composes, makes that class, and says in its first line what it is."""
    (name,) = (name for name, cls in all_samplers().items() if cls is sampler_class)
    with initialize_config_module("invdiff.configs", version_base="1.3"):
        config = compose("reconstruct", overrides=[f"sampler={name}"])
    sampler = instantiate(config.sampler)
    assert type(sampler) is sampler_class
    assert sampler.num_steps > 0
    assert set(config.sampler) - {"_target_"} <= set(sampler.__dataclass_fields__)


def test_posterior(sampler_class: type[Sampler], known_laws: dict[str, Law]) -> None:
    """The true posterior, or the bias that is on record: a new method is exact or brings its own entry."""
    (name,) = (name for name, cls in all_samplers().items() if cls is sampler_class)
    try:
        check_posterior(sampler_class.example(), known_laws.get(name))
    except AssertionError as error:
        entry = json.dumps({name: asdict(sampled_law(sampler_class.example(), samples=20_000))})
        raise AssertionError(f"{error}. If that is how it must be, the entry in bias.json is {entry}") from error


def test_records_are_of_samplers_that_exist(known_laws: dict[str, Law]) -> None:
    assert set(known_laws) <= set(all_samplers())


# -- everything with everything ----------------------------------------------------------------------------------------


def test_every_pair_runs_or_says_why_not(operator_class: type[Operator], sampler_class: type[Sampler]) -> None:
    """Each operator with each sampler, under each prior, with Gaussian noise and with photon counts."""
    operator, shape = operator_class.example()
    sampler = sampler_class.example()
    priors = [WhitePrior(0.5), EDMPrior.example(), EDMPrior(EDMPrior.example().network, shape=None)]
    problem = measure(operator, shape, GaussianNoise(0.1))
    ran = [check_pair(sampler, problem, prior) for prior in priors]
    missing = sampler.needs().missing(problem, priors[0])
    assert ran[0] == (not missing)
    if problem.y.is_floating_point() and (problem.y >= 0).all():
        check_pair(sampler, measure(operator, shape, PoissonNoise(0.05)), priors[0])


def test_every_pair_of_prior_and_sampler(prior_class: type[Prior], sampler_class: type[Sampler]) -> None:
    prior = prior_class.example()
    operator, shape = invdiff.operators.Inpainting.example()
    assert check_pair(sampler_class.example(), measure(operator, prior.shape or shape, GaussianNoise(0.1)), prior)


def test_something_was_found(request: pytest.FixtureRequest) -> None:
    """A walk that finds nothing would pass in silence."""
    assert {"dps", "daps"} <= set(all_samplers())
    names = {item.name for item in request.session.items}
    if "test_operator[GaussianBlur]" in names:  # unless pytest was asked for a part of the suite
        for cls in ("Inpainting", "SuperResolution", "Denoising", "DeepinvOperator", "CallableOperator"):
            assert f"test_operator[{cls}]" in names
        assert {"test_prior[GaussianPrior]", "test_prior[EDMPrior]"} <= names
