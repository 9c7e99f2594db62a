"""Objects are described by what they were made with: equal laws alike on every machine, others not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from invdiff.operators import (
    MRI,
    Composition,
    GaussianBlur,
    GaussianNoise,
    Inpainting,
    MotionBlur,
    PoissonNoise,
    as_operator,
)
from invdiff.operators.yours.from_file import from_file
from invdiff.recorded import Recorded, description, is_opaque, response

ONES = torch.ones(4, 4)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: Inpainting(), lambda: Inpainting(keep=0.3, seed=5)),
        (lambda: MRI(), lambda: MRI(acceleration=4.0)),
        (lambda: MotionBlur(seed=1), lambda: MotionBlur.random(images=3, seed=2)),
        (lambda: GaussianNoise(0.1), lambda: GaussianNoise(torch.tensor(0.1))),
        (lambda: Inpainting(mask=ONES), lambda: Inpainting(mask=ONES.clone()).select(torch.tensor([0, 0]))),
    ],
)
def test_equal_laws_have_equal_descriptions(one: Callable[[], Recorded], other: Callable[[], Recorded]) -> None:
    assert json.loads(json.dumps(description(one()))) == json.loads(json.dumps(description(other())))


def test_other_laws_have_other_descriptions() -> None:
    noises = [GaussianNoise(0.1), GaussianNoise(0.11), PoissonNoise(0.1)]
    blur = GaussianBlur(std=1.0)
    operators = [
        *(Inpainting(), Inpainting(keep=0.4), Inpainting(box=2), Inpainting(mask=ONES), Inpainting(mask=ONES.triu())),
        *(blur, GaussianBlur(std=2.0), Composition([Inpainting(), blur]), Composition([Inpainting(keep=0.4), blur])),
    ]
    found = [json.dumps(description(made)) for made in (*noises, *operators)]
    assert len(set(found)) == len(found)


def test_a_function_of_the_users_file_counts_with_the_contents_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "my_lens.py"
    path.write_text("def lens(x):\n    return 2 * x\n")
    before = description(from_file(path, "lens"))
    assert not is_opaque(before)
    assert description(from_file(path, "lens")) == before
    path.write_text("def lens(x):\n    return 3 * x  # another\n")
    assert description(from_file(path, "lens")) != before


def test_a_function_without_a_file_is_opaque_and_told_apart_by_its_response() -> None:
    double, triple = (as_operator(lambda x, n=n: n * x, image_shape=(1, 4, 4)) for n in (2, 3))
    assert is_opaque(description(double))
    probe = torch.rand(1, 1, 4, 4)
    assert response(double(probe)) == response(double(probe)) != response(triple(probe))
    assert response(torch.complex(probe, probe)) != response(torch.complex(probe, -probe))
