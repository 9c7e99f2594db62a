"""A forward model of the user's own, before it is used: a few of the rules of `check_operator`, for a few calls."""

import time
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from invdiff.checks.typical import smooth_images
from invdiff.contracts.compare import Broken
from invdiff.contracts.operator import rules_before_use
from invdiff.contracts.trial import OperatorTrial
from invdiff.contracts.verdict import in_words
from invdiff.engine.progress import duration
from invdiff.operators import BlackBox, CallableOperator, Operator
from invdiff.operators.core.base import of_black
from invdiff.operators.yours.as_operator import DeepinvOperator
from invdiff.operators.yours.black_box import called
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.samplers import Sampler

BATCH = 2
_tried: WeakKeyDictionary[Operator, set[tuple[int, ...]]] = WeakKeyDictionary()  # with the shapes that it passed on


def of_the_user(operator: Operator) -> bool:
    """Whether a part of it is code from outside this package."""
    wrappers = (CallableOperator, BlackBox, DeepinvOperator)
    parts = [part for part in operator.modules() if isinstance(part, Operator)]
    return any(isinstance(part, wrappers) or type(part).__module__.partition(".")[0] != "invdiff" for part in parts)


def check_callable(operator: Operator, prior: Prior, image_shape: tuple[int, ...]) -> None:
    """Raise ValueError, in one line, where a forward model of the user's breaks a rule that samplers rely on.

    prior        for images in its range
    image_shape  (C, H, W) that the operator should measure

    The rules: a row for each image, twice the same result, the images unchanged, no mixing of images, no module in
    training mode, autograd as `differentiable` says. They cost 6 calls, on 9 images, once for an operator and a shape.
    Operators of the package pass.
    """
    if not of_the_user(operator) or image_shape in _tried.get(operator, ()):
        return
    if operator.mismatch(image_shape) is not None:  # said with the problem
        return
    images = smooth_images(prior, tuple(image_shape), BATCH)
    name = _name(operator)
    for module in operator.modules():
        if module.training and isinstance(module, (_BatchNorm, _DropoutNd)):
            raise ValueError(
                f"{name} holds a {type(module).__name__} in training mode, which measures other images differently; "
                "call .eval() on its module"
            )
    one_each = operator.select(torch.arange(BATCH) % operator.images) if operator.images > 1 else operator
    trial = OperatorTrial(one_each, image_shape, images, name)
    for rule in rules_before_use():
        try:
            rule(trial)
        except Broken as error:
            raise ValueError(str(error)) from error
        except Exception as error:  # of the user's code
            if isinstance(error, ValueError) and str(error).startswith(name):  # of the wrapper around it
                raise
            raise ValueError(f"{name} {in_words(error)}{one_at_a_time(operator, images)}") from error
    _tried.setdefault(operator, set()).add(image_shape)


def calls_ahead(problem: InverseProblem, sampler: Sampler, num_samples: int) -> str | None:
    """One line on what a run spends on a black box: calls, from one that is timed; None for any other operator."""
    cost, rows = sampler.expected_cost(), problem.images * num_samples
    if problem.operator.differentiable or not cost.operator_calls:
        return None
    began = time.perf_counter()
    of_black(problem.operator, problem.image_shape, problem.y.device)
    each = time.perf_counter() - began
    calls = cost.operator_calls * rows
    return (
        f"{sampler.name()} measures {calls} images with {_name(problem.operator)}, about {duration(calls * each)} at "
        f"{each:.2g} s each, besides {cost.forwards * rows} network calls; fewer samples, steps or particles take less"
    )


def _name(operator: Operator) -> str:
    """Of the function, where the operator is one."""
    function = getattr(operator, "function", None)
    return type(operator).__name__ if function is None else called(function)


def one_at_a_time(operator: Operator, images: Tensor) -> str:
    """A hint where one image can be measured and several cannot, or arrays of NumPy and not tensors."""
    one = images[:1]
    if _measures(operator.select(torch.tensor([0])), one):
        return (
            "; it measures one image but not several: write it for a batch (B, C, H, W), or for one NumPy image with "
            "BlackBox (operator.numpy=true)"
        )
    if isinstance(operator, CallableOperator) and _measures(BlackBox(cast(Any, operator.function)), one):
        return "; it measures one image (C, H, W) of NumPy: use BlackBox (operator.numpy=true)"
    return ""


@torch.no_grad()
def _measures(operator: Operator, images: Tensor) -> bool:
    try:
        operator(images.clone())
    except Exception:  # code of a user; the caller raises the first error, which a hint would only complete
        return False
    return True
