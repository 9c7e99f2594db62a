"""What a long run tells: how long it will take, which image it is at, and how the image looks so far."""

import time
from collections.abc import Callable
from io import BytesIO

import torch

from invdiff.engine.driver import Callback, Event
from invdiff.engine.progress import duration, progress_bar
from invdiff.io.output import Output
from invdiff.job import Job
from invdiff.report.comparison import thumbnails
from invdiff.results import PREVIEW

SETTLED = 2.0  # seconds of steps after which their speed is known
LONG = 30.0  # seconds: below, nobody needs to be told
REFRESH = 5.0  # seconds between two previews


class Reporter:
    """Progress bar, estimate of the time and preview of a run; called with a group of images, gives its callback.

    output   holds the images that an earlier run has finished
    preview  draw the mean of the samples so far, preview.png
    show     with a progress bar
    say      called with the estimate
    """

    def __init__(self, job: Job, output: Output, *, preview: bool, show: bool, say: Callable[[str], object]) -> None:
        self.job, self.output, self.preview, self.say = job, output, preview, say
        self.per_image = job.chains * job.sampler.num_steps
        self.images, self.left = job.problem.images, job.problem.images - len(job.done(output))
        self.bar = progress_bar(self.left * self.per_image, "step", job.sampler.name(), show=show, steady=True)
        self.before = 0  # images that this run has finished
        self.began: tuple[float, int] | None = None  # time and steps of rows after the first step, which warms up
        self.said, self.drawn = False, time.perf_counter()

    def __call__(self, images: range) -> Callback:
        which = f"image {images[0] + 1}" if len(images) == 1 else f"images {images[0] + 1} to {images[-1] + 1}"
        self.bar.set_description(f"{self.job.sampler.name()}, {which} of {self.images}", refresh=False)
        base = self.before * self.per_image
        self.before += len(images)

        def callback(event: Event) -> None:
            first = int(event.image[0]) * self.job.chains + int(event.sample[0])  # row of the group
            done = base + first * self.job.sampler.num_steps + (event.index + 1) * len(event.image)
            self.bar.update(done - self.bar.n)
            self._estimate(done, len(images))
            if self.preview and time.perf_counter() - self.drawn > REFRESH:
                _draw(event, self.job.prior.value_range, self.output)
                self.drawn = time.perf_counter()

        return callback

    def close(self) -> None:
        self.bar.close()

    def _estimate(self, done: int, group: int) -> None:
        """Tell once how long the run takes, from the speed of its first steps."""
        now = time.perf_counter()
        if self.said or self.began is None:
            self.began = self.began or (now, done)
            return
        elapsed, steps = now - self.began[0], done - self.began[1]
        if elapsed < SETTLED or steps <= 0:
            return
        self.said = True
        whole, first = (n * self.per_image * elapsed / steps for n in (self.left, min(group, self.left)))
        if whole < LONG:
            return
        shape = "x".join(map(str, self.job.problem.image_shape[1:]))
        count = f"{self.left}" if self.left == self.images else f"the other {self.left} of {self.images}"
        words = f"about {duration(whole)} for {count} image(s) of {shape}, {self.job.num_samples} sample(s) each"
        self.say(words if group >= self.left else f"{words}; first picture after {duration(first)}")


def _draw(event: Event, value_range: tuple[float, float], output: Output) -> None:
    """The mean over the samples of the clean estimates of this step, an image each."""
    low, high = value_range
    x0 = event.x0.detach().float().cpu()
    means = torch.stack([x0[event.image == i].mean(0) for i in event.image.unique()])
    drawn = BytesIO()
    thumbnails(((means - low) / (high - low)).nan_to_num(), drawn, columns=min(len(means), 4))
    output.glimpse(PREVIEW, drawn.getvalue())
