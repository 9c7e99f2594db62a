"""The plots of a page: where the words go."""

import math

import pytest

from invdiff.benchmark.summary import Comparison, Estimate, Standing
from invdiff.report.plots import Label, Look, Plot, _box, _overlap, quality_against

BASELINE = 15.0


def plot(marks: list[tuple[float, float]]) -> Plot:
    """Samplers of these costs and PSNR above a first guess of 15 dB."""
    standings = [
        Standing(
            run=str(k), label="s", settings={}, images=1, cost=cost, scores={"psnr_mean": Estimate(psnr, math.nan)}
        )
        for k, (cost, psnr) in enumerate(marks)
    ]
    comparison = Comparison("t", "blur", None, {}, standings, Estimate(BASELINE, math.nan))
    found = quality_against([comparison], "cost", "title", "network calls", {"s": Look(0, "circle")})
    assert found is not None
    assert found.y_label == "PSNR of the mean (dB)"
    return found


def test_energy_scores_are_drawn_where_there_are_any() -> None:
    """Their axis has ticks of their size, and no first guess: it is one image. The dear one is better by chance."""
    energies = {"cheap": (1.0, (0.030, 0.050)), "chance": (10.0, (0.028, 0.051)), "better": (100.0, (0.020, 0.041))}
    standings = [
        Standing(
            run=name,
            label="s",
            settings={},
            cost=cost,
            scores={"energy": Estimate(sum(values) / 2, 0.01), "psnr_mean": Estimate(20.0, 1.0)},
            by_image={"energy": {(i, "k"): value for i, value in enumerate(values)}},
        )
        for name, (cost, values) in energies.items()
    ]
    comparison = Comparison("t", "blur", None, {}, standings, Estimate(BASELINE, math.nan))
    found = quality_against([comparison], "cost", "title", "network calls", {"s": Look(0, "circle")})
    assert found is not None
    assert found.y_label == "energy score, lower is better"
    assert [line.kind for line in found.lines] == ["front"]
    assert [m.on_front for m in found.marks] == [True, False, True]
    assert found.marks[2].y > found.marks[0].y, "lower is lower"
    assert 3 <= len(found.y_ticks) <= 7


@pytest.mark.parametrize(
    "marks",
    [
        [(10.0, 20.0), (100.0, 22.0)],
        [(10.0, 20.0), (100.0, 22.0), (100.0, 15.3), (80.0, 15.4), (60.0, 15.4)],
        [(10.0, 20.0), (100.0, 22.0), (100.0, 15.3), (95.0, 14.4)],
    ],
    ids=["room", "above its right end", "above and below its right end"],
)
def test_the_name_of_the_first_guess_is_over_no_mark(marks: list[tuple[float, float]]) -> None:
    found = plot(marks)
    (note,) = found.notes
    assert isinstance(note, Label)
    left, top, right, bottom = _box(note)
    assert not any(_overlap((left, top, right, bottom), (m.x - 5, m.y - 5, m.x + 5, m.y + 5)) for m in found.marks)
    frame_left, frame_top, frame_right, frame_bottom = found.frame
    assert frame_left <= left < right <= frame_right
    assert frame_top <= top < bottom <= frame_bottom
