"""Operators in a Python file of the user's."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from invdiff.contracts import check_operator
from invdiff.operators import (
    BlackBox,
    CallableOperator,
    LinearBlackBox,
    LinearCallableOperator,
    MatrixOperator,
    Operator,
    from_file,
)

SHAPE = (1, 8, 8)
CODE = """
import numpy as np
import torch
import helper_of_camera
from invdiff.operators import Denoising, Operator

class Camera(Operator):
    def __init__(self, gain=helper_of_camera.GAIN):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        return self.gain * x

class Network(torch.nn.Module):
    def forward(self, x):
        return 2 * x

def half(x, *, factor=0.5):
    return factor * x

ready = Denoising()
matrix = np.ones((3, 64))
number = 3
"""


@pytest.fixture(autouse=True)
def camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The path of a file with an operator, which imports its neighbour."""
    monkeypatch.chdir(tmp_path)
    paths, modules = list(sys.path), set(sys.modules)
    Path("helper_of_camera.py").write_text("GAIN = 3\n")
    Path("camera.py").write_text(CODE)
    yield tmp_path / "camera.py"
    sys.path[:] = paths
    for name in set(sys.modules) - modules:
        if name in ("camera", "helper_of_camera", "taken"):
            del sys.modules[name]


def test_a_class(camera: Path) -> None:
    x = torch.ones(2, *SHAPE)
    for operator in (from_file("camera.py", "Camera"), from_file(f"{camera}:Camera"), from_file(camera, "Camera")):
        assert torch.equal(operator(x), 3 * x)
    assert torch.equal(from_file("camera.py:Camera", parameters={"gain": 2})(x), 2 * x)
    check_operator(from_file("camera.py:Camera"), SHAPE)


def test_the_only_operator_needs_no_name() -> None:
    Path("camera.py").write_text(CODE.replace("ready = Denoising()", ""))
    assert type(from_file("camera.py")).__name__ == "Camera"


def test_what_else_there_may_be() -> None:
    x = torch.ones(2, *SHAPE)
    assert isinstance(from_file("camera.py:ready"), Operator)
    assert isinstance(from_file("camera.py:matrix", image_shape=SHAPE), MatrixOperator)
    assert torch.equal(from_file("camera.py:Network")(x), 2 * x)
    function = from_file("camera.py:half", parameters={"factor": 0.25})
    assert isinstance(function, CallableOperator)
    assert torch.equal(function(x), x / 4)
    assert isinstance(from_file("camera.py:half", linear=True, image_shape=SHAPE), LinearCallableOperator)
    assert isinstance(from_file("camera.py:half", numpy=True), BlackBox)


def test_a_function_with_its_adjoint() -> None:
    """The parameters go to both."""
    words = {"linear": True, "adjoint": "half", "image_shape": SHAPE, "parameters": {"factor": 4.0}}
    for operator in (from_file("camera.py:half", **words), from_file("camera.py:half", numpy=True, **words)):
        assert isinstance(operator, (LinearCallableOperator, LinearBlackBox))
        check_operator(operator, SHAPE)


def test_a_file_that_was_changed_is_read_again() -> None:
    assert from_file("camera.py:Camera").gain == 3
    again = from_file("camera.py:Camera")
    assert type(again) is type(from_file("camera.py:Camera"))
    Path("camera.py").write_text(CODE.replace("helper_of_camera.GAIN", "5"))
    os.utime("camera.py", ns=(1, 1))  # whatever the clock says
    assert from_file("camera.py:Camera").gain == 5


def test_it_can_be_sent_to_another_process() -> None:
    """One that is started from here has the folder in its path; this is what `multiprocessing` does."""
    text = pickle.dumps(from_file("camera.py:Camera"))
    code = f"import pickle, sys; sys.path += {sys.path!r}; print(pickle.loads({text!r}).gain)"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, timeout=120)
    assert done.stdout == "3\n", done.stderr


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("camera.py:number", "camera.py: number: .*, got int"),
        ("camera.py:Other", "camera.py has no 'Other'; the file defines Camera, Network, half, ready"),
        ("camera.py", "the operator must be named, as in camera.py:NAME; the file defines Camera, ready"),
        (
            "random.py:f",
            r"random.py has the name of another module \(.*random.py\); rename it, for example random_operator.py",
        ),
        ("broken.py:f", r"broken.py cannot be loaded: SyntaxError: .*line 2"),
        ("raises.py:f", "raises.py cannot be loaded: NameError: name 'nothing' is not defined"),
        ("absent.py:f", "no such file: absent.py"),
        ("camera", "file must be a Python file"),
        ("camera.py:matrix", r"matrix: image_shape=\(C, H, W\) of the images is required"),
    ],
)
def test_bad_files(file: str, words: str) -> None:
    Path("random.py").write_text("f = 1\n")
    Path("broken.py").write_text("\nf = (\n")
    Path("raises.py").write_text("f = nothing\n")
    with pytest.raises(ValueError, match=words):
        from_file(file)
    assert not {"broken", "raises"} & set(sys.modules)


def test_bad_parameters() -> None:
    for name, given in (("ready", "Denoising"), ("matrix", "ndarray")):
        with pytest.raises(ValueError, match=f"{name} is a {given} and takes no parameters"):
            from_file(f"camera.py:{name}", parameters={"gain": 2})
    with pytest.raises(ValueError, match="Camera does not take these parameters: got an unexpected keyword"):
        from_file("camera.py:Camera", parameters={"gian": 2})
    with pytest.raises(ValueError, match="half is linear and of arrays, which requires adjoint= and image_shape="):
        from_file("camera.py:half", numpy=True, linear=True)
    with pytest.raises(ValueError, match="contradicts name=half"):
        from_file("camera.py:Camera", "half")
