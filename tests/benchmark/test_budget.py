"""Equal budgets: as many steps as they buy and not one more."""

from collections.abc import Iterable
from itertools import repeat

import pytest
import torch

from invdiff.benchmark import budget
from invdiff.benchmark.budget import (
    FEWEST_STEPS,
    FULL,
    Budget,
    NoFit,
    Speed,
    fit_calls,
    fit_seconds,
    likely_rows,
    measure_speed,
    network_cost,
    out_of_memory,
    with_steps,
)
from invdiff.priors import EDMPrior, Prior
from invdiff.samplers import DAPS, DPS, EnKG, Sampler, all_samplers
from invdiff.schedules import EDM, VP


@pytest.mark.parametrize(
    ("sampler", "calls"), [(DPS(), 47), (DAPS(ode_steps=3), 100), (EnKG(ensemble=5), 47), (EnKG(ensemble=5), 999)]
)
def test_one_step_more_would_cost_too_much(sampler: Sampler, calls: int) -> None:
    try:
        fitted = fit_calls(sampler, calls, 1.5)
    except NoFit:
        assert network_cost(with_steps(sampler, FEWEST_STEPS), 1.5) > calls
        return
    assert network_cost(fitted, 1.5) <= calls
    assert network_cost(with_steps(fitted, fitted.num_steps + 1), 1.5) > calls
    assert with_steps(fitted, sampler.schedule.steps) == sampler, "another setting was changed"  # type: ignore[attr-defined]


def test_vjps_count_by_what_they_cost() -> None:
    assert network_cost(DPS(schedule=VP(steps=200)), 0.0) == 200
    assert network_cost(DPS(schedule=VP(steps=200)), 1.5) == 500
    assert network_cost(DAPS(), 1.5) == network_cost(DAPS(), None) == 100


def test_a_schedule_that_ends() -> None:
    assert fit_calls(DPS(schedule=VP()), 10**6, 1.0).num_steps == 1000


def test_too_little() -> None:
    with pytest.raises(NoFit, match="4 steps take 8 network calls, more than the 7 a sample may cost"):
        fit_calls(DPS(), 7, 1.0)
    with pytest.raises(NoFit, match="4 steps take 4 s, more than the 3 s a sample may take"):
        fit_seconds(DAPS(), 3, None, lambda s: s.num_steps)


def test_seconds() -> None:
    """Half a second a step, and two before the first."""
    fitted = fit_seconds(DAPS(schedule=EDM(steps=7)), 12.0, None, lambda s: 2.0 + 0.5 * s.num_steps)
    assert fitted.num_steps == 20


def test_every_sampler_can_be_fitted_or_says_why() -> None:
    for name, cls in all_samplers().items():
        try:
            fitted = fit_calls(cls(), 10**4, 1.0)
            assert network_cost(fitted, 1.0) <= 10**4, name
        except NoFit as error:
            assert str(error)  # noqa: PT017, both outcomes are right


def test_words() -> None:
    assert [str(Budget("calls", 100.0)), str(Budget("seconds", 0.5))] == ["100 network calls", "0.5 s"]


def test_speed() -> None:
    prior = EDMPrior.example()

    def weight() -> float:
        speed = measure_speed(prior, (1, 16, 16), torch.device("cpu"), "float32", rows=2, repeats=3)
        assert speed.bytes is None
        assert speed.vjp_weight is not None
        return speed.vjp_weight

    assert any(0.1 < weight() < 10 for _ in range(10))  # on a busy machine a single one may be anything

    class BlackBox(Prior):
        differentiable = False

        def denoise(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
            assert not torch.is_grad_enabled()
            return x

    assert measure_speed(BlackBox(), (1, 16, 16), torch.device("cpu"), "float32", rows=2) == Speed(None, None)


def timed(monkeypatch: pytest.MonkeyPatch, seconds: Iterable[float]) -> float | None:
    """What is measured where a forward and a VJP take these times, one after the other."""
    times = iter(seconds)
    monkeypatch.setattr(budget, "seconds_of", lambda *_: next(times))
    return measure_speed(EDMPrior.example(), (1, 16, 16), torch.device("cpu"), "float32", rows=1, repeats=2).vjp_weight


def test_speed_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timed(monkeypatch, [1.0, 3.5, 2.0, 3.0]) == 2.0  # the quickest of each
    assert timed(monkeypatch, [3.0, 2.5, 3.0, 3.0, 1.0, 3.0, 3.0, 3.0]) == 1.5  # a second round
    assert timed(monkeypatch, repeat(1.0)) is None  # and it ends


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda, nothing = torch.device("cpu"), torch.device("cuda"), Speed(None, None)
    assert likely_rows((1, 32, 32), 1, cpu, nothing) == FULL["cpu"] // 1024
    assert likely_rows((1, 32, 32), 64, cpu, nothing) == FULL["cpu"] // 1024 // 64
    assert likely_rows((3, 4096, 4096), 8, cpu, nothing) == 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 10**10))
    assert likely_rows((3, 256, 256), 1, cuda, Speed(1.0, 10**8)) == 6
    assert likely_rows((3, 256, 256), 64, cuda, Speed(1.0, 10**8)) == 1
    assert likely_rows((3, 256, 256), 1, cuda, Speed(1.0, 1)) == FULL["cuda"] // 256**2


def test_out_of_memory() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not out_of_memory(RuntimeError("the camera is off"))
    assert not out_of_memory(ValueError("can't allocate memory"))
