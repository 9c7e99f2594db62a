"""Denoisers of deepinv as priors, and priors in deepinv's own algorithms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepinv
import pytest
import torch
from deepinv.models import ADMUNet, DnCNN, DRUNet, NCSNpp
from safetensors.torch import save_file
from torch import Tensor, nn

from invdiff import InverseProblem
from invdiff.contracts.toys import WhitePrior
from invdiff.engine.driver import Compute
from invdiff.operators import GaussianNoise, Inpainting
from invdiff.priors import DeepinvPrior, EDMPrior, as_prior
from invdiff.priors.ode import generate
from invdiff.samplers import DAPS, DPS
from invdiff.schedules import EDM
from invdiff.scores.metrics import psnr

Normal = Callable[..., Tensor]
SMALL: dict[str, Any] = {"model_channels": 32, "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": ()}


class White(deepinv.models.Denoiser):
    """The exact denoiser of independent pixels N(0.4, 0.25^2) in [0, 1]; it keeps the levels that it was told."""

    def forward(self, x: Tensor, sigma: float | Tensor, **_: Any) -> Tensor:
        self.told = sigma
        return WhitePrior().denoise(x, sigma)


def drunet(**options: Any) -> DRUNet:
    torch.manual_seed(0)
    return DRUNet(in_channels=1, out_channels=1, nc=(2, 2, 2, 2), nb=1, pretrained=None, **options)


# -- a denoiser of deepinv is a prior ----------------------------------------------------------------------------------


def test_the_range_of_images_and_levels(normal: Normal) -> None:
    """Images in [-1, 3] go in as in [0, 1], with a quarter of the noise."""
    x, sigma = 1 + normal(3, 1, 5, 5), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    prior = DeepinvPrior(White(), value_range=(-1.0, 3.0))
    exact = WhitePrior(mean=4 * 0.4 - 1, std=4 * 0.25)
    assert torch.allclose(prior.denoise(x, sigma), exact.denoise(x, sigma), atol=1e-12)
    assert torch.allclose(prior.function.told, sigma / 4)
    assert prior.sigma_range == (0.008, 4.0)


def test_one_by_one(normal: Normal) -> None:
    """A denoiser with one norm over the batch keeps its images apart."""

    class Mixing(deepinv.models.Denoiser):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return x / x.norm()

    x = normal(3, 1, 5, 5)
    apart = DeepinvPrior(Mixing(), one_by_one=True).denoise(x, 0.1)
    assert torch.allclose(apart, x / x.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1))
    assert not torch.allclose(apart, DeepinvPrior(Mixing()).denoise(x, 0.1))


def test_a_real_network(normal: Normal) -> None:
    for sigma in [0.1, torch.tensor(0.1), torch.tensor([0.1, 0.1])]:
        x, network = normal(2, 1, 32, 32, dtype=torch.float32), drunet()
        prior = DeepinvPrior(network)
        assert torch.allclose(prior.denoise(x, sigma), network(x, 0.1), atol=1e-6)
        assert not network.training


@pytest.mark.parametrize(
    ("network", "channels", "levels"),
    [
        (drunet, 1, (0.002, 1.0)),
        (lambda: NCSNpp(img_resolution=8, in_channels=3, pretrained=None, **SMALL), 3, (0.002, 80.0)),
        (
            lambda: NCSNpp(img_resolution=8, pretrained=None, _was_trained_on_minus_one_one=True, **SMALL),
            3,
            (0.001, 40.0),
        ),
        (lambda: ADMUNet(img_resolution=8, in_channels=2, out_channels=2, pretrained=None, **SMALL), 2, (0.002, 80.0)),
        (lambda: DnCNN(in_channels=2, out_channels=2, depth=3, nf=2, pretrained=None), None, (0.002, 1.0)),
    ],
)
def test_what_a_network_says_of_itself(
    network: Callable[[], nn.Module], channels: int, levels: tuple[float, float]
) -> None:
    prior = DeepinvPrior(network())
    assert (prior.channels, prior.shape) == (channels, None) or channels is None
    assert prior.sigma_range == pytest.approx(levels)


def test_levels_of_a_chain() -> None:
    """A network like DiffUNet, trained on [-1, 1]: half of sqrt((1 - abar) / abar)."""

    class Chain(White):
        def __init__(self) -> None:
            super().__init__()
            abar = torch.tensor([0.9, 0.5, 0.01])
            self.sqrt_alphas_cumprod, self.sqrt_1m_alphas_cumprod = abar.sqrt(), (1 - abar).sqrt()

    assert DeepinvPrior(Chain()).sigma_range == pytest.approx(((0.1 / 0.9) ** 0.5 / 2, 99**0.5 / 2))


def test_no_noise_at_all(normal: Normal) -> None:
    """Its own preconditioning takes the logarithm of sigma, which is no number at 0."""
    x = normal(2, 3, 8, 8, dtype=torch.float32)
    prior = DeepinvPrior(NCSNpp(img_resolution=8, pretrained=None, **SMALL))
    assert (prior.denoise(x, 0.0) - x).abs().max() < 0.05


def test_a_sampler_of_ours_with_denoiser_and_physics_of_deepinv(normal: Normal) -> None:
    """Passed as they are: the same samples as with the same prior and operator of invdiff's own."""
    mask = (normal(1, 1, 8, 8) > 0).float()
    theirs, ours = deepinv.physics.Inpainting(img_size=(1, 8, 8), mask=mask), Inpainting(mask=mask[0])
    y = ours(0.4 + 0.25 * normal(2, 1, 8, 8, dtype=torch.float32))
    schedule = EDM(steps=5, sigma_max=1.0, sigma_min=0.01)  # levels that the denoiser is taken to know
    compute = Compute(device="cpu", progress=False)
    for sampler in (DPS(schedule=schedule), DAPS(schedule=schedule)):
        drawn = [
            sampler.sample(
                InverseProblem(operator, GaussianNoise(0.05), y), prior, num_samples=2, seed=1, compute=compute
            )
            for operator, prior in ((theirs, White()), (ours, WhitePrior()))
        ]
        assert drawn[0].samples.isfinite().all()
        assert torch.allclose(drawn[0].samples, drawn[1].samples, atol=1e-4)
        assert drawn[0].cost.forwards == drawn[1].cost.forwards > 0


# -- a prior is a denoiser of deepinv ----------------------------------------------------------------------------------


def test_back_and_forth() -> None:
    denoiser, prior = White(), WhitePrior()
    assert as_prior(denoiser).to_deepinv() is denoiser
    assert as_prior(prior.to_deepinv()) is prior
    apart = DeepinvPrior(denoiser, one_by_one=True)
    assert as_prior(apart.to_deepinv()) is apart


def test_a_prior_on_another_range(normal: Normal) -> None:
    """deepinv speaks of images in [0, 1], or in [-1, 1] where it says so."""
    mean, std = 10.0, 5.0
    prior = WhitePrior(mean, std)
    prior.value_range = (0.0, 20.0)
    denoiser = prior.to_deepinv()
    assert isinstance(denoiser, deepinv.models.Denoiser)
    x, sigma = normal(2, 1, 4, 4), torch.tensor([0.1, 0.3], dtype=torch.float64)
    assert torch.allclose(denoiser(x, sigma), prior.denoise(20 * x, 20 * sigma) / 20)
    symmetric = denoiser(2 * x - 1, 2 * sigma, input_in_minus_one_one=True)
    assert torch.allclose(symmetric, 2 * denoiser(x, sigma) - 1)
    for level in (0.1, torch.tensor(0.1), torch.full((2, 1, 1, 1), 0.1)):
        assert torch.allclose(denoiser(x, level), denoiser(x, 0.1))
    with pytest.raises(ValueError, match="one value or one per image, got 3 for 2"):
        denoiser(x, torch.ones(3))


@pytest.mark.parametrize("schedule", ["vp", "ve"])
def test_dps_of_deepinv_with_prior_and_operator_of_ours(schedule: str, normal: Normal) -> None:
    """It runs, repeats, and pulls the image towards the data that it was given."""
    prior, mask = WhitePrior(), normal(1, 8, 8, dtype=torch.float32) > 0
    operator = Inpainting(mask=mask)
    truth = 0.4 + 0.25 * normal(1, 1, 8, 8, dtype=torch.float32)
    y = operator(truth)

    def draw(weight: float) -> Tensor:
        sampler = deepinv.sampling.DPS(
            prior.to_deepinv(), schedule=schedule, num_steps=30, weight=weight, rng=torch.Generator()
        )
        return sampler(y, operator.to_deepinv(), x_init=(1, 1, 8, 8), seed=0)

    def misfit(x: Tensor) -> float:
        return float((operator(x.float()) - y).norm())

    assert torch.equal(draw(1.0), draw(1.0))
    assert draw(1.0).isfinite().all()
    assert misfit(draw(30.0)) < 0.5 * misfit(draw(0.0))


@pytest.mark.slow
def test_dps_of_deepinv_restores_a_digit(digits: EDMPrior) -> None:
    """With the bundled prior and half of the pixels of an image that it drew itself."""
    noise = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    truth = generate(digits, noise, steps=12).clamp(0, 1)
    operator = Inpainting.random((1, 32, 32), keep=0.5, seed=0)
    y = operator(truth)
    sampler = deepinv.sampling.DPS(
        digits.to_deepinv(), schedule="ve", num_steps=20, weight=100.0, rng=torch.Generator()
    )
    found = sampler(y, operator.to_deepinv(), x_init=tuple(truth.shape), seed=0).float()
    assert psnr(found[0].clamp(0, 1), truth[0]) > psnr(y[0], truth[0]) + 4


def test_dps_of_deepinv_differentiates_a_network_of_ours(normal: Normal) -> None:
    """The gradient through the wrapped prior is the gradient through the prior."""
    prior = EDMPrior.example()
    operator = Inpainting.random((1, 16, 16), keep=0.5, seed=0)
    x, y = normal(1, 1, 16, 16, dtype=torch.float32), operator(normal(1, 1, 16, 16, seed=1, dtype=torch.float32))
    fidelity = deepinv.sampling.DPSDataFidelity(denoiser=prior.to_deepinv())
    found = fidelity.grad(x.clone(), y, operator.to_deepinv(), torch.tensor(0.5))
    with torch.enable_grad():
        leaf = x.clone().requires_grad_(True)
        (wanted,) = torch.autograd.grad((operator(prior.denoise(leaf, 0.5)) - y).norm(), leaf)
    assert torch.allclose(found, wanted, atol=1e-6)


# -- weights from a file -----------------------------------------------------------------------------------------------

OPTIONS = {"in_channels": 1, "out_channels": 1, "nc": [2, 2, 2, 2], "nb": 1}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_load(suffix: str, tmp_path: Path, normal: Normal) -> None:
    network, path = drunet(), tmp_path / f"drunet{suffix}"
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        save_file(network.state_dict(), path)
    torch.manual_seed(1)
    prior = DeepinvPrior.load("DRUNet", path, options=OPTIONS, sigma_range=(0.01, 0.5))
    x = normal(1, 1, 32, 32, dtype=torch.float32)
    assert torch.equal(prior.denoise(x, 0.1), network(x, 0.1))
    assert (prior.channels, prior.sigma_range) == (1, (0.01, 0.5))


@pytest.mark.parametrize(
    ("model", "file", "options", "said"),
    [
        ("DRUNet", None, OPTIONS, "give weights=, a file"),
        ("DRUNet", "absent.pth", OPTIONS, "not found: .*absent.pth"),
        ("DRUNet", "good.pth", {**OPTIONS, "nb": 2}, "holds no weights of deepinv's DRUNet with these options"),
        ("DRUNet", "good.pth", {"width": 3}, "cannot be made with options={'width': 3}"),
        ("DRUNet", "good.pth", {"pretrained": "download"}, "leave pretrained out"),
        ("DruNet", "good.pth", {}, "no denoiser 'DruNet'; known are .*DRUNet"),
        ("Path", "good.pth", {}, "no denoiser 'Path'"),
    ],
)
def test_load_refuses(model: str, file: str | None, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    torch.save(drunet().state_dict(), tmp_path / "good.pth")
    with pytest.raises(ValueError, match=said) as error:
        DeepinvPrior.load(model, None if file is None else tmp_path / file, options=options)
    assert "\n" not in str(error.value)
