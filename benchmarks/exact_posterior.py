"""What the exact posterior of the brain mixture costs: 64x64 pixels, 100 components, one measurement.

    python benchmarks/exact_posterior.py [--draws 100] [--sigma 0.05] [--whole]

Seconds are of the processor, on as many threads as torch takes. `posterior` decomposes the operator, which happens once
for all images that it measures, and conditions the components; `again` is for a second image. With --whole it is also
compared with decomposing the scanner's matrix in one piece, where it is otherwise split at the mirrors of the scanner,
and the two posteriors with each other.
"""

import argparse
import time
from collections.abc import Callable
from unittest.mock import patch

import torch

from invdiff import InverseProblem, load_prior
from invdiff.operators import CT, MRI, GaussianNoise, Inpainting, LinearOperator
from invdiff.priors.closed_form import whitening
from invdiff.streams import generator


def seconds(function: Callable[[], object]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def measured(operator: LinearOperator, x: torch.Tensor, sigma: float) -> InverseProblem:
    noise, clean = GaussianNoise(sigma), operator(x)
    y = noise.sample(clean, [generator(0, "measure", 0)], operator.measured(tuple(clean.shape[1:])))
    return InverseProblem(operator, noise, y, image_shape=tuple(x.shape[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--sigma", type=float, default=0.05)
    parser.add_argument("--whole", action="store_true")
    options = parser.parse_args()

    prior = load_prior("brain_mixture")
    images = prior.sample(2, generator(0, "generate", 0))
    operators = {
        "inpainting, 30 %": lambda: Inpainting(keep=0.3),
        "mri, 4 times": lambda: MRI(acceleration=4),
        "ct, 30 views": lambda: CT(views=30),
        "ct, 60 views": lambda: CT(views=60),
    }
    print(f"{torch.get_num_threads()} thread(s); seconds")
    print(f"{'operator':18}{'posterior':>10}{'again':>10}{f'{options.draws} draws':>12}{'std':>8}{'misfit':>9}")
    for name, make in operators.items():
        operator = make()
        first, second = (measured(operator, x[None], options.sigma) for x in images)
        once = seconds(lambda problem=first: prior.posterior(problem))
        again = seconds(lambda problem=second: prior.posterior(problem))
        posterior = prior.posterior(second)
        drawing = seconds(lambda of=posterior: of.sample(options.draws, generator(0, "exact", 0)))
        x = posterior.sample(options.draws, generator(0, "exact", 0))
        misfit = second.noise.misfit(second.y, operator(x), second.observed).mean()
        deviation = seconds(lambda of=posterior: of.std)
        print(f"{name:18}{once:10.2f}{again:10.2f}{drawing:12.2f}{deviation:8.2f}{float(misfit):9.3f}")
        if options.whole and isinstance(operator, CT):
            problem = measured(make(), images[1:], options.sigma)  # whose operator keeps no decomposition yet
            with patch.object(whitening, "_mirrors", lambda matrix, rounding: (matrix, [])):
                whole = seconds(lambda problem=problem: prior.posterior(problem))
                other = prior.posterior(problem)
            apart = float((other.mean - posterior.mean).norm() / posterior.mean.norm())
            print(f"{'  in one piece':18}{whole:10.2f}, {whole / once:.1f} times; means differ by {apart:.1e}")


if __name__ == "__main__":
    main()
