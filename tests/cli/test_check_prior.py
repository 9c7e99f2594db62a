"""`invdiff check-prior`: what it says of priors, rightly and wrongly declared, and the ways in."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., Any]

# Denoisers of independent pixels N(0.6, 0.1^2), which is what the images below are.
NETWORK = '''
import torch
from invdiff import load_prior
from invdiff.shapes import sigma_per_row

digits = load_prior("digits")


def right(x, sigma, mean=0.6, std=0.1):
    return mean + (x - mean) / (1 + sigma_per_row(sigma / std, x) ** 2)


def symmetric(x, sigma):
    """Trained on [-1, 1]."""
    return 2 * right((x + 1) / 2, sigma / 2) - 1


def bytes_(x, sigma):
    return 255 * right(x / 255, sigma / 255)


def noise(x, sigma):
    return (x - right(x, sigma)) / sigma_per_row(sigma, x)


def residual(x, sigma):
    return x - right(x, sigma)


def half(x, sigma):
    """Told the level of images in [-1, 1]."""
    return right(x, sigma / 2)


def nothing(x, sigma, factor=1.0):
    return factor * x


def mixes(x, sigma):
    return right(x, sigma) + 0.01 * x.mean()


def crash(x, sigma):
    return x @ torch.zeros(3, 3)


class Made:
    def __init__(self, mean=0.5):
        self.mean = mean

    def __call__(self, x, sigma):
        return right(x, sigma, self.mean)


threshold = 3
'''


@pytest.fixture(autouse=True)
def network(tmp_path: Path) -> Iterator[None]:
    """`my_network.py` in the folder where the command runs; what loading it leaves in this process goes again."""
    (tmp_path / "my_network.py").write_text(NETWORK)
    paths = list(sys.path)
    yield
    sys.path[:] = paths
    sys.modules.pop("my_network", None)


@pytest.fixture
def check(invdiff: Run, tmp_path: Path, without_picture: None) -> Run:
    """`check("right", ...)` checks what has this name in `my_network.py` on two images for it, without samples."""
    (tmp_path / "white").mkdir()
    for i in range(2):
        values = 0.6 + 0.1 * np.random.default_rng(i).standard_normal((32, 32))
        Image.fromarray((255 * values).round().clip(0, 255).astype(np.uint8)).save(tmp_path / "white" / f"{i}.png")
    common = ("prior.shape=[1,32,32]", "input=white", "output=out", "contract=false", "grid=0")
    return lambda name, *words: invdiff(
        "check-prior", "prior=callable", f"prior.file=my_network.py:{name}", *common, *words
    )


@pytest.fixture
def without_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """No check.png: drawing it takes most of the time."""
    for name in ("picture", "save_figure"):
        monkeypatch.setattr(f"invdiff.cli.check_prior_command.{name}", lambda *_: None)


def report(folder: str = "out") -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"check.json holds {constant}, which is no JSON")

    return json.loads((Path(folder) / "check.json").read_text(), parse_constant=refuse)


def verdict(rule: str) -> tuple[str, str]:
    (found,) = (v for v in report()["verdicts"] if v["rule"] == rule)
    return found["result"], found["words"]


# -- what it says ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_bundled_prior(invdiff: Run, pictures: Path) -> None:
    words = ("prior=digits", "images=2", "grid=1", "steps=12", f"input={pictures}", "output=out")
    done = invdiff("check-prior", *words)
    assert (done.code, done.err) == (0, "")
    assert "EDMPrior on 2 image(s) of 1x32x32: a, b" in done.out
    assert "one image takes" in done.out
    found = report()
    assert {v["rule"]: v["result"] for v in found["verdicts"]} == {
        "contract": "passed",
        "denoises": "passed",
        "keeps a clean image": "passed",
        "stays in the value range": "passed",
        "range and parametrisation": "passed",
        "draws images": "passed",
    }
    assert (found["shape"], found["channels"], found["images"]) == ([1, 32, 32], 1, ["a", "b"])
    assert [level["sigma"] for level in found["levels"]] == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]
    assert all(level["denoised"] > level["noisy"] for level in found["levels"])
    assert found["cost"]["parameters"] > 100_000
    assert 0 < found["cost"]["forward"] < found["cost"]["vjp"]
    assert {p.name for p in Path("out").iterdir()} == {"check.png", "check.json"}


def test_a_function_rightly_declared(check: Run) -> None:
    assert check("right").code == 0
    assert verdict("range and parametrisation") == ("passed", "no other reading of it denoises better")
    assert verdict("denoises")[0] == "passed"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("symmetric", "it takes images in [-1, 1], not in [0, 1] (its value_range)"),
        ("bytes_", "it takes images in [0, 255], not in [0, 1] (its value_range)"),
        ("noise", "it gives the noise of unit variance; ParametrisedPrior(..., 'epsilon') takes it"),
        ("residual", "it gives the noise (x - D is the image)"),
        ("half", "it expects twice the noise level"),
    ],
)
def test_another_reading_denoises_better(check: Run, name: str, said: str) -> None:
    done = check(name, "levels=[0.1,0.2]", "prior.sigma_range=[0.001,1000]")
    result, words = verdict("range and parametrisation")
    assert result == "warning"
    assert f"dB better if {said}" in words
    assert "dB better if" in done.out


def test_the_right_range_is_accepted(check: Run) -> None:
    """What was a warning is none once the range is given."""
    assert check("symmetric", "prior.value_range=[-1,1]", "levels=[0.2]").code == 0
    assert verdict("range and parametrisation")[0] == "passed"


def test_a_denoiser_that_does_nothing(check: Run) -> None:
    done = check("nothing", "levels=[0.1,0.5]")
    assert done.code == 1
    assert done.err == "invdiff: CallablePrior breaks a rule: denoises\n"
    assert "is its image range, its parametrisation or its noise level declared wrongly" in verdict("denoises")[1]


def test_not_a_number(check: Run) -> None:
    done = check("nothing", "prior.parameters={factor:nan}", "levels=[0.1]")
    assert done.code == 1
    assert verdict("denoises")[0] == "failed"
    assert report()["levels"][0]["denoised"] is None


def test_far_outside_the_range(check: Run) -> None:
    check("nothing", "prior.parameters={factor:3}", "levels=[0.01,0.5]")
    assert verdict("keeps a clean image")[0] == "warning"
    assert verdict("stays in the value range")[0] == "warning"


def test_the_contract_is_part_of_it(check: Run) -> None:
    done = check("mixes", "contract=true", "levels=[0.2]")
    assert done.code == 1
    result, words = verdict("contract")
    assert result == "failed"
    assert "in a batch" in words or "one per row differ" in words


def test_a_prior_that_raises(check: Run) -> None:
    done = check("crash", "contract=true")
    assert done.code == 1
    assert "breaks a rule: contract: raises RuntimeError" in done.err
    assert "my_network.py, line" in done.err
    assert report()["levels"] == []


def test_a_prior_that_ends_early_cannot_draw(check: Run) -> None:
    check("right", "prior.sigma_range=[0.01,0.5]", "grid=1", "steps=2")
    result, words = verdict("draws images")
    assert (result, "ends at sigma = 0.5" in words) == ("warning", True)
    assert max(level["sigma"] for level in report()["levels"]) == 0.5


def test_a_class_with_parameters(check: Run) -> None:
    assert check("Made", "prior.parameters={mean:0.6}", "levels=[0.2]").code == 0
    assert report()["target"] == "invdiff.priors.from_file.prior_from_file"


def test_images_of_the_prior_itself(invdiff: Run, without_picture: None) -> None:
    done = invdiff("check-prior", "prior=digits", "output=out", "grid=0", "contract=false", "images=1", "levels=[0.2]")
    assert (done.code, report()["images"]) == (0, ["generated_000"])


def test_photographs_for_any_size(invdiff: Run, colour_weights: Path, without_picture: None) -> None:
    """Two of them, at the size asked for; an untrained network need not denoise."""
    words = (f"prior.weights={colour_weights}", "size=32", "images=2", "levels=[0.2]", "grid=0", "contract=false")
    assert invdiff("check-prior", "prior=photo", *words, "output=out").code in (0, 1)
    assert report()["images"] == ["cat", "astronaut"]
    assert report()["shape"] is None


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prior=callable"], ["give file=", "my_network.py:denoise"]),
        (
            ["prior=callable", "prior.file=my_network.py:right", "prior.parameters={a:1}"],
            ["does not take these parameters", "'a'"],
        ),
        (
            ["prior=callable", "prior.file=my_network.py:digits", "prior.parameters={a:1}"],
            ["is a EDMPrior and takes no parameters"],
        ),
        (["prior=deepinv_drunet"], ["give weights=", "DRUNet"]),
        (["images=0"], ["images must be an integer >= 1"]),
        (["contract=1"], ["contract must be true or false"]),
        (["levels=0.1"], ["levels must be a list"]),
        (["levels=[nan]"], ["levels must be a list of numbers > 0"]),
        (["input=absent.png"], ["absent.png"]),
        (["input=my_network.py", "data=cat"], ["not both"]),
        (["device=tpu"], ["device=tpu cannot be used here"]),
    ],
)
def test_bad_input(invdiff: Run, files: Run, words: list[str], said: list[str]) -> None:
    before = files()
    done = invdiff("check-prior", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("invdiff: error: ")
    assert done.err.count("\n") == 1
    for part in said:
        assert part in done.err
    assert files() == before


@pytest.mark.slow
def test_help(invdiff: Run) -> None:
    done = invdiff("check-prior", "--help")
    assert (done.code, done.err) == (0, "")
    for words in ("usage: invdiff check-prior", "prior: ", "diffusers", "How to read it", "Exit code 0"):
        assert words in done.out
    assert "  check-prior  " in invdiff().out.replace("check-prior   ", "check-prior  ")
