"""`invdiff check-operator`: what it says of operators, sound and broken, and the ways in from the command line."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

Run = Callable[..., Any]

CAMERA = '''
import numpy as np
import torch
from invdiff.operators import LinearOperator, Operator


class Shadow(LinearOperator):
    """Right with gain 1; its adjoint forgets any other."""

    def __init__(self, gain: float = 1.0):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        return self.gain * x.cumsum(-1)

    def adjoint(self, y):
        return y.flip(-1).cumsum(-1).flip(-1)

    def image_shape(self, measurement_shape):
        return measurement_shape


class InPlace(Operator):
    def forward(self, x):
        with torch.no_grad():
            x.clamp_(0, 0.5)
        return x * 2


class Noisy(Operator):
    def forward(self, x):
        return x + 0.01 * torch.randn_like(x)


class Seeds(Operator):
    def forward(self, x):
        np.random.seed(0)
        return x + torch.from_numpy(np.random.rand(*x.shape[1:]).astype(np.float32))


class Detached(Operator):
    def forward(self, x):
        return torch.from_numpy(np.tanh(x.detach().numpy()))


class Mixes(Operator):
    def forward(self, x):
        return x / x.mean()


def darker(x, factor=0.5):
    return factor * x


def simulator(image, power=2):
    return image[0, ::2] ** power


def crash(x):
    return x @ torch.zeros(3, 3)


threshold = 3
'''


@pytest.fixture(autouse=True)
def camera(tmp_path: Path) -> Iterator[None]:
    """`my_camera.py` in the folder where the command runs; what loading it leaves in this process goes again."""
    (tmp_path / "my_camera.py").write_text(CAMERA)
    paths = list(sys.path)
    yield
    sys.path[:] = paths
    sys.modules.pop("my_camera", None)


@pytest.fixture
def check(invdiff: Run) -> Run:
    """`check("Shadow", ...)` checks what has this name in `my_camera.py`."""
    return lambda name, *words: invdiff(
        "check-operator", "operator=callable", f"operator.file=my_camera.py:{name}", *words
    )


def verdict(out: str, rule: str) -> str:
    """The row of a rule, with what stands in the lines that it is folded into."""
    lines = out.splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.startswith("│") and line.split("│")[1].strip() == rule)
    cells = [lines[start].split("│")[1:-1]]
    for line in lines[start + 1 :]:
        if not line.startswith("│ " + " " * len(rule)):
            break
        cells.append(line.split("│")[1:-1])
    return " ".join(row[column].strip() for column in (1, 2) for row in cells).strip()


# -- what it says ------------------------------------------------------------------------------------------------------


def test_a_sound_operator(check: Run, files: Run) -> None:
    done = check("Shadow")
    assert (done.code, done.err) == (0, "")
    assert "Shadow on images of 1x32x32" in done.out
    assert verdict(done.out, "adjoint") == "passed"
    assert verdict(done.out, "singular values") == "n/a it has no singular value decomposition"
    assert "linear, differentiable; y is 1x32x32, real; one image takes: A " in done.out
    assert "FAILED" not in done.out
    assert files() == {"my_camera.py"}


def test_what_it_can_be_used_with(check: Run) -> None:
    lines = [" ".join(line.split()) for line in check("simulator", "operator.numpy=true").out.splitlines()]
    assert "sampler enkg yes" in lines
    assert "sampler dps no: it needs a differentiable operator (BlackBox is a black box)" in lines
    assert "prior digits yes" in lines
    assert any(line.startswith("prior photo no: this prior expects 3 channels") for line in lines)


@pytest.mark.parametrize(
    ("words", "rule", "said"),
    [
        (["Shadow", "operator.parameters={gain:2}"], "adjoint", "adjoint is not the transpose: <Ax, v> - <x, A'v> is"),
        (["InPlace"], "leaves the image as it is", "InPlace changes its input images; replace in-place"),
        (
            ["Noisy"],
            "same image, same y",
            "random choices belong in the constructor, from a seed, and noise in a noise",
        ),
        (["Noisy"], "no global randomness", "draws from the global random state of torch; draw in the constructor"),
        (["Seeds"], "no global randomness", "draws from the global random state of NumPy"),
        (
            ["Detached"],
            "gradient",
            "autograd does not get through it (detach, no_grad, numpy, integers); set different",
        ),
        (["Mixes"], "images do not mix", "measured alone differs from the same image in a batch (no sums, norms"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_broken_operator(check: Run, words: list[str], rule: str, said: str) -> None:
    done = check(*words)
    assert done.code == 1
    found = verdict(done.out, rule)
    assert found.startswith("FAILED")
    assert said in found
    assert done.err.startswith(f"invdiff: {words[0]} breaks ")
    assert rule in done.err
    assert done.err.count("\n") == 1


def test_one_that_raises(check: Run) -> None:
    """The place is named, once, and what to do where only the size of the image was wrong."""
    done = check("crash")
    assert done.code == 1
    line = CAMERA.splitlines().index("    return x @ torch.zeros(3, 3)") + 1
    assert (
        f"raises RuntimeError: mat1 and mat2 shapes cannot be multiplied (96x32 and 3x3) (my_camera.py, line {line})"
        in (" ".join(done.out.replace("│", " ").split()))
    )
    assert verdict(done.out, "pickle") == "n/a not checked"
    assert "if 1x32x32 is no image for it, give image_shape=[C,H,W]" in done.err
    assert check("crash", "image_shape=[1,4,3]").code == 0


def test_a_sweep_goes_on_after_a_broken_one(invdiff: Run) -> None:
    file = "operator.file=my_camera.py:crash,my_camera.py:Shadow"
    done = invdiff("check-operator", "operator=callable", file, "-m", "output=out")
    assert done.code == 1
    assert "Shadow on images of" in done.out
    assert done.err.startswith("invdiff: job 0 (operator=callable")


def test_ctrl_c(check: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.cumsum", interrupted)
    monkeypatch.setattr(torch.Tensor, "cumsum", interrupted)
    assert (check("Shadow").code, check("Shadow").err) == (130, "invdiff: interrupted\n")


# -- the ways in -------------------------------------------------------------------------------------------------------


def test_a_matrix_file(invdiff: Run) -> None:
    scipy.sparse.save_npz("A.npz", scipy.sparse.random(30, 64, density=0.2, rng=np.random.default_rng(0)))
    done = invdiff("check-operator", "operator=matrix", "operator.matrix=A.npz", "operator.image_shape=[1,8,8]")
    assert (done.code, done.err) == (0, "")
    assert "MatrixOperator on images of 1x8x8" in done.out


def test_a_function_with_parameters_reconstructs(invdiff: Run, arrays: Run, without_comparison: None) -> None:
    words = ["operator=callable", "operator.file=my_camera.py:darker", "operator.parameters={factor:0.25}"]
    words += ["prior=digits", "data=generated", "data.steps=1", "sampler=daps", "sampler.schedule.steps=2"]
    done = invdiff("reconstruct", *words, "num_samples=1", "output=out", "noise.sigma=0.001")
    assert (done.code, done.err) == (0, "")
    found = arrays("out")
    np.testing.assert_allclose(found["y"], 0.25 * found["x"], atol=0.01)


def test_a_target_in_the_folder(invdiff: Run) -> None:
    """A configuration of the user's names a class in a file beside it, which a console script does not see."""
    Path("conf/operator").mkdir(parents=True)
    Path("conf/operator/mine.yaml").write_text("# mine\n_target_: my_camera.Shadow\ngain: 1.0\n")
    done = invdiff(
        "check-operator", "--config-dir", "conf", "operator=mine", "image_shape=[1,8,8]", "trust=my_camera.Shadow"
    )
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["operator.file=null"], ["give file=", "my_camera.py:Camera"]),
        (["operator.file=absent.py:Shadow"], ["no such file: absent.py", "looked for in"]),
        (["operator.file=my_camera.py:Blurred"], ["has no 'Blurred'", "Shadow", "darker"]),
        (["operator.file=my_camera.py:darker", "operator.parameters={foo:1}"], ["darker", "unexpected", "'foo'"]),
        (["operator.file=my_camera.py:darker", "operator.linear=1"], ["operator.linear must be true or false"]),
        (["operator._target_=my_camera.Shadows"], ["operator._target_=my_camera.Shadows cannot be loaded", "Shadows"]),
        (["operator._target_=my_camera.darker", "~operator.file"], ["error"]),
        (["operator=matrix"], ["give matrix="]),
        (["operator=inpainting", "operator.box=300"], ["box", "image_shape=[C,H,W]"]),
        (["operator=inpainting", "image_shape=32"], ["image_shape must be [C,H,W]", "got 32"]),
    ],
)
def test_bad_input(invdiff: Run, files: Run, words: list[str], said: list[str]) -> None:
    before = files()
    done = invdiff("check-operator", *([] if words[0].startswith("operator=") else ["operator=callable"]), *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("invdiff: error: ")
    assert done.err.count("\n") == 1
    for part in said:
        assert part in done.err
    assert files() == before


@pytest.mark.slow
def test_help(invdiff: Run) -> None:
    done = invdiff("check-operator", "--help")
    assert (done.code, done.err) == (0, "")
    for words in ("usage: invdiff check-operator", "operator: ", "callable", "image_shape: null", "Exit code 0"):
        assert words in done.out
    assert "  check-operator  " in invdiff().out
