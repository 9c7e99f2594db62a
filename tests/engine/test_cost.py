"""The meter: every call is counted where it happens, once, per image."""

import pytest
import torch
from torch import Tensor

from invdiff import InverseProblem
from invdiff.contracts.toys import WhitePrior
from invdiff.engine.cost import MeteredPrior, metered_operator
from invdiff.operators import (
    CallableOperator,
    GaussianBlur,
    GaussianNoise,
    Inpainting,
    LinearCallableOperator,
    LinearOperator,
    Operator,
)
from invdiff.posterior import Cost
from invdiff.priors import EDMPrior, GaussianPrior

SHAPE = (1, 8, 8)


def images(count: int) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))


# -- the prior ---------------------------------------------------------------------------------------------------------


def test_forwards_count_images_and_not_calls() -> None:
    cost = Cost()
    prior = MeteredPrior(WhitePrior(), cost)
    prior.denoise(images(3), 0.5)
    prior(images(2), 0.5)
    prior.score(images(1), 0.5)
    assert (cost.forwards, cost.vjps) == (6, 0)


def test_vjps_are_counted_when_they_are_taken() -> None:
    """A graph costs nothing; each backward pass counts once, by `grad` or by `backward`."""
    cost = Cost()
    prior = MeteredPrior(WhitePrior(), cost)
    x = images(3).requires_grad_(True)
    x0 = prior.denoise(x, 0.5)
    assert (cost.forwards, cost.vjps) == (3, 0)
    torch.autograd.grad(x0.square().sum(), x, retain_graph=True)
    assert cost.vjps == 3
    x0.sum().backward()
    assert cost.vjps == 6
    assert cost.forwards == 3


def test_gradients_through_the_meter_are_those_of_the_prior() -> None:
    plain, metered = WhitePrior(), MeteredPrior(WhitePrior(), Cost())
    gradients = []
    for prior in (plain, metered):
        x = images(2).requires_grad_(True)
        gradients.append(torch.autograd.grad(prior.denoise(x, 0.3).pow(3).sum(), x)[0])
    assert torch.equal(*gradients)


def test_the_meter_shows_what_the_prior_is() -> None:
    prior = EDMPrior.example()
    prior.differentiable = False
    metered = MeteredPrior(prior, Cost())
    for name in ("shape", "channels", "sigma_range", "value_range", "differentiable"):
        assert getattr(metered, name) == getattr(prior, name)
    assert metered.mismatch((3, 16, 16)) == prior.mismatch((3, 16, 16))
    x = torch.rand(2, 1, 16, 16)
    assert torch.equal(metered.denoise(x, 0.3), prior.denoise(x, 0.3))


def test_bf16_is_for_networks_alone() -> None:
    """A closed form that is metered under bf16 keeps its digits; a network comes back in float32."""
    x = torch.rand(2, 1, 16, 16)
    exact = GaussianPrior.example()
    assert torch.equal(MeteredPrior(exact, Cost(precision="bfloat16")).denoise(x, 0.3), exact.denoise(x, 0.3))
    network = EDMPrior.example()
    found = MeteredPrior(network, Cost(precision="bfloat16")).denoise(x, 0.3)
    assert found.dtype == torch.float32
    assert not torch.equal(found, network.denoise(x, 0.3))


# -- the operator ------------------------------------------------------------------------------------------------------


def test_each_way_through_an_operator_counts_once() -> None:
    cost = Cost()
    operator = metered_operator(GaussianBlur(std=1.0, kernel_size=5), cost)
    assert isinstance(operator, LinearOperator)
    x = images(3)
    counts = []
    for call in (
        lambda: operator(x),
        lambda: operator.adjoint(x),
        lambda: operator.pinv(x),
        lambda: operator.solve(x, 0.1),
        lambda: operator.solve(x, rho=torch.full((3,), 0.1)),
    ):
        before = cost.operator_calls
        call()
        counts.append(cost.operator_calls - before)
    assert counts == [3] * 5


def test_direct_autograd_through_the_operator_is_counted() -> None:
    cost = Cost()
    operator = metered_operator(CallableOperator(torch.tanh, image_shape=SHAPE), cost)
    x = images(2).requires_grad_(True)
    y = operator(x)
    assert cost.operator_calls == 2
    torch.autograd.grad(y.square().sum(), x)
    assert cost.operator_calls == 4
    operator.vjp(images(2), torch.ones(2, *SHAPE))  # one call, one product
    assert cost.operator_calls == 8


def test_an_analytic_vjp_is_counted() -> None:
    class Square(Operator):
        def forward(self, x: Tensor) -> Tensor:
            return x**2

        def vjp(self, x: Tensor, v: Tensor) -> Tensor:
            return 2 * x * v

    cost = Cost()
    metered_operator(Square(), cost).vjp(images(3), images(3))
    assert cost.operator_calls == 3


def test_conjugate_gradients_pay_for_every_iteration() -> None:
    calls = 0

    def blur(x: Tensor) -> Tensor:
        nonlocal calls
        calls += x.shape[0]
        return GaussianBlur(std=1.0, kernel_size=5)(x)

    cost = Cost()
    operator = metered_operator(LinearCallableOperator(blur, image_shape=SHAPE), cost)
    assert isinstance(operator, LinearOperator)
    operator.solve(images(2), 0.1)
    # One iteration: the operator, and its adjoint by autograd, which is a call and a product with the Jacobian.
    assert calls > 0
    assert cost.operator_calls == pytest.approx(1.5 * calls)
    assert cost.operator_calls % 6 == 0


def test_a_selection_of_a_metered_operator_is_metered_and_uses_its_own_parameters() -> None:
    """Samplers with particles repeat rows inside `iterate`: a method bound to the first copy would keep its masks."""
    cost = Cost()
    masks = Inpainting.random(SHAPE, keep=0.5, seed=0, images=3)
    problem = InverseProblem(masks, GaussianNoise(0.1), masks(images(3)))
    problem.operator = metered_operator(problem.operator, cost)
    index = torch.tensor([2, 2, 0])
    chosen = problem.select(index)
    x = images(3)
    assert torch.equal(chosen.operator(x), masks.select(index)(x))
    assert cost.operator_calls == 3
    assert isinstance(chosen.operator, LinearOperator)
    chosen.operator.adjoint(x)
    assert cost.operator_calls == 6


def test_the_users_operator_is_left_alone() -> None:
    operator, cost = GaussianBlur(std=1.0, kernel_size=5), Cost()
    metered = metered_operator(operator, cost)
    operator(images(2))
    assert cost.operator_calls == 0
    assert type(operator) is GaussianBlur
    assert isinstance(metered, GaussianBlur)
    assert type(metered).__name__ == "GaussianBlur"
    assert metered.spectral
    assert torch.equal(metered(images(2)), operator(images(2)))
