"""Samplers on images that the priors have never seen, against the pseudo-inverse and their family's baseline."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from skimage.restoration import inpaint_biharmonic
from torch import Tensor

from helpers import mean_psnr
from invdiff import Compute, InverseProblem, load_prior
from invdiff.io import to_tensor
from invdiff.io.examples import PHOTOGRAPHS, drawn_from_prior, photograph
from invdiff.operators import GaussianBlur, GaussianNoise, Inpainting, LinearOperator, SuperResolution
from invdiff.priors import Prior
from invdiff.samplers import DAPS, DPS, MomentDraw, Sampler
from invdiff.samplers.moves import ancestral_step
from invdiff.schedules import EDM, VP
from invdiff.streams import Streams, generator, key

QUIET = Compute(progress=False)
SIGMA = 0.025


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """64x64 pieces of three photographs of scikit-image, none of which the prior was trained on."""
    images = [photograph(name, size=192)[1][0][64:128, 64:128] for name in ("astronaut", "cat", "coffee")]
    return to_tensor(images, ["astronaut", "cat", "coffee"])


@pytest.fixture(scope="module")
def photo() -> Prior:
    return load_prior("photo")


def problem_of(operator: LinearOperator, x: Tensor, sigma: float = SIGMA) -> InverseProblem:
    noise = GaussianNoise(sigma)
    clean = operator(x)
    generators = [generator(0, "measure", i) for i in range(len(x))]
    return InverseProblem(operator, noise, noise.sample(clean, generators, operator.measured(tuple(clean.shape[1:]))))


DAPS_SHORT = DAPS(schedule=EDM(steps=30, sigma_max=5, sigma_min=0.02), prior_std=0.25, draw_std=0.03)
DPS_SHORT = DPS(schedule=VP(steps=60), zeta=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [DAPS_SHORT, DPS_SHORT, MomentDraw()], ids=["daps", "dps", "momentdraw"])
def test_random_inpainting_of_photographs(sampler: Sampler, photo: Prior, photographs: Tensor) -> None:
    """Ten decibels over the pseudo-inverse, and with much noise better than interpolation, which keeps the noise."""
    problem = problem_of(Inpainting(keep=0.3), photographs, sigma=0.15)
    posterior = sampler.sample(problem, photo, num_samples=2, compute=QUIET)
    assert not posterior.diverged.any()
    mask = Inpainting(keep=0.3).mask_of((3, 64, 64))[0, 0].numpy()
    smooth = np.stack(
        [inpaint_biharmonic(y.permute(1, 2, 0).numpy(), ~mask, channel_axis=-1) for y in problem.y]
    ).transpose(0, 3, 1, 2)
    quality = mean_psnr(posterior.mean, photographs)
    assert quality >= mean_psnr(problem.operator.pinv(problem.y), photographs) + 10
    assert quality >= mean_psnr(torch.from_numpy(smooth).float(), photographs)
    assert float(problem.misfit(posterior.samples[:, 0]).mean()) < 2.5


@pytest.mark.parametrize(
    ("operator", "least"), [(SuperResolution(factor=2), 0.4), (GaussianBlur(std=1.5, kernel_size=13), 2.0)]
)
def test_daps_beats_the_pseudo_inverse(
    operator: LinearOperator, least: float, photo: Prior, photographs: Tensor
) -> None:
    problem = problem_of(operator, photographs)
    posterior = DAPS_SHORT.sample(problem, photo, num_samples=2, compute=QUIET)
    gain = mean_psnr(posterior.mean, photographs) - mean_psnr(operator.pinv(problem.y), photographs)
    assert gain >= least


@pytest.mark.slow
def test_dps_beats_its_family_without_a_gradient(photo: Prior, photographs: Tensor) -> None:
    """Ancestral sampling with the known pixels pasted in at every level: the baseline without guidance."""
    problem = problem_of(Inpainting(keep=0.3), photographs)
    mask = problem.operator.mask_of((3, 64, 64))  # type: ignore[operator]
    rng = Streams([key(0, "sample", i, 0) for i in range(3)], (3, 64, 64))
    sigmas = VP(steps=60).sigmas().tolist()
    x = sigmas[0] * rng.normal()
    with torch.no_grad():
        for sigma, after in pairwise(sigmas):
            x = ancestral_step(x, photo.denoise(x, sigma).clamp(0, 1), sigma, after, rng.normal())
            x = torch.where(mask, problem.y + after * rng.normal(), x)
    guided = DPS_SHORT.sample(problem, photo, num_samples=1, compute=QUIET).samples[:, 0]
    assert mean_psnr(guided, photographs) > mean_psnr(x, photographs)


@pytest.mark.slow
def test_brain_inpainting_gains_ten_decibels() -> None:
    """On slices drawn from the prior itself: no licence allows shipping unseen scans."""
    prior = load_prior("brain")
    names, images = drawn_from_prior(2, prior=prior)
    x = to_tensor(images, names)
    problem = problem_of(Inpainting(keep=0.3), x)
    mean = DAPS_SHORT.sample(problem, prior, num_samples=2, compute=QUIET).mean
    assert mean_psnr(mean, x) >= mean_psnr(problem.operator.pinv(problem.y), x) + 10


def test_examples_are_photographs() -> None:
    for name in PHOTOGRAPHS:
        assert photograph(name)[1][0].shape[:2] == (256, 256)
