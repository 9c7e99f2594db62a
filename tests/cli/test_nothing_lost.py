"""`invdiff reconstruct` loses nothing: it resumes, replaces nothing of others, and its configuration runs anywhere."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from helpers import assert_refused
from invdiff.priors import load_prior
from invdiff.priors.networks.edm import EDMPrior
from invdiff.priors.ode import generate

Run = Callable[..., Any]

WORDS = [
    "reconstruct",
    "prior=digits",
    "input=pictures",
    "sampler=daps",
    "sampler.schedule.steps=3",
    "num_samples=2",
    "compute.max_rows=2",  # an image after the other
    "checks=false",  # which call the network
]


@dataclass
class Calls:
    """The calls of the network so far, and the one at which Ctrl-C comes."""

    count: int = 0
    stop: int | None = None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls, plain = Calls(), EDMPrior.denoise

    def denoise(self: EDMPrior, x: Any, sigma: Any) -> Any:
        calls.count += 1
        if calls.count == calls.stop:
            raise KeyboardInterrupt
        return plain(self, x, sigma)

    monkeypatch.setattr(EDMPrior, "denoise", denoise)
    monkeypatch.setattr("invdiff.job.distance_from", lambda *_: None)  # the calls of the verdict, after the sampling
    return calls


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    assert set(left) == set(right)
    return all(a.dtype == right[n].dtype and a.tobytes() == right[n].tobytes() for n, a in left.items())


def scores(metrics: dict[str, Any]) -> dict[str, Any]:
    """All but what depends on the machine."""
    for name in ("seconds", "peak_memory_mb"):
        del metrics["cost"][name]
    return metrics


def pictures_of(folder: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.png")}
    return {name: data for name, data in found.items() if name != "comparison.png"}  # its title has the seconds


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["daps", "momentdraw"])  # the second one gives conditional means
@pytest.mark.usefixtures("without_comparison")
def test_resumed_after_ctrl_c(
    invdiff: Run, pictures: Path, metrics: Run, arrays: Run, calls: Calls, sampler: str
) -> None:
    words = [*WORDS, f"sampler={sampler}"]
    invdiff(*words, "output=full")
    whole = calls.count
    calls.stop = whole + whole // 2  # of the second image
    done = invdiff(*words, "output=out")
    assert (done.code, done.err) == (130, "invdiff: interrupted after 1 finished image(s)\n")
    assert [row["name"] for row in metrics("out")["images"]] == ["a"]
    calls.count = 0
    done = invdiff(*words, "output=out")
    assert (done.code, done.err) == (0, "")
    assert calls.count == whole * 2 // 3
    found = arrays("out")
    assert same(found, arrays("full"))
    assert np.allclose(found["mean"], found["samples"].mean(1), atol=1e-6) == (sampler == "daps")
    assert scores(metrics("out")) == scores(metrics("full"))
    assert pictures_of(Path("out")) == pictures_of(Path("full"))
    assert not list(Path("out").glob(".parts*"))

    calls.count = 0
    done = invdiff(*words, "output=out")
    assert done.code == 0
    assert done.out.endswith("\nout holds the results of this configuration; overwrite=true computes them again\n")
    invdiff(*words, "output=out", "compute.max_rows=1", "compute.progress=false")
    assert calls.count == 0, "another device or batch is the same configuration"


@pytest.mark.slow
@pytest.mark.usefixtures("without_comparison")
def test_ctrl_c_in_the_calls_of_the_verdict(
    invdiff: Run, pictures: Path, metrics: Run, arrays: Run, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    invdiff(*WORDS, "output=full")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("invdiff.job.distance_from", interrupted)
        done = invdiff(*WORDS, "output=out")
    assert (done.code, done.err) == (130, "invdiff: interrupted after 3 finished image(s)\n")
    assert "the same command with output=out goes on from there" in done.out
    assert same(arrays("out"), arrays("full"))
    calls.count = 0
    assert invdiff(*WORDS, "output=out").code == 0
    assert calls.count == 0
    assert scores(metrics("out")) == scores(metrics("full"))


@pytest.mark.slow
@pytest.mark.usefixtures("without_comparison")
def test_another_configuration(invdiff: Run, pictures: Path, arrays: Run, files: Run) -> None:
    invdiff(*WORDS, "output=out")
    before, kept = files(), arrays("out")
    Path("out/notes.txt").write_text("mine")
    for other in ("seed=1", "noise.sigma=0.1", "input=pictures/a.png"):
        done = invdiff(*WORDS, "output=out", other)
        assert done.code == 2
        assert done.err == (
            "invdiff: error: out holds results of another configuration; set another output=, or overwrite=true to "
            "replace them\n"
        )
    with Image.open(pictures / "a.png") as image:
        image.transpose(Image.Transpose.ROTATE_90).save(pictures / "a.png")
    assert invdiff(*WORDS, "output=out").code == 2, "the same names, other images"
    assert (files(), same(arrays("out"), kept)) == (before | {"out/notes.txt"}, True)
    assert invdiff(*WORDS, "output=out", "input=pictures/b.png", "overwrite=true").code == 0
    assert {p.name for p in Path("out").glob("*")} == {
        *("mean.png", "std.png", "comparison.png", "samples", "samples.npz", "metrics.json", "config.yaml"),
        *(".run.json", "notes.txt"),
    }


@pytest.mark.slow
@pytest.mark.usefixtures("without_comparison")
def test_an_interruption_leaves_the_results_that_it_would_replace(
    invdiff: Run, pictures: Path, arrays: Run, calls: Calls
) -> None:
    invdiff(*WORDS, "output=out")
    invdiff(*WORDS, "output=other", "seed=1")
    whole, kept, shown = calls.count // 2, arrays("out"), pictures_of(Path("out"))
    calls.count, calls.stop = 0, whole // 2
    done = invdiff(*WORDS, "output=out", "seed=1", "overwrite=true")
    assert (done.code, done.err) == (130, "invdiff: interrupted after 1 finished image(s)\n")
    assert same(arrays("out"), kept)
    assert {name: data for name, data in pictures_of(Path("out")).items() if not name.startswith(".new")} == shown
    calls.count, calls.stop = 0, None
    assert invdiff(*WORDS, "output=out", "seed=1", "overwrite=true").code == 0
    assert calls.count == whole * 2 // 3
    assert same(arrays("out"), arrays("other"))
    assert pictures_of(Path("out")) == pictures_of(Path("other"))


@pytest.mark.parametrize(
    "words",
    [
        ["input=scans", "output=scans"],
        ["input=scans/mean.png", "output=scans"],
        ["input=scans/mean.png", "output=scans/../scans/"],
        ["input=scans/samples/b.png", "output=scans"],
        ["measurement=scans/y.npy", "operator=denoising", "output=scans"],
        ["input=pictures", "operator.mask=scans/m.npy", "output=scans"],
        ["input=pictures", "operator=callable", "operator.file=scans/camera.py:Camera", "output=scans"],
        ["input=pictures", "calibration=scans/calibration.json", "output=scans"],
    ],
)
def test_never_beside_its_inputs(invdiff: Run, pictures: Path, files: Run, words: list[str], calls: Calls) -> None:
    Path("scans/samples").mkdir(parents=True)
    for name in ("mean.png", "samples/b.png"):
        (Path("scans") / name).write_bytes((pictures / "a.png").read_bytes())
    np.save("scans/y.npy", np.zeros((32, 32)))
    np.save("scans/m.npy", np.ones((32, 32), bool))
    Path("scans/camera.py").write_text("def Camera(x):\n    return x\n")
    Path("scans/calibration.json").write_text("{}")
    before = files()
    done = invdiff("reconstruct", "prior=digits", *words, "overwrite=true")
    assert_refused(done, "holds an input of this run")
    assert (files(), calls.count) == (before, 0)


@pytest.mark.parametrize("command", ["calibrate", "check-prior", "benchmark", "tune"])
def test_no_command_writes_beside_its_inputs(invdiff: Run, pictures: Path, files: Run, command: str) -> None:
    before = files()
    sampler = ["sampler=dps"] if command == "tune" else []
    done = invdiff(command, "prior=digits", *sampler, "input=pictures/a.png", "output=pictures")
    assert (done.code, files()) == (2, before)
    assert "output=pictures holds an input of this run, pictures/a.png; set an output= of its own" in done.err


@pytest.mark.usefixtures("without_comparison")
def test_two_runs_in_the_same_second(invdiff: Run, pictures: Path) -> None:
    for seed in (0, 1):
        done = invdiff(*WORDS, "input=pictures/a.png", f"seed={seed}", "output='runs/${now:%Y}'")
        assert (done.code, done.err) == (0, "")
    (year, second) = sorted(p.name for p in Path("runs").iterdir())
    assert second == f"{year}_2"
    assert f"are in runs/{second}" in done.out
    invdiff(*WORDS, "input=absent.png", "output='runs/${now:%Y}'")
    assert len(list(Path("runs").iterdir())) == 2, "an empty folder was left"


@pytest.mark.slow
@pytest.mark.usefixtures("without_comparison")
def test_the_saved_configuration_runs_from_anywhere(
    invdiff: Run, digits: np.ndarray, arrays: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    y = digits[0] / 255
    np.save("y.npy", y)
    np.save("m.npy", np.indices((32, 32)).sum(0) % 3 > 0)
    Path("camera.py").write_text("import torch\n\ndef half(x):\n    return x / 2\n")
    few = ["prior=digits", "sampler=daps", "sampler.schedule.steps=2", "num_samples=1", "measurement=y.npy"]
    masked, own = ["operator.mask=m.npy"], ["operator=callable", "operator.file=camera.py:half"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name, words in (("masked", masked), ("own", own)):
        trust = ["trust=../camera.py"] if name == "own" else []
        assert invdiff("reconstruct", *few, *words, f"output={name}").code == 0
        monkeypatch.chdir(elsewhere)
        saved = ["reconstruct", f"--config-dir=../{name}", "--config-name=config", *trust]
        done = invdiff(*saved)
        assert (done.code, done.err) == (0, "")
        assert f"{tmp_path / name} holds the results of this configuration" in done.out
        done = invdiff(*saved, f"output=again_{name}")
        assert (done.code, done.err) == (0, "")
        monkeypatch.chdir(tmp_path)
        assert same(arrays(name), arrays(elsewhere / f"again_{name}"))


def test_a_folder_that_is_a_file(invdiff: Run, pictures: Path) -> None:
    done = invdiff(*WORDS, "output=pictures/a.png")
    assert (done.code, done.err) == (2, "invdiff: error: output must be a folder, got a file: pictures/a.png\n")


# -- formats -----------------------------------------------------------------------------------------------------------


def test_formats(invdiff: Run, tmp_path: Path, digits: np.ndarray, arrays: Run) -> None:
    affine = np.diag([-2.0, 2.0, 5.0, 1.0])
    volume = nibabel.Nifti1Image(digits.transpose(2, 1, 0).astype(np.float32), affine)
    nibabel.save(volume, tmp_path / "head.nii")
    words = [*WORDS, "measurement=head.nii", "input=null", "operator=denoising", "volume.slices=all", "output=out"]
    done = invdiff(*words, "save.format=[npz,tif,npy,nii]")
    assert (done.code, done.err) == (0, "")
    found = arrays("out")
    for name in ("samples", "mean", "std"):
        assert np.array_equal(np.load(f"out/{name}.npy"), found[name])
    pages = tifffile.imread("out/head_001_mean.tif"), tifffile.imread("out/samples/head_001_001.tif")
    assert np.array_equal(pages[0], found["mean"][1, 0])
    assert np.array_equal(pages[1], found["samples"][1, 1, 0])
    mean, std = nibabel.load("out/mean.nii.gz"), nibabel.load("out/std.nii.gz")
    low, high = digits.min(), digits.max()  # the window of the file
    np.testing.assert_allclose(mean.get_fdata()[..., 1], low + (high - low) * found["mean"][1, 0], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(std.get_fdata()[..., 1], (high - low) * found["std"][1, 0], rtol=1e-4)
    lying = nibabel.as_closest_canonical(mean)
    correlation = np.corrcoef(lying.get_fdata().ravel(), nibabel.as_closest_canonical(volume).get_fdata().ravel())
    assert correlation[0, 1] > 0.9
    np.testing.assert_allclose(lying.affine, nibabel.as_closest_canonical(volume).affine, atol=1e-4)
    assert {p.suffix for p in Path("out").rglob("*.*") if p.is_file()} == {
        *(".npz", ".tif", ".npy", ".gz", ".yaml", ".json", ".png"),
    }
    assert [p.name for p in Path("out").rglob("*.png")] == ["comparison.png"]


@pytest.mark.parametrize("given", ["dcm", "[png,gif]", "3"])
def test_an_unknown_format(invdiff: Run, pictures: Path, given: str) -> None:
    done = invdiff(*WORDS, "output=out", f"save.format={given}")
    assert done.code == 2
    assert "one of png, npz, npy, tif, nii" in done.err
    assert not Path("out").exists()


# -- kill -9 -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_ten_random_moments(tmp_path: Path, arrays: Run, metrics: Run) -> None:
    """Twelve images: a run that is killed ten times gives what a run without a kill gives, and computes none twice."""
    noise = torch.randn(12, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(generate(load_prior("digits"), noise, steps=8).clamp(0, 1)):
        Image.fromarray((255 * image[0]).round().to(torch.uint8).numpy()).save(tmp_path / f"pictures/{i:02d}.png")
    words = [sys.executable, "-m", "invdiff", *WORDS, "sampler.schedule.steps=30", "compute.progress=false"]

    def start(output: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([*words, f"output={output}"], cwd=tmp_path, stdout=pipe, stderr=pipe, text=True)

    run = start("full")
    assert (run.communicate()[1], run.returncode) == ("", 0)
    whole = metrics(tmp_path / "full")["cost"]["seconds"]

    rng, out = random.Random(0), tmp_path / "out"
    finished: dict[str, bytes] = {}
    for _ in range(10):
        run = start("out")
        while not list(out.glob(".lock-*")) and run.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.14 * whole))
        run.send_signal(signal.SIGKILL)
        run.communicate()
        parts = {p.name: p.read_bytes() for p in out.glob(".parts-*/[0-9]*.npz")}
        assert {name: parts.get(name) for name in finished} == finished, "a finished image was lost or done again"
        finished = parts
    assert 0 < len(finished) < 12, "the kills came too early or too late to tell anything"
    run = start("out")
    told = run.communicate()[1]
    assert run.returncode == 0, told
    assert "the run before this one was killed" in told
    assert same(arrays(out), arrays(tmp_path / "full"))
    assert scores(metrics(out)) == scores(metrics(tmp_path / "full"))
    assert pictures_of(out) == pictures_of(tmp_path / "full")
    assert {p.name for p in out.glob(".*")} == {".run.json"}
