"""The calibration picture: every panel is there, says what it shows, and stays readable with samples left out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from invdiff.correction import Correction, Level
from invdiff.report.calibration import calibration_figure, largest_effect
from invdiff.report.comparison import save_figure
from invdiff.scores.calibration import LEVELS, Calibration

TITLE = "gaussian_blur · digits prior · dps: $200$ steps"
NAMES = ("pixel (0, 1, 2)", "pixel (0, 3, 3)", "mean intensity", "projection 1", "projection 2", "log-likelihood")


def calibration(*, images: int = 200, power: float = 1.0, lost: int = 0) -> Calibration:
    """Uniform ranks, the second pixel's raised to a power; `lost` images without a sample."""
    rng = torch.Generator().manual_seed(0)
    uniform = torch.rand(images, len(NAMES), generator=rng, dtype=torch.float64)
    uniform[:, 1] **= power
    kept = torch.full((images,), 9)
    kept[:lost] = 0
    uniform[:lost] = torch.nan
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    covered = (levels + 0.1 * torch.randn(images, len(levels), generator=rng)).clamp(0, 1)
    covered[:lost] = torch.nan
    return Calibration(
        names=NAMES,
        ranks=(uniform * 10).nan_to_num().long(),
        uniform=uniform,
        kept=kept,
        num_samples=9,
        levels=levels,
        covered=covered,
        pixel_coverage=torch.rand(len(levels), 1, 4, 4, generator=rng),
        balls=uniform[:, 0],
        tarp=levels,
        tarp_band=torch.stack([levels - 0.05, levels + 0.05]),
        drawn=True,
        exact_truth=True,
        errors=(),
    )


def correction(pixels: float, balls: float) -> Correction:
    """Coverage of 90 % before the correction: 0.01 of error for pixels, 0.03 for balls."""
    return Correction(
        key={},
        truths="draws",
        drawn=True,
        images=200,
        shape=(1, 4, 4),
        background=0.0,
        floor=0.0,
        spread=(1.6, 0.05),
        pixels={0.9: Level(3.0, 0.1, (pixels, 0.01), (0.9, 0.01))},
        balls={0.9: Level(1.3, 0.1, (balls, 0.03), (0.9, 0.03))},
    )


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize(
    ("pixels", "balls", "words"),
    [
        (
            0.71,
            0.85,
            "intervals are too narrow: 90 % ones hold 71.0 ± 1.0 % of the pixels; multiply the spread by 1.60",
        ),
        (0.97, 0.92, "intervals are too wide: 90 % ones hold 97.0 ± 1.0 % of"),
        (
            0.85,
            0.4,
            "balls about random points are too narrow: 90 % ones hold 40.0 ± 3.0 % of the truths; multiply",
        ),
        (0.9, 0.85, "no effect exceeds three times its error"),
    ],
)
def test_the_largest_effect_is_named_with_its_error(pixels: float, balls: float, words: str) -> None:
    assert largest_effect(calibration(), correction(pixels, balls)).startswith(words)


def test_a_shift_is_named_with_its_direction() -> None:
    shifted = largest_effect(calibration(power=3.0), correction(0.88, 0.9))
    assert shifted == "samples are shifted up: the truth's pixel (0, 3, 3) has mean rank 0.25 ± 0.02, 0.5 is right"
    found = calibration()
    blind = found.uniform.clone()
    blind[:, -1] = 0.95
    words = largest_effect(replace(found, uniform=blind), None)
    assert words.startswith(
        "samples fit the measurement less closely than the truth, whose likelihood has mean rank 0.95"
    )


def test_all_six_panels_are_drawn_and_say_what_they_show() -> None:
    figure = calibration_figure(calibration(), title=TITLE)
    assert len(figure.axes) == 6
    said = words(figure)
    for part in ("worst of 2", "mean intensity", "log-likelihood", "Coverage", "TARP", "200 truths, 9 samples each"):
        assert part in said
    assert "diverged" not in said


def test_the_pixel_with_the_worst_ranks_is_the_one_shown() -> None:
    figure = calibration_figure(calibration(power=3.0), title=TITLE)
    assert figure.axes[0].get_title() == "pixel (0, 3, 3), worst of 2\np < 0.001"
    heights = [bar.get_height() for bar in figure.axes[0].patches if bar.get_width() < 0.2]
    assert sum(heights) == 200
    assert heights[0] > 40


def test_the_band_of_the_histogram_holds_nineteen_of_twenty_flat_counts() -> None:
    figure = calibration_figure(calibration(images=2000), title=TITLE)
    (band,) = (patch for patch in figure.axes[1].patches if patch.get_width() == 1)
    # 100 a bin, of 2000 in 20: 1.96 standard deviations of 9.7.
    assert band.get_y() == pytest.approx(100 - 19, abs=2)
    assert band.get_y() + band.get_height() == pytest.approx(100 + 19, abs=2)


def test_what_is_left_out_is_said() -> None:
    assert "18 samples diverged and are left out" in words(calibration_figure(calibration(lost=2), title=TITLE))


def test_few_images_and_a_rank_that_never_changes_are_drawn_too() -> None:
    few = calibration(images=20)
    figure = calibration_figure(replace(few, uniform=torch.full_like(few.uniform, 0.5)), title=TITLE)
    FigureCanvasAgg(figure).draw()


def test_no_words_leave_the_picture_or_cover_others() -> None:
    figure = calibration_figure(calibration(power=2.0, lost=3), title="x" * 300)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [
        (text.get_text(), text.get_window_extent(canvas.get_renderer()))
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible()
    ]
    width, height = figure.bbox.width, figure.bbox.height
    for words_, box in boxes:
        assert box.x0 >= 0, words_
        assert box.y0 >= 0, words_
        assert box.x1 <= width, words_
        assert box.y1 <= height, words_
    # Corners of ticks may touch: a point of room.
    for i, (one, a) in enumerate(boxes):
        for other, b in boxes[i + 1 :]:
            apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
            assert apart, f"{one!r} covers {other!r}"


def test_it_is_saved_as_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "calibration.png"
    save_figure(calibration_figure(calibration(), title=TITLE), path)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape[1] > 1500
    assert pixels.std() > 10
