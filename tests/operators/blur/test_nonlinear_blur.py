"""Motion blur in linear light: the response curve, its gradient where samplers go, and what it means for images."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff.contracts import check_operator
from invdiff.operators import MotionBlur, NonlinearBlur

Normal = Callable[..., Tensor]


def small(**options: float) -> NonlinearBlur:
    return NonlinearBlur(kernel_size=9, **options)


def test_response_and_its_inverse() -> None:
    """Far outside [0, 1] too."""
    operator = small()
    x = torch.linspace(-3, 4, 701, dtype=torch.float64)
    torch.testing.assert_close(operator.display(operator.light(x)), x, rtol=0, atol=1e-12)
    ends = operator.light(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-14)


def test_response_is_near_the_power_law() -> None:
    x = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert (small().light(x) - x**2.2).abs().max() < 0.03
    torch.testing.assert_close(small(toe=1e-6).light(x), x**2.2, rtol=0, atol=1e-5)


@pytest.mark.parametrize("curve", ["light", "display"])
def test_slope_has_no_jump(curve: str) -> None:
    """At the joints 0.04 and 1 as well; exactly there autograd must not lose a slope nor count it twice."""
    operator = small()
    function = getattr(operator, curve)
    low = 0.04 if curve == "light" else float(operator.light(torch.tensor(0.04, dtype=torch.float64)))
    for joint in (0.0, low, 1.0):
        x = (joint + torch.tensor([-1e-7, 0.0, 1e-7], dtype=torch.float64)).requires_grad_()
        (slope,) = torch.autograd.grad(function(x).sum(), x)
        torch.testing.assert_close(slope, slope[:1].expand(3), rtol=1e-4, atol=0)


@pytest.mark.parametrize("options", [{}, {"exposure": 2.0, "shoulder": 0.05}, {"boundary": "circular", "gamma": 2.4}])
def test_gradient_is_that_of_finite_differences(options: dict, normal: Normal) -> None:
    """In and far outside the range of images."""
    operator = small(**options)
    for spread in (0.3, 3.0):
        x, d = 0.5 + spread * normal(2, 1, 12, 11), normal(2, 1, 12, 11, seed=1)
        v = normal(2, 1, 12, 11, seed=2)
        h = 1e-6
        wanted = ((operator(x + h * d) - operator(x - h * d)) / (2 * h) * v).sum()
        scale = ((operator(x + h * d) - operator(x - h * d)) / (2 * h)).norm() * v.norm()
        assert abs(float((operator.vjp(x, v) * d).sum() - wanted)) <= 1e-6 * float(scale)


def test_gamma_one_is_motion_blur(normal: Normal) -> None:
    x = normal(2, 3, 12, 12)
    torch.testing.assert_close(small(gamma=1.0, seed=3)(x), MotionBlur(kernel_size=9, seed=3)(x), rtol=0, atol=1e-12)


def test_bright_light_spreads_further_than_in_display_values() -> None:
    """A white point on black is brighter after a blur in linear light: what makes the problem nonlinear."""
    x = torch.zeros(1, 1, 16, 16)
    x[..., 8, 8] = 1
    assert small()(x).sum() > 1.5 * MotionBlur(kernel_size=9)(x).sum()


@pytest.mark.parametrize("level", [0.0, 0.02, 0.4, 1.0])
def test_keeps_grey(level: float) -> None:
    x = torch.full((1, 1, 28, 28), level)
    torch.testing.assert_close(NonlinearBlur()(x), x, rtol=0, atol=1e-5)


def test_sensor_saturates_smoothly() -> None:
    operator = small(exposure=4.0, shoulder=0.05)
    x = torch.linspace(0, 1, 21, dtype=torch.float64)[:, None, None, None].expand(-1, 1, 9, 9)
    y = operator(x)[:, 0, 4, 4]
    assert (y.diff() >= 0).all()
    assert 0.99 < y[-1] <= 1
    assert small(exposure=4.0)(x)[-1].max() > 1.5  # without a shoulder it does not


def test_a_path_per_image() -> None:
    operator = NonlinearBlur.random(images=3, seed=1, kernel_size=9, exposure=1.2, shoulder=0.1, boundary="zero")
    check_operator(operator, (3, 12, 10))
    assert torch.equal(operator.kernel, MotionBlur.random(images=3, seed=1, kernel_size=9).kernel)
    assert (operator.exposure, operator.shoulder, operator.boundary) == (1.2, 0.1, "zero")


def test_first_guess_is_the_measurement(normal: Normal) -> None:
    y = normal(1, 1, 8, 8)
    assert torch.equal(small().first_guess(y), y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exposure": 0.0}, "exposure must be > 0, got 0"),
        ({"shoulder": -1.0}, "shoulder must be >= 0, got -1"),
        ({"gamma": 0.5}, "gamma must be >= 1, got 0.5"),
        ({"toe": 0.0}, r"toe must be a display value in \(0, 1\), got 0"),
        ({"toe": 1.0}, r"toe must be a display value in \(0, 1\), got 1"),
        ({"boundary": "mirror"}, "boundary must be one of reflect, .* got 'mirror'"),
    ],
)
def test_bad_input(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"nonlinear_blur: {message}"):
        NonlinearBlur(**arguments)
