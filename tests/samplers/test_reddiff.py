"""RED-Diff: the authors' loop number by number, and its law on Gaussian problems."""

from collections.abc import Callable
from math import log, sqrt

import pytest
import torch
from torch import Tensor

from helpers import Levels, Normals, Remembering, Scripted, assert_law, dense, gaussian, normal, smooth
from invdiff import Compute, InverseProblem, load_prior
from invdiff.engine.step import Step
from invdiff.operators import (
    CallableOperator,
    Denoising,
    GaussianBlur,
    GaussianNoise,
    Inpainting,
    LinearCallableOperator,
    Operator,
    PoissonNoise,
    SuperResolution,
)
from invdiff.priors import GaussianPrior, Prior
from invdiff.samplers import REDDiff
from invdiff.samplers.variational.reddiff import start
from invdiff.schedules import VP

SHAPE = (1, 8, 8)
SMALL = (1, 4, 4)
EXACT = 1e-9  # relative, float64


def run(sampler: REDDiff, problem: InverseProblem, prior: Prior, rng: object) -> list[Step]:
    """All steps, with random numbers under the test's control and gradients off as in the driver."""
    with torch.no_grad():
        return list(sampler.iterate(problem, prior, rng))  # type: ignore[arg-type]


class Descent:
    """In Adam's place: plain gradient descent, which keeps a linear problem linear, and a record of the gradients."""

    gradients: list[Tensor]

    def __init__(self, like: Tensor, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        type(self).gradients = []

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        self.gradients.append(gradient)
        return x - self.learning_rate * gradient


# -- the authors' loop -------------------------------------------------------------------------------------------------


# Of the noise difference, by s / alpha.
WEIGHTS: dict[str, Callable[[float], float]] = {
    "linear": lambda q: q,
    "sqrt": lambda q: q**0.5,
    "square": lambda q: q * q,
    "log": lambda q: log(1 + q),
    "clip": lambda q: q if q < 1 else 1.0,
    "power_2_3": lambda q: (q * q) ** (1 / 3),
    "constant": lambda q: 1.0,
}


class AuthorsREDDiff:
    """The paper's loop, transcribed: images in [-1, 1], z = alpha mu + s eps, torch's own Adam, losses that are means.

    The noise network is that of a Gaussian prior N(mean, covariance), derived from Bayes' rule in z: nothing here is
    shared with the implementation.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, steps: int) -> None:
        self.mean, self.covariance = mean, covariance
        kept = torch.linspace(0, 999, steps, dtype=torch.float64).round().long()
        self.alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[kept]

    def noise_network(self, z: Tensor, t: int) -> Tensor:
        a = self.alpha_bar[t]
        marginal = a * self.covariance + (1 - a) * torch.eye(len(self.covariance), dtype=torch.float64)
        x0 = self.mean + a.sqrt() * (z - a.sqrt() * self.mean) @ torch.linalg.solve(marginal, self.covariance)
        return (z - a.sqrt() * x0) / (1 - a).sqrt()

    def reconstruct(
        self,
        mu: Tensor,
        measure: Callable[[Tensor], Tensor],
        y: Tensor,
        noises: list[Tensor],
        *,
        lr: float,
        lam: float,
        weighting: str = "linear",
        eps: float | None = None,
    ) -> list[Tensor]:
        """mu before the first and after every step of Adam; the authors return the last but one.

        eps  None: our 1e-8 on sums over an image in [0, 1], in the units of these means over a batch in [-1, 1]
        """
        mu = mu.clone().requires_grad_(True)
        adam = torch.optim.Adam(
            [mu], lr=lr, betas=(0.9, 0.99), eps=1e-8 * 2 / mu.numel() if eps is None else eps, weight_decay=0.0
        )
        path = [mu.detach().clone()]
        for t, eps_t in zip(reversed(range(len(self.alpha_bar))), noises, strict=True):
            alpha, s = self.alpha_bar[t].sqrt(), (1 - self.alpha_bar[t]).sqrt()
            with torch.enable_grad():
                difference = (self.noise_network(alpha * mu + s * eps_t, t) - eps_t).detach()
                weight = lam * WEIGHTS[weighting](float(s / alpha))
                loss = (y - measure(mu)).square().mean() / 2 + weight * (difference * mu).mean()
                adam.zero_grad()
                loss.backward()
            adam.step()
            path.append(mu.detach().clone())
        return path


OPERATORS = {
    "blur": GaussianBlur(std=1.0, kernel_size=5),
    "inpainting": Inpainting(keep=0.4),
    "super_resolution": SuperResolution(factor=2),  # n / m = 4
}
STEPS, IMAGES = 25, 3


class Setting:
    """One problem in both coordinates: the authors' images x in [-1, 1], ours u = (x + 1) / 2."""

    def __init__(self, name: str) -> None:
        self.operator: Operator = OPERATORS[name]
        self.matrix, self.covariance = dense(self.operator, SHAPE), smooth(8, 8, std=0.6)
        self.mean = 0.3 * normal(64, seed=1)
        self.authors = AuthorsREDDiff(self.mean, self.covariance, STEPS)
        # As of a network: grey is its centre.
        self.prior = Remembering(gaussian((self.mean.reshape(SHAPE) + 1) / 2, self.covariance / 4))
        truth = 0.6 * normal(IMAGES, 64, seed=2)
        seen = self.matrix.abs().sum(1) > 0
        self.y = torch.where(seen, truth @ self.matrix.T + 0.05 * normal(IMAGES, len(self.matrix), seed=3), 0)
        measurement = self.operator(torch.zeros(1, *SHAPE)).shape[1:]
        self.y_unit = torch.where(seen, (self.y + 1) / 2, 0).reshape(IMAGES, *measurement)
        self.problem = InverseProblem(self.operator, GaussianNoise(0.025), self.y_unit)
        # The blur starts from y itself, the others from the pseudo-inverse.
        self.start = self.y if name == "blur" else self.y @ torch.linalg.pinv(self.matrix).T
        self.noises = [normal(IMAGES, 64, seed=20 + k) for k in range(STEPS)]

    def theirs(self, **options: float | str) -> list[Tensor]:
        return self.authors.reconstruct(self.start, lambda x: x @ self.matrix.T, self.y, self.noises, **options)  # type: ignore[arg-type]

    def ours(self, sampler: REDDiff) -> list[Step]:
        return run(sampler, self.problem, self.prior, Scripted([n.reshape(-1, *SHAPE) for n in self.noises]))


@pytest.fixture(params=list(OPERATORS))
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


def published_form(weighting: str = "linear", lam: float = 0.25) -> REDDiff:
    return REDDiff(schedule=VP(steps=STEPS), learning_rate=0.05, lam=lam, weighting=weighting, data_term="published")  # type: ignore[arg-type]


def test_every_step_equals_the_authors(setting: Setting) -> None:
    """One step and a whole run; learning rate halved, lambda as it is, n / m from their means."""
    without = setting.theirs(lr=0.1, lam=0.0)
    for weighting in WEIGHTS:
        theirs = setting.theirs(lr=0.1, lam=0.25, weighting=weighting)
        ours = setting.ours(published_form(weighting))
        assert len(ours) == STEPS
        assert ours[-1].sigma == 0
        # What they return is our last iterate but one.
        for step, mu in zip(ours, theirs[1:], strict=True):
            assert (2 * step.x.flatten(1) - 1 - mu).abs().max() < EXACT * mu.abs().max(), weighting
        assert (without[-1] - theirs[-1]).abs().max() > 1e-3, (
            "the regulariser must matter for the comparison to mean anything"
        )


def test_weightings_were_put_to_the_test() -> None:
    """No two of them are one and the same run."""
    setting = Setting("inpainting")
    ends = torch.stack([setting.theirs(lr=0.1, lam=0.25, weighting=name)[-1] for name in WEIGHTS])
    apart = (ends[:, None] - ends).abs().flatten(2).amax(2) + torch.eye(len(ends))
    assert apart.min() > 1e-2


def test_the_authors_own_epsilon_hardly_matters_for_few_images(setting: Setting) -> None:
    """Their 1e-8 stands against means over the batch, and weighs more the larger that is; ours against sums."""
    theirs = setting.theirs(lr=0.1, lam=0.25, eps=1e-8)
    ours = setting.ours(published_form())
    assert (2 * ours[-1].x.flatten(1) - 1 - theirs[-1]).abs().max() < 1e-3


def test_a_nonlinear_operator_too() -> None:
    """It has no first guess here: the start is mid-grey. y is measured in its own unit, n / m = 2."""

    def measure(x: Tensor) -> Tensor:  # images in [-1, 1]
        return torch.tanh(1.5 * x.flatten(1)[:, ::2])

    covariance, mean = smooth(8, 8, std=0.6), 0.3 * normal(64, seed=1)
    y = measure(0.6 * normal(IMAGES, 64, seed=2))
    noises = [normal(IMAGES, 64, seed=20 + k) for k in range(STEPS)]
    zeros = torch.zeros(IMAGES, 64, dtype=torch.float64)
    theirs = AuthorsREDDiff(mean, covariance, STEPS).reconstruct(zeros, measure, y, noises, lr=0.1, lam=0.25)
    operator = CallableOperator(lambda u: measure(2 * u - 1), image_shape=SHAPE)
    problem = InverseProblem(operator, GaussianNoise(0.05), y)
    # y keeps its unit where images are halved: 4 lambda.
    ours = run(
        published_form(lam=1.0),
        problem,
        Remembering(gaussian((mean.reshape(SHAPE) + 1) / 2, covariance / 4)),
        Scripted([n.reshape(-1, *SHAPE) for n in noises]),
    )
    for step, mu in zip(ours, theirs[1:], strict=True):
        # The data term is in another unit now, and so is what epsilon stands against.
        assert (2 * step.x.flatten(1) - 1 - mu).abs().max() < 1e-5 * (1 + mu.abs().max())


@pytest.mark.parametrize("optimiser", ["descent", "adam"])
@pytest.mark.parametrize("data_term", ["published", "likelihood"])
def test_range_equivariance(setting: Setting, data_term: str, optimiser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In [-1, 1] and in [0, 1], with the same settings and the same noise, u = (x + 1) / 2.

    Only Adam's epsilon depends on the unit; it matters where a gradient is almost zero.
    """
    wide_rate = 1.0
    if optimiser == "descent":
        monkeypatch.setattr("invdiff.samplers.variational.reddiff.Adam", Descent)
        wide_rate = 0.5  # Adam's steps have the unit of the rate, these ones that of the gradients too
    wide_prior = Remembering(gaussian(setting.mean.reshape(SHAPE), setting.covariance, (-1.0, 1.0)))
    wide_problem = InverseProblem(setting.operator, GaussianNoise(0.5), setting.y.reshape(setting.y_unit.shape))
    narrow_problem = InverseProblem(setting.operator, GaussianNoise(0.25), setting.y_unit)
    wide, narrow = (
        REDDiff(
            schedule=VP(steps=STEPS),
            learning_rate=rate,
            lam=0.3,
            weighting="sqrt",
            data_term=data_term,  # type: ignore[arg-type]
        )
        for rate in (0.1 * wide_rate, 0.1)
    )
    numbers = [n.reshape(-1, *SHAPE) for n in setting.noises]
    x = run(wide, wide_problem, wide_prior, Scripted(numbers))
    u = run(narrow, narrow_problem, setting.prior, Scripted(numbers))
    tolerance = EXACT if optimiser == "descent" else 1e-4
    for ours, theirs in zip(u, x, strict=True):
        assert ours.sigma == pytest.approx(theirs.sigma / 2)
        assert (2 * ours.x - 1 - theirs.x).abs().max() < tolerance * (1 + theirs.x.abs().max())


# -- where it starts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0), (2.0, 6.0)])
@pytest.mark.parametrize("known", [True, False])
def test_it_starts_from_the_first_guess_about_the_centre(known: bool, value_range: tuple[float, float]) -> None:
    """Holes have the mean of the prior, or mid-grey where it is not known; where A was inverted, the start fits y."""
    prior: Prior = gaussian(torch.full(SHAPE, 0.3), torch.eye(64), value_range)
    centre = 0.3 if known else sum(value_range) / 2
    prior = prior if known else Remembering(prior)
    for operator in (Inpainting(keep=0.4), SuperResolution(factor=2)):
        y = operator(centre + 0.3 * normal(2, *SHAPE, seed=1))
        mu = start(InverseProblem(operator, GaussianNoise(0.1), y), prior)
        assert torch.allclose(operator(mu), y, atol=1e-12)
        null = torch.eye(64, dtype=torch.float64) - torch.linalg.pinv(dense(operator, SHAPE)) @ dense(operator, SHAPE)
        assert torch.allclose(mu.flatten(1) @ null, (torch.full((2, 64), centre).double()) @ null, atol=1e-12)


def test_a_nonlinear_operator_guesses_for_itself() -> None:
    """Its first guess is used, from measured entries alone; without one the start is the centre."""

    class Squared(CallableOperator):
        def first_guess(self, y: Tensor) -> Tensor:
            return y.sqrt()

        def measured(self, measurement_shape: tuple[int, ...]) -> Tensor:
            return torch.arange(8) > 3  # columns

    y = torch.full((2, *SHAPE), 0.09, dtype=torch.float64)
    y[..., :4] = torch.nan
    prior = gaussian(torch.full(SHAPE, 0.5), torch.eye(64))
    mu = start(InverseProblem(Squared(torch.square, image_shape=SHAPE), GaussianNoise(0.1), y), prior)
    assert torch.allclose(mu[..., 4:], torch.full((2, 1, 8, 4), 0.3).double())
    assert (mu[..., :4] == 0).all()
    without = CallableOperator(torch.square, image_shape=SHAPE)
    assert (start(InverseProblem(without, GaussianNoise(0.1), y.nan_to_num()), prior) == 0.5).all()


# -- on Gaussian problems ----------------------------------------------------------------------------------------------


@pytest.fixture
def descent(monkeypatch: pytest.MonkeyPatch) -> type[Descent]:
    monkeypatch.setattr("invdiff.samplers.variational.reddiff.Adam", Descent)
    return Descent


@pytest.mark.parametrize("sigma", [3.0, 0.3])
def test_expected_gradient_of_the_regulariser(sigma: float, descent: type[Descent]) -> None:
    """Linear weight: lambda sigma^2 (C + sigma^2)^-1 (mu - m) on average; its noise is -lambda sigma K eps."""
    rows, lam = 6000, 0.7
    mean, covariance = 0.5 + 0.2 * normal(16, seed=1), smooth(4, 4, std=0.3)
    mu = 0.5 + 0.3 * normal(1, *SMALL, seed=2)
    # Where the image itself is measured, the start is y and the data term has no gradient there.
    problem = InverseProblem(Denoising(), GaussianNoise(0.1), mu).select(torch.zeros(rows, dtype=torch.long))
    prior = Remembering(gaussian(mean.reshape(SMALL), covariance))
    sampler = REDDiff(schedule=Levels(values=(sigma, 0.0)), lam=lam * prior.unit / 0.1)
    run(sampler, problem, prior, Normals(rows, SMALL))
    marginal = covariance + sigma**2 * torch.eye(16)
    gain = torch.linalg.solve(marginal, covariance)
    expected = lam * sigma**2 * torch.linalg.solve(marginal, mu.flatten() - mean)
    (gradient,) = descent.gradients
    assert_law(gradient, expected, lam**2 * sigma**2 * gain @ gain.T)


def test_fixed_point_of_the_likelihood_form(descent: type[Descent]) -> None:
    """At one noise level it solves A^T (A mu - y) / sigma_y^2 + lambda sigma^2 (C + sigma^2)^-1 (mu - m) = 0.

    The mean over many optimisers: plain descent with noise about the gradient ends there on average.
    """
    operator, noise_std, sigma, lam, rows = GaussianBlur(std=0.8, kernel_size=5), 0.3, 0.5, 8.0, 2000
    matrix, covariance = dense(operator, SMALL), smooth(4, 4, std=0.3)
    mean, y = 0.5 + 0.2 * normal(16, seed=1), 0.5 + 0.3 * normal(1, *SMALL, seed=2)
    problem = InverseProblem(operator, GaussianNoise(noise_std), y).select(torch.zeros(rows, dtype=torch.long))
    schedule = Levels(values=(*[sigma] * 250, 0.0))
    scale = noise_std**2 / torch.linalg.matrix_norm(matrix, 2).item() ** 2  # of the data term
    prior = Remembering(gaussian(mean.reshape(SMALL), covariance))
    sampler = REDDiff(schedule=schedule, learning_rate=0.04 / scale, lam=lam * scale**0.5 * prior.unit)
    x = run(sampler, problem, prior, Normals(rows, SMALL))[-1].x.flatten(1)
    pull = lam * sigma**2 * torch.linalg.inv(covariance + sigma**2 * torch.eye(16))
    target = torch.linalg.solve(
        matrix.T @ matrix / noise_std**2 + pull, matrix.T @ y.flatten() / noise_std**2 + pull @ mean
    )
    errors = (x.mean(0) - target) / (x.var(0) / rows).sqrt()
    assert errors.abs().max() < 4.5
    assert (y.flatten() - target).abs().max() > 0.1


def test_with_a_matching_lambda_it_is_the_posterior_mean() -> None:
    """For C = s^2 I and lambda = h sigma_y / |A| (1 / s^2 + 1 / sigma^2), with Adam itself and without its noise:
    the likelihood counts once, and sigma_y with it."""
    operator, s, noise_std, sigma, steps = GaussianBlur(std=0.8, kernel_size=5), 0.3, 0.1, 0.5, 1500
    mean, y = 0.5 + 0.1 * normal(16, seed=1), 0.5 + 0.3 * normal(1, *SMALL, seed=2)
    prior = gaussian(mean.reshape(SMALL), s**2 * torch.eye(16))
    matrix = dense(operator, SMALL)
    unit = Remembering(prior).unit
    lam = unit * noise_std / torch.linalg.matrix_norm(matrix, 2).item() * (1 / s**2 + 1 / sigma**2)
    sampler = REDDiff(schedule=Levels(values=(*[sigma] * steps, 0.0)), learning_rate=0.002, lam=lam)
    silent = Scripted([torch.zeros(1, *SMALL, dtype=torch.float64)] * steps)
    x = run(sampler, InverseProblem(operator, GaussianNoise(noise_std), y), Remembering(prior), silent)[-1].x
    target = prior.condition(matrix, y.flatten(), noise_std).mean
    assert (x - target).abs().max() < 1e-4
    assert (y - target).abs().max() > 0.1


@pytest.fixture(scope="module")
def thousand_steps() -> tuple[Tensor, Tensor, Tensor]:
    """The reference protocol on independent pixels with std 0.5, half of them measured: images, y and the mask."""
    rows, shape, s = 64, (1, 4, 8), 0.5
    mask = torch.arange(32).reshape(1, 4, 8) % 2 == 0
    prior = GaussianPrior(torch.zeros(shape, dtype=torch.float64), s**2 * torch.eye(32, dtype=torch.float64))
    y = torch.linspace(-1.5, 1.5, 32, dtype=torch.float64).reshape(1, *shape).expand(rows, *shape)
    problem = InverseProblem(Inpainting(mask=mask), GaussianNoise(5.0), y)
    sampler = REDDiff(schedule=VP(steps=1000), learning_rate=0.05, lam=0.25, data_term="published")
    return run(sampler, problem, prior, Normals(rows, shape))[-1].x, y, mask


def test_the_reference_protocol_returns_what_was_measured(thousand_steps: tuple[Tensor, Tensor, Tensor]) -> None:
    """Slope 1.00 at any noise level, where the posterior mean of this one would have 0.01."""
    x, y, mask = thousand_steps
    x, y = x[:, mask], y[:, mask]
    slope = float((x * y).sum() / (y * y).sum())
    assert slope == pytest.approx(1.0, abs=0.005)
    assert float((x - y).std()) < 0.03


def test_its_spread_is_jitter_and_no_uncertainty(thousand_steps: tuple[Tensor, Tensor, Tensor]) -> None:
    """Where nothing is measured it ends about the prior mean, with about half the spread of the prior: std 0.26."""
    x, _, mask = thousand_steps
    values = x[:, ~mask]
    assert abs(float(values.mean())) < 5 * 0.26 / sqrt(values.numel())
    assert float(values.std()) == pytest.approx(0.26, abs=0.03)


class WithoutGuess(LinearCallableOperator):
    """A linear operator without a first guess, so that the descent starts far away."""

    def first_guess(self, y: Tensor) -> None:  # type: ignore[override]
        return None


@pytest.mark.parametrize("data_term", ["published", "likelihood"])
def test_without_the_regulariser_it_is_least_squares(data_term: str) -> None:
    """An overdetermined system with an inconsistent y; neither the prior nor the random numbers have an effect."""
    matrix, y = normal(24, 16, seed=1), normal(2, 24, seed=2)
    operator = WithoutGuess(lambda x: x.flatten(1) @ matrix.T.to(x.dtype), image_shape=SMALL)
    problem = InverseProblem(operator, GaussianNoise(0.2), y)
    sampler = REDDiff(schedule=VP(steps=900), learning_rate=0.01, lam=0.0, data_term=data_term)  # type: ignore[arg-type]
    priors = [Remembering(gaussian(torch.full(SMALL, mean), 0.1 * torch.eye(16))) for mean in (0.5, 7.0)]
    ends = [run(sampler, problem, prior, Normals(2, SMALL, seed))[-1].x for seed, prior in enumerate(priors)]
    assert torch.equal(*ends)
    assert (ends[0].flatten(1) - torch.linalg.lstsq(matrix, y.T).solution.T).abs().max() < 1e-3


def test_measuring_twice_and_in_another_unit() -> None:
    """Every measurement given twice, with twice the variance, changes nothing: the authors take means, we divide by the
    norm of the operator. With that, the unit of y changes nothing either; under the authors' means it counts by its
    square.
    """
    operator = SuperResolution(factor=2)
    y = operator(0.5 + 0.3 * normal(2, *SHAPE, seed=1))
    prior = gaussian(torch.full(SHAPE, 0.5), smooth(8, 8, std=0.3))
    numbers = [normal(2, *SHAPE, seed=k) for k in range(15)]

    def end(data_term: str, lam: float = 0.5, *, copies: int = 1, unit: float = 1.0) -> Tensor:
        def measure(x: Tensor) -> Tensor:
            return torch.cat([unit * operator(x)] * copies, 1)

        problem = InverseProblem(
            LinearCallableOperator(measure, image_shape=SHAPE),
            GaussianNoise(0.3 * unit * copies**0.5),
            torch.cat([unit * y] * copies, 1),
        )
        sampler = REDDiff(schedule=VP(steps=15), lam=lam, data_term=data_term)  # type: ignore[arg-type]
        return run(sampler, problem, prior, Scripted(numbers))[-1].x

    for data_term in ("published", "likelihood"):
        assert torch.allclose(end(data_term, copies=2), end(data_term), rtol=0, atol=1e-7)
        assert (end(data_term, 1.0) - end(data_term)).abs().max() > 1e-4
    assert torch.allclose(end("likelihood", copies=2, unit=50.0), end("likelihood"), rtol=0, atol=1e-7)
    assert torch.allclose(end("published", 2.0, unit=2.0), end("published"), rtol=0, atol=1e-5)  # Adam's epsilon


def test_complex_measurements() -> None:
    """One complex number is two measurements, each part with half the variance: the same as those two."""
    prior = gaussian(torch.full(SHAPE, 0.5), smooth(8, 8, std=0.3))
    numbers = [normal(2, *SHAPE, seed=k) for k in range(15)]

    def fourier(x: Tensor) -> Tensor:
        return torch.fft.fft2(x, norm="ortho")[..., :3]

    clean = fourier(0.5 + 0.3 * normal(2, *SHAPE, seed=1))
    parts = (lambda x: torch.view_as_real(fourier(x)), torch.view_as_real(clean), 0.2 / sqrt(2))
    for data_term in ("published", "likelihood"):
        sampler = REDDiff(schedule=VP(steps=15), lam=0.5, data_term=data_term)  # type: ignore[arg-type]
        whole, split = (
            run(
                sampler,
                InverseProblem(WithoutGuess(function, image_shape=SHAPE), GaussianNoise(noise_std), y),
                prior,
                Scripted(numbers),
            )[-1].x
            for function, y, noise_std in ((fourier, clean, 0.2), parts)
        )
        assert torch.allclose(whole, split, rtol=0, atol=1e-7)


# -- rules -------------------------------------------------------------------------------------------------------------


def small_problem(images: int = 4, sigma: Tensor | float = 0.1) -> tuple[InverseProblem, GaussianPrior]:
    operator = GaussianBlur(std=1.0, kernel_size=5)
    x = torch.rand(images, *SHAPE, generator=torch.Generator().manual_seed(0))
    prior = GaussianPrior(torch.full(SHAPE, 0.5), 0.04 * torch.eye(64))
    prior.value_range = (0.0, 1.0)
    return InverseProblem(operator, GaussianNoise(sigma), operator(x)), prior


def test_any_noise_has_a_likelihood() -> None:
    """Photon counts: the negative log-likelihood is not a sum of squares, and there is nothing to halve."""
    problem, prior = small_problem(images=2)
    counts = InverseProblem(problem.operator, PoissonNoise(0.02), problem.y)
    found = REDDiff(schedule=VP(steps=40), learning_rate=0.02, lam=1.0).sample(counts, prior)
    assert not found.diverged.any()
    assert (counts.misfit(found.samples[:, 0]) < counts.misfit(torch.full((2, *SHAPE), 0.5))).all()


def test_an_image_with_an_absurd_likelihood_is_reported_and_harms_no_other() -> None:
    """The noise of image 2 is so small that its gradient leaves the range of float32."""
    levels = torch.full((4,), 0.1)
    problem, prior = small_problem(sigma=levels)
    sampler = REDDiff(schedule=VP(steps=8))
    healthy = sampler.sample(problem, prior, num_samples=2)
    levels = levels.clone()
    levels[2] = 1e-22
    sick = sampler.sample(small_problem(sigma=levels)[0], prior, num_samples=2)
    assert not healthy.diverged.any()
    assert sick.diverged.tolist() == [[image == 2] * 2 for image in range(4)]
    others = [0, 1, 3]
    assert torch.equal(sick.samples[others], healthy.samples[others])


def test_an_absurd_learning_rate_is_reported_where_it_does_harm() -> None:
    """Image 1 fits from the start and has no gradient: it stays, while Adam makes the other one diverge at once."""
    _, prior = small_problem()
    operator = CallableOperator(torch.square, image_shape=SHAPE)
    y = torch.stack([torch.full(SHAPE, 0.3), torch.full(SHAPE, 0.25)])  # from mid-grey, 0.5
    found = REDDiff(schedule=VP(steps=8), learning_rate=1e4, lam=0.0).sample(
        InverseProblem(operator, GaussianNoise(0.1), y), prior
    )
    assert found.diverged_at.flatten().tolist() == [0, -1]
    assert torch.equal(found.samples[1, 0], torch.full(SHAPE, 0.5))


def test_it_restores_a_digit() -> None:
    """With a trained network: closer to the truth than the start is, in the holes."""
    prior = load_prior("digits")
    operator = Inpainting(keep=0.5)
    truth = torch.zeros(1, 1, 32, 32)
    truth[..., 7:25, 14:18] = 1  # a one, as far as strokes go
    problem = InverseProblem(operator, GaussianNoise(0.05), operator(truth))
    sampler = REDDiff(schedule=VP(steps=30), learning_rate=0.1, lam=0.5)
    found = sampler.sample(problem, prior, compute=Compute(precision="float32")).samples[:, 0]
    assert (found - truth).square().mean() < 0.5 * (start(problem, prior) - truth).square().mean()
