"""Methods without gradients of the network, on digits drawn from the prior: better than the first guess, y explained.

One operator of each kind that a method accepts: a mask, real and complex measurements with a decomposition, and a
linear one without.
"""

import pytest
from torch import Tensor

from helpers import mean_psnr
from invdiff import Compute, InverseProblem, simulate
from invdiff.operators import CT, MRI, GaussianBlur, GaussianNoise, Inpainting, Operator, SuperResolution
from invdiff.priors import Prior
from invdiff.samplers import (
    DDNM,
    DDRM,
    DPIR,
    ILVR,
    MYULA,
    RED,
    TV,
    DiffPIR,
    GraphLa,
    RePaint,
    Sampler,
    ScoreSDE,
    Wavelets,
)

QUIET = Compute(device="cpu", progress=False)
OPERATORS: dict[str, tuple[Operator, float]] = {
    "mask": (Inpainting(keep=0.3), 0.05),
    "blur": (GaussianBlur(std=1.5, kernel_size=13), 0.05),
    "super-resolution": (SuperResolution(factor=4), 0.05),
    "mri": (MRI(acceleration=4), 0.05),
    "ct": (CT(views=30), 0.6),
}
SAMPLERS: list[Sampler] = [
    DDRM(),
    DDNM(),
    RePaint(),
    ILVR(),
    ScoreSDE(),
    DiffPIR(),
    DPIR(),
    RED(),
    TV(),
    Wavelets(),
    GraphLa(),
    MYULA(),
]
QUICK = {("ddrm", "mask"), ("dpir", "blur"), ("tv", "blur")}  # the others take more than a second
# dB over the first guess. Where 64 numbers are measured of 1024, interpolation is better than total variation, and than
# the one image of red.
GAINS = {
    ("tv", "super-resolution"): -0.7,
    ("myula", "super-resolution"): -1.0,
    ("red", "super-resolution"): -0.6,
    ("wavelets", "mask"): 0.0,
    ("wavelets", "super-resolution"): -2.1,
    ("graphla", "super-resolution"): -0.9,
    ("graphla", "ct"): -1.6,
}
MISFITS = {("wavelets", "super-resolution"): 4.5}  # it ends at 3.5
# The mean of two draws carries half of their variance, which is large there.
SAMPLES = {"super-resolution": 6}


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [
        pytest.param(
            sampler,
            kind,
            id=f"{sampler.name()}-{kind}",
            marks=[] if (sampler.name(), kind) in QUICK else [pytest.mark.slow],
        )
        for sampler in SAMPLERS
        for kind, (operator, _) in OPERATORS.items()
        if operator.spectral or not sampler.needs().spectral
    ],
)
def test_digits_gain_over_the_first_guess(sampler: Sampler, kind: str, prior: Prior, digits: Tensor) -> None:
    operator, sigma = OPERATORS[kind]
    noise = GaussianNoise(sigma)
    problem = InverseProblem(operator, noise, simulate(digits, operator, noise))
    posterior = sampler.sample(problem, prior, num_samples=SAMPLES.get(kind, 2), compute=QUIET)
    assert not posterior.diverged.any()
    assert problem.first_guess is not None
    assert mean_psnr(posterior.mean, digits) >= mean_psnr(problem.first_guess, digits) + GAINS.get(
        (sampler.name(), kind), 0.3
    )
    assert float(posterior.misfit.mean()) < MISFITS.get((sampler.name(), kind), 2.0)
