"""Training: it learns, it stops where it should, and a run that was interrupted ends where the other one ends."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invdiff.contracts.toys import WhitePrior
from invdiff.priors import EDMPrior
from invdiff.priors.networks.unet import UNet, UNetSpec
from invdiff.priors.training.training import Recipe, Trainer, denoising_psnr, draw_sigmas, edm_loss, validation_set
from invdiff.shapes import sigma_per_row

RECIPE = Recipe(
    unet=UNetSpec(channels=1, patch=2, widths=(8, 16), blocks=(1, 1)),
    crop=8,
    batch=16,
    steps=30,
    minutes=1e6,
    learning_rate=5e-3,
    warmup=5,
    ema=0.9,
    held_out=4,
    validate_every=10,
    precision="float32",
)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Flat squares of two greys: what can be learned in seconds."""
    return [np.full((12, 12, 1), grey, np.uint8) for grey in np.random.default_rng(0).choice([64, 192], 24)]


@pytest.fixture
def train(images: list[np.ndarray], tmp_path: Path) -> Callable[..., Trainer]:
    def make(folder: str = "run", init: EDMPrior | None = None, **changes: object) -> Trainer:
        recipe = replace(RECIPE, **changes)  # type: ignore[arg-type]
        return Trainer(recipe, images[4:], images[:4], tmp_path / folder, init=init)

    return make


def weights(trainer: Trainer) -> list[Tensor]:
    return [*trainer.prior.state_dict().values(), *trainer.average.state_dict().values()]


# -- noise levels and loss ---------------------------------------------------------------------------------------------


def test_noise_levels_are_stratified() -> None:
    """One draw in every quantile of the lognormal: the point of stratifying."""
    recipe = replace(RECIPE, batch=64, uniform_share=0.0, sigma_range=(1e-9, 1e9))
    logs = draw_sigmas(recipe, np.random.default_rng(0)).double().log().tolist()
    quantiles = sorted(NormalDist(*recipe.log_sigma).cdf(value) for value in logs)
    assert [math.floor(64 * q) for q in quantiles] == list(range(64))
    assert sorted(logs) != logs, "images must not be sorted by their noise level"


def test_the_uniform_share_covers_the_whole_range() -> None:
    recipe = replace(RECIPE, batch=50, uniform_share=1.0)
    low, high = np.log(recipe.sigma_range)
    logs = draw_sigmas(recipe, np.random.default_rng(0)).double().log()
    bins = ((logs - low) / (high - low) * 50).floor().long().sort().values.clamp(0, 49)
    assert (bins - torch.arange(50)).abs().max() <= 1  # a float32 may fall over the edge of its bin


def test_the_mixture_keeps_its_proportions_and_its_bounds() -> None:
    recipe = replace(RECIPE, batch=200, uniform_share=0.25, log_sigma=(0.0, 0.01))
    sigmas = draw_sigmas(recipe, np.random.default_rng(0))
    assert sigmas.shape == (200,)
    assert (sigmas >= recipe.sigma_range[0] * 0.999).all()
    assert (sigmas <= recipe.sigma_range[1] * 1.001).all()
    far = (sigmas.log().abs() > 0.1).sum().item()  # none of the narrow lognormal, nearly all of the uniform part
    assert 46 <= far <= 50
    wild = draw_sigmas(replace(recipe, log_sigma=(0.0, 50.0)), np.random.default_rng(0))
    assert (wild >= recipe.sigma_range[0] * 0.999).all()
    assert (wild <= recipe.sigma_range[1] * 1.001).all()


def test_the_loss_is_one_before_training_at_every_level() -> None:
    """For data with the standard deviation that the preconditioning is told."""
    prior = EDMPrior(UNet(RECIPE.unet), sigma_data=0.25)
    source = torch.Generator().manual_seed(0)
    sigmas = torch.tensor([0.01, 0.25, 3.0]).repeat_interleave(200)
    clean = 0.5 + 0.25 * torch.randn(600, 1, 8, 8, generator=source)
    with torch.no_grad():
        loss = edm_loss(prior, clean, torch.randn(clean.shape, generator=source), sigmas)
    assert loss.shape == (600,)
    for level in loss.split(200):
        assert float(level.mean()) == pytest.approx(1.0, abs=0.04)


def test_the_loss_is_the_weighted_denoising_error() -> None:
    prior = EDMPrior.example()
    clean, noise = torch.rand(2, 1, 16, 16), torch.randn(2, 1, 16, 16)
    sigma = torch.tensor([0.1, 2.0])
    error = prior.denoise(clean + sigma_per_row(sigma, clean) * noise, sigma) - clean
    wanted = (sigma**2 + 0.25**2) / (sigma * 0.25) ** 2 * error.square().mean((1, 2, 3))
    assert torch.allclose(edm_loss(prior, clean, noise, sigma), wanted)


# -- runs --------------------------------------------------------------------------------------------------------------


def test_thirty_steps_learn_something(train: Callable[..., Trainer]) -> None:
    losses: list[float] = []
    trainer = train()
    noise = torch.randn(trainer.validation.shape, generator=torch.Generator().manual_seed(0))

    def held_out() -> float:
        with torch.no_grad():
            return float(edm_loss(trainer.average, trainer.validation, noise, torch.full((4,), 0.3)).mean())

    before = held_out()
    prior = trainer.run(lambda step, loss: losses.append(loss))
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert held_out() < 0.8 * before
    assert (trainer.folder / "prior.safetensors").exists()
    log = [json.loads(line) for line in (trainer.folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [10, 20, 30]
    # What comes back is the average that validated best, in the precision of its file.
    found = denoising_psnr(prior, trainer.validation, (0.2,))[0.2]
    assert found == pytest.approx(max(log, key=lambda row: row["mean_psnr"])["psnr_0.2"], abs=0.05)


def test_it_stops_after_its_minutes(train: Callable[..., Trainer]) -> None:
    trainer = train(steps=10**9, minutes=0.3 / 60)
    trainer.run()
    assert 1 <= trainer.step < 10**4
    assert 0.3 <= trainer.seconds < 10
    assert trainer.learning_rate() == pytest.approx(0, abs=1e-6)  # the cosine has come to its end all the same


def test_resuming_ends_where_an_uninterrupted_run_ends(train: Callable[..., Trainer]) -> None:
    """Stopped by Ctrl-C at a validation and between two, another process goes on: same weights, average, best."""
    bounds = {"steps": 9, "validate_every": 3}
    whole = train("whole", **bounds)
    whole.run()
    for stop in (3, 7):

        def interrupt(step: int, loss: float, stop: int = stop) -> None:
            if step == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train("parts", **bounds).run(interrupt)
        torch.manual_seed(99)
    second = train("parts", **bounds)
    steps: list[int] = []
    second.run(lambda step, loss: steps.append(step))
    assert steps == [8, 9]
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(second), strict=True))
    assert second.best == whole.best
    assert (second.folder / "prior.safetensors").read_bytes() == (whole.folder / "prior.safetensors").read_bytes()


def test_resuming_with_other_bounds(train: Callable[..., Trainer]) -> None:
    train(steps=2).run()
    longer = train(steps=3)
    longer.run()
    assert longer.step == 3


def test_resuming_another_network_is_refused(train: Callable[..., Trainer]) -> None:
    train(steps=2).run()
    other = train(unet=UNetSpec(channels=1, patch=2, widths=(8, 24), blocks=(1, 1)))
    with pytest.raises(ValueError, match=r"checkpoint.pt holds another network: \{'channels': 1"):
        other.run()


@pytest.mark.parametrize("blocks", [(1, 1), (3, 2)])
def test_starts_from_given_weights(train: Callable[..., Trainer], blocks: tuple[int, int]) -> None:
    """A deeper network starts as the same function, and every one of its blocks learns."""
    trained = train(steps=3).run()
    started = train("deeper", init=trained, unet=replace(RECIPE.unet, blocks=blocks))
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(started.average.denoise(x, 0.3), trained.denoise(x, 0.3))
    before = {name: tensor.clone() for name, tensor in started.prior.network.state_dict().items()}
    for _ in range(2):
        started.train_step()
    after = started.prior.network.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before if "conv2.weight" in name)


def test_refuses_weights_of_another_network(train: Callable[..., Trainer]) -> None:
    network = train().prior.network
    for widths, blocks in (((8, 16), (1, 2)), ((8, 24), (2, 2)), ((8, 16, 16), (2, 2, 2))):
        other = UNet(replace(RECIPE.unet, widths=widths, blocks=blocks))
        with pytest.raises(
            ValueError, match="to this network, to one with fewer blocks, or to its version for colours, got"
        ):
            network.start_from(other)


def test_a_grey_network_starts_from_one_for_colours_not_the_other_way_round() -> None:
    torch.manual_seed(0)
    grey, colour = UNet(RECIPE.unet), UNet(replace(RECIPE.unet, channels=3))
    for parameter in colour.parameters():
        nn.init.normal_(parameter, std=0.2)
    grey.start_from(colour)
    x, noise = torch.rand(3, 1, 8, 8), torch.rand(3)
    torch.testing.assert_close(grey(x, noise), colour(x.expand(-1, 3, -1, -1), noise).mean(1, keepdim=True))
    with pytest.raises(ValueError, match="weights to start from"):
        colour.start_from(grey)


def test_seeds_decide(train: Callable[..., Trainer]) -> None:
    a, b, other = train("a", steps=2), train("b", steps=2), train("c", steps=2, seed=1)
    for trainer in (a, b, other):
        trainer.run()
    assert all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(weights(a), weights(other), strict=True))


def test_the_learning_rate_warms_up_and_falls(train: Callable[..., Trainer]) -> None:
    trainer = train(steps=100, warmup=10)
    rates = []
    for trainer.step in range(101):
        rates.append(trainer.learning_rate())
    assert rates[0] == pytest.approx(5e-3 / 10, rel=1e-3)
    assert max(rates) <= 5e-3
    assert rates.index(max(rates)) in range(8, 12)
    assert rates[55] == pytest.approx(5e-3 * 0.5 * (1 + math.cos(math.pi * 0.55)))
    assert rates[100] == pytest.approx(0, abs=1e-9)


def test_the_average_follows_the_weights(train: Callable[..., Trainer]) -> None:
    trainer = train()
    before = [p.clone() for p in trainer.prior.parameters()]
    trainer.train_step()
    decay = 2 / 11  # (1 + step) / (10 + step) at step 1: short, so that the initial weights are soon forgotten
    for start, now, average in zip(before, trainer.prior.parameters(), trainer.average.parameters(), strict=True):
        assert torch.allclose(average, decay * start + (1 - decay) * now, atol=1e-7)


def test_a_loss_that_explodes_is_an_error(train: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = train()
    loss = edm_loss(EDMPrior(UNet(RECIPE.unet)), torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), torch.ones(1))
    monkeypatch.setattr(
        "invdiff.priors.training.training.edm_loss",
        lambda prior, *_: torch.nan * loss.detach() * sum(p.sum() for p in prior.parameters()),
    )
    with pytest.raises(FloatingPointError, match="the loss became nan at step 1; lower learning_rate"):
        trainer.run()
    assert not (trainer.folder / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop": 9}, "crop=9 must be a multiple of 4"),
        ({"uniform_share": 1.5}, "uniform_share must lie in"),
        ({"ema": 1.0}, "ema in"),
        ({"batch": 0}, "batch, steps, minutes, learning_rate and validate_every must be positive"),
        ({"minutes": -1.0}, "must be positive"),
    ],
)
def test_bad_recipes_are_named(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(RECIPE, **changes)


# -- validation --------------------------------------------------------------------------------------------------------


def test_validation_takes_the_centre() -> None:
    image = np.arange(10 * 12, dtype=np.uint8).reshape(10, 12, 1)
    crop = validation_set([image], 4)
    assert crop.shape == (1, 1, 4, 4)
    assert torch.allclose(crop[0, 0] * 255, torch.from_numpy(image[3:7, 4:8, 0].astype(np.float32)))


def test_psnr_of_a_prior_that_keeps_everything() -> None:
    """D(x) = x has the noise for an error: -20 log10 sigma, whatever the number of images a call."""

    class Keeps(WhitePrior):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
            return x

    clean = torch.full((6, 1, 64, 64), 0.5)
    psnr = denoising_psnr(Keeps(), clean, (0.1, 0.01), rows=4)
    assert psnr[0.1] == pytest.approx(20, abs=0.05)
    assert psnr[0.01] == pytest.approx(40, abs=0.05)
    assert denoising_psnr(Keeps(), clean, (0.1,), rows=6)[0.1] == pytest.approx(psnr[0.1], abs=1e-6)
