"""What networks are told at a noise level."""

import math

import pytest
import torch

from invdiff.priors import ParametrisedPrior
from invdiff.priors.networks.network_time import (
    BayesianFlowTime,
    DiscreteTime,
    EDMTime,
    FlowTime,
    NetworkTime,
    VETime,
    VPTime,
)

SCHEDULES = {
    "linear": DiscreteTime.linear(),
    "cosine": DiscreteTime.cosine(),
    "scaled_linear": DiscreteTime.scaled_linear(),
    "vp": VPTime(),
    "ve": VETime(),
    "flow": FlowTime(),
    "reversed": FlowTime(data_at=1),
    "edm": EDMTime(),
}


def sigma_of(abar: float) -> float:
    return math.sqrt((1 - abar) / abar)


def test_betas_of_the_papers() -> None:
    """DDPM: 1e-4 to 0.02 in 1000 steps; improved DDPM, Eq. 17; Stable Diffusion: roots of 0.00085 and 0.012."""
    abar = math.prod(1 - (1e-4 + k * (0.02 - 1e-4) / 999) for k in range(501))
    assert DiscreteTime.linear().alphas_cumprod[500] == pytest.approx(abar, rel=1e-9)
    f = [math.cos((k / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for k in (0, 501)]
    assert DiscreteTime.cosine().alphas_cumprod[500] == pytest.approx(f[1] / f[0], rel=1e-9)
    roots = [math.sqrt(0.00085) + k / 999 * (math.sqrt(0.012) - math.sqrt(0.00085)) for k in range(501)]
    assert DiscreteTime.scaled_linear().alphas_cumprod[500] == pytest.approx(math.prod(1 - r**2 for r in roots))


def test_a_step_is_found_by_its_level() -> None:
    schedule = DiscreteTime.linear()
    steps = torch.tensor([0, 1, 17, 500, 998, 999])
    told = schedule.time(torch.tensor([sigma_of(schedule.alphas_cumprod[k]) for k in steps]))
    assert torch.allclose(told, steps.float(), atol=1e-3)


def test_between_steps() -> None:
    """A fraction of a step, linear in ln sigma, or the step whose sigma is nearer."""
    abar = (sigma_to_abar(1.0), sigma_to_abar(4.0))
    sigma = torch.tensor([2.0, 2.4, 2.6])
    assert torch.allclose(DiscreteTime(abar).time(sigma), sigma.log() / math.log(4))
    nearest = DiscreteTime(abar, "nearest").time(sigma)
    assert nearest.tolist() == [0, 0, 1]
    assert nearest.dtype == torch.int64


def sigma_to_abar(sigma: float) -> float:
    return 1 / (1 + sigma**2)


def test_outside_the_trained_levels_time_stops_and_scale_goes_on() -> None:
    for name in SCHEDULES:
        schedule = SCHEDULES[name]
        low, high = schedule.sigma_range
        alpha, t = schedule(torch.tensor([0.0, low, high, 10 * high], dtype=torch.float64))
        assert t[0] == t[1]
        assert t[2] == t[3]
        assert t[1] != t[2]
        assert name == "ve" or (alpha[0] > alpha[1] > alpha[2] > alpha[3])


def test_a_last_step_of_pure_noise_is_left_out() -> None:
    schedule = DiscreteTime((0.9, 0.5, 0.0))
    assert len(schedule.levels) == 2
    assert schedule.sigma_range[1] == pytest.approx(1)


def test_continuous_processes() -> None:
    """score SDE: alpha_t^2 = exp(-t beta_min - t^2 (beta_max - beta_min) / 2); sigma_t = sigma_min ratio^t."""
    t = 0.3
    abar = math.exp(-(0.1 * t + 0.5 * t**2 * 19.9))
    alpha, told = VPTime()(torch.tensor([sigma_of(abar)], dtype=torch.float64))
    assert told.item() == pytest.approx(999 * t, rel=1e-9)
    assert alpha.item() ** 2 == pytest.approx(abar)
    level = torch.tensor([0.01 * 5000**t], dtype=torch.float64)
    assert [VETime(time_input=kind)(level)[1].item() for kind in ("sigma", "log", "t")] == pytest.approx(
        [level.item(), math.log(level.item()), t]
    )


def test_time_of_a_flow_runs_both_ways() -> None:
    sigma = torch.tensor([0.25], dtype=torch.float64)  # 0.2 of noise, 0.8 of image
    assert FlowTime(time_scale=1000)(sigma)[1].item() == pytest.approx(200)
    alpha, t = FlowTime(data_at=1)(sigma)
    assert (alpha.item(), t.item()) == pytest.approx((0.8, 0.8))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DiscreteTime((0.5, 0.9)), "decrease"),
        (lambda: DiscreteTime((0.9, float("nan"))), "decrease"),
        (lambda: DiscreteTime((0.9, 0.5), "middle"), "'middle'"),  # type: ignore[arg-type]
        (lambda: VETime(1.0, float("nan")), "sigma_max"),
        (lambda: VETime(time_input="ln"), "'ln'"),  # type: ignore[arg-type]
        (lambda: VPTime(beta_min=float("nan")), "beta_min"),
        (lambda: FlowTime(margin=float("nan")), "margin"),
        (lambda: FlowTime(data_at=2), "data_at"),  # type: ignore[arg-type]
        (lambda: EDMTime(sigma_data=float("nan")), "sigma_data"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: "type[NetworkTime]", words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        make()
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_a_bayesian_flow_network_of_continuous_data() -> None:
    """Belief mu ~ N(g x, g (1 - g)), g = 1 - sigma_1^(2 t); from eps, x = mu / g - sqrt((1 - g) / g) eps.

    On data N(0, 1/4) the exact network is known; it gives the exact posterior mean of the noisy image.
    """
    sigma_1, t = 0.02, torch.tensor([0.002, 0.1, 0.5, 0.999], dtype=torch.float64)
    g = 1 - sigma_1 ** (2 * t)

    def network(mu: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        assert torch.allclose(told, t, rtol=1e-6)
        share = g.reshape(-1, 1, 1, 1)
        x = share * 0.25 * mu / (share**2 * 0.25 + share * (1 - share))
        return (mu - share * x) / (share * (1 - share)).sqrt()

    prior = ParametrisedPrior(network, "epsilon", BayesianFlowTime(sigma_1), value_range=(-1.0, 1.0))
    sigma = ((1 - g) / g).sqrt()
    x = torch.linspace(-2, 2, 4 * 3, dtype=torch.float64).reshape(4, 1, 1, 3)
    wanted = 0.25 / (0.25 + sigma**2).reshape(-1, 1, 1, 1) * x
    assert torch.allclose(prior.denoise(x, sigma), wanted, rtol=1e-9)
    with pytest.raises(ValueError, match="sigma_1 and t_min must lie between 0 and 1"):
        BayesianFlowTime(1.5)
