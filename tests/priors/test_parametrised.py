"""Changes of variable: whatever a network says, the prior is the same denoiser."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff.priors import ParametrisedPrior
from invdiff.priors.networks.network_time import DiscreteTime, EDMTime, FlowTime, NetworkTime, VETime, VPTime

MEAN, STD = 0.1, 0.3  # of the images on [-1, 1]: their denoiser is known
LEVELS = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 20.0, 40.0]  # on [-1, 1]


def denoised(z: Tensor, s: Tensor | float) -> Tensor:
    """E[z0 | z0 + s eps = z] for images N(MEAN, STD^2)."""
    return MEAN + STD**2 / (STD**2 + s**2) * (z - MEAN)


def ideal(says: Callable[..., Tensor], level_of: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable:
    """The ideal network in its own coordinates.

    says      of x_t, the clean image z0, the noise, and both shares: what the network answers
    level_of  the shares (a, b) of image and noise in x_t = a z0 + b eps at the time that it is told
    """

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        a, b = (share.reshape(-1, 1, 1, 1) for share in level_of(t.double()))
        z0 = denoised(x_t.double() / a, b / a)
        return says(x_t.double(), z0, (x_t.double() - a * z0) / b, a, b).to(x_t.dtype)

    return network


def of_step(schedule: DiscreteTime) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def level(t: Tensor) -> tuple[Tensor, Tensor]:
        logs = torch.tensor([(1 - a) / a for a in schedule.alphas_cumprod], dtype=torch.float64).log() / 2
        low = t.floor().long().clamp(max=len(logs) - 2)
        sigma = torch.lerp(logs[low], logs[low + 1], t - low).exp()
        return (1 + sigma**2).rsqrt(), sigma * (1 + sigma**2).rsqrt()

    return level


def of_vp(t: Tensor) -> tuple[Tensor, Tensor]:
    abar = (-(0.1 * t / 999 + 9.95 * (t / 999) ** 2)).exp()
    return abar.sqrt(), (1 - abar).sqrt()


LINEAR = DiscreteTime.linear()
CASES: dict[str, tuple[NetworkTime, Callable, Callable]] = {
    "epsilon": (LINEAR, of_step(LINEAR), lambda x, z0, eps, a, b: eps),
    "x0": (VETime(0.001, 100.0), lambda t: (torch.ones_like(t), t), lambda x, z0, eps, a, b: z0),
    "v": (VPTime(t_min=1e-5), of_vp, lambda x, z0, eps, a, b: a * eps - b * z0),
    "score": (VPTime(t_min=1e-5), of_vp, lambda x, z0, eps, a, b: -eps / b),
    "flow": (FlowTime(), lambda t: (1 - t, t), lambda x, z0, eps, a, b: eps - z0),
    "flow, image at 1": (FlowTime(data_at=1), lambda t: (t, 1 - t), lambda x, z0, eps, a, b: z0 - eps),
}


def prior_of(case: str, **settings: object) -> ParametrisedPrior:
    schedule, level_of, says = CASES[case]
    network = ideal(says, level_of)
    return ParametrisedPrior(network, case.partition(",")[0], schedule, channels=3, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES)
def test_every_parametrisation_gives_the_same_denoiser(case: str, normal: Callable) -> None:
    for s in LEVELS:
        s = max(s, CASES[case][0].sigma_range[0])
        z = MEAN + (STD**2 + s**2) ** 0.5 * normal(2, 3, 4, 4)
        ours = prior_of(case).denoise((z + 1) / 2, s / 2)
        assert torch.allclose(2 * ours - 1, denoised(z, s), rtol=0, atol=1e-4 * max(1, s))


def test_edm_preconditioning(normal: Callable) -> None:
    """Karras et al. 2022, Table 1."""
    for s in LEVELS:
        z = (0.25 + s**2) ** 0.5 * normal(2, 3, 4, 4)
        c_skip, c_out, c_in = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25) ** 0.5, (s**2 + 0.25) ** -0.5

        def network(x: Tensor, c_noise: Tensor, s: float = s) -> Tensor:
            assert torch.allclose(c_noise, torch.full_like(c_noise, s).log() / 4)
            return (2 * x).sin()

        ours = ParametrisedPrior(network, "edm", EDMTime(), channels=3).denoise((z + 1) / 2, s / 2)
        assert torch.allclose(2 * ours - 1, c_skip * z + c_out * (2 * c_in * z).sin(), rtol=0, atol=1e-6 * max(1, s))


@pytest.mark.parametrize("case", [case for case in CASES if case != "x0"])
def test_without_noise_nothing_changes(case: str, normal: Callable) -> None:
    """Outside its levels the network is told the nearest one, and everything else keeps the true one."""
    x = 0.5 + 0.2 * normal(2, 3, 4, 4)
    assert torch.allclose(prior_of(case).denoise(x, 0.0), x, rtol=0, atol=1e-9)


def test_ranges_of_images(normal: Callable) -> None:
    """A network for 0 ... 255 and images on -3 ... 5: one unit of these is 255 / 8 of its own."""
    told = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        told.append(t)
        return x / 2

    prior = ParametrisedPrior(
        network, "x0", VETime(1.0, 1000.0), channels=1, value_range=(-3, 5), network_range=(0, 255)
    )
    assert prior.sigma_range == pytest.approx((8 / 255, 8000 / 255))
    x = normal(2, 1, 4, 4)
    assert torch.allclose(prior.denoise(x, 2.0), (x + 3) / 2 - 3)
    assert torch.allclose(told[0], torch.tensor(2 * 255 / 8, dtype=torch.float64))


def test_channel_order_variance_and_class(normal: Callable) -> None:
    x = normal(2, 3, 4, 4)
    seen = {}

    def network(x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        seen["first channel"], seen["label"] = x_t[:, 0], label
        answer = x_t * torch.tensor([1.0, 2.0, 3.0], dtype=x_t.dtype).reshape(3, 1, 1)
        return torch.cat([answer, torch.full_like(answer, torch.nan)], 1)

    prior = ParametrisedPrior(
        network, "x0", VETime(), network_range=(0, 1), learned_variance=True, class_label=7, bgr=True
    )
    weights = torch.tensor([3.0, 2.0, 1.0], dtype=x.dtype).reshape(3, 1, 1)
    assert torch.allclose(prior.denoise(x, 0.5), weights * x), "red is the last channel of a network in BGR"
    assert torch.equal(seen["first channel"], x[:, 2])
    assert seen["label"].tolist() == [7, 7]


@pytest.mark.parametrize(
    ("parametrisation", "schedule", "settings", "words"),
    [
        ("noise", LINEAR, {}, "epsilon, x0, v, score, got 'noise'"),
        ("flow", LINEAR, {}, "DiscreteTime"),
        ("v", VETime(), {}, "VETime"),
        ("edm", VPTime(), {}, "VPTime"),
        ("epsilon", LINEAR, {"value_range": (1, float("nan"))}, "value_range"),
        ("epsilon", LINEAR, {"network_range": (1, 0)}, "network_range"),
    ],
)
def test_pairs_that_do_not_go_together_are_refused(
    parametrisation: str, schedule: NetworkTime, settings: dict, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        ParametrisedPrior(lambda x, t: x, parametrisation, schedule, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)


def test_another_number_of_channels_is_refused(normal: Callable) -> None:
    prior = ParametrisedPrior(lambda x, t: torch.cat([x, x], 1), "epsilon", LINEAR)
    with pytest.raises(ValueError, match=r"\(2, 6, 4, 4\).*learned_variance"):
        prior.denoise(normal(2, 3, 4, 4), 0.1)
