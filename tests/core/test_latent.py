"""Latent priors: samplers work on codes, results are images."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import invdiff
from invdiff import Compute, InverseProblem
from invdiff.engine.driver import Event
from invdiff.latent import posed
from invdiff.operators import GaussianNoise, Inpainting, PhaseRetrieval
from invdiff.priors import Autoencoder, DiffusersPrior, GaussianPrior, LatentPrior, LinearCodec
from invdiff.priors.networks.diffusers_prior import example_unet
from invdiff.priors.ode import generate
from invdiff.problem import simulate
from invdiff.samplers import DAPS, DPS, MCG, PSLD, TDS, TV, Auto, EnKG, MomentDraw, Sampler, settings_for
from invdiff.schedules import EDM

SCHEDULE = EDM(steps=10, sigma_max=5.0, sigma_min=0.02)
QUIET = Compute(device="cpu", progress=False)
OPERATOR = Inpainting.random((1, 8, 8), keep=0.5, seed=0)
NOISE = 0.1


class Bent(Autoencoder):
    """An autoencoder that is not linear."""

    def decode(self, codes: Tensor) -> Tensor:
        return super().decode(codes + 0.1 * codes.tanh())


@pytest.fixture(scope="module")
def gaussian() -> LatentPrior:
    """Correlated Gaussian codes, two for every four pixels."""
    root = 0.15 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = root @ root.T + 0.02 * torch.eye(32)
    return LatentPrior(GaussianPrior(torch.full((2, 4, 4), 0.3), covariance), LinearCodec.example()[0])


@pytest.fixture(scope="module")
def bent() -> LatentPrior:
    return LatentPrior(GaussianPrior(torch.zeros(4, 4, 4), torch.eye(64)), Bent(Autoencoder.example()[0].network))


def measured(prior: LatentPrior, operator: object = OPERATOR) -> InverseProblem:
    codes = torch.cat([prior.diffusion.sample(1, torch.Generator().manual_seed(i)) for i in range(2)])  # type: ignore[operator]
    y = simulate(prior.codec.decode(codes.float()), operator, GaussianNoise(NOISE))
    return InverseProblem(operator, GaussianNoise(NOISE), y)


def exact(problem: InverseProblem, prior: LatentPrior) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each pixel, (B, D), for Gaussian codes and a linear codec."""
    codes, diffusion = posed(problem, prior)
    units = torch.eye(32).reshape(32, 2, 4, 4)
    forward = torch.stack([codes.operator(unit[None]).flatten() for unit in units], 1).double()
    decode = prior.codec.decode(units).flatten(1).T.double()
    mean, covariance = diffusion.mean.flatten().double(), diffusion.covariance.double()  # type: ignore[operator, union-attr]
    gain = covariance @ forward.T @ torch.linalg.inv(forward @ covariance @ forward.T + NOISE**2 * torch.eye(64))
    means = mean + (problem.y.flatten(1).double() - forward @ mean) @ gain.T
    spread = decode @ (covariance - gain @ forward @ covariance) @ decode.T
    return means @ decode.T, spread.diagonal().sqrt().expand(2, -1)


@pytest.mark.parametrize("sampler", [DAPS(), MomentDraw()])
def test_the_exact_posterior_of_images(sampler: Sampler, gaussian: LatentPrior) -> None:
    problem = measured(gaussian)
    found = sampler.sample(problem, gaussian, num_samples=100, compute=QUIET)
    assert found.samples.shape == (2, 100, 1, 8, 8)
    mean, std = exact(problem, gaussian)
    samples = found.samples.flatten(2).double()
    assert ((samples.mean(1) - mean) / std).square().mean() < 0.04  # 0.01 by chance
    assert ((samples.std(1) / std).square().mean() - 1).abs() < 0.12
    assert found.problem is problem
    assert found.misfit.mean() < 1.2


@pytest.mark.parametrize("sampler", [DPS(schedule=SCHEDULE), DAPS(schedule=SCHEDULE, inner="langevin", chain_steps=10)])
def test_a_decoder_that_is_not_linear(sampler: Sampler, bent: LatentPrior) -> None:
    """Samples fit y far better than draws of the prior; every call of the decoder is counted, chunks change nothing."""
    problem = measured(bent)
    found = sampler.sample(problem, bent, num_samples=2, compute=QUIET)
    drawn = generate(bent, torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(9)))
    assert problem.misfit(found.samples[:, 0]).mean() < 0.2 * problem.misfit(drawn).mean()
    cost = found.cost
    assert cost.decodes == cost.operator_calls - cost.decode_vjps + 4  # A(decode(z)) at each call, and the samples
    assert cost.decode_vjps > 0
    assert cost.encodes == 0
    parts = sampler.sample(problem, bent, num_samples=2, compute=Compute(device="cpu", progress=False, max_rows=1))
    assert torch.allclose(parts.samples, found.samples, atol=1e-4)
    assert parts.cost.decodes == cost.decodes


def test_requirements_are_those_of_the_operator_on_codes(bent: LatentPrior) -> None:
    problem = measured(bent)
    with pytest.raises(ValueError, match="linear operator"):
        MCG().sample(problem, bent, compute=QUIET)
    with pytest.raises(ValueError, match="images themselves"):
        TV().sample(problem, bent, compute=QUIET)
    wrong = InverseProblem(Inpainting.random((1, 7, 7), seed=0), GaussianNoise(0.1), torch.zeros(1, 1, 7, 7))
    with pytest.raises(ValueError, match=r"expects images of shape \(1, 8, 8\), got \(1, 7, 7\)"):
        DPS().sample(wrong, bent, compute=QUIET)


def test_samplers_of_codecs_ask_the_operator_on_images(bent: LatentPrior) -> None:
    """PSLD needs a linear operator, not a linear decoder."""
    found = PSLD(schedule=SCHEDULE).sample(measured(bent), bent, num_samples=2, compute=QUIET)
    assert found.samples.shape == (2, 2, 1, 8, 8)
    assert float(found.misfit.mean()) < 20
    curved = InverseProblem(PhaseRetrieval(), GaussianNoise(0.1), PhaseRetrieval()(torch.rand(1, 1, 8, 8)))
    with pytest.raises(ValueError, match="PhaseRetrieval is not"):
        PSLD().sample(curved, bent, compute=QUIET)


def test_auto_takes_a_sampler_that_a_decoder_can_pay(bent: LatentPrior, gaussian: LatentPrior) -> None:
    assert isinstance(Auto().resolve(measured(bent), bent)[0], DPS)
    assert isinstance(Auto().resolve(measured(gaussian), gaussian)[0], MomentDraw)


@pytest.mark.parametrize("sampler", [EnKG.example(), TDS.example()])
def test_clouds_are_of_images(sampler: Sampler, bent: LatentPrior) -> None:
    """All particles are decoded, and the calls counted."""
    one = sampler.sample(measured(bent), bent, compute=QUIET)
    found = sampler.sample_of_cloud(measured(bent), bent, num_samples=3, compute=QUIET)
    assert found.samples.shape == (2, 3, 1, 8, 8)
    assert found.misfit.shape == (2, 3)
    assert found.cost.decodes > one.cost.decodes


def test_settings_are_those_of_the_operator_on_codes(bent: LatentPrior, gaussian: LatentPrior) -> None:
    assert settings_for("daps", OPERATOR, GaussianNoise(), bent).where == "nonlinear"
    assert settings_for("daps", OPERATOR, GaussianNoise(), gaussian).where is None
    assert settings_for("daps", PhaseRetrieval(), GaussianNoise(), bent).where == "ambiguous"


@pytest.mark.slow
def test_sampling_starts_where_a_network_of_noise_was_trained(bent: LatentPrior) -> None:
    """Above, its errors are wider than codes; a start that was given stays, as does that of a network of v."""
    scheduler = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085}
    scheduler["beta_end"] = 0.012
    unet, codec = example_unet(channels=4, sample_size=4), bent.codec
    noise = LatentPrior(DiffusersPrior.of_codes(unet, scheduler), codec)
    velocity = LatentPrior(DiffusersPrior.of_codes(unet, {**scheduler, "prediction_type": "v_prediction"}), codec)
    settled = settings_for("psld", OPERATOR, GaussianNoise(), noise)
    assert settled.sampler.schedule.sigma_max == pytest.approx(14.615 / 2, abs=1e-3)  # type: ignore[attr-defined]
    assert "recommended for the levels of the prior" in str(settled)
    given = settings_for("psld", OPERATOR, GaussianNoise(), noise, given={"schedule.sigma_max": 30.0})
    assert given.sampler.schedule.sigma_max == 30  # type: ignore[attr-defined]
    assert not settings_for("psld", OPERATOR, GaussianNoise(), velocity).changed


def test_callbacks_get_images(bent: LatentPrior) -> None:
    seen: list[tuple[int, ...]] = []

    def look(event: Event) -> None:
        seen.append((*event.step.x0.shape, *event.x0.shape))

    DPS(schedule=SCHEDULE).sample(measured(bent), bent, compute=QUIET, callback=look)
    assert set(seen) == {(2, 4, 4, 4, 2, 1, 8, 8)}


def test_one_line(bent: LatentPrior, tmp_path: Path) -> None:
    """`reconstruct` chooses a sampler, stores images and counts the decoder."""
    problem = measured(bent)
    found = invdiff.reconstruct(
        problem.y, OPERATOR, noise=NOISE, prior=bent, sampler=Auto(), num_samples=2, compute=QUIET
    )
    found.save(tmp_path / "out")
    assert found.samples.shape == (2, 2, 1, 8, 8)
    assert '"decodes"' in (tmp_path / "out" / "metrics.json").read_text()
