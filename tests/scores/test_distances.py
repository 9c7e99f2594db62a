"""Distances between samples: known values where there are some, no bias where none is claimed, honest errors."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invdiff.scores import distances
from invdiff.scores.classifier import classifier_accuracy
from invdiff.scores.distances import (
    Distance,
    energy_distance,
    floor,
    max_sliced_wasserstein,
    sliced_wasserstein,
    squared_mmd,
    wasserstein_1d,
)
from invdiff.scores.moments import covariance_error, mean_error, mode_weight_error, mode_weights, std_error
from invdiff.scores.points import Estimate

ALL: dict[str, Distance] = {
    "sliced 1": lambda x, y, rng: sliced_wasserstein(x, y, rng, directions=50),
    "sliced 2": lambda x, y, rng: sliced_wasserstein(x, y, rng, p=2, directions=50),
    "max-sliced": lambda x, y, rng: max_sliced_wasserstein(x, y, rng, directions=20, iterations=20),
    "energy": energy_distance,
    "mmd": lambda x, y, rng: squared_mmd(x, y, rng, bandwidth=2.0),
    "classifier": lambda x, y, rng: classifier_accuracy(x, y, rng, steps=20),
    "mean": mean_error,
    "std": std_error,
    "covariance": covariance_error,
}
WEIGHTED = {
    "sliced 1": lambda x, y, w, rng: sliced_wasserstein(x, y, rng, directions=50, weights=w),
    "max-sliced": lambda x, y, w, rng: max_sliced_wasserstein(x, y, rng, directions=20, iterations=20, weights=w),
    "energy": lambda x, y, w, rng: energy_distance(x, y, rng, weights=w),
    "mmd": lambda x, y, w, rng: squared_mmd(x, y, rng, bandwidth=2.0, weights=w),
    "mean": lambda x, y, w, rng: mean_error(x, y, rng, weights=w),
    "std": lambda x, y, w, rng: std_error(x, y, rng, weights=w),
    "covariance": lambda x, y, w, rng: covariance_error(x, y, rng, weights=w),
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def close(estimate: Estimate, value: float, z: float = 4.0) -> bool:
    return abs(estimate.value - value) < z * estimate.standard_error


# -- Wasserstein -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2])
def test_the_distance_on_a_line_is_that_of_the_best_assignment(p: int) -> None:
    from scipy.optimize import linear_sum_assignment

    x, y = normal(6), normal(4, seed=1)
    # 12 equal parts of mass make an assignment of unequal counts.
    cost = (x.repeat_interleave(2)[:, None] - y.repeat_interleave(3)).abs() ** p
    rows, columns = linear_sum_assignment(cost.numpy())
    assert float(wasserstein_1d(x, y, p=p)) == pytest.approx(float(cost[rows, columns].mean()), rel=1e-12)


@pytest.mark.parametrize("p", [1, 2])
def test_a_weight_counts_as_so_many_equal_points(p: int) -> None:
    x, y, times = normal(3, 5), normal(3, 9, seed=1), torch.tensor([1, 4, 0, 2, 3])
    repeated = wasserstein_1d(x.repeat_interleave(times, dim=1), y, p=p)
    assert torch.allclose(wasserstein_1d(x, y, p=p, weights=times.double() / 7), repeated, rtol=1e-12)


def test_sliced_distance_of_a_shift_is_its_closed_form() -> None:
    x, shift = normal(300, 5), torch.tensor([3.0, 0, 0, 0, 0], dtype=torch.float64)
    # Mean of |u_1| over the sphere of R^5, and root of the mean of u_1^2.
    first = math.gamma(2.5) / (math.sqrt(math.pi) * math.gamma(3.0))
    one = sliced_wasserstein(x, x + shift, rng(), directions=500)
    two = sliced_wasserstein(x, x + shift, rng(), p=2, directions=500)
    assert close(one, 3 * first)
    assert close(two, 3 / math.sqrt(5))
    # Shifted copies have the same sets but for the groups left out: the directions alone give this much.
    assert 0 < two.standard_error < 0.2


def test_sliced_distance_of_gaussians_of_two_widths_is_its_closed_form() -> None:
    x, y = 2 * normal(1500, 3), normal(1500, 3, seed=1)
    assert close(sliced_wasserstein(x, y, rng(), p=2), 1.0)
    assert close(sliced_wasserstein(x, y, rng()), math.sqrt(2 / math.pi))


@pytest.mark.parametrize("p", [1, 2])
def test_max_sliced_distance_finds_the_one_direction_that_differs(p: int) -> None:
    # 20 dimensions: random directions see a fifth of it.
    x, y = normal(1000, 20), normal(1000, 20, seed=1)
    x[:, 7] *= 4
    u = torch.zeros(20, dtype=torch.float64)
    u[7] = 1
    along = float(wasserstein_1d(x @ u, y @ u, p=p)) ** (1 / p)
    found = max_sliced_wasserstein(x, y, rng(), p=p).value
    assert 0.995 * along < found < 1.15 * along
    assert sliced_wasserstein(x, y, rng(), p=p).value < 0.4 * along


def test_max_sliced_distance_of_a_shift_is_the_shift() -> None:
    x = normal(500, 10)
    assert max_sliced_wasserstein(x, x + 1.0, rng()).value == pytest.approx(math.sqrt(10), rel=1e-6)


# -- kernels -----------------------------------------------------------------------------------------------------------


def test_energy_distance_of_gaussians_is_its_closed_form() -> None:
    # On a line, E|N(m, s^2)| = s sqrt(2 / pi) exp(-m^2 / 2 s^2) + m erf(m / s sqrt 2).
    m, s = 1.5, math.sqrt(2)
    between = s * math.sqrt(2 / math.pi) * math.exp(-(m**2) / (2 * s**2)) + m * math.erf(m / (s * math.sqrt(2)))
    within = 2 / math.sqrt(math.pi)
    assert close(energy_distance(normal(3000, 1) + m, normal(2000, 1, seed=1), rng()), 2 * between - 2 * within)


def test_mmd_of_gaussians_is_its_closed_form() -> None:
    n, h, m = 3, 1.7, 1.0
    scale = (h**2 / (h**2 + 2)) ** (n / 2)  # E k(x, y) of x - y with covariance 2 I
    expected = 2 * scale * (1 - math.exp(-n * m**2 / (2 * (h**2 + 2))))
    assert close(squared_mmd(normal(2000, n) + m, normal(1500, n, seed=1), rng(), bandwidth=h), expected)


def test_the_bandwidth_is_the_median_distance() -> None:
    x, y = normal(60, 4), 1 + normal(50, 4, seed=1)
    median = float(torch.nn.functional.pdist(torch.cat([x, y])).median())
    assert squared_mmd(x, y, rng()) == squared_mmd(x, y, rng(), bandwidth=median)


def test_unbiased_distances_average_to_zero_between_equal_laws() -> None:
    for name in ("energy", "mmd"):
        values = torch.tensor(
            [ALL[name](normal(8, 3, seed=s), normal(13, 3, seed=-s), rng(s)).value for s in range(1, 200)]
        )
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values)), name
        assert (values < 0).any(), name


def test_kernel_sums_do_not_depend_on_how_they_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(40, 3), normal(30, 3, seed=1)
    whole = energy_distance(x, y, rng())
    monkeypatch.setattr(distances, "CHUNK", 90)
    split = energy_distance(x, y, rng())
    assert split.value == pytest.approx(whole.value, rel=1e-10)
    # The textbook's double sums.
    apart = torch.cdist(x, y).mean()
    within = torch.cdist(x, x).sum() / (40 * 39) + torch.cdist(y, y).sum() / (30 * 29)
    assert whole.value == pytest.approx(float(2 * apart - within), rel=1e-8)


# -- a classifier, moments, modes --------------------------------------------------------------------------------------


def test_a_classifier_finds_what_differs_and_nothing_where_nothing_does() -> None:
    same = classifier_accuracy(normal(200, 4), normal(250, 4, seed=1), rng())
    shifted = classifier_accuracy(normal(200, 4) + 1, normal(250, 4, seed=1), rng())
    narrower = classifier_accuracy(0.4 * normal(200, 4), normal(250, 4, seed=1), rng())
    assert close(same, 0.5, z=3)
    # The best there is: Phi(|shift| / 2) = Phi(1).
    assert close(shifted, 0.8413, z=3)
    assert narrower.value > 0.75


def test_a_classifier_draws_nothing_from_the_global_stream() -> None:
    state = torch.random.get_rng_state()
    classifier_accuracy(normal(20, 2), normal(20, 2, seed=1), rng(), steps=2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_errors_of_moments_are_relative_to_the_truth() -> None:
    y = normal(50, 2, 3)
    assert mean_error(y + 0.5, y, rng()).value == pytest.approx(
        0.5 * math.sqrt(6) / float(y.flatten(1).var(0).sum().sqrt()), rel=1e-12
    )
    assert std_error(1.25 * y, y, rng()).value == pytest.approx(0.25, rel=1e-12)
    assert covariance_error(1.25 * y, y, rng()).value == pytest.approx(1.25**2 - 1, rel=1e-12)


def test_the_covariance_error_is_the_same_in_more_dimensions_than_points() -> None:
    x, y = 1.2 * normal(7, 40), normal(9, 40, seed=1)
    cov_x, cov_y = x.T.cov(), y.T.cov()
    assert covariance_error(x, y, rng()).value == pytest.approx(float((cov_x - cov_y).norm() / cov_y.norm()), rel=1e-10)


def test_shares_of_modes_are_counted_at_the_nearest_mean_or_by_their_probabilities() -> None:
    means = torch.tensor([[-10.0, 0], [10, 0], [0, 10]], dtype=torch.float64)
    x = torch.cat([means[k] + normal(n, 2, seed=k) for k, n in enumerate((60, 30, 10))])
    exact = torch.tensor([0.5, 0.5, 0.0])
    assert torch.allclose(mode_weights(x, means), torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64))
    assert mode_weight_error(x, exact, means, rng()).value == pytest.approx(0.2)

    def half(points: Tensor) -> Tensor:
        return points.new_full((len(points), 2), 0.5)

    assert mode_weights(x, half).tolist() == pytest.approx([0.5, 0.5])
    assert mode_weights(x, means, weights=torch.arange(100) >= 90).tolist() == pytest.approx([0, 0, 1])


def test_the_error_of_a_share_is_that_of_a_count() -> None:
    means = torch.tensor([[-5.0], [5.0]])
    x = torch.cat([normal(700, 1) - 5, normal(300, 1) + 5])
    errors = [mode_weight_error(x, torch.tensor([0.5, 0.5]), means, rng(s)).standard_error for s in range(20)]
    assert sum(errors) / 20 == pytest.approx(math.sqrt(0.7 * 0.3 / 1000), rel=0.15)


# -- errors, weights, seeds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sliced 2", "energy", "covariance"])
def test_the_standard_error_is_the_scatter_of_repeated_sets(name: str) -> None:
    """One of each kind: a directional distance, a kernel, a moment. The others under `slow`."""
    check_scatter(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sliced 1", "max-sliced", "mmd", "mean", "std"])
def test_the_standard_error_of_the_other_distances(name: str) -> None:
    check_scatter(name)


def check_scatter(name: str) -> None:
    found = [ALL[name](1.3 * normal(150, 3, seed=s) + 0.5, normal(100, 3, seed=1000 + s), rng(s)) for s in range(60)]
    scatter = torch.tensor([e.value for e in found], dtype=torch.float64).std()
    stated = torch.tensor([e.standard_error for e in found], dtype=torch.float64).square().mean().sqrt()
    assert 0.7 < stated / scatter < 1.4


@pytest.mark.slow
def test_the_error_of_a_classifier_counts_that_its_networks_share_their_points() -> None:
    found = [
        classifier_accuracy(normal(40, 2, seed=s), normal(40, 2, seed=500 + s), rng(s), steps=40) for s in range(40)
    ]
    scatter = torch.tensor([e.value for e in found], dtype=torch.float64).std()
    assert 0.65 < found[0].standard_error / scatter < 1.5


def test_weights_turn_samples_of_one_law_into_samples_of_another() -> None:
    y = normal(1500, 2, seed=1)
    proposal = 1.5 * normal(3000, 2) + 0.3
    log_ratio = -proposal.square().sum(1) / 2 + ((proposal - 0.3) / 1.5).square().sum(1) / 2
    for name in WEIGHTED:
        weighted = WEIGHTED[name](proposal, y, log_ratio.exp(), rng())
        unweighted = ALL[name](proposal, y, rng())
        assert weighted.value < 0.3 * unweighted.value
        equal = WEIGHTED[name](proposal[:50], y[:60], torch.full((50,), 7.0), rng())
        without = WEIGHTED[name](proposal[:50], y[:60], None, rng())
        assert equal.value == pytest.approx(without.value, rel=1e-9)
        assert equal.standard_error == pytest.approx(without.standard_error, rel=1e-6)


def test_the_same_stream_gives_the_same_number_whatever_the_shape_of_a_point() -> None:
    x, y = normal(25, 2, 3) + 0.5, normal(20, 2, 3, seed=1)
    for name, distance in ALL.items():
        first = distance(x, y, rng(3))
        assert first == distance(x, y, rng(3)) == distance(x.flatten(1), y.flatten(1), rng(3)), name


def test_the_floor_is_what_two_exact_sets_of_these_sizes_are_apart() -> None:
    def exact(count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, 4, generator=generator)

    small, large = (floor(exact, ALL["sliced 2"], size=size, repeats=10, seed=1) for size in (30, 480))
    # It falls with the root of the size.
    assert small.value / large.value == pytest.approx(4, rel=0.2)
    assert 0 < small.standard_error < 0.1 * small.value
    assert small == floor(exact, ALL["sliced 2"], size=(30, 30), repeats=10, seed=1)
    assert small != floor(exact, ALL["sliced 2"], size=30, repeats=10, seed=2)


# -- what is refused ---------------------------------------------------------------------------------------------------


REFUSED: tuple[tuple[Callable[[], object], str], ...] = (
    (lambda: energy_distance(normal(5, 2), normal(5, 3), rng()), "one shape"),
    (lambda: energy_distance(normal(1, 2), normal(5, 2), rng()), "at least 2 points"),
    (lambda: energy_distance(normal(5), normal(5), rng()), "at least 2 points"),
    (lambda: mean_error(torch.full((3, 2), math.nan), normal(5, 2), rng()), "3 of 3 points of x are NaN"),
    (lambda: mean_error(normal(3, 2).to(torch.complex64), normal(5, 2), rng()), "complex"),
    (lambda: mean_error(normal(3, 2), torch.ones(5, 2), rng()), "all points of y are equal"),
    (lambda: mean_error(normal(3, 2), normal(5, 2), rng(), weights=torch.ones(4)), "weights must be 3"),
    (lambda: mean_error(normal(3, 2), normal(5, 2), rng(), weights=torch.tensor([1, -1, 1.0])), "not negative"),
    (lambda: mean_error(normal(3, 2), normal(5, 2), rng(), weights=torch.zeros(3)), "not all zero"),
    (lambda: sliced_wasserstein(normal(3, 2), normal(5, 2), rng(), p=3), "p must be 1 or 2"),
    (lambda: sliced_wasserstein(normal(3, 2), normal(5, 2), rng(), directions=1), "directions"),
    (lambda: max_sliced_wasserstein(normal(3, 2), normal(5, 2), rng(), directions=0), "directions"),
    (lambda: squared_mmd(normal(3, 2), normal(5, 2), rng(), bandwidth=math.nan), "bandwidth"),
    (lambda: classifier_accuracy(normal(3, 2), normal(5, 2), rng()), "5 folds need 5 points"),
    (lambda: classifier_accuracy(normal(9, 2), normal(9, 2), rng(), steps=0), "steps"),
    (lambda: mode_weights(normal(3, 2), torch.zeros(2, 3)), "component means"),
    (lambda: mode_weights(normal(3, 2), lambda x: torch.ones(3, 2)), "sum to 1"),
    (lambda: mode_weight_error(normal(3, 2), torch.ones(3), torch.zeros(2, 2), rng()), "exact must be 2 weights"),
    (lambda: floor(lambda n, g: normal(n, 2), energy_distance, size=5, repeats=1), "repeats"),
)


def test_bad_input_is_refused_in_one_line() -> None:
    for call, words in REFUSED:
        with pytest.raises(ValueError, match=words) as error:
            call()
        assert "\n" not in str(error.value)
