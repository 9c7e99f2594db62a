"""The verdict after a run: bands of the misfit, range, divergence, and what limits the errors."""

import pytest
import torch
from torch import Tensor

from invdiff import InverseProblem
from invdiff.operators import MRI, Denoising, GaussianNoise, Inpainting, Noise, NoNoise, Operator, PoissonNoise
from invdiff.posterior import Cost, Posterior
from invdiff.samplers import DAPS, MomentDraw, Sampler
from invdiff.samplers.auto import PICTURE
from invdiff.scores.verdict import badge, judge
from invdiff.streams import generator

SIGMA = 0.05


def found(
    factor: Tensor | float = 1.0,
    *,
    images: int = 1,
    samples: int = 4,
    side: int = 16,
    shift: float = 0.0,
    lost: int = 0,
    noise: Noise | None = None,
    operator: Operator | None = None,
    sampler: Sampler | None = None,
) -> dict[str, tuple[str, bool]]:
    """Findings by kind, of the truth as every sample, where the noise of y is `factor` times as large as stated."""
    truth = torch.rand(images, 1, side, side, generator=generator(0, "generate", 0))
    operator = Denoising() if operator is None else operator
    clean = operator(truth)
    given = torch.randn(clean.shape, generator=generator(1, "generate", 0), dtype=clean.dtype)
    y = clean + torch.as_tensor(factor).reshape(-1, 1, 1, 1) * SIGMA * given
    observed = operator.measured(tuple(y.shape[1:]))
    y = y if observed is None else torch.where(observed, y, 0)
    problem = InverseProblem(operator, noise or GaussianNoise(SIGMA), y + shift, image_shape=(1, side, side))
    x = torch.stack([truth + shift] * samples, 1)
    diverged_at = torch.full((images, samples), -1)
    diverged_at.view(-1)[:lost] = 3
    names = [f"image_{i}" for i in range(images)]
    verdict = judge(Posterior(x, diverged_at, Cost(), problem), names, (0.0, 1.0), sampler or DAPS())
    return {finding.kind: (finding.words, finding.severe) for finding in verdict}


@pytest.mark.parametrize("operator", [Denoising(), Inpainting(keep=0.5), MRI()], ids=["all", "part", "complex"])
def test_nothing_is_found_where_the_samples_fit_to_the_noise(operator: Operator) -> None:
    assert found(operator=operator) == {}


@pytest.mark.parametrize(
    ("factor", "severe", "words"),
    [(20, True, "does NOT explain the data"), (1.9, True, "NOT"), (1.5, False, "above"), (0.3, False, "far below 1")],
)
def test_misfit_outside_its_band_is_named(factor: float, severe: bool, words: str) -> None:
    said, is_severe = found(factor)["misfit"]
    assert words in said
    assert is_severe is severe
    assert said.startswith("misfit ")


def test_the_band_is_wide_where_little_was_measured() -> None:
    """Four numbers: the standard deviation of the misfit is 0.7."""
    assert found(1.9, side=2) == {}
    assert found(20.0, side=2)["misfit"][1]


def test_the_images_that_do_not_fit_are_named() -> None:
    said, _ = found(torch.tensor([1.0, 30.0, 1.0]), images=3)["misfit"]
    assert "of image_1;" in said
    assert "of all 3 images;" in found(30.0, images=3)["misfit"][0]
    assert "image_2 and 2 more;" in found(torch.tensor([9.0] * 5 + [1.0]), images=6)["misfit"][0]


def test_no_lower_band_without_noise() -> None:
    assert found(0.0, noise=NoNoise(SIGMA)) == {}
    assert found(0.0)["misfit"] == (found(0.0)["misfit"][0], False)


def test_counts_have_a_wider_band() -> None:
    """Noise 1.25 times as large would be outside that of Gaussian noise of as many numbers."""
    assert "misfit" not in found(0.8, noise=PoissonNoise(SIGMA**2), shift=0.5)


def test_samples_far_outside_the_range_are_named() -> None:
    assert found(shift=0.05) == {}
    said, severe = found(shift=0.3)["range"]
    assert int(said.split()[0]) in range(15, 26)
    assert not severe
    assert "up to 1.3" in said
    assert found(shift=-1.0)["range"][1]


def test_divergence_says_how_many_and_is_severe_where_nothing_is_left() -> None:
    assert found(lost=1, images=2)["divergence"] == (found(lost=1, images=2)["divergence"][0], False)
    assert found(lost=1, images=2)["divergence"][0].startswith("1 of 8 samples diverged of image_0 ")
    assert found(lost=4, images=2)["divergence"][1]


def test_few_samples_and_a_shrunk_spread_limit_the_errors() -> None:
    assert "71 %" in found(samples=2)["few samples"][0]
    assert "few samples" not in found(samples=1)  # the note on intervals says that there are none
    picture = MomentDraw(**PICTURE[MomentDraw])
    assert "goal" in found(sampler=picture)
    assert "goal" not in found(sampler=MomentDraw())


def test_the_badge_is_of_findings_on_the_image_and_short() -> None:
    problem = InverseProblem(Denoising(), SIGMA, torch.full((1, 1, 8, 8), 100.0))
    posterior = Posterior(torch.zeros(1, 2, 1, 8, 8), torch.full((1, 2), -1), Cost(), problem)
    verdict = judge(posterior, ["a"], (0.0, 1.0), DAPS())
    assert badge(verdict) == ("misfit 4000000: the reconstruction does NOT explain the data", True)
    assert badge([finding for finding in verdict if finding.kind == "few samples"]) is None
