"""`invdiff.reconstruct` does what the command does, and what its pieces do."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

import invdiff
from invdiff import Compute, InverseProblem, Reconstruction
from invdiff.cli.main import main
from invdiff.operators import CT, BlackBox, Denoising, GaussianNoise, Inpainting, Operator, PhaseRetrieval
from invdiff.priors import EDMPrior
from invdiff.samplers import DAPS, settings_for
from invdiff.schedules import EDM

SHAPE = (1, 32, 32)
SIGMA = 0.05
QUIET = Compute(device="cpu", progress=False)
APART = ("intervals", "checks", "calls")  # notes that do not tell of the sampler
TIMED = 2  # images of a black box that are measured to say how long the run will take


def gamma(image: np.ndarray) -> np.ndarray:
    """A simulator outside torch."""
    return image.clip(0) ** 0.5


# By task: operator, its words for the command, sampler, and settings that make the run short.
TASKS: dict[str, tuple[Operator, list[str], str, dict[str, Any]]] = {
    "inpainting": (Inpainting(keep=0.3), ["operator=inpainting", "operator.keep=0.3"], "mmps", {"schedule.steps": 3}),
    "ct": (CT(views=12), ["operator=ct", "operator.views=12"], "dps", {"schedule.steps": 3}),
    "phase retrieval": (
        PhaseRetrieval(),
        ["operator=phase_retrieval"],
        "daps",
        {"schedule.steps": 3, "chain_steps": 2},
    ),
    "black box": (
        BlackBox(gamma),
        ["operator=callable", "operator.file=simulator.py:gamma", "operator.numpy=true"],
        "enkg",
        {"schedule.steps": 2, "ensemble": 4},
    ),
}


@pytest.fixture
def truth() -> Tensor:
    return torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))


def command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """samples.npz of `invdiff reconstruct` in the present folder."""
    monkeypatch.setattr(sys, "argv", ["invdiff", "reconstruct", "prior=digits", "output=out", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    with np.load("out/samples.npz") as file:
        return dict(file)


@pytest.mark.parametrize("task", TASKS)
def test_three_ways_give_the_same_samples(
    task: str, truth: Tensor, digits: EDMPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, words, name, few = TASKS[task]
    monkeypatch.chdir(tmp_path)
    Path("simulator.py").write_text("def gamma(image):\n    return image.clip(0) ** 0.5\n")
    y = invdiff.simulate(truth, operator, SIGMA)
    np.save("y.npy", y.numpy())

    noise = GaussianNoise(SIGMA)
    settled = settings_for(name, operator, noise, digits, given=few)
    problem = InverseProblem(operator, noise, y, image_shape=SHAPE)
    pieces = settled.sampler.sample(problem, digits, num_samples=2, seed=0, compute=QUIET)

    one_line = invdiff.reconstruct(
        y, operator, noise=SIGMA, prior="digits", sampler=settled.sampler, num_samples=2, compute=QUIET
    )
    assert torch.equal(one_line.samples, pieces.samples)

    short = [f"sampler={name}", *(f"sampler.{setting}={value}" for setting, value in few.items())]
    shared = [*words, *short, f"noise.sigma={SIGMA}", "num_samples=2", "compute.device=cpu", "compute.progress=false"]
    saved = command([*shared, "measurement=y.npy"], monkeypatch)
    assert np.array_equal(saved["samples"], one_line.samples.numpy())

    one_line.save("saved")
    with np.load("saved/samples.npz") as file:
        assert set(file) == set(saved)
        assert all(np.array_equal(file[name], saved[name], equal_nan=True) for name in saved if name != "names")
        assert file["names"].tolist() == ["image"]


@pytest.mark.parametrize("task", TASKS)
def test_a_name_runs_with_recommended_settings(
    task: str, truth: Tensor, digits: EDMPrior, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever its length: the sampler that would run is looked at, not run."""
    ran: list[Any] = []
    monkeypatch.setattr("invdiff.samplers.base.run", lambda sampler, *_, **__: ran.append(sampler) or _nothing(truth))
    operator, _, name, _ = TASKS[task]
    y = invdiff.simulate(truth, operator, SIGMA)
    settled = settings_for(name, operator, GaussianNoise(SIGMA), digits)
    with caplog.at_level(logging.INFO, logger="invdiff"):
        by_name = invdiff.reconstruct(y, operator, prior=digits, sampler=name)
        by_class = invdiff.reconstruct(y, operator, prior=digits, sampler=type(settled.sampler))
        plain = invdiff.reconstruct(y, operator, prior=digits, sampler=name, recommended=False)
        chosen = invdiff.reconstruct(y, operator, prior=digits)
    assert ran == [settled.sampler, settled.sampler, type(settled.sampler)(), chosen.sampler]
    reasons = [{key: note for key, note in r.notes.items() if key not in APART} for r in (by_name, by_class, plain)]
    assert reasons[0] == reasons[1] == ({"settings": str(settled)} if settled.changed else {})
    assert reasons[2] == {}
    assert chosen.notes["sampler"].startswith(f"{chosen.sampler.name()}: ")
    assert type(operator).__name__ in chosen.notes["sampler"]
    notes = [note for r in (by_name, by_class, chosen) for key, note in r.notes.items() if key not in APART]
    said = [record.getMessage() for record in caplog.records if record.name == "invdiff"]
    said = [words for words in said if " measures " not in words]  # the calls that a black box will take
    assert said == [f"sampler {note}" for note in notes]


def shrinkage(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of a standard normal image."""
    return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)


def test_noise_is_estimated_from_y(truth: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    smooth = torch.nn.functional.interpolate(truth[..., :4, :4], size=(128, 128), mode="bicubic")
    y = invdiff.simulate(smooth, Denoising(), SIGMA)
    few = {"sampler": DAPS(schedule=EDM(steps=2)), "checks": False, "compute": QUIET}
    with caplog.at_level(logging.INFO, logger="invdiff"):
        found = invdiff.reconstruct(y, Denoising(), noise="auto", prior=shrinkage, **few)
    assert isinstance(found.problem.noise, GaussianNoise)
    assert float(found.problem.noise.sigma) == pytest.approx(SIGMA, rel=0.15)
    assert found.notes["noise"] in [record.getMessage() for record in caplog.records]
    with pytest.raises(ValueError, match=r'^noise="auto": parts of y are constant.*; give the standard deviation'):
        invdiff.reconstruct(torch.arange(64.0).expand(1, 1, 64, 64), Denoising(), noise="auto", prior=shrinkage)
    with pytest.raises(ValueError, match='must be a Noise, a number or "auto"'):
        invdiff.reconstruct(y, Denoising(), noise="automatic", prior=shrinkage)  # type: ignore[arg-type]


def _nothing(truth: Tensor) -> invdiff.Posterior:
    problem = InverseProblem(Inpainting(), GaussianNoise(), truth)
    return invdiff.Posterior(truth[:, None], torch.full((1, 1), -1), invdiff.posterior.Cost(), problem)


# -- each value is computed once ---------------------------------------------------------------------------------------


def counted(cls: type, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every call of this method."""
    rows, plain = [], getattr(cls, name)

    def method(self: Any, x: Tensor, *rest: Any) -> Any:
        rows.append(len(x))
        return plain(self, x, *rest)

    monkeypatch.setattr(cls, name, method)
    return rows


@pytest.mark.parametrize(
    ("operator", "probes"), [(PhaseRetrieval(), 0), (BlackBox(gamma, image_shape=SHAPE), 9 + TIMED)]
)
def test_operator_calls(
    operator: Operator, probes: int, truth: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ambiguous, calls = operator.ambiguous, counted(type(operator), "forward", monkeypatch)
    guesses = counted(type(operator), "first_guess", monkeypatch)
    moved = counted(type(operator), "align", monkeypatch)
    y = invdiff.simulate(truth, operator, SIGMA)
    prior = invdiff.load_prior("digits")
    sampler = settings_for("enkg", operator, GaussianNoise(), prior, given=TASKS["black box"][3]).sampler
    result = invdiff.reconstruct(
        y, operator, prior="digits", sampler=sampler, num_samples=2, truth=truth, compute=QUIET, checks=False
    )
    result.save(tmp_path)
    result.metrics()
    result.plot()
    assert sum(calls) == result.cost.operator_calls + 1 + probes + 2, "y, trials, the misfit of two samples"
    assert len(guesses) == 1
    if ambiguous:
        # Two samples: onto the best, onto the truth, and as one; then their mean, for that and its score; the guess.
        assert len(moved) == 3 * 2 + 2 + 1


# -- arguments ---------------------------------------------------------------------------------------------------------

FEW = DAPS(schedule=EDM(steps=2, sigma_max=2.0, sigma_min=0.1))


def few(y: Any, **options: Any) -> Reconstruction:
    chosen = {"prior": "digits", "sampler": FEW, "num_samples": 2, "compute": QUIET, **options}
    return invdiff.reconstruct(y, chosen.pop("operator", Inpainting(keep=0.5)), **chosen)


def test_files_and_scores(truth: Tensor, tmp_path: Path) -> None:
    truth = torch.cat([truth, 1 - truth])
    y = invdiff.simulate(truth, Inpainting(keep=0.5), SIGMA)
    result = few(y, truth=truth, names=["a", "b"])
    result.save(tmp_path / "out", title="A title")
    assert isinstance(result.plot(), Figure)
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    pictures = {f"{name}_{kind}.png" for name in "ab" for kind in ("mean", "std")}
    samples = {f"samples/{name}_00{s}.png" for name in "ab" for s in (0, 1)}
    assert files == {".run.json", "samples.npz", "metrics.json", "comparison.png"} | pictures | samples
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert written.pop("notes").pop("std.png")
    scores = result.metrics()
    assert written == {key: value for key, value in scores.items() if key != "notes"}
    assert [row["name"] for row in scores["images"]] == ["a", "b"]
    assert result.metrics(best_of=True)["mean"]["psnr_best_oracle"] >= scores["mean"]["psnr"]

    with pytest.raises(ValueError, match="another configuration"):
        few(y[:1]).save(tmp_path / "out")
    few(y[:1]).save(tmp_path / "out", overwrite=True)
    assert {path.name for path in (tmp_path / "out").rglob("*.png")} == {
        "comparison.png",
        "mean.png",
        "std.png",
        "image_000.png",
        "image_001.png",
    }, "pictures of the earlier run were left"


def test_arrays_and_missing_axes(truth: Tensor) -> None:
    y = invdiff.simulate(truth, Inpainting(keep=0.5), SIGMA)
    wanted = few(y)
    for given in (y.numpy(), y[0], y[0, 0].numpy()):
        assert torch.equal(few(given).samples, wanted.samples)
    assert few(y[0, 0].double().numpy()).samples.dtype == torch.float64
    assert few(torch.cat([y, y])).names == ["image_000", "image_001"]


def test_priors_and_operators_of_other_kinds(truth: Tensor, digits: EDMPrior, tmp_path: Path) -> None:
    digits.save(tmp_path / "mine.safetensors")
    y = invdiff.simulate(truth, Inpainting(keep=0.5), SIGMA)
    wanted = few(y).samples
    for prior in (tmp_path / "mine.safetensors", str(tmp_path / "mine.safetensors"), digits):
        assert torch.allclose(few(y, prior=prior).samples, wanted, atol=1e-2)  # weights are saved in half precision
    assert few(y, prior=lambda x, sigma: x.clamp(0, 1), image_shape=SHAPE).samples.isfinite().all()
    halved = few(truth[..., ::2], operator=lambda x: x[..., ::2], sampler=DAPS(schedule=FEW.schedule, chain_steps=1))
    assert halved.samples.shape == (1, 2, *SHAPE)
    matrix = torch.eye(1024)[::2]
    assert few((truth.flatten() @ matrix.T)[None], operator=matrix).samples.shape == (1, 2, *SHAPE)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "dapz"}, "unknown sampler 'dapz'; did you mean daps?"),
        ({"prior": "digit"}, "unknown prior 'digit'"),
        ({"prior": "absent.safetensors"}, "not found: absent.safetensors"),
        ({"noise": -1.0}, "sigma must be positive"),
        ({"names": ["a", "a"]}, "names must be 1 different ones, one per image, got a, a"),
        ({"truth": torch.zeros(2, *SHAPE)}, "truth must be 1 images, one per measurement, got 2"),
        ({"truth": torch.zeros(1, 1, 16, 16)}, "belongs to images of 1x32x32"),
        ({"y": torch.zeros(7)}, "the measurement is 7; this operator measures 1x32x32 from the prior's 1x32x32"),
        ({"y": torch.zeros(7), "prior": lambda x, sigma: x}, r"the measurement is 7; .* \(H, W\), \(C, H, W\) or"),
        ({"operator": BlackBox(gamma)}, "DAPS needs a differentiable operator"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
    ],
)
def test_errors(truth: Tensor, options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EDMPrior, "denoise", lambda *_: pytest.fail("work began"))
    with pytest.raises(ValueError, match=words):
        few(**{"y": truth, **options})


def test_an_interruption_keeps_what_is_finished(truth: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.cat([truth, truth])
    wanted = few(y)

    def stop(event: Any) -> None:
        if event.image[0] == 1 and event.index == 1:
            raise KeyboardInterrupt

    one_at_a_time = Compute(device="cpu", progress=False, max_rows=1)
    with pytest.raises(invdiff.Interrupted) as caught:
        few(y, truth=y, names=["a", "b"], compute=one_at_a_time, callback=stop)
    kept = caught.value.posterior
    assert isinstance(kept, Reconstruction)
    assert torch.allclose(kept.samples, wanted.samples[:1], atol=1e-4)
    assert [row["name"] for row in kept.metrics()["images"]] == ["a"]


@pytest.mark.parametrize("during", ["invdiff.job.distance_from", "invdiff.reconstruction.judge"])
def test_an_interruption_of_the_verdict_keeps_all(truth: Tensor, monkeypatch: pytest.MonkeyPatch, during: str) -> None:
    wanted = few(truth).samples

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(during, stop)
    with pytest.raises(invdiff.Interrupted, match="after 1 finished") as caught:
        few(truth)
    assert isinstance(caught.value.posterior, Reconstruction)
    assert torch.equal(caught.value.posterior.samples, wanted)


def test_a_parameter_that_was_drawn_is_noted(truth: Tensor) -> None:
    """Nobody can tell whether y is real; where the truth is given it was simulated."""
    words: dict[str, Any] = {
        "prior": "digits",
        "sampler": DAPS(schedule=EDM(steps=2)),
        "num_samples": 1,
        "compute": QUIET,
    }

    def found(operator: Inpainting, **more: Any) -> list[str]:
        result = invdiff.reconstruct(operator(truth), operator, **words, **more)
        return [finding["kind"] for finding in result.notes.get("checks", [])]

    assert "drawn" in found(Inpainting(keep=0.5))
    assert "drawn" not in found(Inpainting(box=8))
    assert "drawn" not in found(Inpainting(keep=0.5), truth=truth)
