"""Every operator, prior and sampler that the packages hold keeps its contract; see `invdiff.contracts`."""

import json
from dataclasses import asdict

import pytest
from hydra.utils import instantiate

import invdiff
import invdiff.operators
import invdiff.priors
import invdiff.samplers
from helpers import composed
from invdiff.contracts import check_operator, check_pair, check_posterior, check_prior, check_sampler
from invdiff.contracts.compare import measure
from invdiff.contracts.law import Law, sampled_law
from invdiff.contracts.toys import Gain, WhitePrior
from invdiff.operators import GaussianNoise, Inpainting, Operator, PoissonNoise
from invdiff.priors import EDMPrior, Prior
from invdiff.report.compatibility import kinds
from invdiff.samplers import Sampler, all_samplers

# -- operators ---------------------------------------------------------------------------------------------------------


def test_operator(operator_variant: tuple[Operator, tuple[int, ...]]) -> None:
    check_operator(*operator_variant)


def test_a_toy_operator() -> None:
    check_operator(*Gain.example())


# -- priors ------------------------------------------------------------------------------------------------------------


def test_prior(prior_variant: Prior) -> None:
    check_prior(prior_variant)


def test_priors_outside_the_package() -> None:
    """The toy of the conformance suite, and weights from a file."""
    check_prior(WhitePrior())
    check_prior(invdiff.load_prior("digits"))


# -- samplers ----------------------------------------------------------------------------------------------------------


def test_sampler(mode: Sampler) -> None:
    check_sampler(mode)


@pytest.mark.slow
def test_config_makes_the_sampler(sampler_name: str) -> None:
    sampler = instantiate(composed(f"sampler={sampler_name}").sampler)
    assert type(sampler) is all_samplers()[sampler_name]
    assert sampler.num_steps > 0


@pytest.mark.slow
def test_posterior(sampler_name: str, known_laws: dict[str, Law]) -> None:
    """The true posterior, or the recorded law: a new method is exact or brings its own entry."""
    sampler = all_samplers()[sampler_name].example()
    samples = 600 if hasattr(sampler, "ensemble") else 3000  # each of a whole ensemble
    try:
        check_posterior(sampler, known_laws.get(sampler_name), samples=samples)
    except AssertionError as error:
        entry = json.dumps({sampler_name: asdict(sampled_law(sampler, samples=20_000))})
        raise AssertionError(f"{error}. If the bias is intended, its entry in bias.json is {entry}") from error


def test_records_are_of_samplers_that_exist(known_laws: dict[str, Law]) -> None:
    assert set(known_laws) <= set(all_samplers())


# -- everything with everything ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds())
def test_every_kind_of_operator_with_every_sampler(kind: str, sampler_class: type[Sampler]) -> None:
    """Each trait that samplers tell apart, with Gaussian noise and with photon counts."""
    pair(kinds()[kind], (1, 8, 8), sampler_class.example())


@pytest.mark.slow
def test_every_operator_with_every_sampler(operator_class: type[Operator], sampler_class: type[Sampler]) -> None:
    pair(*operator_class.example(), sampler_class.example())


def pair(operator: Operator, shape: tuple[int, ...], sampler: Sampler) -> None:
    """The sampler runs, or names what is missing, under each prior."""
    priors = [WhitePrior(0.5), EDMPrior.example(), EDMPrior(EDMPrior.example().network, shape=None)]
    problem = measure(operator, shape, GaussianNoise(0.1))
    ran = [check_pair(sampler, problem, prior) for prior in priors]
    assert ran[0] == (not sampler.needs().missing(problem, priors[0]))
    if problem.y.is_floating_point() and (problem.y >= 0).all():
        check_pair(sampler, measure(operator, shape, PoissonNoise(0.05)), priors[0])


@pytest.mark.slow
def test_a_network_with_every_sampler(sampler_name: str) -> None:
    pair_of_prior(EDMPrior.example(), all_samplers()[sampler_name].example())


@pytest.mark.slow
def test_every_prior_with_every_sampler(prior_class: type[Prior], sampler_class: type[Sampler]) -> None:
    pair_of_prior(prior_class.example(), sampler_class.example())


def pair_of_prior(prior: Prior, sampler: Sampler) -> None:
    operator, shape = Inpainting.example()
    problem = measure(operator, prior.shape or shape, GaussianNoise(0.1))
    # An ensemble that is too small for so many measurements refuses them, a sampler of codes a prior without, and one
    # for linear operators a decoder.
    needs = sampler.needs()
    assert check_pair(sampler, problem, prior) or needs.measurements is not None or needs.codec or prior.codec


def test_something_was_found(request: pytest.FixtureRequest) -> None:
    """A walk that finds nothing would pass."""
    assert {"dps", "daps"} <= set(all_samplers())
    names = {item.name for item in request.session.items}
    if "test_operator[GaussianBlur-example]" in names:  # unless pytest was asked for a part of the suite
        for cls in ("Inpainting", "SuperResolution", "Denoising", "DeepinvOperator", "CallableOperator"):
            assert f"test_operator[{cls}-example]" in names
        assert {"test_prior[GaussianPrior-example]", "test_prior[EDMPrior-any size]"} <= names
