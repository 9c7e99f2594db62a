"""Rules of operators: a pure function of each image, whose traits hold. Rules of linear ones stand in `linear`."""

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch
from torch import Tensor

from invdiff.contracts.compare import (
    TOLERANCE,
    Broken,
    NotApplicable,
    close,
    dot,
    global_randomness_untouched,
    in_double,
    norm,
    normal,
    normal_like,
    raises,
    require,
    rms,
)
from invdiff.contracts.linear import (
    check_adjoint,
    check_adjoint_is_vjp,
    check_linear,
    check_pinv,
    check_solve,
    check_spectral,
)
from invdiff.contracts.trial import OperatorTrial
from invdiff.operators import BlackBox, CallableOperator, GaussianNoise, Operator
from invdiff.problem import InverseProblem
from invdiff.shapes import row_norm


def check_operator(operator: Operator, image_shape: tuple[int, ...]) -> None:
    """An operator is a pure function of each image, and its traits hold; AssertionError names the first broken rule.

    image_shape  (C, H, W) of the images to try it on
    """
    for _, check in operator_checks(operator, image_shape):
        with suppress(NotApplicable):
            check()


def operator_checks(operator: Operator, image_shape: tuple[int, ...]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Name and check of every rule; a check raises AssertionError where it is broken, `NotApplicable` where it is void.

    Call the checks in this order. Any other error of the operator is passed on.
    """
    trial = OperatorTrial(operator, tuple(image_shape))
    for name, check in _OPERATOR_RULES.items():
        yield name, partial(check, trial)


def rules_before_use() -> list[Callable[[OperatorTrial], None]]:
    """The rules that reconstructions with an operator of the user's begin with, cheap and in this order.

    On a trial of B images they cost 3 calls on all of them, one on each, and one more on the first.
    """
    return [_check_shape, _check_repeats, _check_input_kept, _check_rows, _check_graph]


def _check_accepts(t: OperatorTrial) -> None:
    reason = t.operator.mismatch(t.image_shape)
    require(reason is None, f"{t.name} refuses the image of the check: {reason}")


def _check_after_inference(t: OperatorTrial) -> None:
    """Tensors cached in inference mode must serve a later call that differentiates."""
    t.differentiable()
    fresh = copy.deepcopy(t.operator)  # before any other call fills its caches
    with torch.inference_mode():
        y = fresh(t.x())
    try:
        with _graph_intact(t.name):
            fresh.vjp(t.x(), torch.ones(y.shape, dtype=y.dtype))
    except RuntimeError as error:
        raise Broken(f"{t.name} cannot be differentiated after a call in inference mode: {error}") from error


@contextmanager
def _graph_intact(name: str) -> Iterator[None]:
    """Turn the errors of autograd for a graph that ends inside an operator into one message."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in ("does not require grad", "not to have been used", "call numpy()")):
            raise
        raise Broken(f"{name} {_NO_GRADIENT}") from error


_NO_GRADIENT = (
    "has differentiable = True, but autograd does not get through it (detach, no_grad, numpy, integers); set "
    "differentiable = False, or differentiable=False to as_operator"
)


def _check_shape(t: OperatorTrial) -> None:
    require(isinstance(t.y, Tensor), f"{t.name}(x) must be a tensor, got {type(t.y).__name__}")
    shape = tuple(t.y.shape)
    require(
        shape[:1] == (t.images,) and len(shape) > 1,
        f"{t.name}(x) must be (B, ...), with one row for each of the {t.images} images, got {shape}",
    )


def _check_measurement_shape(t: OperatorTrial) -> None:
    found, shape = t.operator.measurement_shape(t.image_shape), tuple(t.y.shape[1:])
    if found is None:
        raise NotApplicable("measurement_shape() is not defined")
    require(found == shape, f"{t.name}.measurement_shape gives {found}, forward {shape}")
    require(
        t.operator.complex_measurement == t.y.is_complex(),
        f"{t.name}.complex_measurement is {t.operator.complex_measurement}, but forward gives {t.y.dtype}",
    )


def _check_dtype(t: OperatorTrial) -> None:
    require(
        t.y.dtype in (torch.float32, torch.complex64),
        f"{t.name} of float32 images gives {t.y.dtype}; keep to the precision of x, as in `table.to(x.dtype)`",
    )


def _check_finite(t: OperatorTrial) -> None:
    require(bool(t.y.isfinite().all()), f"{t.name}(x) holds NaN or infinity for an ordinary image")


def _check_repeats(t: OperatorTrial) -> None:
    with torch.no_grad():
        again = t.operator(t.x())
    require(
        torch.equal(t.y, again),
        f"{t.name} gives another measurement of the same images at the second call; random choices belong in the "
        "constructor, from a seed, and noise in a noise model",
    )


def _check_input_kept(t: OperatorTrial) -> None:
    x = t.x()
    with torch.no_grad():
        t.operator(x)
    require(
        torch.equal(x, t.x()),
        f"{t.name} changes its input images; replace in-place operations (x += 1, x.clamp_(), x[...] = 0), "
        "or work on x.clone()",
    )


def _check_random_state(t: OperatorTrial) -> None:
    mend = "draw in the constructor, from torch.Generator().manual_seed(seed)"
    with torch.no_grad(), global_randomness_untouched(t.name, mend):
        t.operator(t.x())


def _check_no_graph(t: OperatorTrial) -> None:
    require(not t.y.requires_grad, f"{t.name}(x) carries a graph although gradients are off")


def _check_rows(t: OperatorTrial) -> None:
    x = t.x()
    with torch.no_grad():
        for i in range(len(x)):
            alone = t.operator.select(torch.tensor([i]))(x[i : i + 1].clone())
            close(
                alone,
                t.y[i : i + 1],
                f"{t.name}: image {i} measured alone differs from the same image in a batch (no sums, norms or means "
                "over the first axis; parameters per image are named in per_image)",
            )


def _check_select(t: OperatorTrial) -> None:
    order = torch.tensor([1, 0, 1, 2])[: t.images + 1] % t.images
    with torch.no_grad():
        chosen = t.operator.select(order)(t.x()[order])
        close(chosen, t.y[order], f"{t.name}.select does not give the operator of the images in that order")
        close(t.operator(t.x()), t.y, f"{t.name}.select changes the operator itself")


def _check_copies(t: OperatorTrial) -> None:
    with torch.no_grad():
        require(torch.equal(copy.deepcopy(t.operator)(t.x()), t.y), f"a deep copy of {t.name} measures something else")


def _check_pickle(t: OperatorTrial) -> None:
    try:
        text = pickle.dumps(t.operator)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if _wraps_a_function(t.operator):
            raise NotApplicable("it wraps a function that pickle refuses; define it with def, in a module") from error
        raise Broken(
            f"{t.name} cannot be pickled, so not sent to another process: {error}; keep no lambda, open file or "
            "generator in it"
        ) from error
    with torch.no_grad():
        require(torch.equal(pickle.loads(text)(t.x()), t.y), f"{t.name} measures something else after pickling")


def _wraps_a_function(operator: Operator) -> bool:
    """Whether a part of it holds a function of the user, which pickle may refuse (a lambda)."""
    return any(isinstance(m, (CallableOperator, BlackBox)) or hasattr(m, "physics") for m in operator.modules())


def _check_device(t: OperatorTrial) -> None:
    if not torch.cuda.is_available():
        raise NotApplicable("there is no GPU here")
    moved = copy.deepcopy(t.operator).to("cuda")
    with torch.no_grad():
        y = moved(t.x().to("cuda"))
    require(y.device.type == "cuda", f"{t.name} of images on the GPU gives a measurement on {y.device}")
    # In norm: where an operator has steps, a value on the edge of one may fall to either side.
    error = norm(y.cpu() - t.y) / max(norm(t.y), 1e-30)
    require(error < 1e-2, f"{t.name} measures something else on the GPU: by {error:.1e}")


def _check_image_shape(t: OperatorTrial) -> None:
    found = t.operator.image_shape(tuple(t.y.shape[1:]))
    if found is None:
        raise NotApplicable("y does not determine it")
    require(tuple(found) == t.image_shape, f"{t.name}.image_shape says {found} for {t.image_shape}")


def _check_measured(t: OperatorTrial) -> None:
    mask = t.operator.measured(tuple(t.y.shape[1:]))
    if mask is None:
        raise NotApplicable("every entry of y is measured")
    require(mask.dtype == torch.bool, f"{t.name}.measured must be boolean, got {mask.dtype}")
    require(
        torch.broadcast_shapes(mask.shape, t.y.shape) == t.y.shape,
        f"{t.name}.measured does not broadcast to {tuple(t.y.shape[1:])}",
    )
    require(bool(mask.any()), f"{t.name} measures no entry")


def _check_likelihood(t: OperatorTrial) -> None:
    mask = t.operator.measured(tuple(t.y.shape[1:]))
    holed = t.y if mask is None else torch.where(mask, t.y, torch.nan)
    problem = InverseProblem(t.operator, GaussianNoise(0.1), holed, image_shape=t.image_shape)
    nll = problem.nll(t.x())
    require(nll.shape == (t.images,), f"{t.name}: the likelihood has shape {tuple(nll.shape)} for {t.images} images")
    fits = nll <= 1e-6 * rms(t.y) ** 2 / 0.1**2
    require(bool(fits.all()), f"{t.name}: an image does not fit its own measurement")


def _check_align(t: OperatorTrial) -> None:
    """Alignment moves among images with the same measurement, and never away from the reference."""
    if type(t.operator).align is Operator.align:
        raise NotApplicable("it defines no images of equal measurement")
    x = t.x()
    reference = 0.5 + 0.25 * normal(9, *x.shape)
    with torch.no_grad():
        aligned = t.operator.align(x, reference)
        close(t.operator(aligned), t.y, f"{t.name}.align changes the measurement", 1e-4)
        close(t.operator.align(x, x), x, f"{t.name}.align moves an image that is its own reference")
    before, after = row_norm(x - reference), row_norm(aligned - reference)
    require(bool((after <= before * (1 + TOLERANCE)).all()), f"{t.name}.align moves images away from their reference")


def _check_black_box(t: OperatorTrial) -> None:
    if t.operator.differentiable:
        raise NotApplicable("it is differentiable")
    with torch.enable_grad():
        graph = t.operator(t.x().requires_grad_(True)).requires_grad
    require(not graph, f"{t.name} has differentiable = False, but autograd goes through it")
    vector = torch.zeros_like(t.y)
    raises(RuntimeError, lambda: t.operator.vjp(t.x(), vector), f"{t.name}.vjp of a black box must raise")


def _check_graph(t: OperatorTrial) -> None:
    if not t.operator.differentiable:
        return
    with torch.enable_grad():
        graph = t.operator.select(torch.tensor([0]))(t.x()[:1].requires_grad_(True)).requires_grad
    require(graph, f"{t.name} {_NO_GRADIENT}")


def _check_vjp(t: OperatorTrial) -> None:
    """<v, J d> = <J^T v, d>, with J d by finite differences: independent of autograd."""
    t.differentiable()
    operator, x, d, jd, tolerance = _directional(t)
    for v in (jd, normal_like(2, jd)):
        with torch.no_grad(), _graph_intact(t.name):
            product = operator.vjp(x, v)
        require(product.shape == x.shape, f"{t.name}.vjp gives {tuple(product.shape)} for images {tuple(x.shape)}")
        require(not product.requires_grad, f"{t.name}.vjp leaves a graph behind although gradients are off")
        scale = norm(v) * norm(jd)
        error = abs(dot(v, jd) - dot(product, d))
        require(
            error <= tolerance * scale,
            f"{t.name}.vjp differs from finite differences by {error / max(scale, 1e-30):.1e} (a vjp or adjoint that "
            "is not the transpose, or a step such as rounding, which belongs in straight_through)",
        )


def _check_vjp_again(t: OperatorTrial) -> None:
    t.differentiable()
    operator, x, d, jd, tolerance = _directional(t)
    with torch.enable_grad(), _graph_intact(t.name):
        v = jd.clone().requires_grad_(True)
        (back,) = torch.autograd.grad((operator.vjp(x, v) * d).sum(), v)
    close(back, jd, f"{t.name}.vjp is not differentiable in its vector", 10 * tolerance)


def _directional(t: OperatorTrial) -> tuple[Operator, Tensor, Tensor, Tensor, float]:
    """The operator in double, images x, a direction d, J d by finite differences, and its tolerance."""
    operator, x, step, tolerance = in_double(t.operator, lambda operator, x: operator(x), t.x())
    d = normal(1, *x.shape).to(x)
    with torch.no_grad():
        # Of the surrogate, which is the operator itself unless that has steps.
        jd = (operator.surrogate(x + step * d) - operator.surrogate(x - step * d)) / (2 * step)
    return operator, x, d, jd, tolerance


_OPERATOR_RULES: dict[str, Callable[[OperatorTrial], None]] = {
    "takes the image": _check_accepts,
    "inference mode leaves nothing behind": _check_after_inference,
    "shape of y": _check_shape,
    "measurement_shape matches forward": _check_measurement_shape,
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
    "linear": check_linear,
    "adjoint": check_adjoint,
    "gradient = adjoint": check_adjoint_is_vjp,
    "solve": check_solve,
    "pinv": check_pinv,
    "singular values": check_spectral,
}
