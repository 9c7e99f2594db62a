"""The comparison picture: everything that can be shown is there, lines up, and can be read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from invdiff.operators import GaussianBlur, GaussianNoise, Inpainting, LinearOperator, Operator, SuperResolution
from invdiff.posterior import Cost, Posterior
from invdiff.problem import InverseProblem
from invdiff.report.comparison import MOST_ROWS, _measurement, _Scales, comparison, save_figure, save_map, thumbnails
from invdiff.scores import evaluate

TITLE = "inpainting · photo prior · daps: 100 network calls, 3 s"


class Fourier(LinearOperator):
    """A complex measurement of several coils, (coils, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x, norm="ortho").repeat(1, 4, 1, 1)

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1, *measurement_shape[1:])


class Projection(LinearOperator):
    """A measurement that is a line: the sums of the rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum((1, 3))

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1, measurement_shape[0], measurement_shape[0])


class Squares(Operator):
    """Nonlinear, without a first guess."""

    def forward(self, x: Tensor) -> Tensor:
        return x**2

    def image_shape(self, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
        return measurement_shape


@dataclass
class Case:
    """What `comparison` is given; one of the tests below for each of the things that may differ."""

    operator: Operator
    images: int = 1
    samples: int = 4
    shape: tuple[int, int, int] = (3, 32, 32)
    diverged: tuple[tuple[int, int], ...] = ()
    truth: bool = True
    name: str = "image"
    title: str = TITLE
    badge: tuple[str, bool] | None = None

    def draw(self) -> Figure:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand((self.images, *self.shape), generator=generator)
        y = self.operator(x)
        y = y + 0.05 * torch.randn(y.shape, generator=generator, dtype=y.dtype)
        problem = InverseProblem(self.operator, GaussianNoise(0.05), y, image_shape=self.shape)
        samples = x[:, None] + 0.05 * torch.randn((self.images, self.samples, *self.shape), generator=generator)
        diverged_at = torch.full((self.images, self.samples), -1)
        for place in self.diverged:
            diverged_at[place], samples[place] = 3, torch.nan
        posterior = Posterior(samples, diverged_at, Cost(forwards=100, seconds=3.0), problem)
        names = [f"{self.name}_{i:03d}" for i in range(self.images)]
        truth = x if self.truth else None
        metrics = evaluate(posterior, names, truth)
        return comparison(posterior, metrics, truth, title=self.title, badge=self.badge)


CASES = {
    "one": Case(Inpainting(keep=0.3)),
    "two": Case(SuperResolution(factor=4), images=2),
    "ten": Case(Inpainting(keep=0.3), images=10, name="a_rather_long_name_of_an_image_in_a_folder_of_many"),
    "one sample": Case(Inpainting(keep=0.3), samples=1),
    "one of two kept": Case(Inpainting(keep=0.3), samples=2, diverged=((0, 1),)),
    "two samples": Case(GaussianBlur(std=1.0, kernel_size=7), samples=2),
    "all diverged": Case(Inpainting(keep=0.3), samples=2, diverged=((0, 0), (0, 1))),
    "first of three diverged": Case(
        SuperResolution(factor=4), images=3, samples=2, diverged=((0, 0), (0, 1), (1, 0)), shape=(1, 32, 32)
    ),
    "no truth": Case(Inpainting(keep=0.3), truth=False),
    "no truth, blur, one sample": Case(GaussianBlur(std=1.0, kernel_size=7), truth=False, samples=1),
    "complex": Case(Fourier(), shape=(1, 32, 32)),
    "a line": Case(Projection(), shape=(1, 32, 32), images=2),
    "no first guess": Case(Squares()),
    "wide": Case(Inpainting(keep=0.3), shape=(3, 16, 64)),
    "tall, several": Case(Inpainting(keep=0.3), shape=(3, 64, 16), images=2),
    "signs": Case(Inpainting(keep=0.3), images=2, name=r"$x_$ \frac{", title="a $1 title_ with ^signs \\ for $2"),
    "long title": Case(Inpainting(keep=0.3), samples=1, shape=(1, 64, 16), title=TITLE * 4),
    "badge": Case(Inpainting(keep=0.3), badge=("misfit 546: the reconstruction does NOT explain the data", True)),
    "long badge, several": Case(SuperResolution(factor=4), images=2, badge=("misfit 2.1: above the noise " * 6, False)),
}


@dataclass
class Drawn:
    figure: Figure
    texts: list[Text]
    boxes: list[Any]
    words: list[str]
    numbers: list[Text]


def _numbers(figure: Figure) -> tuple[list[Text], list[Text]]:
    """The numbers on all axes, and those of them that are texts but are not drawn: axes off, or beyond their end."""
    numbers, undrawn = [], []
    for axis in figure.axes:
        low, high = axis.get_ylim()
        labels = [*axis.get_xticklabels(), *axis.get_yticklabels()]
        numbers += labels
        undrawn += [t for t in labels if not axis.axison or not t.get_text() or not low <= float(t.get_text()) <= high]
    return numbers, undrawn


def drawn(case: Case) -> Drawn:
    figure = case.draw()
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    numbers, undrawn = _numbers(figure)
    texts = [t for t in texts if t not in undrawn]
    return Drawn(figure, texts, [t.get_window_extent(renderer) for t in texts], [t.get_text() for t in texts], numbers)


def texts_stay_apart_and_inside(found: Drawn) -> None:
    width, height = found.figure.get_size_inches() * found.figure.dpi
    for text, box in zip(found.words, found.boxes, strict=True):
        assert box.x0 >= 0, f"{text!r} leaves the picture"
        assert box.x1 <= width, f"{text!r} leaves the picture"
        assert box.y0 >= -1, f"{text!r} leaves the picture"
        assert box.y1 <= height, f"{text!r} leaves the picture"
    for i, a in enumerate(found.boxes):
        for j in range(i):
            b = found.boxes[j]
            apart = a.x0 >= b.x1 or b.x0 >= a.x1 or a.y0 >= b.y1 - 1 or b.y0 >= a.y1 - 1
            assert apart, f"{found.words[i]!r} lies on {found.words[j]!r}"


def no_text_lies_on_an_image(found: Drawn) -> None:
    images = [axis.get_window_extent() for axis in found.figure.axes if axis.images]
    for text, word, box in zip(found.texts, found.words, found.boxes, strict=True):
        if text in found.numbers:
            continue  # of a colour bar, beside it
        for image in images:
            apart = box.x0 >= image.x1 or image.x0 >= box.x1 or box.y0 >= image.y1 or image.y0 >= box.y1
            assert apart, f"{word!r} lies on a picture"


def panels_line_up(case: Case, found: Drawn) -> None:
    panels = [axis for axis in found.figure.axes if not axis.axison]
    sizes = {tuple(round(v, 1) for v in axis.get_window_extent().size) for axis in panels}
    assert len(sizes) == 1, "panels differ in size"
    ((width, height),) = sizes
    assert width / height == pytest.approx(case.shape[2] / case.shape[1], rel=0.01)
    lefts = sorted({round(axis.get_window_extent().x0) for axis in panels})
    steps = np.diff(lefts)
    assert np.allclose(steps, steps[0], atol=1), "columns are not evenly spaced"
    assert min(found.figure.get_size_inches()) * 150 >= 350


def what_there_is_is_shown(case: Case, found: Drawn) -> None:
    shown = min(case.images, MOST_ROWS)
    lost = [sum(place[0] == i for place in case.diverged) for i in range(shown)]
    kept = [case.samples - n for n in lost]
    assert found.words.count("Measurement") == shown
    assert found.words.count("Truth") == (shown if case.truth else 0)
    assert sum(word.startswith("Mean of") for word in found.words) == sum(n > 1 for n in kept)
    assert found.words.count("Standard deviation") == sum(n > 1 for n in kept)
    assert sum(word.startswith("Error") for word in found.words) == (sum(n > 0 for n in kept) if case.truth else 0)
    assert found.words.count("every sample\ndiverged") == sum(n == 0 for n in kept)
    assert "Mean of 1 samples" not in found.words
    assert any("diverged and are left out" in word for word in found.words) == bool(case.diverged)
    assert any("more image(s)" in word for word in found.words) == (case.images > MOST_ROWS)
    assert case.title.replace("$", r"\$") in found.words
    if case.badge is not None:
        text = found.texts[found.words.index(case.badge[0])]
        assert to_rgb(text.get_color())[0] > 2 * max(to_rgb(text.get_color())[1:]) or not case.badge[1], "not red"
    if not case.truth:
        assert not any("dB" in word for word in found.words)
    if isinstance(case.operator, Squares):
        assert not any("seudo-inverse" in word for word in found.words)


@pytest.mark.parametrize("name", CASES)
def test_everything_is_shown_lines_up_and_can_be_read(name: str) -> None:
    case = CASES[name]
    found = drawn(case)
    what_there_is_is_shown(case, found)
    panels_line_up(case, found)
    texts_stay_apart_and_inside(found)
    no_text_lies_on_an_image(found)


def test_each_row_belongs_to_its_image() -> None:
    """Rows with fewer panels (every sample diverged) must not pull those of the next image up."""
    figure = CASES["first of three diverged"].draw()
    tops: dict[float, list[str]] = {}
    for axis in figure.axes:
        heading = [t.get_text() for t in axis.texts][:1]
        tops.setdefault(round(axis.get_position().y0, 4), []).extend(heading)
    rows = [tops[y] for y in sorted(tops, reverse=True)]
    assert [row[0] for row in rows] == ["Truth"] * 3
    assert rows[0] == ["Truth", "Measurement", "First guess", "every sample\ndiverged"]
    assert rows[1][3:] == ["Posterior sample", "Error"]
    assert rows[2][3:] == ["Posterior sample", "Mean of 2 samples", "Standard deviation", "Error of the mean"]


def test_the_pictures_are_the_arrays() -> None:
    case = Case(GaussianBlur(std=1.0, kernel_size=7), shape=(1, 16, 16))
    figure = case.draw()
    x = torch.rand((1, *case.shape), generator=torch.Generator().manual_seed(0))
    shown = {axis.texts[0].get_text(): axis.images[0] for axis in figure.axes if axis.texts and axis.images}
    np.testing.assert_allclose(shown["Truth"].get_array(), x[0, 0].numpy(), atol=1e-6)
    assert shown["Truth"].get_clim() == (0, 1)
    top = shown["Standard deviation"].get_clim()
    assert top == shown["Error of the mean"].get_clim(), "two scales that look like one"
    assert top[0] == 0
    assert shown["Standard deviation"].get_array().mean() == pytest.approx(0.05, rel=0.2)


@pytest.mark.parametrize(("samples", "heading"), [(1, "Posterior sample"), (2, "Mean of 2 conditional means")])
def test_the_error_is_that_of_the_picture_beside_it(samples: int, heading: str) -> None:
    """Conditional means are told from samples; of one sample its own error is shown."""
    x = torch.rand(1, 1, 16, 16)
    problem = InverseProblem(Inpainting(keep=1.0), GaussianNoise(0.05), x)
    drawn = x[:, None].repeat(1, samples, 1, 1, 1) + 0.2
    posterior = Posterior(drawn, torch.full((1, samples), -1), Cost(), problem, conditional_mean=x + 0.1)
    figure = comparison(posterior, evaluate(posterior, ["a"], x), x, title="")
    shown = {axis.texts[0].get_text(): axis.images[0].get_array() for axis in figure.axes if axis.texts and axis.images}
    error = shown["Error of the mean" if samples > 1 else "Error"]
    assert error.mean() == pytest.approx(0.1 if samples > 1 else 0.2, abs=1e-6)
    assert heading in shown


def test_what_was_not_measured_may_be_nan() -> None:
    x = torch.rand(1, 3, 16, 16)
    operator = Inpainting(keep=0.3)
    y = torch.where(operator.measured((3, 16, 16)), x, torch.nan)
    problem = InverseProblem(operator, GaussianNoise(0.05), y)
    posterior = Posterior(x[:, None].repeat(1, 2, 1, 1, 1), torch.full((1, 2), -1), Cost(), problem)
    metrics = evaluate(posterior, ["a"], x)
    figure = comparison(posterior, metrics, x, title="")
    assert all(np.isfinite(np.asarray(axis.images[0].get_array())).all() for axis in figure.axes if axis.images)


def test_other_value_ranges() -> None:
    x = torch.linspace(-3, 5, 256).reshape(1, 1, 16, 16)
    operator = Inpainting(keep=1.0)
    problem = InverseProblem(operator, GaussianNoise(0.05), x)
    posterior = Posterior(x[:, None].repeat(1, 2, 1, 1, 1), torch.full((1, 2), -1), Cost(), problem)
    metrics = evaluate(posterior, ["a"], x, (-3.0, 5.0))
    figure = comparison(posterior, metrics, x, title="", value_range=(-3.0, 5.0))
    truth = np.asarray(figure.axes[0].images[0].get_array())
    assert (truth.min(), truth.max()) == (0, 1)


def test_file(tmp_path: Path) -> None:
    save_figure(CASES["one"].draw(), tmp_path / "comparison.png")
    with Image.open(tmp_path / "comparison.png") as image:
        image.load()
        assert min(image.size) >= 800
        assert image.convert("L").getpixel((2, 2)) == 255


def test_pyplot_is_left_alone() -> None:
    """Figures of pyplot stay in memory until they are closed, and choose a backend for the whole process."""
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    CASES["one"].draw()
    assert plt.get_fignums() == before


def test_maps(tmp_path: Path) -> None:
    values = torch.full((20, 20), 0.1)
    values[0, 0] = 50.0  # an outlier
    assert save_map(values, tmp_path / "map.png") == pytest.approx(0.1)
    with Image.open(tmp_path / "map.png") as image:
        assert image.size == (20, 20)
    assert save_map(torch.zeros(5, 5), tmp_path / "zero.png") > 0


def test_thumbnails(tmp_path: Path) -> None:
    for count, columns, size in ((4, 2, (16, 16)), (3, 2, (16, 16)), (1, 1, (8, 8)), (5, 4, (32, 16))):
        check_thumbnails(tmp_path, count, columns, size)


def check_thumbnails(tmp_path: Path, count: int, columns: int, size: tuple[int, int]) -> None:
    images = torch.linspace(0.2, 1, count)[:, None, None, None].expand(-1, 1, 8, 8)
    thumbnails(images, tmp_path / "grid.png", columns)
    with Image.open(tmp_path / "grid.png") as image:
        assert image.size == size
        pixels = np.asarray(image)
    for i in range(count):
        row, column = divmod(i, columns)
        tile = pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert (tile == round(float(images[i, 0, 0, 0]) * 255)).all()
    assert (pixels == 0).sum() == 64 * (-count % columns)


def test_line_integrals_are_no_picture() -> None:
    """A sinogram has the axes of a grey image and values far beyond it: it gets a scale of its own."""
    scales = _Scales(0.0, 1.0, 0.1)
    assert _measurement(torch.rand(1, 40, 30), "8.1 dB", scales).line == "first guess: 8.1 dB"
    assert _measurement(60 * torch.rand(1, 40, 30), "8.1 dB", scales).line == "1x40x30"
