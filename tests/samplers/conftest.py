"""What the tests of the samplers share: random numbers under the test's control, and comparisons with a known law."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from invdiff.operators import Operator, SpectralOperator
from invdiff.priors import GaussianPrior
from invdiff.problem import InverseProblem
from invdiff.samplers import Sampler
from invdiff.schedules import Schedule


class Scripted:
    """Streams that hand out the given tensors, in float64: an update rule can be compared digit by digit."""

    def __init__(self, numbers: Iterable[Tensor]) -> None:
        self.numbers = iter(numbers)

    def normal(self, shape: tuple[int, ...] | None = None, *, dtype: torch.dtype = torch.float64) -> Tensor:
        return next(self.numbers)


class Normals:
    """Streams of one generator for all rows, in float64: cheap where a law and not a row is looked at."""

    def __init__(self, rows: int, shape: tuple[int, ...], seed: int = 0) -> None:
        self.rows, self.shape = rows, shape
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, shape: tuple[int, ...] | None = None, *, dtype: torch.dtype = torch.float64) -> Tensor:
        dtype = torch.complex128 if dtype.is_complex else torch.float64
        return torch.randn(self.rows, *(shape or self.shape), generator=self.generator, dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class Levels(Schedule):
    """Exactly these noise levels."""

    values: tuple[float, ...]

    @property
    def steps(self) -> int:  # type: ignore[override]
        return len(self.values) - 1

    def sigmas(self) -> Tensor:
        return torch.tensor(self.values, dtype=torch.float64)


class Dense(SpectralOperator):
    """A matrix (M, C H W) with its singular value decomposition, in the precision of the image."""

    def __init__(self, matrix: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        left, values, right = torch.linalg.svd(matrix.double())
        n, m = right.shape[0], len(values)
        self.left, self.right = torch.zeros(len(matrix), n, dtype=torch.float64), right
        self.left[:, :m] = left[:, :m]
        self.values = torch.nn.functional.pad(values, (0, n - m))

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.shape

    def singular_values(self, like: Tensor) -> Tensor:
        return self.values.to(like).reshape(1, *self.shape)

    def vt(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.right.to(x).T).reshape(-1, *self.shape)

    def v(self, z: Tensor) -> Tensor:
        return (z.flatten(1) @ self.right.to(z)).reshape(-1, *self.shape)

    def ut(self, y: Tensor) -> Tensor:
        return (y @ self.left.to(y)).reshape(-1, *self.shape)

    def u(self, z: Tensor) -> Tensor:
        return z.flatten(1) @ self.left.to(z).T


@pytest.fixture(scope="session")
def dense_operator() -> type[Dense]:
    return Dense


@pytest.fixture(scope="session")
def scripted() -> type[Scripted]:
    return Scripted


@pytest.fixture(scope="session")
def normals() -> type[Normals]:
    return Normals


@pytest.fixture(scope="session")
def levels() -> type[Levels]:
    return Levels


@pytest.fixture(scope="session")
def normal() -> Callable[..., Tensor]:
    def draw(*shape: int, seed: int = 0) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    return draw


@pytest.fixture(scope="session")
def dense() -> Callable[..., Tensor]:
    """The matrix of a linear operator, float64."""

    def matrix(operator: Operator, shape: tuple[int, ...]) -> Tensor:
        n = torch.Size(shape).numel()
        return operator(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).flatten(1).T

    return matrix


@pytest.fixture(scope="session")
def smooth() -> Callable[..., Tensor]:
    """A covariance under which neighbouring pixels are alike, float64 (n, n)."""

    def covariance(height: int, width: int, std: float, length: float = 1.5) -> Tensor:
        def axis(n: int) -> Tensor:
            i = torch.arange(n, dtype=torch.float64)
            return torch.exp(-(((i[:, None] - i) / length) ** 2) / 2) + 0.02 * torch.eye(n, dtype=torch.float64)

        return std**2 * torch.kron(axis(height), axis(width))

    return covariance


@pytest.fixture(scope="session")
def gaussian() -> Callable[..., GaussianPrior]:
    """A Gaussian prior in float64 that states the value range of pictures."""

    def build(mean: Tensor, covariance: Tensor, value_range: tuple[float, float] = (0.0, 1.0)) -> GaussianPrior:
        prior = GaussianPrior(mean.double(), covariance.double())
        prior.value_range = value_range
        return prior

    return build


@pytest.fixture(scope="session")
def affine_law() -> Callable[..., tuple[Tensor, Tensor]]:
    """Mean (n,) and covariance (n, n) of what a sampler draws, for one that is an affine map of its random numbers.

    Without Monte Carlo: each number of each step is 1 once, and all others 0.
    """

    def law(sampler: Sampler, problem: InverseProblem, prior: GaussianPrior) -> tuple[Tensor, Tensor]:
        shape = problem.image_shape
        n, draws = torch.Size(shape).numel(), sampler.num_steps + 1
        numbers = torch.zeros(draws, 1 + draws * n, n, dtype=torch.float64)
        for k in range(draws):
            numbers[k, 1 + k * n : 1 + (k + 1) * n] = torch.eye(n, dtype=torch.float64)
        rows = problem.select(torch.zeros(numbers.shape[1], dtype=torch.long))
        script = Scripted(numbers.reshape(*numbers.shape[:2], *shape))
        with torch.no_grad():
            *_, last = sampler.iterate(rows, prior, script)  # type: ignore[arg-type]
        x = last.x.flatten(1)
        away = x[1:] - x[0]
        return x[0], away.T @ away

    return law


@pytest.fixture(scope="session")
def assert_law() -> Callable[..., None]:
    """Samples (S, ...) have this mean and covariance, every entry within `z` standard errors."""

    def check(samples: Tensor, mean: Tensor, covariance: Tensor, z: float = 5.0) -> None:
        x = samples.flatten(1).double()
        count = x.shape[0]
        variance = covariance.diagonal()
        errors = (x.mean(0) - mean.flatten()) / (variance / count).sqrt()
        assert errors.abs().max() < z, f"mean is off by {errors.abs().max():.1f} standard errors"
        spread = ((torch.outer(variance, variance) + covariance**2) / count).sqrt()
        errors = (x.T.cov() - covariance) / spread
        assert errors.abs().max() < z, f"covariance is off by {errors.abs().max():.1f} standard errors"

    return check
