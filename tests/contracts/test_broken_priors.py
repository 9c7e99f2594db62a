"""Each broken prior is refused, for the reason that it is broken."""

import pytest
import torch
from torch import Tensor

from invdiff.contracts import check_prior
from invdiff.contracts.toys import WhitePrior
from invdiff.priors import GaussianPrior, Prior
from invdiff.shapes import sigma_per_row

SHAPE = (1, 8, 8)


class BatchMean(WhitePrior):
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return super().denoise(x, sigma) + 0.1 * x.mean()


class OneSigma(WhitePrior):
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return super().denoise(x, torch.as_tensor(sigma).mean())


class Dreams(WhitePrior):
    """Answers with its mean even where there is no noise."""

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return 0 * x + self.mean + 0 * sigma_per_row(sigma, x)


class Brightens(WhitePrior):
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return super().denoise(x, sigma) + 0.05


class Sampled(WhitePrior):
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return super().denoise(x, sigma) + 0.01 * torch.randn_like(x)


class CutGraph(WhitePrior):
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        gain = super().denoise(x.detach(), sigma)
        return gain + 0.5 * (x - x.detach())


class OtherScore(WhitePrior):
    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return self.denoise(x, sigma) - x


class Everything(GaussianPrior):
    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        return None


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (BatchMean(), "one per row differ|alone differs"),
        (OneSigma(), "one per row differ"),
        (Dreams(), "almost the same estimate for different images"),
        (Brightens(), "moves an image"),
        (Sampled(), "second call"),
        (CutGraph(), "autograd differs from finite differences"),
        (OtherScore(), "score is not"),
        (Everything(torch.zeros(SHAPE), torch.eye(64)), "accepts images of shape"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Prior) else "",
)
def test_a_broken_prior_is_refused(prior: Prior, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_prior(prior)
