"""PnP-DM and LanPaint on digits drawn from the prior, none of which it was trained on, against the pseudo-inverse."""

import pytest
from torch import Tensor

from helpers import mean_psnr
from invdiff import Compute, InverseProblem
from invdiff.operators import GaussianBlur, GaussianNoise, Inpainting, LinearOperator
from invdiff.priors import Prior
from invdiff.samplers import LanPaint, PnPDM, Sampler
from invdiff.streams import generator

QUIET = Compute(device="cpu", progress=False)
SIGMA = 0.05
PNPDM_SHORT = PnPDM(iterations=80, decay=0.95, rho_min=0.02)  # a faster fall of rho leaves the data behind


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "operator", "gain"),
    [
        (PNPDM_SHORT, Inpainting(keep=0.3), 4.0),
        (PNPDM_SHORT, GaussianBlur(std=1.5, kernel_size=13), 10.0),
        (LanPaint(), Inpainting(keep=0.3), 6.0),
    ],
    ids=["pnpdm-inpainting", "pnpdm-blur", "lanpaint-inpainting"],
)
def test_digits_gain_over_the_pseudo_inverse(
    sampler: Sampler, operator: LinearOperator, gain: float, prior: Prior, digits: Tensor
) -> None:
    clean = operator(digits)
    generators = [generator(0, "measure", i) for i in range(len(digits))]
    noise = GaussianNoise(SIGMA)
    y = noise.sample(clean, generators, operator.measured(tuple(clean.shape[1:])))
    problem = InverseProblem(operator, noise, y)
    posterior = sampler.sample(problem, prior, num_samples=2, compute=QUIET)
    assert not posterior.diverged.any()
    assert mean_psnr(posterior.mean, digits) >= mean_psnr(operator.pinv(problem.y), digits) + gain
    assert float(posterior.misfit.mean()) < 2.0
