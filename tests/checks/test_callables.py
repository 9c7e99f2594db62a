"""An operator of the user's own is tried before sampling."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from invdiff.checks import check_callable
from invdiff.operators import BlackBox, Denoising, as_operator, from_file
from invdiff.priors import Prior

SHAPE = (1, 64, 64)


class Counting(nn.Module):
    """The identity, and how many images it saw in how many calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return 1 * x


def in_place(x: Tensor) -> Tensor:
    x[..., :16] = 0
    return x


def clamps(x: Tensor) -> Tensor:
    return x.clamp_(0.3, 0.6)


def mixes(x: Tensor) -> Tensor:
    return x - x.mean()


def normalises(x: Tensor) -> Tensor:
    return x / x.std()


def detached(x: Tensor) -> Tensor:
    return x.detach() ** 2


def through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(x.detach().numpy()))


def adds_noise(x: Tensor) -> Tensor:
    return x + 0.1 * torch.randn_like(x)


def silent(x: Tensor) -> Tensor:
    if len(x) > 1:
        raise AssertionError
    return x


def strict(x: Tensor) -> Tensor:
    if x.shape[0] != 1:
        raise RuntimeError
    return x


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (in_place, "in_place changes its input images"),
        (clamps, "clamps changes its input images"),
        (mixes, "mixes: image 0 measured alone differs"),
        (normalises, "normalises: image 0 measured alone differs"),
        (adds_noise, "adds_noise gives another measurement of the same images at the second call"),
        (nn.functional.dropout, "dropout gives another measurement"),
        (detached, "detached has differentiable = True, but autograd does not get through it"),
        (through_numpy, "through_numpy has differentiable = True"),
        (
            silent,
            r"silent raises AssertionError \(test_callables.py, line \d+\); it measures one image but not several",
        ),
        (strict, r"strict raises RuntimeError \(test_callables.py, line \d+\); it measures one image"),
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.Dropout()), "Dropout in training mode"),
        (nn.BatchNorm2d(1), "BatchNorm2d in training mode"),
        (lambda x: x.sum(), "must return"),
    ],
)
def test_broken_functions_are_refused_in_one_line(function, words: str, prior: Prior) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words) as error:
        check_callable(as_operator(function, image_shape=SHAPE), prior, SHAPE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "operator",
    [
        Denoising(),
        as_operator(torch.square),
        as_operator(detached, differentiable=False),
        as_operator(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Dropout()).eval()),
        BlackBox(np.tanh),
    ],
)
def test_sound_operators_pass(operator, prior: Prior) -> None:  # type: ignore[no-untyped-def]
    check_callable(operator, prior, SHAPE)


def test_the_cost(prior: Prior) -> None:
    function = Counting().eval()
    check_callable(as_operator(function), prior, SHAPE)
    assert len(function.calls) == 6
    assert sum(function.calls) == 9


def test_a_function_of_a_file(tmp_path: Path, prior: Prior) -> None:
    file = tmp_path / "camera.py"
    file.write_text('def camera(x):\n    return x[:, "red"]\n\n\ndef sound(x):\n    return x / 2\n')
    with pytest.raises(ValueError, match=r"camera raises \w+: .*\(camera.py, line 2\)"):
        check_callable(from_file(file, "camera"), prior, SHAPE)
    check_callable(from_file(file, "sound"), prior, SHAPE)
