"""What `check-operator` says about a sound operator: its traits, its speed, and what it can be used with."""

from collections.abc import Callable, Collection, Iterator

import torch

from invdiff.contracts.compare import measure
from invdiff.contracts.toys import WhitePrior
from invdiff.engine.device import shortest
from invdiff.operators import GaussianNoise, LinearOperator, Operator
from invdiff.priors import bundled, load_prior
from invdiff.samplers import Auto, all_samplers
from invdiff.shapes import describe_shape

# Sizes to try an operator on that has none of its own.
SIZES = ((1, 32, 32), (3, 32, 32), (1, 64, 64), (3, 64, 64), (1, 128, 128), (3, 128, 128), (1, 256, 256), (3, 256, 256))


def small_shape(operator: Operator) -> tuple[int, int, int]:
    """The first of `SIZES` that the operator takes, else the first."""
    return next((shape for shape in SIZES if operator.mismatch(shape) is None), SIZES[0])


def describe(operator: Operator, shape: tuple[int, ...], sound: Collection[str]) -> str:
    """Traits, the shape of y, and the time of one call.

    sound  calls that keep their rules; others are not timed
    """
    one = operator.select(torch.zeros(1, dtype=torch.long))
    image = torch.full((1, *shape), 0.5)
    calls: dict[str, Callable[[], object]] = {"A": lambda: one(image)}
    with torch.no_grad():
        y = one(image)
        if isinstance(one, LinearOperator):
            calls |= {"adjoint": lambda: one.adjoint(y), "solve": lambda: one.solve(image, 0.1)}
        else:
            calls["gradient"] = lambda: one.vjp(image, y)
        seconds = {call: shortest(run, y.device, 0.3) for call, run in calls.items() if call == "A" or call in sound}
    linear = "linear" if operator.linear else "nonlinear"
    how = "spectral" if operator.spectral else "differentiable" if operator.differentiable else "a black box"
    numbers = "complex" if y.is_complex() else "real"
    times = ", ".join(f"{call} {1000 * s:.1f} ms" for call, s in seconds.items())
    own = f"; parameters for {operator.images} images" if operator.images > 1 else ""
    return f"{linear}, {how}{own}; y is {describe_shape(tuple(y.shape[1:]))}, {numbers}; one image takes: {times}"


def usable_with(operator: Operator, shape: tuple[int, ...]) -> Iterator[tuple[str, str, str]]:
    """Kind, name and answer: samplers that can take it, with Gaussian noise, and bundled priors that fit its images."""
    problem, prior = measure(operator, shape, GaussianNoise(0.1)), WhitePrior()
    yield "sampler", "auto", Auto().resolve(problem, prior)[1] or ""
    for name, cls in all_samplers().items():
        missing = cls().needs().missing(problem, prior)
        yield "sampler", name, f"no: it needs {' and '.join(missing)}" if missing else "yes"
    for name in bundled():
        reason = load_prior(name).mismatch(shape)
        yield "prior", name, "yes" if reason is None else f"no: {reason}"
