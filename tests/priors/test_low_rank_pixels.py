"""Posteriors of many masked images at once: the same numbers as those of one image at a time."""

import pytest
import torch

from invdiff import InverseProblem
from invdiff.operators import GaussianNoise, Inpainting
from invdiff.priors import LowRankMixturePrior
from invdiff.priors.closed_form.low_rank_pixels import draws_given_pixels, evidence_of_pixels


def prior() -> LowRankMixturePrior:
    """Three planes in R^6, as images of 2x3 pixels."""
    normal = torch.Generator().manual_seed(0)
    means = 0.5 + 0.2 * torch.randn(3, 1, 2, 3, generator=normal)
    factors = 0.2 * torch.randn(3, 6, 2, generator=normal)
    return LowRankMixturePrior(torch.tensor([0.5, 0.3, 0.2]), means, factors, torch.tensor([0.05, 0.1, 0.02]))


def measured(images: int, sigma: torch.Tensor) -> InverseProblem:
    """As many images with masks and noise levels of their own; what was not measured is NaN."""
    known = prior()
    operator = Inpainting.random((1, 2, 3), keep=0.5, seed=1, images=images)
    x = known.sample(images, torch.Generator().manual_seed(2))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)) * sigma.reshape(-1, 1, 1, 1)
    y = torch.where(operator.measured((1, 2, 3)), x + noise, torch.nan)
    return InverseProblem(operator, GaussianNoise(sigma), y)


def test_evidence_is_that_of_one_image_at_a_time() -> None:
    problem = measured(6, torch.linspace(0.01, 0.3, 6))
    seen = problem.observed
    assert seen is not None
    found = evidence_of_pixels(prior(), problem.y, seen, problem.noise.sigma)  # type: ignore[arg-type, union-attr]
    one_by_one = torch.stack([prior().log_evidence(problem.select(torch.tensor([i]))) for i in range(6)])
    assert torch.allclose(found, one_by_one, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.02, 0.2])
def test_draws_have_the_law_of_the_posterior(sigma: float) -> None:
    """Mean and covariance of 4,000 draws, every entry within five standard errors."""
    problem = measured(1, torch.tensor([sigma]))
    seen, count = problem.observed, 4000
    assert seen is not None
    draws = draws_given_pixels(
        prior(),
        problem.y.expand(count, -1, -1, -1),
        seen.expand(count, -1, -1, -1),
        torch.tensor(sigma),
        [torch.Generator().manual_seed(i) for i in range(count)],
    ).flatten(1)
    exact = prior().posterior(problem)
    reference = exact.sample(40_000, torch.Generator().manual_seed(0)).flatten(1)
    errors = (draws.mean(0) - exact.mean.flatten()) / (exact.std.flatten() / count**0.5)
    assert errors.abs().max() < 5
    centred, other = draws - draws.mean(0), reference - reference.mean(0)
    products, others = (torch.einsum("bi,bj->bij", x, x) for x in (centred, other))
    errors = (products.mean(0) - others.mean(0)) / (products.var(0) / count + others.var(0) / 40_000).sqrt()
    assert errors.abs().max() < 5


def test_a_draw_depends_on_its_own_image_alone() -> None:
    problem = measured(5, torch.full((5,), 0.1))
    seen = problem.observed
    assert seen is not None

    def draw(rows: list[int]) -> torch.Tensor:
        sources = [torch.Generator().manual_seed(i) for i in rows]
        return draws_given_pixels(prior(), problem.y[rows], seen[rows], torch.tensor(0.1), sources)

    assert torch.allclose(draw([0, 1, 2, 3, 4])[[3, 1]], draw([3, 1]), rtol=0, atol=1e-6)
