"""Random projections: what is drawn is what the benchmark says, another matrix for each image."""

import pytest
import torch

from invdiff.operators import RandomProjection


def test_the_decomposition_is_that_of_the_matrix() -> None:
    operator = RandomProjection(image_shape=(1, 1, 9), measurements=3, images=2, seed=4)
    x = torch.randn(2, 1, 1, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    along = operator.u(operator.singular_values(x) * operator.vt(x))
    assert torch.allclose(along, operator(x))
    assert torch.allclose(operator.v(operator.vt(x)), x)
    for i in range(2):
        values = torch.linalg.svdvals(operator.matrix[i])
        assert torch.allclose(values, operator.singular_values(x)[i].flatten()[:3])


def test_every_image_has_a_matrix_whatever_the_others_are() -> None:
    many = RandomProjection(image_shape=(1, 1, 8), measurements=2, images=5)
    few = RandomProjection(image_shape=(1, 1, 8), measurements=2, images=3)
    assert torch.equal(many.matrix[:3], few.matrix)
    assert not torch.allclose(many.matrix[0], many.matrix[1])
    assert torch.equal(many.select(torch.tensor([2])).matrix[0], many.matrix[2])
    assert not torch.equal(
        many.matrix, RandomProjection(image_shape=(1, 1, 8), measurements=2, images=5, seed=1).matrix
    )


def test_singular_values_and_noise_are_those_of_the_benchmark() -> None:
    """Uniform on [0, 1], and a uniform fraction of the largest; in units of the noise, the same problem."""
    raw = RandomProjection(image_shape=(1, 1, 8), measurements=1, images=400, normalised=False)
    share = raw.noise / raw.values[:, 0]
    for numbers in (raw.values[:, 0], share):
        assert numbers.min() >= 0
        assert numbers.max() <= 1
        assert numbers.mean().item() == pytest.approx(0.5, abs=0.06)  # 4 standard errors
    units = RandomProjection(image_shape=(1, 1, 8), measurements=1, images=400)
    assert torch.allclose(units.matrix * raw.noise[:, None, None], raw.matrix)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_shape": (1, 8)}, r"image_shape must be \(C, H, W\)"),
        ({"measurements": 0}, "measurements must be an integer from 1 to 8, got 0"),
        ({"measurements": 9}, "measurements must be an integer from 1 to 8, got 9"),
        ({"images": 0}, "images must be an integer >= 1, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RandomProjection(**{"image_shape": (1, 1, 8)} | settings)
