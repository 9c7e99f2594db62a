"""Faults that public codes have had, planted one at a time, must fail the checks.

Each mutant names the samplers that it reaches; without a fault, these samplers pass.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import invdiff.samplers.guidance.dps
import invdiff.samplers.moves
import invdiff.samplers.splitting.daps
from invdiff.contracts import check_posterior, check_sampler
from invdiff.contracts.law import Law, sampled_law
from invdiff.operators import GaussianNoise
from invdiff.problem import InverseProblem
from invdiff.samplers import DAPS, DPS, Sampler, all_samplers
from invdiff.samplers.chains import ClosedForm, Conditional
from invdiff.schedules import EDM, VP
from invdiff.streams import Streams

SAMPLES = 1000

SAMPLERS: dict[str, Sampler] = {
    "dps": DPS.example(),
    "dps_likelihood": replace(DPS.example(), schedule=VP(steps=30), guidance="likelihood"),
    "daps": DAPS.example(),
    "daps_langevin": replace(
        DAPS.example(),
        schedule=EDM(steps=4, sigma_max=10.0, sigma_min=0.05),
        inner="langevin",
        tau=None,
        chain_steps=10,
        step_size=1e-3,
        step_size_ratio=1.0,
    ),
}


@pytest.fixture(scope="module")
def laws() -> dict[str, Law]:
    """The law of each without a fault."""
    return {name: sampled_law(sampler, samples=SAMPLES) for name, sampler in SAMPLERS.items()}


def survives(sampler: Sampler, law: Law) -> bool:
    """Whether every check passes."""
    try:
        check_sampler(sampler)
        check_posterior(sampler, law, samples=SAMPLES)
    except AssertionError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_sound_ones_survive(name: str, laws: dict[str, Law]) -> None:
    assert survives(SAMPLERS[name], laws[name])


def test_two_of_them_are_exact() -> None:
    check_posterior(SAMPLERS["daps"])
    with pytest.raises(AssertionError, match="does not sample the posterior"):
        check_posterior(SAMPLERS["dps_likelihood"])


# -- the mutants -------------------------------------------------------------------------------------------------------


def noise_times_root_two(patch: pytest.MonkeyPatch) -> None:
    plain = Streams.normal
    patch.setattr(Streams, "normal", lambda self, *a, **k: 2**0.5 * plain(self, *a, **k))


def likelihood_times_two(patch: pytest.MonkeyPatch) -> None:
    """In each of the places where a likelihood enters: the density, its gradient with tau, the closed form."""
    density = GaussianNoise.entry_nll
    patch.setattr(GaussianNoise, "entry_nll", lambda self, *a: 2 * density(self, *a))
    draw = ClosedForm.draw

    def sharper(self: ClosedForm, target: Conditional, *rest: Any) -> Tensor:
        twin = target.problem.select(torch.arange(target.problem.images))
        twin.noise = GaussianNoise(target.problem.noise_std / 2**0.5)
        return draw(self, replace(target, problem=twin), *rest)

    patch.setattr(ClosedForm, "draw", sharper)
    norm = invdiff.samplers.moves.row_norm
    patch.setattr(invdiff.samplers.moves, "row_norm", lambda r: 2 * norm(r))


def _against(estimate: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same estimate; its gradients have the other sign."""
    return lambda x: 2 * estimate(x).detach() - estimate(x)


def guidance_sign_flipped(patch: pytest.MonkeyPatch) -> None:
    of_dps, of_chains, draw = invdiff.samplers.guidance.dps.clean_estimate, Conditional.data_gradient, ClosedForm.draw
    patch.setattr(invdiff.samplers.guidance.dps, "clean_estimate", lambda *a, **k: _against(of_dps(*a, **k)))
    patch.setattr(Conditional, "data_gradient", lambda self, x: -of_chains(self, x))
    patch.setattr(ClosedForm, "draw", lambda self, target, *rest: 2 * target.mean - draw(self, target, *rest))


def one_norm_over_the_batch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(invdiff.samplers.moves, "row_norm", lambda r: torch.linalg.vector_norm(r).expand(len(r)) / len(r))


def data_term_coupled(patch: pytest.MonkeyPatch) -> None:
    """A mean over the batch where a sum belongs: every gradient is smaller by the number of rows."""
    gradient = Conditional.data_gradient
    patch.setattr(Conditional, "data_gradient", lambda self, x: gradient(self, x) / len(x))


def paper_width(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(invdiff.samplers.splitting.daps, "conditional_std", lambda sigma, *_: sigma)


def nan_to_zero(patch: pytest.MonkeyPatch) -> None:
    gradient = InverseProblem.nll_gradient
    patch.setattr(InverseProblem, "nll_gradient", lambda self, x: gradient(self, x).nan_to_num(0))


def shared_stream(patch: pytest.MonkeyPatch) -> None:
    """All rows draw from the first row's stream, as a single generator for the batch would do."""

    plain = Streams.normal

    def normal(self: Streams, shape: tuple[int, ...] | None = None, **more: Any) -> Tensor:
        shape = self.shape if shape is None else shape
        return plain(self, (len(self), *shape), **more)[0]

    patch.setattr(Streams, "normal", normal)


@dataclass(frozen=True)
class Mutant:
    plant: Callable[[pytest.MonkeyPatch], None]
    reaches: tuple[str, ...]


MUTANTS = [
    Mutant(noise_times_root_two, tuple(SAMPLERS)),
    Mutant(likelihood_times_two, tuple(SAMPLERS)),
    Mutant(guidance_sign_flipped, tuple(SAMPLERS)),
    Mutant(one_norm_over_the_batch, ("dps",)),
    Mutant(data_term_coupled, ("daps_langevin",)),
    Mutant(paper_width, ("daps",)),
    Mutant(nan_to_zero, ("daps_langevin",)),
    Mutant(shared_stream, tuple(SAMPLERS)),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "name"),
    [(mutant.plant, name) for mutant in MUTANTS for name in mutant.reaches],
    ids=[f"{mutant.plant.__name__}-{name}" for mutant in MUTANTS for name in mutant.reaches],
)
def test_no_mutant_survives(
    plant: Callable[[pytest.MonkeyPatch], None], name: str, laws: dict[str, Law], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert not survives(SAMPLERS[name], laws[name])


@pytest.mark.slow
def test_noise_times_root_two_is_seen_in_every_sampler(
    sampler_name: str, known_laws: dict[str, Law], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in those without a mutant of their own; `wavelets` draws noise for its start alone, which it forgets."""
    if sampler_name == "wavelets":
        pytest.skip("one image, whatever its start")
    noise_times_root_two(monkeypatch)
    with pytest.raises(AssertionError):
        check_posterior(all_samplers()[sampler_name].example(), known_laws.get(sampler_name), samples=3 * SAMPLES // 2)
