"""What a long run tells while it goes on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from invdiff.cli import reporter
from invdiff.cli.reporter import Reporter
from invdiff.engine.driver import Event
from invdiff.engine.progress import duration
from invdiff.engine.step import Step
from invdiff.io.output import opened
from invdiff.results import PREVIEW

STEPS, SAMPLES = 10, 2
EACH = [range(i, i + 1) for i in range(12)]


def job(images: int, done: int = 0) -> Any:
    return SimpleNamespace(
        problem=SimpleNamespace(images=images, image_shape=(1, 4, 4)),
        prior=SimpleNamespace(value_range=(0.0, 2.0)),
        sampler=SimpleNamespace(num_steps=STEPS, name=lambda: "dps"),
        num_samples=SAMPLES,
        chains=SAMPLES,
        done=lambda output: set(range(done)),
    )


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(reporter.time, "perf_counter", lambda: self.now)


def run(report: Reporter, groups: list[range], clock: Clock, seconds: float) -> None:
    """All steps, of so many seconds each."""
    for images in groups:
        callback = report(images)
        image = torch.arange(len(images)).repeat_interleave(SAMPLES)
        sample = torch.arange(SAMPLES).repeat(len(images))
        x0 = torch.ones(len(image), 1, 4, 4) * (2 * sample / (SAMPLES - 1)).reshape(-1, 1, 1, 1)
        for index in range(STEPS):
            clock.now += seconds
            callback(Event(Step(x0, x0, 1.0), index, STEPS, image, sample))


@pytest.mark.parametrize(
    ("images", "done", "groups", "seconds", "words"),
    [
        (12, 0, EACH, 3, "about 6 min for 12 {}; first picture after 30 s"),
        (12, 9, EACH[9:], 3, "about 90 s for the other 3 of 12 {}; first picture after 30 s"),
        (2, 0, [range(2)], 1000, "about 2.8 h for 2 {}"),
        (2, 0, EACH[:2], 1, None),
        (12, 0, [range(12)], 0.1, None),
    ],
)
def test_the_estimate(
    monkeypatch: pytest.MonkeyPatch, images: int, done: int, groups: list[range], seconds: float, words: str | None
) -> None:
    said: list[str] = []
    clock = Clock(monkeypatch)
    report = Reporter(job(images, done), None, preview=False, show=False, say=said.append)  # type: ignore[arg-type]
    run(report, groups, clock, seconds)
    report.close()
    assert said == ([] if words is None else [words.format("image(s) of 4x4, 2 sample(s) each")])


def test_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    report = Reporter(job(5, 1), None, preview=False, show=False, say=print)  # type: ignore[arg-type]
    shown: list[str] = []
    monkeypatch.setattr(report.bar, "set_description", lambda words, refresh: shown.append(words))
    updates: list[int] = []
    monkeypatch.setattr(report.bar, "update", lambda n: updates.append(n) or setattr(report.bar, "n", report.bar.n + n))
    run(report, [range(1, 3), range(3, 4)], clock, 1)
    assert shown == ["dps, images 2 to 3 of 5", "dps, image 4 of 5"]
    assert (report.bar.total, sum(updates)) == (4 * SAMPLES * STEPS, 3 * SAMPLES * STEPS)


def test_the_preview(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The mean of the samples of each image, at most every few seconds; it goes when the results are there."""
    clock = Clock(monkeypatch)
    written: list[int] = []
    with opened(tmp_path, "run", [PREVIEW], overwrite=False) as output:
        report = Reporter(job(2), output, preview=True, show=False, say=print)
        glimpse = output.glimpse
        monkeypatch.setattr(output, "glimpse", lambda name, data: written.append(1) or glimpse(name, data))
        run(report, [range(2)], clock, 2.0)
        with Image.open(tmp_path / PREVIEW) as image:
            shown = np.asarray(image)
        assert shown.shape == (4, 8)
        assert set(np.unique(shown)) == {128}, "the mean of 0 and 2 in [0, 2]"
        assert len(written) == 3, "every third step of two seconds"
        output.finish()
    assert not (tmp_path / PREVIEW).exists()


def test_times_in_words() -> None:
    assert [duration(s) for s in (0.4, 30, 89, 100, 600, 5399, 5400, 86400)] == [
        *("0 s", "30 s", "89 s", "2 min", "10 min", "90 min", "1.5 h", "24.0 h"),
    ]
