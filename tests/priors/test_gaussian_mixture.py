"""The Gaussian mixture against quadrature, dense algebra and the numbers of a shared fixture."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from invdiff.operators import MRI, CompressedSensing, GaussianNoise, Inpainting, LinearStacking, MatrixOperator
from invdiff.operators.core.base import LinearOperator
from invdiff.priors import GaussianMixturePrior
from invdiff.problem import InverseProblem

K, SHAPE, N = 3, (2, 4, 4), 32
DOUBLE = torch.float64


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def law(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    roots = draw(K, N, N, seed=seed) / 6
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=DOUBLE)
    return weights, 0.3 * draw(K, *SHAPE, seed=seed + 1), roots @ roots.mT + 0.01 * torch.eye(N, dtype=DOUBLE)


def mixture(weights: Tensor, means: Tensor, covariances: Tensor) -> MixtureSameFamily:
    return MixtureSameFamily(
        Categorical(weights), MultivariateNormal(means.flatten(1), covariances), validate_args=False
    )


class G2:
    """Three components in the plane, seen along the diagonal (particles.md, section 7)."""

    weights = torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE)
    means = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]], dtype=DOUBLE).reshape(3, 1, 1, 2)
    covariances = 0.5 * torch.eye(2, dtype=DOUBLE).expand(3, 2, 2)
    matrix = torch.tensor([[1.0, 1.0]]) / math.sqrt(2)

    @classmethod
    def problem(cls) -> InverseProblem:
        y = torch.tensor([[2.2]], dtype=DOUBLE)
        return InverseProblem(MatrixOperator(cls.matrix, image_shape=(1, 1, 2)), GaussianNoise(0.7), y)


@pytest.mark.parametrize(
    "prior",
    [
        GaussianMixturePrior(G2.weights, G2.means, G2.covariances),
        GaussianMixturePrior.isotropic(G2.weights, G2.means, math.sqrt(0.5)),
    ],
    ids=["dense", "isotropic"],
)
def test_numbers_of_the_plane(prior: GaussianMixturePrior) -> None:
    posterior, evidence = prior.posterior_and_evidence(G2.problem())
    assert float(evidence) == pytest.approx(-1.54604, abs=5e-6)
    assert posterior.weights.tolist() == pytest.approx([1.1e-6, 0.7707, 0.2293], rel=5e-2)
    assert posterior.weights[1:].tolist() == pytest.approx([0.7707, 0.2293], abs=5e-5)
    assert posterior.mean.flatten().tolist() == pytest.approx([2.8004, 0.8642], abs=5e-5)
    seen = G2.matrix.double()[0]
    means = posterior.means.flatten(1).double() @ seen
    own = torch.stack([seen @ c.double() @ seen for c in posterior.covariances])
    variance = posterior.weights @ (own + (means - posterior.weights @ means) ** 2)
    assert float(variance) == pytest.approx(0.2691, abs=5e-5)


def test_one_pixel_by_quadrature() -> None:
    """Density, denoiser and posterior of a single number, by sums over a fine grid."""
    for sigma in [0.0, 0.2, 3.0]:
        weights, means = torch.tensor([0.6, 0.4], dtype=DOUBLE), torch.tensor([-1.0, 1.5], dtype=DOUBLE)
        std = torch.tensor([0.3, 0.8], dtype=DOUBLE)
        prior = GaussianMixturePrior(weights, means.reshape(2, 1, 1, 1), (std**2).reshape(2, 1, 1))
        grid = torch.linspace(-9, 9, 18_001, dtype=DOUBLE)
        step = grid[1] - grid[0]
        density = torch.distributions.Normal(means, std).log_prob(grid[:, None]).exp() @ weights
        x = torch.tensor([-2.0, 0.1, 0.9, 4.0], dtype=DOUBLE)
        if sigma > 0:
            noisy = density * torch.distributions.Normal(grid, sigma).log_prob(x[:, None]).exp()
            total = noisy.sum(1) * step
            assert torch.allclose(prior.log_prob(x.reshape(4, 1, 1, 1), sigma), total.log(), rtol=1e-6)
            wanted = (noisy @ grid) * step / total
            assert torch.allclose(prior.denoise(x.reshape(4, 1, 1, 1), sigma).flatten(), wanted, rtol=1e-6)
        noise = GaussianNoise(0.5)
        problem = InverseProblem(
            MatrixOperator([[2.0]], image_shape=(1, 1, 1)), noise, torch.tensor([[1.3]], dtype=DOUBLE)
        )
        likelihood = torch.distributions.Normal(2 * grid, 0.5).log_prob(torch.tensor(1.3, dtype=DOUBLE)).exp()
        joint = density * likelihood
        posterior, evidence = prior.posterior_and_evidence(problem)
        assert float(evidence) == pytest.approx(float((joint.sum() * step).log()), rel=1e-6)
        mean = joint @ grid / joint.sum()
        assert float(posterior.mean) == pytest.approx(float(mean), rel=1e-6)
        assert float(posterior.std) == pytest.approx(float((joint @ (grid - mean) ** 2 / joint.sum()).sqrt()), rel=1e-6)


def test_the_plane_by_quadrature() -> None:
    """Denoiser, its Jacobian, and a posterior of oblique components, by sums over the plane."""
    weights, means = torch.tensor([0.5, 0.3, 0.2], dtype=DOUBLE), draw(3, 1, 1, 2, seed=1)
    roots = 0.5 * draw(3, 2, 2, seed=2)
    covariances = roots @ roots.mT + 0.1 * torch.eye(2, dtype=DOUBLE)
    prior = GaussianMixturePrior(weights, means, covariances)
    axis = torch.linspace(-8, 8, 801, dtype=DOUBLE)
    grid = torch.cartesian_prod(axis, axis)
    cell = (axis[1] - axis[0]) ** 2
    density = mixture(weights, means, covariances).log_prob(grid).exp()

    def moments(likelihood: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        joint = density * likelihood
        mean = joint @ grid / joint.sum()
        return joint.sum() * cell, mean, (grid - mean).mT @ (joint[:, None] * (grid - mean)) / joint.sum()

    x, sigma = torch.tensor([0.4, -0.7], dtype=DOUBLE), 0.6
    total, mean, covariance = moments(MultivariateNormal(x, sigma**2 * torch.eye(2, dtype=DOUBLE)).log_prob(grid).exp())
    image = x.reshape(1, 1, 1, 2)
    columns = [prior.jvp(image, sigma, v.reshape(1, 1, 1, 2)).flatten() for v in torch.eye(2, dtype=DOUBLE)]
    assert torch.allclose(prior.log_prob(image, sigma), total.log(), rtol=1e-6)
    assert torch.allclose(prior.denoise(image, sigma).flatten(), mean, rtol=1e-6)
    assert torch.allclose(prior.score(image, sigma).flatten(), (mean - x) / sigma**2, rtol=1e-6)
    assert torch.allclose(sigma**2 * torch.stack(columns), covariance, rtol=1e-6)

    row, y, noise_std = torch.tensor([1.0, -0.5], dtype=DOUBLE), torch.tensor([[0.3]], dtype=DOUBLE), 0.25
    operator = MatrixOperator(row[None].float(), image_shape=(1, 1, 2))
    posterior, evidence = prior.posterior_and_evidence(InverseProblem(operator, GaussianNoise(noise_std), y))
    total, mean, covariance = moments(torch.distributions.Normal(grid @ row, noise_std).log_prob(y[0]).exp())
    away = (posterior.means - posterior.mean).flatten(1)
    spread = torch.einsum("k,kij->ij", posterior.weights, posterior.covariances + away[:, :, None] * away[:, None])
    assert torch.allclose(evidence, total.log(), rtol=1e-6)
    assert torch.allclose(posterior.mean.flatten(), mean, rtol=1e-6)
    assert torch.allclose(spread, covariance, rtol=1e-6)
    assert torch.allclose(posterior.std.flatten(), covariance.diagonal().sqrt(), rtol=1e-6)


def test_density_is_the_dense_formula() -> None:
    for sigma in [0.0, 0.01, 1.0, 100.0]:
        weights, means, covariances = law()
        x = (1 + sigma) * draw(5, *SHAPE, seed=3)
        wanted = mixture(weights, means, covariances + sigma**2 * torch.eye(N)).log_prob(x.flatten(1))
        assert torch.allclose(GaussianMixturePrior(*law()).log_prob(x, sigma), wanted, rtol=1e-9)


OPERATORS = {
    "mask": Inpainting(keep=0.4),
    "matrix": MatrixOperator(draw(50, N, seed=11).float(), image_shape=SHAPE),
    "few rows": MatrixOperator(draw(3, N, seed=12).float(), image_shape=SHAPE),
    "complex": MRI(acceleration=2, complex_image=True),
}


def dense_law(operator: LinearOperator, noise_std: float, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, means, covariances and log-evidence by the textbook formulas: parts of a complex number are two."""
    weights, means, covariances = law()
    matrix = operator(torch.eye(N, dtype=DOUBLE).reshape(N, *SHAPE))
    seen = operator.measured(tuple(y.shape[1:]))
    seen = torch.ones_like(y, dtype=torch.bool) if seen is None else seen.expand(y.shape)
    matrix, y = matrix[:, seen[0]], y[0, seen[0]]
    if y.is_complex():
        matrix, y = torch.view_as_real(matrix).flatten(1), torch.view_as_real(y).flatten()
        noise_std = noise_std / 2**0.5
    matrix = matrix.flatten(1).T
    log_weights, new_means, new_covariances = [], [], []
    for weight, mean, covariance in zip(weights, means.flatten(1), covariances, strict=True):
        total = matrix @ covariance @ matrix.T + noise_std**2 * torch.eye(len(y), dtype=DOUBLE)
        gain = torch.linalg.solve(total, matrix @ covariance).T
        log_weights.append(weight.log() + MultivariateNormal(matrix @ mean, total).log_prob(y.flatten()))
        new_means.append(mean + gain @ (y.flatten() - matrix @ mean))
        new_covariances.append(covariance - gain @ matrix @ covariance)
    joint = torch.stack(log_weights)
    return joint.softmax(0), torch.stack(new_means), torch.stack(new_covariances), joint.logsumexp(0)


@pytest.mark.parametrize("name", OPERATORS)
def test_posterior_is_the_dense_formula(name: str) -> None:
    operator, noise = OPERATORS[name], GaussianNoise(0.25)
    prior = GaussianMixturePrior(*law())
    y = operator(prior.sample(1, torch.Generator().manual_seed(5)))
    y = noise.sample(y, [torch.Generator().manual_seed(6)], operator.measured(tuple(y.shape[1:])))
    posterior, evidence = prior.posterior_and_evidence(InverseProblem(operator, noise, y, image_shape=SHAPE))
    weights, means, covariances, wanted = dense_law(operator, 0.25, y)
    assert torch.allclose(posterior.weights, weights, rtol=1e-6, atol=1e-12)
    assert torch.allclose(posterior.means.flatten(1), means, rtol=1e-7, atol=1e-9)
    assert torch.allclose(posterior.covariances, covariances, rtol=1e-7, atol=1e-9)
    assert torch.allclose(evidence, wanted, rtol=1e-9)


def test_isotropic_is_the_dense_one() -> None:
    weights, means, _ = law()
    lean = GaussianMixturePrior.isotropic(weights, means, 0.3)
    dense = GaussianMixturePrior(weights, means, 0.09 * torch.eye(N, dtype=DOUBLE).expand(K, N, N))
    assert lean.directions.numel() == 0
    x, v = draw(4, *SHAPE, seed=3), draw(4, *SHAPE, seed=4)
    assert torch.allclose(lean.std, dense.std)
    for sigma in (0.01, 1.0, 50.0):
        for a, b in ((lean, dense), (lean.posterior(problem()), dense.posterior(problem()))):
            assert torch.allclose(a.denoise(x, sigma), b.denoise(x, sigma), rtol=1e-8, atol=1e-10)
            assert torch.allclose(a.log_prob(x, sigma), b.log_prob(x, sigma), rtol=1e-9)
            assert torch.allclose(a.jvp(x, sigma, v), b.jvp(x, sigma, v), rtol=1e-8, atol=1e-10)
            assert torch.allclose(a.covariances, b.covariances, atol=1e-12)
    assert torch.allclose(lean.log_evidence(problem()), dense.log_evidence(problem()), rtol=1e-10)


def problem(seed: int = 12, noise_std: float = 0.2) -> InverseProblem:
    operator = MatrixOperator(draw(3, N, seed=seed).float(), image_shape=SHAPE)
    return InverseProblem(operator, GaussianNoise(noise_std), operator(draw(1, *SHAPE, seed=8)))


@pytest.mark.parametrize("lean", [False, True])
def test_measuring_twice_is_measuring_both(lean: bool) -> None:
    weights, means, covariances = law()
    dense = GaussianMixturePrior(weights, means, covariances)
    prior = GaussianMixturePrior.isotropic(weights, means, 0.3) if lean else dense
    first, second = problem(12), problem(13)
    both = LinearStacking([first.operator, second.operator], image_shape=SHAPE)
    stacked = InverseProblem(both, first.noise, both(draw(1, *SHAPE, seed=8)), image_shape=SHAPE)
    one, two = prior.posterior(stacked), prior.posterior(first).posterior(second)
    assert torch.allclose(one.weights, two.weights, rtol=1e-7)
    assert torch.allclose(one.means, two.means, atol=1e-9)
    assert torch.allclose(one.covariances, two.covariances, atol=1e-10)
    evidence = prior.log_evidence(first) + prior.posterior(first).log_evidence(second)
    assert torch.allclose(prior.log_evidence(stacked), evidence, rtol=1e-9)


def test_the_benchmark_at_800_dimensions() -> None:
    """25 components far apart, unit covariance: no n x n matrix anywhere."""
    d, shape = 800, (1, 1, 800)
    places = torch.tensor([[-8.0 * i, -8.0 * j] for i in range(-2, 3) for j in range(-2, 3)], dtype=DOUBLE)
    weights = draw(25, seed=1).square()
    prior = GaussianMixturePrior.isotropic(weights / weights.sum(), places.repeat(1, d // 2).reshape(25, *shape), 1.0)
    operator = CompressedSensing(image_shape=shape, ratio=4 / d)
    truth = prior.sample(1, torch.Generator().manual_seed(0))
    y = operator(truth.float())
    posterior = prior.posterior(InverseProblem(operator, GaussianNoise(0.5), y, image_shape=shape))
    assert posterior.directions.shape == (1, y.shape[1], d)
    x = posterior.sample(500, torch.Generator().manual_seed(1))
    seen = operator(x.float())
    assert ((seen - operator(posterior.mean[None].float())).mean(0).abs() < 1).all()
    assert posterior.weights.sum() == pytest.approx(1)


def test_a_singular_covariance() -> None:
    """Two pixels that are always equal: exact with noise, without density where there is none."""
    prior = GaussianMixturePrior(
        torch.tensor([0.5, 0.5]), torch.tensor([[0.0, 0.0], [3.0, 3.0]]).reshape(2, 1, 1, 2), torch.ones(2, 2, 2)
    )
    x = torch.tensor([[[[2.0, -1.0]]]])
    assert torch.equal(prior.denoise(x, 0.0), x)
    assert prior.denoise(x, 1e-3).isfinite().all()
    assert torch.allclose(*prior.denoise(x, 1e-3)[0, 0, 0], atol=1e-3)
    for ask in (prior.log_prob, prior.score):
        with pytest.raises(ValueError, match="no density at sigma = 0"):
            ask(x, 0.0)


def test_float32_images_of_far_components() -> None:
    """Weights are exponentials of differences of large numbers: single precision of the images does not reach them."""
    means = 1000 + 0.01 * draw(2, 1, 8, 8, seed=1)
    exact = GaussianMixturePrior.isotropic(torch.tensor([0.5, 0.5]), means, 0.01)
    x = means[:1].float()
    assert torch.allclose(exact.denoise(x, 0.01).double(), exact.denoise(x.double(), 0.01), rtol=1e-7)
    shifted = GaussianMixturePrior.isotropic(torch.tensor([0.5, 0.5]), means - 1000, 0.01)
    assert torch.allclose(exact.log_prob(x.double(), 0.01), shifted.log_prob(x.double() - 1000, 0.01), rtol=1e-8)


@pytest.mark.parametrize(
    ("weights", "covariances", "words"),
    [
        (torch.tensor([0.5, 0.6]), torch.eye(4).expand(2, 4, 4), "sum to 1, got .* a sum of 1.1"),
        (torch.tensor([1.5, -0.5]), torch.eye(4).expand(2, 4, 4), "minimum of -0.5"),
        (torch.tensor([torch.nan, 1]), torch.eye(4).expand(2, 4, 4), ">= 0 and sum to 1"),
        (torch.tensor([1.0]), torch.eye(4).expand(2, 4, 4), "weights of 2 means must be \\(2,\\)"),
        (torch.tensor([0.5, 0.5]), torch.eye(4), r"\(2, 4, 4\), got \(4, 4\)"),
        (torch.tensor([0.5, 0.5]), -torch.eye(4).expand(2, 4, 4), "positive semi-definite"),
    ],
)
def test_what_is_no_mixture(weights: Tensor, covariances: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GaussianMixturePrior(weights, torch.zeros(2, 1, 2, 2), covariances)


def test_what_is_no_std() -> None:
    for std in [0.0, -1.0, math.nan, math.inf]:
        with pytest.raises(ValueError, match="std of an isotropic mixture must be positive"):
            GaussianMixturePrior.isotropic(torch.ones(1), torch.zeros(1, 1, 2, 2), std)


def test_the_mixture_benchmark() -> None:
    """25 components 8 apart in the plane, repeated; in the unit of the authors, whatever its spread."""
    prior = GaussianMixturePrior.benchmark(dimension=4, seed=3)
    assert prior.means.shape == (25, 1, 1, 4)
    assert torch.equal(prior.means[..., :2], prior.means[..., 2:])
    assert sorted({*prior.means.flatten().tolist()}) == [-16, -8, 0, 8, 16]
    assert float(prior.weights.sum()) == pytest.approx(1)
    assert torch.equal(prior.weights, GaussianMixturePrior.benchmark(dimension=2, seed=3).weights)
    assert (prior.unit, prior.scale) == (1.0, 2.0)
    assert GaussianMixturePrior.example().unit == pytest.approx(
        2 * float(GaussianMixturePrior.example().std.square().mean().sqrt()), rel=1e-5
    )
    with pytest.raises(ValueError, match="even integer >= 2, got 3"):
        GaussianMixturePrior.benchmark(dimension=3)
