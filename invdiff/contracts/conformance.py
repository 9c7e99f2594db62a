"""The rules of the contracts as functions that anyone can run on an operator, a prior or a sampler of their own.

    from invdiff.conformance import check_operator, check_prior, check_sampler

    check_operator(MyOperator(), image_shape=(1, 32, 32))

Each raises AssertionError and says in words which rule is broken. Everything is small and runs on the CPU; the package
runs them over all that it finds in itself (`tests/conformance/`). `invdiff check-operator` goes through the rules of an
operator one by one.
"""

import copy
import math
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.engine.driver import Compute, Event
from invdiff.operators import (
    BlackBox,
    CallableOperator,
    GaussianBlur,
    GaussianNoise,
    Inpainting,
    LinearCallableOperator,
    LinearOperator,
    Noise,
    Operator,
    PoissonNoise,
    SpectralOperator,
)
from invdiff.posterior import Posterior
from invdiff.priors import Prior
from invdiff.problem import InverseProblem, Unsupported
from invdiff.samplers import Sampler
from invdiff.shapes import per_row, sigma_per_row
from invdiff.streams import generator

# float32, and sums of a few thousand of its numbers.
TOLERANCE = 1e-5


# -- operators ---------------------------------------------------------------------------------------------------------


class NotApplicable(Exception):
    """A rule that says nothing about this operator; the message is the reason, in words."""


def check_operator(operator: Operator, image_shape: tuple[int, ...]) -> None:
    """An operator is a pure function of each image, and what its traits promise is true.

    image_shape  (C, H, W) of images to try it on
    """
    for _, check in operator_checks(operator, image_shape):
        with suppress(NotApplicable):
            check()


def operator_checks(operator: Operator, image_shape: tuple[int, ...]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every rule by its name, with its check: AssertionError where it is broken, `NotApplicable` where it says nothing.

    To be called in this order. Whatever else the operator itself raises goes through.
    """
    trial = _Trial(operator, tuple(image_shape))
    for name, check in _OPERATOR_RULES.items():
        yield name, partial(check, trial)


class _Trial:
    """An operator with what it is tried on. Images are new at every call: an operator may spoil those that it gets."""

    def __init__(self, operator: Operator, image_shape: tuple[int, ...]) -> None:
        self.operator, self.image_shape = operator, image_shape
        self.name = type(operator).__name__
        self.images = operator.images if operator.images > 1 else 3

    def x(self) -> Tensor:
        return 0.5 + 0.25 * _normal(0, self.images, *self.image_shape)

    @cached_property
    def y(self) -> Tensor:
        with torch.no_grad():
            return self.operator(self.x())

    def linear(self) -> LinearOperator:
        if not self.operator.linear:
            raise NotApplicable("it is not linear")
        _require(
            isinstance(self.operator, LinearOperator), f"{self.name} says that it is linear but is no LinearOperator"
        )
        assert isinstance(self.operator, LinearOperator)
        return self.operator

    def differentiable(self) -> None:
        if not self.operator.differentiable:
            raise NotApplicable("it is a black box")

    def signed(self, seed: int) -> tuple[Tensor, Tensor]:
        """Signed noise and what the operator makes of it."""
        with torch.no_grad():
            return _normal(seed, self.images, *self.image_shape), self._of_noise(seed)

    def _of_noise(self, seed: int) -> Tensor:
        if seed not in self._measured_noise:
            self._measured_noise[seed] = self.operator(_normal(seed, self.images, *self.image_shape))
        return self._measured_noise[seed]

    @cached_property
    def _measured_noise(self) -> dict[int, Tensor]:
        return {}


def _check_accepts(t: _Trial) -> None:
    reason = t.operator.mismatch(t.image_shape)
    _require(reason is None, f"{t.name} refuses the image it should be checked on: {reason}")


def _check_after_inference(t: _Trial) -> None:
    """What an operator keeps from a call in inference mode must serve a call that differentiates."""
    t.differentiable()
    fresh = copy.deepcopy(t.operator)  # before any other call has filled what it keeps
    with torch.inference_mode():
        y = fresh(t.x())
    try:
        with _graph_intact(t.name):
            fresh.vjp(t.x(), torch.ones(y.shape, dtype=y.dtype))
    except RuntimeError as error:
        raise AssertionError(f"{t.name} cannot be differentiated after a call in inference mode: {error}") from error


@contextmanager
def _graph_intact(name: str) -> Iterator[None]:
    """What autograd says of a graph that ends somewhere inside an operator, in words."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in ("does not require grad", "not to have been used", "call numpy()")):
            raise
        raise AssertionError(
            f"{name} says that it is differentiable, but autograd does not get through it (detach, no_grad, numpy, "
            "integers); say differentiable = False, or differentiable=False to as_operator"
        ) from error


def _check_shape(t: _Trial) -> None:
    _require(isinstance(t.y, Tensor), f"{t.name}(x) must be a tensor, got {type(t.y).__name__}")
    shape = tuple(t.y.shape)
    _require(
        shape[:1] == (t.images,) and len(shape) > 1,
        f"{t.name}(x) must be (B, ...), with one row for each of the {t.images} images, got {shape}",
    )


def _check_dtype(t: _Trial) -> None:
    _require(
        t.y.dtype in (torch.float32, torch.complex64),
        f"{t.name} of float32 images gives {t.y.dtype}; keep to the precision of x, as in `table.to(x.dtype)`",
    )


def _check_finite(t: _Trial) -> None:
    _require(bool(t.y.isfinite().all()), f"{t.name}(x) holds NaN or infinity for an ordinary image")


def _check_repeats(t: _Trial) -> None:
    with torch.no_grad():
        again = t.operator(t.x())
    _require(
        torch.equal(t.y, again),
        f"{t.name} gives another measurement of the same images at the second call; random choices belong in the "
        "constructor, from a seed, and noise in a noise model",
    )


def _check_input_kept(t: _Trial) -> None:
    x = t.x()
    with torch.no_grad():
        t.operator(x)
    _require(
        torch.equal(x, t.x()),
        f"{t.name} changes the images that it is given; replace in-place operations (x += 1, x.clamp_(), x[...] = 0), "
        "or work on x.clone()",
    )


def _check_random_state(t: _Trial) -> None:
    # From states that no earlier call can have left: an operator that seeds them always leaves the same.
    saved = np.random.get_state(), random.getstate()  # noqa: NPY002, these are the global ones that are watched
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2718)
        np.random.seed(2718)  # noqa: NPY002
        random.seed(2718)
        before = _random_states()
        try:
            t.operator(t.x())
            moved = [name for name, state in _random_states().items() if state != before[name]]
        finally:
            np.random.set_state(saved[0])  # noqa: NPY002
            random.setstate(saved[1])
    _require(
        not moved,
        f"{t.name} draws from the global random state of {' and '.join(moved)}; draw in the constructor, from "
        "torch.Generator().manual_seed(seed)",
    )


def _random_states() -> dict[str, Any]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().tolist(),
        "NumPy": [str(part) if isinstance(part, str) else np.asarray(part).tolist() for part in numpy_state],
        "Python": random.getstate(),
    }


def _check_no_graph(t: _Trial) -> None:
    _require(not t.y.requires_grad, f"{t.name}(x) carries a graph although gradients are off")


def _check_rows(t: _Trial) -> None:
    x = t.x()
    with torch.no_grad():
        for i in range(len(x)):
            alone = t.operator.select(torch.tensor([i]))(x[i : i + 1].clone())
            _close(
                alone,
                t.y[i : i + 1],
                f"{t.name}: image {i} measured alone differs from the same image in a batch (no sums, norms or means "
                "over the first axis; parameters per image are named in per_image)",
            )


def _check_select(t: _Trial) -> None:
    order = torch.tensor([1, 0, 1, 2])[: t.images + 1] % t.images
    with torch.no_grad():
        chosen = t.operator.select(order)(t.x()[order])
        _close(chosen, t.y[order], f"{t.name}.select does not give the operator of the images in that order")
        _close(t.operator(t.x()), t.y, f"{t.name}.select changes the operator that it is called on")


def _check_copies(t: _Trial) -> None:
    with torch.no_grad():
        _require(torch.equal(copy.deepcopy(t.operator)(t.x()), t.y), f"a deep copy of {t.name} measures something else")


def _check_pickle(t: _Trial) -> None:
    try:
        text = pickle.dumps(t.operator)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if _wraps_a_function(t.operator):
            raise NotApplicable("it wraps a function that pickle refuses; define it with def, in a module") from error
        raise AssertionError(
            f"{t.name} cannot be pickled, so not sent to another process: {error}; keep no lambda, open file or "
            "generator in it"
        ) from error
    with torch.no_grad():
        _require(torch.equal(pickle.loads(text)(t.x()), t.y), f"{t.name} measures something else after pickling")


def _wraps_a_function(operator: Operator) -> bool:
    """Whether it, or a part of it, holds code of the user, which pickle may refuse (a lambda)."""
    return any(isinstance(m, (CallableOperator, BlackBox)) or hasattr(m, "physics") for m in operator.modules())


def _check_device(t: _Trial) -> None:
    if not torch.cuda.is_available():
        raise NotApplicable("there is no GPU here")
    moved = copy.deepcopy(t.operator).to("cuda")
    with torch.no_grad():
        y = moved(t.x().to("cuda"))
    _require(y.device.type == "cuda", f"{t.name} of images on the GPU gives a measurement on {y.device}")
    # In norm: where an operator has steps, a value on the edge of one may fall to either side.
    error = float(_norm(y.cpu() - t.y) / _norm(t.y).clamp(min=1e-30))
    _require(error < 1e-2, f"{t.name} measures something else on the GPU: by {error:.1e}")


def _check_image_shape(t: _Trial) -> None:
    found = t.operator.image_shape(tuple(t.y.shape[1:]))
    if found is None:
        raise NotApplicable("y does not tell it")
    _require(tuple(found) == t.image_shape, f"{t.name}.image_shape says {found} for {t.image_shape}")


def _check_measured(t: _Trial) -> None:
    mask = t.operator.measured(tuple(t.y.shape[1:]))
    if mask is None:
        raise NotApplicable("every entry of y is measured")
    _require(mask.dtype == torch.bool, f"{t.name}.measured must be boolean, got {mask.dtype}")
    _require(
        torch.broadcast_shapes(mask.shape, t.y.shape) == t.y.shape,
        f"{t.name}.measured does not broadcast to {tuple(t.y.shape[1:])}",
    )
    _require(bool(mask.any()), f"{t.name} measures nothing at all")


def _check_likelihood(t: _Trial) -> None:
    mask = t.operator.measured(tuple(t.y.shape[1:]))
    holed = t.y if mask is None else torch.where(mask, t.y, torch.nan)
    problem = InverseProblem(t.operator, GaussianNoise(0.1), holed, image_shape=t.image_shape)
    nll = problem.nll(t.x())
    _require(nll.shape == (t.images,), f"{t.name}: the likelihood has shape {tuple(nll.shape)} for {t.images} images")
    fits = nll <= 1e-6 * _size(t.y) ** 2 / 0.1**2
    _require(bool(fits.all()), f"{t.name}: an image does not fit its own measurement")


def _check_align(t: _Trial) -> None:
    """Alignment moves among images with the same measurement, and never away from the reference."""
    if type(t.operator).align is Operator.align:
        raise NotApplicable("no two images are told to measure the same")
    x = t.x()
    reference = 0.5 + 0.25 * _normal(9, *x.shape)
    with torch.no_grad():
        aligned = t.operator.align(x, reference)
        _close(t.operator(aligned), t.y, f"{t.name}.align changes what is measured", 1e-4)
        _close(t.operator.align(x, x), x, f"{t.name}.align moves an image that is its own reference")
    before, after = _row_norms(x - reference), _row_norms(aligned - reference)
    _require(bool((after <= before * (1 + TOLERANCE)).all()), f"{t.name}.align moves images away from their reference")


def _check_black_box(t: _Trial) -> None:
    if t.operator.differentiable:
        raise NotApplicable("it is differentiable")
    with torch.enable_grad():
        graph = t.operator(t.x().requires_grad_(True)).requires_grad
    _require(not graph, f"{t.name} says that it is not differentiable, yet autograd goes through it")
    vector = torch.zeros_like(t.y)
    _raises(RuntimeError, lambda: t.operator.vjp(t.x(), vector), f"{t.name}.vjp of a black box must raise")


def _check_vjp(t: _Trial) -> None:
    """<v, J d> = <J^T v, d>, with J d by finite differences: nothing that autograd could get wrong twice."""
    t.differentiable()
    operator, x, d, jd, tolerance = _directional(t)
    for v in (jd, _normal_like(2, jd)):
        with torch.no_grad(), _graph_intact(t.name):
            product = operator.vjp(x, v)
        _require(product.shape == x.shape, f"{t.name}.vjp gives {tuple(product.shape)} for images {tuple(x.shape)}")
        _require(not product.requires_grad, f"{t.name}.vjp leaves a graph behind although nothing asked for one")
        scale = float(_norm(v) * _norm(jd))
        error = abs(float(_dot(v, jd) - (product * d).sum()))
        _require(
            error <= tolerance * scale,
            f"{t.name}.vjp differs from finite differences by {error / max(scale, 1e-30):.1e} (a vjp or adjoint that "
            "is not the transpose, or a step such as rounding, which belongs in straight_through)",
        )


def _check_vjp_again(t: _Trial) -> None:
    t.differentiable()
    operator, x, d, jd, tolerance = _directional(t)
    with torch.enable_grad(), _graph_intact(t.name):
        v = jd.clone().requires_grad_(True)
        (back,) = torch.autograd.grad((operator.vjp(x, v) * d).sum(), v)
    _close(back, jd, f"{t.name}.vjp is not differentiable in its vector", 10 * tolerance)


def _directional(t: _Trial) -> tuple[Operator, Tensor, Tensor, Tensor, float]:
    """The operator in double, images x, a direction d, J d by finite differences, and how far that can be trusted."""
    operator, x, step, tolerance = _in_double(t.operator, t.x())
    d = _normal(1, *x.shape).to(x)
    with torch.no_grad():
        # Of the surrogate, which is the operator itself unless that has steps.
        jd = (operator.surrogate(x + step * d) - operator.surrogate(x - step * d)) / (2 * step)
    return operator, x, d, jd, tolerance


def _check_linear(t: _Trial) -> None:
    operator = t.linear()
    a, ya = t.signed(3)
    b, yb = t.signed(4)
    with torch.no_grad():
        _close(operator(2 * a - 3 * b), 2 * ya - 3 * yb, f"{t.name} is not linear", 1e-4)
        zero = operator(torch.zeros_like(a))
    _require(bool((zero == 0).all()), f"{t.name} of a black image is not zero: affine, not linear")


def _check_adjoint(t: _Trial) -> None:
    operator = t.linear()
    a, ya = t.signed(3)
    b, yb = t.signed(4)
    v = _half_in_range(ya)
    with torch.no_grad():
        back = operator.adjoint(v)
    _require(
        back.shape == a.shape and back.dtype == a.dtype,
        f"{t.name}.adjoint gives {back.dtype} {tuple(back.shape)}, not {a.dtype} {tuple(a.shape)}",
    )
    for x, y in ((a, ya), (b, yb)):
        error = abs(float(_dot(y, v) - (x * back).sum())) / max(float(_norm(y) * _norm(v)), 1e-30)
        _require(
            error < 10 * TOLERANCE,
            f"{t.name}.adjoint is not the transpose: <Ax, v> - <x, A'v> is {error:.1e} of |Ax| |v| (without an adjoint "
            "of your own, autograd gives it)",
        )


def _half_in_range(y: Tensor) -> Tensor:
    """Half in the range of A, so that two inner products are large where they should be equal."""
    return y + _size(y) * _normal_like(5, y)


def _check_adjoint_is_vjp(t: _Trial) -> None:
    operator = t.linear()
    t.differentiable()
    a, ya = t.signed(3)
    v = _half_in_range(ya)
    with torch.no_grad():
        _close(operator.vjp(a, v), operator.adjoint(v), f"{t.name}.vjp and {t.name}.adjoint differ", 1e-4)


def _check_solve(t: _Trial) -> None:
    operator = t.linear()
    a = _normal(3, t.images, *t.image_shape)
    with torch.no_grad():
        rhos = 0.1 * _squared_norm(operator, a) * torch.arange(1, t.images + 1)
        solved = operator.solve(a, rhos)
        rest = operator.adjoint(operator(solved)) + per_row(rhos, a) * solved - a
        _require(
            bool((_row_norms(rest) < 1e-3 * _row_norms(a)).all()), f"{t.name}.solve does not solve (A'A + rho I) x = b"
        )
        for i in range(t.images):
            one = operator.select(torch.tensor([i])).solve(a[i : i + 1], float(rhos[i]))
            _close(one, solved[i : i + 1], f"{t.name}.solve with one rho per row differs from one row alone", 1e-3)


def _check_pinv(t: _Trial) -> None:
    operator = t.linear()
    a, ya = t.signed(3)
    with torch.no_grad():
        guess = operator.pinv(ya)
        _require(guess.shape == a.shape, f"{t.name}.pinv gives {tuple(guess.shape)} for images {tuple(a.shape)}")
        misfit = _row_norms(operator(guess) - ya)
        _require(
            bool((misfit < 0.02 * _row_norms(ya)).all()),
            f"{t.name}.pinv misses a noiseless measurement by {float((misfit / _row_norms(ya)).max()):.1e} of it",
        )
        _require(
            bool((_row_norms(guess) < 1.001 * _row_norms(a)).all()),
            f"{t.name}.pinv is not the image of least norm: the truth is smaller",
        )


def _check_spectral(t: _Trial) -> None:
    operator, name = t.operator, t.name
    if not operator.spectral:
        raise NotApplicable("it has no singular value decomposition")
    _require(isinstance(operator, SpectralOperator), f"{name} says that it is spectral but is no SpectralOperator")
    assert isinstance(operator, SpectralOperator)
    x, z = _normal(6, t.images, *t.image_shape), _normal(7, t.images, *t.image_shape)
    with torch.no_grad():
        s = operator.singular_values(x)
        _require(bool((s >= 0).all()), f"{name} has negative singular values")
        _require(torch.broadcast_shapes(s.shape, x.shape) == x.shape, f"{name}: singular values {tuple(s.shape)}")
        _close(operator.v(operator.vt(x)), x, f"{name}: V V' is not the identity", 1e-4)
        _close(operator.vt(operator.v(z)), z, f"{name}: V' V is not the identity", 1e-4)
        _close(_row_norms(operator.vt(x)), _row_norms(x), f"{name}: V' does not keep lengths", 1e-4)
        y = operator(x)
        _close(operator.u(s * operator.vt(x)), y, f"{name}: A is not U S V'", 1e-4)
        _close(operator.ut(y), s * operator.vt(x), f"{name}: U' A is not S V'", 1e-4)
        v = y + _size(y) * _normal_like(8, y)
        _close(operator.v(s * operator.ut(v)), operator.adjoint(v), f"{name}.adjoint is not V S U'", 1e-4)


_OPERATOR_RULES: dict[str, Callable[[_Trial], None]] = {
    "takes the image": _check_accepts,
    "inference mode leaves nothing behind": _check_after_inference,
    "shape of y": _check_shape,
    "precision of y": _check_dtype,
    "y is finite": _check_finite,
    "same image, same y": _check_repeats,
    "no global randomness": _check_random_state,
    "leaves the image as it is": _check_input_kept,
    "no graph without gradients": _check_no_graph,
    "images do not mix": _check_rows,
    "select": _check_select,
    "deep copy": _check_copies,
    "pickle": _check_pickle,
    "on the GPU": _check_device,
    "image_shape": _check_image_shape,
    "measured": _check_measured,
    "an image fits its own y": _check_likelihood,
    "align": _check_align,
    "black box": _check_black_box,
    "gradient": _check_vjp,
    "gradient, differentiated": _check_vjp_again,
    "linear": _check_linear,
    "adjoint": _check_adjoint,
    "gradient = adjoint": _check_adjoint_is_vjp,
    "solve": _check_solve,
    "pinv": _check_pinv,
    "singular values": _check_spectral,
}


# -- priors ------------------------------------------------------------------------------------------------------------


def check_prior(prior: Prior) -> None:
    """A prior is a pure function of each image and its noise level, and denoises less the less noise there is."""
    name = type(prior).__name__
    low, high = prior.value_range
    _require(low < high, f"{name}.value_range {prior.value_range} is empty")
    _require(0 <= prior.sigma_range[0] < prior.sigma_range[1], f"{name}.sigma_range {prior.sigma_range} is empty")
    sizes = (
        [tuple(prior.shape)] if prior.shape is not None else [(prior.channels or 1, *s) for s in ((16, 16), (13, 21))]
    )
    for size in sizes:
        _check_prior_on(name, prior, size)
    other = (sizes[0][0] + 1, *sizes[0][1:])
    if prior.shape is not None or prior.channels is not None:
        _require(prior.mismatch(other) is not None, f"{name} accepts images of shape {other}, which it does not know")
    if prior.differentiable:
        _check_prior_gradient(name, prior, sizes[0])


def _check_prior_on(name: str, prior: Prior, size: tuple[int, ...]) -> None:
    low, high = prior.value_range
    _require(prior.mismatch(size) is None, f"{name} refuses images of its own shape: {prior.mismatch(size)}")
    width = min(high - low, 1e3)
    x = (low + high) / 2 + 0.5 * width * _normal(0, 3, *size)
    sigmas = torch.tensor([0.05, 0.4, 2.0]) * width
    before, state = x.clone(), torch.get_rng_state()
    with torch.no_grad():
        together = prior.denoise(x, sigmas)
        _require(together.shape == x.shape, f"{name} gives {tuple(together.shape)} for images {tuple(x.shape)}")
        _require(together.dtype == x.dtype, f"{name} gives {together.dtype} for {x.dtype}")
        _require(bool(together.isfinite().all()), f"{name} gives NaN or infinity for an ordinary image")
        _require(torch.equal(together, prior.denoise(x, sigmas)), f"{name} answers differently at the second call")
        _require(torch.equal(x, before), f"{name} changes the images that it is given")
        _require(torch.equal(state, torch.get_rng_state()), f"{name} draws from the global random state")
        for i, sigma in enumerate(sigmas):
            one = x[i : i + 1]
            wanted = together[i : i + 1]
            _close(prior.denoise(one, float(sigma)), wanted, f"{name}: a float sigma and one per row differ", 1e-4)
            _close(prior.denoise(one, sigma), wanted, f"{name}: a scalar tensor sigma and one per row differ", 1e-4)
            alone = prior.denoise(x, float(sigma))[i : i + 1]
            _close(alone, wanted, f"{name}: image {i} alone differs from the same image in a batch", 1e-4)
        _require(torch.equal(prior(x, sigmas), together), f"{name}(x, sigma) is not {name}.denoise(x, sigma)")
        score = (together - x) / sigma_per_row(sigmas, x) ** 2
        _close(prior.score(x, sigmas), score, f"{name}.score is not (D(x, sigma) - x) / sigma^2")
        copied = copy.deepcopy(prior)
        _require(torch.equal(copied.denoise(x, sigmas), together), f"a deep copy of {name} answers differently")
        copied = pickle.loads(pickle.dumps(prior))
        _require(torch.equal(copied.denoise(x, sigmas), together), f"{name} answers differently after pickling")

        # An image that the prior likes, with hardly any noise on it, is hardly changed; and not all are alike.
        faint = 1e-3 * width
        sharp = prior.denoise(x, faint)
        _require(
            bool(_norm(sharp[0] - sharp[1]) > 0.01 * _norm(x[0] - x[1])),
            f"{name} gives the same image whatever it is given",
        )
        likely = prior.denoise(x[1:2], float(sigmas[1]))
        moved = prior.denoise(likely + faint * _normal(1, 1, *size), faint) - likely
        rms = float(moved.square().mean().sqrt()) / faint
        _require(rms < 10, f"{name} moves an image with noise {faint:.1e} by {rms:.1f} times that noise")


def _check_prior_gradient(name: str, prior: Prior, size: tuple[int, ...]) -> None:
    low, high = prior.value_range
    sigma = 0.4 * min(high - low, 1e3)
    x = (low + high) / 2 + sigma * _normal(2, 2, *size)
    double, x, step, tolerance = _prior_in_double(prior, x, sigma)
    d, v = _normal(3, *x.shape).to(x), _normal(4, *x.shape).to(x)
    with torch.no_grad():
        jd = (double.denoise(x + step * d, sigma) - double.denoise(x - step * d, sigma)) / (2 * step)
    with torch.enable_grad():
        x = x.clone().requires_grad_(True)
        (product,) = torch.autograd.grad((double.denoise(x, sigma) * (v + jd)).sum(), x)
    scale = float(_norm(v + jd) * _norm(jd))
    error = abs(float(((v + jd) * jd).sum() - (product * d).sum()))
    _require(error <= tolerance * scale, f"{name}: autograd differs from finite differences by {error / scale:.1e}")


# -- samplers ----------------------------------------------------------------------------------------------------------


class WhitePrior(Prior):
    """N(mean, std^2 I) on images of any shape, in closed form: the cheapest prior whose posteriors are known."""

    def __init__(self, mean: float = 0.4, std: float = 0.25) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        gain = self.std**2 / (self.std**2 + sigma_per_row(sigma, x) ** 2)
        return self.mean + gain * (x - self.mean)

    @classmethod
    def example(cls) -> "WhitePrior":
        return cls()


class Gain(SpectralOperator):
    """A x = g x with a gain for each image; NaN for one of them makes that one sick and must leave the others well."""

    per_image = ("gain",)
    gain: Tensor

    def __init__(self, gain: Tensor) -> None:
        super().__init__()
        self.register_buffer("gain", gain.reshape(-1, 1, 1, 1))

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape

    def singular_values(self, like: Tensor) -> Tensor:
        return self.gain.to(like) * torch.ones(1, 1, *like.shape[2:], dtype=like.dtype, device=like.device)

    def vt(self, x: Tensor) -> Tensor:
        return x

    def v(self, z: Tensor) -> Tensor:
        return z

    def ut(self, y: Tensor) -> Tensor:
        return y

    def u(self, z: Tensor) -> Tensor:
        return z

    @classmethod
    def example(cls) -> tuple["Gain", tuple[int, ...]]:
        return cls(torch.tensor([1.0, 0.5])), (1, 8, 8)


class MaskedGain(Inpainting):
    """`Gain` for samplers that take nothing but masks: half of the pixels, times a gain for each image."""

    per_image = ("mask", "gain")
    gain: Tensor

    def __init__(self, gain: Tensor) -> None:
        super().__init__(keep=0.5)
        self.register_buffer("gain", gain.reshape(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain.to(x)


COMPUTE = Compute(device="cpu", precision="float32", progress=False)
SMALL = (1, 8, 8)


def check_sampler(sampler: Sampler) -> None:
    """A sampler keeps the rules of the house: its rows are independent, its costs are true, its failures are said.

    The problems are small, linear and Gaussian, with an operator that has every trait, a mask for samplers that take
    nothing else; the budget is the sampler's own, so give one of a few steps. Whether it draws from the posterior is
    another question: `check_posterior`.
    """
    name = type(sampler).__name__
    prior = WhitePrior()
    problem = _small_problem(images=4, operator=_small_operator(sampler))
    missing = sampler.needs().missing(problem, prior)
    _require(not missing, f"{name} needs {' and '.join(missing)}: not even a masked image with Gaussian noise will do")
    _require(pickle.loads(pickle.dumps(sampler)) == sampler, f"{name} is another one after pickling")
    _require(hash(sampler) == hash(copy.deepcopy(sampler)), f"{name} is no frozen dataclass")

    reference = _check_steps(name, sampler, problem, prior)
    _check_seeds(name, sampler, problem, prior, reference)
    _check_sampler_rows(name, sampler, problem, prior, reference)
    _check_unmeasured(name, sampler, prior)
    _check_sick_image(name, sampler, prior)
    _check_needs(name, sampler, prior)


def _small_operator(sampler: Sampler) -> LinearOperator:
    return Inpainting(keep=0.5) if sampler.needs().mask else GaussianBlur(std=0.8, kernel_size=5)


def _small_problem(images: int, operator: LinearOperator) -> InverseProblem:
    x = 0.4 + 0.25 * _normal(0, images, *SMALL)
    return InverseProblem(operator, GaussianNoise(0.1), operator(x) + 0.1 * _normal(1, images, *SMALL))


def _check_steps(name: str, sampler: Sampler, problem: InverseProblem, prior: Prior) -> Posterior:
    """What is yielded, what it costs, and that a callback may turn gradients on and off as it likes."""
    modes: list[bool] = []
    events: list[Event] = []

    def watch(event: Event) -> None:
        modes.append(torch.is_grad_enabled())
        events.append(event)

    y, state = problem.y.clone(), torch.get_rng_state()
    with torch.enable_grad():
        posterior = sampler.sample(problem, prior, num_samples=2, seed=0, compute=COMPUTE, callback=watch)
        modes.append(torch.is_grad_enabled())
    _require(all(modes), f"{name} leaves gradients switched off for the caller: no `yield` inside `no_grad`")
    with torch.no_grad():
        modes.clear()
        again = sampler.sample(problem, prior, num_samples=2, seed=0, compute=COMPUTE, callback=watch)
        modes.append(torch.is_grad_enabled())
    _require(not any(modes), f"{name} leaves gradients switched on for the caller: no `yield` inside `enable_grad`")
    _require(torch.equal(posterior.samples, again.samples), f"{name}: what the caller does with gradients matters")
    _require(torch.equal(problem.y, y), f"{name} changes the measurement that it is given")
    _require(torch.equal(state, torch.get_rng_state()), f"{name} draws from the global random state")

    steps = [event.step for event in events[: len(events) // 2]]
    _require(len(steps) == sampler.num_steps, f"{name} yields {len(steps)} steps and promises {sampler.num_steps}")
    shape = (2 * problem.images, *problem.image_shape)
    for step in steps:
        _require(step.x.shape == shape and step.x0.shape == shape, f"{name} yields {tuple(step.x.shape)}, not {shape}")
        _require(
            not step.x.requires_grad and not step.x0.requires_grad, f"{name} yields a state with a graph behind it"
        )
    levels = [step.sigma for step in steps]
    _require(levels == sorted(levels, reverse=True), f"{name}: noise levels go up: {levels}")
    _require(levels[-1] == 0, f"{name} ends at noise level {levels[-1]}: the last iterate is no sample")
    _require(torch.equal(steps[-1].x.reshape(posterior.samples.shape), posterior.samples), f"{name}: other last x")
    _require(not posterior.diverged.any(), f"{name} diverges on a problem of the kindest sort")

    expected, rows = sampler.expected_cost(), 2 * problem.images
    for kind in ("forwards", "vjps"):
        found, wanted = getattr(posterior.cost, kind), rows * getattr(expected, kind)
        _require(found == wanted, f"{name} promises {wanted} {kind} and takes {found}")
    return posterior


def _check_seeds(name: str, sampler: Sampler, problem: InverseProblem, prior: Prior, first: Posterior) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        again = sampler.sample(problem, prior, num_samples=2, seed=0, compute=COMPUTE)
    _require(torch.equal(first.samples, again.samples), f"{name}: the same seed gives other samples")
    other = sampler.sample(problem, prior, num_samples=2, seed=1, compute=COMPUTE)
    same = (other.samples == first.samples).flatten(2).all(2)
    _require(not same.any(), f"{name}: seeds 0 and 1 give the same samples")
    twin = (first.samples[:, 0] == first.samples[:, 1]).flatten(1).all(1)
    _require(not twin.any(), f"{name}: the samples of an image are all the same")


def _check_sampler_rows(
    name: str, sampler: Sampler, problem: InverseProblem, prior: Prior, together: Posterior
) -> None:
    """Image 2 alone, in chunks, and among strangers: always the same."""
    chunked = sampler.sample(problem, prior, num_samples=2, seed=0, compute=Compute(device="cpu", max_rows=3))
    _same(chunked.samples, together.samples, f"{name}: samples depend on how many rows fit into a chunk")
    alone = sampler.sample(problem.select(torch.tensor([2])), prior, num_samples=2, first_image=2, compute=COMPUTE)
    _same(alone.samples[0], together.samples[2], f"{name}: an image alone gives other samples than in a batch")
    strangers = torch.full_like(problem.y, 2.5)
    strangers[2] = problem.y[2]
    replaced = InverseProblem(problem.operator, problem.noise, strangers)
    among = sampler.sample(replaced, prior, num_samples=2, seed=0, compute=COMPUTE)
    _same(among.samples[2], together.samples[2], f"{name}: the samples of an image depend on the others in the batch")
    fewer = sampler.sample(problem, prior, num_samples=1, seed=0, compute=COMPUTE)
    _same(fewer.samples[:, 0], together.samples[:, 0], f"{name}: sample 0 depends on how many are drawn")


def _check_unmeasured(name: str, sampler: Sampler, prior: Prior) -> None:
    operator = Inpainting(keep=0.5)
    y = operator(0.4 + 0.25 * _normal(2, 2, *SMALL))
    seen = operator.measured(SMALL)
    results = [
        sampler.sample(
            InverseProblem(operator, GaussianNoise(0.1), torch.where(seen, y, value)), prior, compute=COMPUTE
        )
        for value in (0.0, 5.0, torch.nan)
    ]
    for other in results[1:]:
        _require(
            torch.equal(results[0].samples, other.samples), f"{name}: what y holds where nothing was measured matters"
        )


def _check_sick_image(name: str, sampler: Sampler, prior: Prior) -> None:
    y = 0.4 + 0.25 * _normal(3, 3, *SMALL)
    kind = MaskedGain if sampler.needs().mask else Gain
    well, sick = (
        sampler.sample(
            InverseProblem(kind(torch.tensor([1.0, gain, 1.0])), GaussianNoise(0.1), y),
            prior,
            num_samples=2,
            compute=COMPUTE,
        )
        for gain in (1.0, torch.nan)
    )
    reported = sick.diverged.all(1).tolist()
    _require(reported[1], f"{name}: an operator that gives NaN for an image passes unreported")
    _require(reported == [False, True, False], f"{name}: NaN in one image makes others diverge: {reported}")
    _same(sick.samples[[0, 2]], well.samples[[0, 2]], f"{name}: NaN in one image changes the others")


def _check_needs(name: str, sampler: Sampler, prior: Prior) -> None:
    """Each declared need, missing, is refused in words before the first network call."""
    noise, image = GaussianNoise(0.1), torch.full((1, *SMALL), 0.4)
    linear = LinearCallableOperator(_halved, image_shape=SMALL)
    square = CallableOperator(torch.square, image_shape=SMALL)
    black_box = CallableOperator(torch.square, differentiable=False, image_shape=SMALL)
    stubborn = WhitePrior()
    stubborn.differentiable = False
    cases: dict[str, tuple[Operator, Noise, Prior]] = {
        "mask": (linear, noise, prior),
        "linear": (square, noise, prior),
        "differentiable": (black_box, noise, prior),
        "spectral": (linear, noise, prior),
        "gaussian_noise": (Inpainting(keep=0.5), PoissonNoise(0.01), prior),
        "differentiable_prior": (Inpainting(keep=0.5), noise, stubborn),
    }
    needs = sampler.needs()
    for need, (operator, level, known) in cases.items():
        if getattr(needs, need):
            with torch.no_grad():
                problem = InverseProblem(operator, level, operator(image))
            check_pair(sampler, problem, known)
            _require(bool(needs.missing(problem, known)), f"{name} needs {need} but does not miss it")


def _halved(x: Tensor) -> Tensor:
    return x / 2


def check_pair(sampler: Sampler, problem: InverseProblem, prior: Prior) -> bool:
    """A sampler runs on a problem with a prior, or says in words why it does not; returns whether it ran."""
    name = f"{type(sampler).__name__} with {type(problem.operator).__name__} and {type(prior).__name__}"
    counted = _Counted(prior)
    missing = sampler.needs().missing(problem, prior)
    if missing or prior.mismatch(problem.image_shape) is not None:
        try:
            sampler.sample(problem, counted, compute=COMPUTE)
        except Unsupported as error:
            _require(counted.calls == 0, f"{name}: refused only after {counted.calls} network calls")
            for words in missing[:1] if prior.mismatch(problem.image_shape) is None else []:
                _require(words.split(" (")[0] in str(error), f"{name}: {error} does not name {words}")
            return False
        raise AssertionError(f"{name} do not fit together, yet nothing is said")
    posterior = sampler.sample(problem, counted, num_samples=2, compute=COMPUTE)
    shape = (problem.images, 2, *problem.image_shape)
    _require(posterior.samples.shape == shape, f"{name}: samples are {tuple(posterior.samples.shape)}, not {shape}")
    sound = posterior.samples.flatten(2).isfinite().all(2)
    _require(bool((sound | posterior.diverged).all()), f"{name}: NaN that is not reported")
    if not posterior.diverged.any():
        wanted = 2 * problem.images * sampler.expected_cost().forwards
        _require(posterior.cost.forwards == wanted, f"{name}: {posterior.cost.forwards} forwards, promised {wanted}")
    return True


class _Counted(Prior):
    """Another prior, with its calls counted."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior, self.calls = prior, 0
        self.shape, self.channels, self.differentiable = prior.shape, prior.channels, prior.differentiable
        self.sigma_range, self.value_range = prior.sigma_range, prior.value_range

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        self.calls += 1
        return self.prior.denoise(x, sigma)


# -- is it the posterior? ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Law:
    """Samples seen in the eigenbasis of the true posterior, in its units: mean 0 and variance 1 where they are exact.

    mean, variance              of each direction, the most certain one first
    mean_error, variance_error  their standard errors
    """

    mean: tuple[float, ...]
    variance: tuple[float, ...]
    mean_error: tuple[float, ...]
    variance_error: tuple[float, ...]


def exact_law(directions: int = 16) -> Law:
    return Law((0.0,) * directions, (1.0,) * directions, (0.0,) * directions, (0.0,) * directions)


def sampled_law(sampler: Sampler, *, samples: int = 3000) -> Law:
    """The law of a sampler on a small blurred image (a masked one, for samplers that take nothing else) under a
    Gaussian prior, where the posterior is known."""
    shape, prior, sigma = (1, 4, 4), WhitePrior(), 0.1
    operator = _small_operator(sampler)
    y = operator(0.4 + 0.25 * _normal(0, 1, *shape))
    posterior = sampler.sample(
        InverseProblem(operator, GaussianNoise(sigma), y), prior, num_samples=samples, compute=COMPUTE
    )
    diverged = int(posterior.diverged.sum())
    _require(diverged == 0, f"{type(sampler).__name__}: {diverged} of {samples} samples of a Gaussian problem diverge")

    matrix = operator(torch.eye(16, dtype=torch.float64).reshape(16, *shape)).flatten(1).T
    precisions, basis = _eigenbasis(torch.eye(16) / prior.std**2 + matrix.T @ matrix / sigma**2)
    data = prior.mean / prior.std**2 + matrix.T @ y.double().flatten() / sigma**2
    centre = basis @ (basis.T @ data / precisions)
    z = (posterior.samples[0].flatten(1).double() - centre) @ basis * precisions.sqrt()
    variance = z.var(0)
    fourth = (z - z.mean(0)).pow(4).mean(0)
    errors = (variance / samples).sqrt(), ((fourth - variance**2).clamp(min=0) / samples).sqrt()
    return Law(*(tuple(round(v, 5) for v in t.tolist()) for t in (z.mean(0), variance, *errors)))


def _eigenbasis(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, the largest first, and eigenvectors that are the same ones on every machine.

    Blurs and masks have equal eigenvalues, whose vectors may turn among themselves, and any vector may change its sign:
    which one LAPACK returns depends on the processor. A millionth of a generic diagonal tells equal ones apart, a
    generic vector lies on the positive side of all.
    """
    size = len(matrix)
    diagonal = 1e-6 * matrix.diagonal().mean() * _normal(3, size).double()
    values, vectors = torch.linalg.eigh(matrix + torch.diag(diagonal))
    values, vectors = values.flip(0), vectors.flip(1)
    return values, vectors * torch.sign(_normal(4, size).double() @ vectors)


def check_posterior(sampler: Sampler, known: Law | None = None, *, samples: int = 3000) -> None:
    """Mean and variance of every direction are the posterior's, or those of a known biased law, to five standard
    errors."""
    name = type(sampler).__name__
    found, wanted = sampled_law(sampler, samples=samples), known or exact_law()
    what = "the posterior" if known is None else "the bias it is known for"
    for kind in ("mean", "variance"):
        values, expected = getattr(found, kind), getattr(wanted, kind)
        errors = [
            math.hypot(a, b)
            for a, b in zip(getattr(found, f"{kind}_error"), getattr(wanted, f"{kind}_error"), strict=True)
        ]
        away = [abs(a - b) / e for a, b, e in zip(values, expected, errors, strict=True)]
        worst = max(range(len(away)), key=away.__getitem__)
        _require(
            away[worst] < 5,
            f"{name} does not sample {what}: the {kind} of direction {worst} is {values[worst]:.3f}, "
            f"{away[worst]:.1f} standard errors from {expected[worst]:.3f}",
        )


# -- words and numbers -------------------------------------------------------------------------------------------------


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _raises(kind: type[Exception], call: Callable[[], Any], message: str) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(message)


def _close(found: Tensor, wanted: Tensor, message: str, tolerance: float = TOLERANCE) -> None:
    """Equal to a fraction of the largest entry; NaN is never equal."""
    _require(found.shape == wanted.shape, f"{message}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
    error, scale = float((found - wanted).abs().max()), max(float(wanted.abs().max()), 1e-30)
    _require(error <= tolerance * scale, f"{message}: by {error / scale:.1e} of the largest value")


def _same(found: Tensor, wanted: Tensor, message: str) -> None:
    """Samples that should be one and the same, to float tolerance in image units."""
    error = float((found - wanted).abs().max())
    _require(error <= 1e-5 * max(1.0, float(wanted.abs().max())), f"{message}: by {error:.1e}")


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _normal_like(seed: int, y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype)


def _size(y: Tensor) -> float:
    """Root mean square."""
    return float(y.abs().square().mean().sqrt())


def _norm(y: Tensor) -> Tensor:
    return y.abs().square().sum().sqrt()


def _row_norms(y: Tensor) -> Tensor:
    return y.abs().square().flatten(1).sum(1).sqrt()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over all entries, complex ones as pairs of real numbers."""
    return (a.conj() * b).real.sum() if a.is_complex() else (a * b).sum()


def _squared_norm(operator: LinearOperator, x: Tensor) -> float:
    """Largest eigenvalue of A^T A, roughly: it sets the scale of rho."""
    for _ in range(10):
        x = x / _norm(x)
        x = operator.adjoint(operator(x))
    return float(_norm(x))


def _in_double(operator: Operator, x: Tensor) -> tuple[Operator, Tensor, float, float]:
    """The operator in float64 (float32 where it knows no other), and a step and a tolerance for finite differences."""
    try:
        double = copy.deepcopy(operator).double()
        with torch.no_grad():
            y = double(x.double())
    except RuntimeError:
        return operator, x, 1e-2, 2e-2
    if y.dtype not in (torch.float64, torch.complex128):
        return operator, x, 1e-2, 2e-2
    return double, x.double(), 1e-6, 1e-4


def _prior_in_double(prior: Prior, x: Tensor, sigma: float) -> tuple[Prior, Tensor, float, float]:
    """As `_in_double`, for a prior."""
    try:
        double = copy.deepcopy(prior).double()
        with torch.no_grad():
            x0 = double.denoise(x.double(), sigma)
    except RuntimeError:
        return prior, x, 1e-2, 2e-2
    return (double, x.double(), 1e-6, 1e-4) if x0.dtype == torch.float64 else (prior, x, 1e-2, 2e-2)


def measure(operator: Operator, image_shape: tuple[int, ...], noise: Noise, *, images: int = 2) -> InverseProblem:
    """A problem to try things on: images about mid-grey, measured with noise."""
    images = operator.images if operator.images > 1 else images
    x = (0.5 + 0.25 * _normal(0, images, *image_shape)).clamp(0.02, 0.98)
    with torch.no_grad():
        clean = operator(x)
    observed = operator.measured(tuple(clean.shape[1:]))
    streams = [generator(0, "measure", i) for i in range(images)]
    return InverseProblem(operator, noise, noise.sample(clean, streams, observed), image_shape=image_shape)
