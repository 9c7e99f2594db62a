"""The plots of a page: where the words go."""

import math

import pytest

from invdiff.benchmark.summary import Comparison, Estimate, Standing
from invdiff.report.plots import Label, Look, Plot, _box, _overlap, quality_against

BASELINE = 15.0


def plot(marks: list[tuple[float, float]]) -> Plot:
    """Samplers of these costs and PSNR above a first guess of 15 dB."""
    standings = [
        Standing(run=str(k), label="s", settings={}, images=1, cost=cost, scores={"psnr": Estimate(psnr, math.nan)})
        for k, (cost, psnr) in enumerate(marks)
    ]
    comparison = Comparison("t", "blur", None, {}, standings, Estimate(BASELINE, math.nan))
    found = quality_against([comparison], "cost", "title", "network calls", {"s": Look(0, "circle")})
    assert found is not None
    return found


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
