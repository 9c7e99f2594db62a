"""FlowChef: the clean estimate descends the misfit, and x moves along, without a gradient through the network.

Paper       Patel et al., Steering Rectified Flow Models in the Vector Field for Controlled Image Generation, ICCV 2025,
            arXiv:2412.00100, Algorithm 1.
Target      none that is known: the misfit pulls without a Jacobian, so that pixels that y says nothing about follow by
            the denoiser alone, and deterministic steps keep what the start brought. Biased at any number of steps: on a
            blurred Gaussian image of 16 pixels the variances are 0.78 to 3 times the truth and means up to 1.2 standard
            deviations off, at the default settings; with `step="published"` measured pixels end at y, noise included.
            Badly conditioned data stay unexplained in part: misfit 2.7 on sums along the rows of digits at noise 0.05,
            in 40 steps.
Needs       a differentiable operator; any noise, and a prior without gradients.
Cost        per step and sample but the last: 1 forward, and `iterations` times 1 call of the operator and 1 product
            with its Jacobian, and 2 calls more with `step="bounded"`. The last one is a forward.
Coordinates a rectified flow's z = (1 - t) x0 + t noise with sigma = t / (1 - t): z = (x - centre) / (h + sigma),
            h = `prior.unit`. While its velocity v is held, z and D = z - t v move by the same; x moves by
            (1 + sigma_s / h) times as much: x_s = D + (sigma_s / sigma_t) (x - D) + (1 + sigma_s / h) (D' - D), with
            D' where the descent has taken D. This step takes any denoiser; the paper has flows that are straight.
Departures  `bounded`: a step as long as the noise of y warrants, `moves.longest_step` without the Jacobian, times the
            share of the residual that is more than the noise of y, and D' clamped to the value range: outside of it
            a camera's operators have no gradient that leads back. The published step is 500 times the gradient of the
            mean of squares, whatever operator and noise. Their operators add new noise at every call, also to A(D).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invdiff.integrators import ddim_step
from invdiff.ranges import Count, Positive
from invdiff.samplers.base import Cost, InverseProblem, Needs, Prior, Sampler, Step, Streams
from invdiff.samplers.moves import half_squares, longest_step, mean_variance, measured_numbers
from invdiff.schedules import EDM, Schedule
from invdiff.shapes import nonzero, per_row, row_gradient, row_norm, row_vjp


@dataclass(frozen=True, kw_only=True)
class FlowChef(Sampler):
    """Gradient skipping: guidance by the misfit of the clean estimate, no VJP; any differentiable operator.

    The defaults are invdiff's own; `experiment=paper/flowchef_...` has the authors'.

    schedule    noise levels; published 200 even ones of a rectified flow
    iterations  steps of the descent at each level; published 1 for images in pixels
    step        of the descent: `bounded` by the noise of y, or as `published`
    rate        length of a step: 1 is all that y warrants, and published 500, times the gradient of the mean of squares
    """

    requires = Needs(differentiable=True)
    per_step = Cost(forwards=1)
    small: ClassVar = {"schedule": EDM(steps=10, sigma_max=10.0, sigma_min=0.02)}

    schedule: Schedule = EDM(steps=100, sigma_max=10.0, sigma_min=0.003)
    iterations: Count = 1
    step: Literal["bounded", "published"] = "bounded"
    rate: Positive = 1.0

    def iterate(self, problem: InverseProblem, prior: Prior, rng: Streams) -> Iterator[Step]:
        sigmas = self.schedule.levels(prior.scale)
        noise_norm = (measured_numbers(problem) * mean_variance(problem)).sqrt()  # expected, root of the mean square
        x = prior.start(sigmas[0], rng.normal())
        for sigma_t, sigma_s in pairwise(sigmas):
            x0 = guided = prior.denoise(x, sigma_t)
            if sigma_s > 0:
                for _ in range(self.iterations):
                    guided = self._descend(problem, prior, guided, sigma_t, noise_norm)
            x = ddim_step(x, x0, sigma_t, sigma_s, 0.0, 0.0) + (1 + sigma_s / prior.unit) * (guided - x0)
            yield Step(x, guided, sigma_s)

    def _descend(self, problem: InverseProblem, prior: Prior, x0: Tensor, sigma: float, noise_norm: Tensor) -> Tensor:
        if self.step == "published":
            gradient = row_gradient(lambda x0: half_squares(problem, x0), x0)
            return x0 - per_row(2 * self.rate / measured_numbers(problem), x0) * gradient
        misfit, product = row_vjp(lambda x0: row_norm(problem.residual(x0)), x0)
        slope = product(torch.ones_like(misfit))
        longest = longest_step(problem, sigma, x0, misfit, slope, slope, prior.scale)
        excess = (1 - noise_norm / nonzero(misfit)).clamp(min=0)
        return (x0 - per_row(self.rate * excess * longest, x0) * slope).clamp(*prior.value_range)
