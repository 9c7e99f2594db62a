"""A stored calibration belongs to one prior, operator, noise, sampler and number of samples, and to no other."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import invdiff
from invdiff import Compute, InverseProblem, load_prior
from invdiff.correction import Correction, Level
from invdiff.io import BadInput
from invdiff.operators import Denoising, Inpainting, Operator, as_operator
from invdiff.priors import DiagonalGaussianPrior, Prior, as_prior
from invdiff.samplers import DAPS, Sampler
from invdiff.schedules import EDM
from invdiff.scores.stored import bundled_file, find_calibration, key_of, read_calibrations

SHAPE = (1, 4, 4)
SAMPLER = DAPS(schedule=EDM(steps=2))


def gaussian(mean: float = 0.5) -> Prior:
    return DiagonalGaussianPrior(torch.full(SHAPE, mean), torch.full(SHAPE, 0.2))


def key(
    operator: Operator | None = None,
    noise: float = 0.1,
    prior: Prior | None = None,
    sampler: Sampler = SAMPLER,
    num_samples: int = 4,
) -> dict[str, Any]:
    problem = InverseProblem(operator or Inpainting(), noise, torch.zeros(1, *SHAPE), image_shape=SHAPE)
    return key_of(problem, prior or gaussian(), sampler, num_samples)


def correction(factor: float = 3.0, *, drawn: bool = True, **more: Any) -> Correction:
    levels = {level: Level(factor, 0.1, (0.5, 0.01), (level, 0.01)) for level in (0.5, 0.9)}
    made = {"floor": 0.0, "spread": (1.0, 0.1), "pixels": levels, "balls": levels, "background": 0.0}
    return Correction(
        **{**made, "key": key(), "truths": "draws of the prior", "drawn": drawn, "images": 64, "shape": SHAPE, **more}
    )


def write(path: Path, *known: Correction) -> Path:
    path.write_text(json.dumps({"calibrations": [one.as_json() for one in known]}))
    return path


def test_it_is_found_again_in_a_file(tmp_path: Path) -> None:
    known = read_calibrations(write(tmp_path / "c.json", correction()))
    found, words = find_calibration(key(Inpainting(keep=0.3, seed=7)), known, SHAPE)
    assert found == correction()
    assert words == "90 % intervals: measured coverage 0.90 ± 0.01 on 64 images (draws of the prior)"


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"num_samples": 8}, "(measured with num_samples=4 and not 8)"),
        ({"noise": 0.2}, "(measured with noise.sigma=0.1 and not 0.2)"),
        ({"operator": Inpainting(keep=0.4)}, "(measured with operator.keep=0.3 and not 0.4)"),
        ({"operator": Denoising()}, "(measured with operator=Inpainting and not Denoising)"),
        ({"sampler": DAPS(schedule=EDM(steps=3))}, "(measured with sampler.schedule.steps=2 and not 3)"),
        ({"prior": gaussian(0.4)}, "sampler"),  # other weights: nothing of this prior is there
    ],
)
def test_anything_else_is_not_measured(other: dict[str, Any], words: str) -> None:
    found, said = find_calibration(key(**other), [correction()], SHAPE)
    assert found is None
    assert said.startswith("90 % intervals: not measured for this prior, operator, noise and sampler")
    assert said.endswith(words)


def test_functions_without_a_description_are_told_apart_by_what_they_make() -> None:
    def operator(n: float) -> Operator:
        return as_operator(lambda x: n * x, image_shape=SHAPE)

    def prior(n: float) -> Prior:
        return as_prior(lambda x, sigma: n * x, shape=SHAPE)

    assert key(operator(2)) == key(operator(2)) != key(operator(3))
    assert key(prior=prior(0.5)) == key(prior=prior(0.5)) != key(prior=prior(0.6))


def test_images_of_the_world_come_before_draws_and_later_ones_before_earlier_ones() -> None:
    real, older, newer = correction(1.0, drawn=False), correction(2.0), correction(3.0)
    assert find_calibration(key(), [real, older, newer], SHAPE)[0] is real
    assert find_calibration(key(), [older, newer], SHAPE)[0] is newer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("{", "must be a calibration.json of invdiff calibrate"),
        ("[1]", "must be a calibration.json"),
        ('{"p_value": 1}', "must be a calibration.json"),
        ('{"calibrations": []}', "holds no calibration"),
        ('{"calibrations": [{"floor": 1}]}', "lacks or misspells"),
        ('{"calibrations": [3]}', "lacks or misspells"),
    ],
)
def test_a_file_that_holds_none_gets_one_line(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInput, match=words) as error:
        read_calibrations(path)
    assert "mine.json" in str(error.value)


def test_the_package_has_calibrations_of_its_own_priors() -> None:
    known = read_calibrations(bundled_file())
    weights = {load_prior(name).weights_hash for name in invdiff.priors.bundled()}
    assert {one.key["prior"]["weights"] for one in known} <= weights
    assert all(0.88 < one.pixels[0.9].after[0] < 0.92 for one in known)


def test_reconstruct_takes_it_and_states_it(tmp_path: Path, float32: Compute) -> None:
    y = torch.rand(1, *SHAPE)
    settings = {"noise": 0.1, "prior": gaussian(), "sampler": SAMPLER, "compute": float32}
    file = write(tmp_path / "c.json", correction())
    result = invdiff.reconstruct(y, Inpainting(), calibration=file, num_samples=4, truth=y, **settings)
    assert result.calibration == correction()
    low, high = result.interval(0.9)
    torch.testing.assert_close(high - low, 6 * result.std)
    assert result.metrics()["notes"]["calibration"]["images"] == 64
    assert result.notes["intervals"].startswith("90 % intervals: measured coverage 0.90")

    plain = invdiff.reconstruct(y, Inpainting(), calibration=file, num_samples=3, **settings)
    assert plain.calibration is None
    assert "num_samples=4 and not 3" in plain.notes["intervals"]
    assert "calibration" not in plain.metrics()["notes"]
    one = invdiff.reconstruct(y, Inpainting(), num_samples=1, **settings)
    assert one.notes["intervals"] == "90 % intervals: need num_samples of 2 or more"
    assert replace(result, calibration=None).interval(0.9)[0].shape == low.shape


def test_words_name_the_size_and_the_background() -> None:
    one = replace(correction(), background=0.4)
    words = find_calibration(one.key, [one], (1, 8, 8))[1]
    assert words.endswith("black background left out (40 %); measured at 1x4x4")
    assert "measured at" not in find_calibration(one.key, [one], one.shape)[1]
