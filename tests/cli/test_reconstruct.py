"""`invdiff reconstruct` from end to end, with the bundled prior of digits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from invdiff.operators import GaussianBlur, Inpainting, PhaseRetrieval
from invdiff.scores.metrics import psnr

Run = Callable[..., Any]
Load = Callable[..., Any]

SCORES = ["energy", "crps", "spread_error", "psnr_mean", "psnr", "ssim", "lpips", "misfit", "baseline_psnr"]


def check_metrics(found: dict[str, Any], names: list[str], samples: int) -> None:
    """The keys that scripts rely on, and a reason for everything that is null."""
    assert set(found) == {"images", "mean", "standard_error", "cost", "notes", "verdict"}
    assert [row["name"] for row in found["images"]] == names
    assert list(found["mean"]) == SCORES
    assert set(found["cost"]) == {"forwards", "vjps", "operator_calls", "seconds", "peak_memory_mb", "precision"}
    assert found["cost"].pop("precision") in ("float32", "bfloat16")
    assert all(isinstance(value, (int, float)) and value >= 0 for value in found["cost"].values())
    assert found["cost"]["forwards"] > 0
    reasons = " ".join(found["notes"])
    for row in found["images"]:
        assert set(row) == {"name", *SCORES, "diverged"}
        assert 0 <= row["diverged"] <= samples
        for score in SCORES:
            assert row[score] is None or isinstance(row[score], float)
            if row[score] is None:
                known = score in reasons.replace(",", "").split()
                assert known or (row["diverged"] == samples and "diverged" in reasons), f"no reason why {score} is null"
    for score in SCORES:
        values = [row[score] for row in found["images"] if row[score] is not None]
        if score == "spread_error":  # root mean squares over all images
            assert (found["mean"][score] is None) == (not values)
        else:
            assert found["mean"][score] == (pytest.approx(np.mean(values)) if values else None)


def is_picture(path: Path, least: tuple[int, int], mode: str | None = None) -> None:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.width >= least[0]
        assert image.height >= least[1]
        assert mode is None or image.mode == mode
        assert len(np.unique(np.asarray(image.convert("L")))) > 5, "a picture of nothing"


def test_every_file(
    reconstruct: Run, tmp_path: Path, files: Run, metrics: Load, arrays: Load, pictures: Path, digits: np.ndarray
) -> None:
    done = reconstruct("input=pictures/a.png", "num_samples=2", "operator.keep=0.5")
    assert (done.code, done.err) == (0, "")
    assert files() - {"pictures/", "pictures/a.png", "pictures/b.png", "pictures/c.png"} == {
        "out/",
        *(f"out/{name}" for name in ("comparison.png", "mean.png", "std.png", "samples.npz", "metrics.json")),
        "out/config.yaml",
        "out/.run.json",
        "out/samples/",
        "out/samples/a_000.png",
        "out/samples/a_001.png",
    }
    is_picture(tmp_path / "out/comparison.png", (900, 600))
    for name in ("mean.png", "samples/a_000.png", "samples/a_001.png"):
        is_picture(tmp_path / "out" / name, (32, 32), mode="L")
    is_picture(tmp_path / "out/std.png", (32, 32))

    found = arrays("out")
    assert set(found) == {"samples", "mean", "std", "interval", "y", "x", "names", "scale", "offset"}
    assert {name: array.shape for name, array in found.items()} == {
        "samples": (1, 2, 1, 32, 32),
        "mean": (1, 1, 32, 32),
        "std": (1, 1, 32, 32),
        "interval": (1, 2, 1, 32, 32),
        "y": (1, 1, 32, 32),
        "x": (1, 1, 32, 32),
        "names": (1,),
        "scale": (1,),
        "offset": (1,),
    }
    assert all(found[name].dtype == np.float32 for name in ("samples", "mean", "std", "interval", "y", "x"))
    assert (found["scale"], found["offset"]) == (255, 0)
    assert found["names"].tolist() == ["a"]
    np.testing.assert_allclose(found["x"][0, 0], digits[0] / 255, atol=1e-6)
    np.testing.assert_allclose(found["mean"], found["samples"].mean(1), atol=1e-6)
    np.testing.assert_allclose(found["std"], found["samples"].std(1, ddof=1), atol=1e-6)
    np.testing.assert_allclose(found["interval"][:, 1], np.quantile(found["samples"], 0.95, axis=1), atol=1e-6)
    shown = np.asarray(Image.open(tmp_path / "out/samples/a_001.png"))
    assert abs(shown / 255 - found["samples"][0, 1, 0].clip(0, 1)).max() <= 0.5 / 255 + 1e-6

    scores = metrics("out")
    check_metrics(scores, ["a"], samples=2)
    row = scores["images"][0]
    truth = torch.from_numpy(found["x"][0])
    assert row["psnr_mean"] == pytest.approx(psnr(torch.from_numpy(found["mean"][0]), truth))
    assert row["psnr"] == pytest.approx(np.mean([psnr(torch.from_numpy(s), truth) for s in found["samples"][0]]))
    assert row["baseline_psnr"] == pytest.approx(psnr(torch.from_numpy(found["y"][0]), truth))
    kept = Inpainting(keep=0.5).mask_of((1, 32, 32))[0].numpy()
    residual = (found["y"][0] - found["samples"][0])[:, kept]
    assert row["misfit"] == pytest.approx((residual**2).mean() / 0.05**2, rel=1e-3)
    assert (found["y"][0][~kept] == 0).all(), "noise on what was not measured"
    assert row["diverged"] == 0
    assert scores["cost"]["forwards"] == 2 * 3

    for words in ("a", f"{row['psnr_mean']:.2f}", "6 network calls", "are in out"):
        assert words in done.out


@pytest.mark.usefixtures("without_comparison")
def test_it_reconstructs(reconstruct: Run, pictures: Path, metrics: Load) -> None:
    reconstruct("input=pictures", "num_samples=2", "operator.keep=0.5", "sampler.schedule.steps=20")
    for row in metrics("out")["images"]:
        assert row["psnr_mean"] > row["psnr"] > row["baseline_psnr"] + 5
        assert 0.3 < row["misfit"] < 2


def test_folder(reconstruct: Run, tmp_path: Path, pictures: Path, files: Run, metrics: Load, arrays: Load) -> None:
    done = reconstruct("input=pictures", "num_samples=2")
    assert (done.code, done.err) == (0, "")
    names = ["a", "b", "c"]
    assert {f for f in files() if f.startswith("out/") and f.count("/") == 1} == {
        "out/",
        *(f"out/{n}" for n in ("comparison.png", "samples.npz", "metrics.json", "config.yaml", ".run.json")),
        *(f"out/{n}_{kind}.png" for n in names for kind in ("mean", "std")),
    }
    assert {p.name for p in (tmp_path / "out/samples").iterdir()} == {f"{n}_00{s}.png" for n in names for s in (0, 1)}
    check_metrics(metrics("out"), names, samples=2)
    assert arrays("out")["names"].tolist() == names
    assert arrays("out")["samples"].shape == (3, 2, 1, 32, 32)
    is_picture(tmp_path / "out/comparison.png", (1500, 800))


@pytest.mark.slow
@pytest.mark.usefixtures("without_comparison")
def test_names_stay_apart(reconstruct: Run, pictures: Path, arrays: Load) -> None:
    with Image.open(pictures / "a.png") as image:
        image.save(pictures / "a.bmp")
        image.save(pictures / "a.png.tif")
        image.save(pictures / "[red]b$x$.png")  # no markup, no formula
    done = reconstruct("input=pictures", "num_samples=1", "sampler.schedule.steps=1")
    names = arrays("out")["names"].tolist()
    assert names == ["[red]b$x$.png", "a.bmp", "a.png", "a.png.tif", "b.png", "c.png"]
    assert all(name in done.out for name in names)


@pytest.mark.slow
def test_an_earlier_run_in_the_same_folder(reconstruct: Run, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "out/samples").mkdir(parents=True)
    (tmp_path / "out/samples/mine_000.png").write_bytes(b"kept")
    reconstruct("input=pictures", "num_samples=3", "sampler.schedule.steps=1")
    reconstruct("input=pictures/b.png", "num_samples=1", "sampler.schedule.steps=1")
    left = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png")}
    assert left == {"comparison.png", "mean.png", "samples/b_000.png", "samples/mine_000.png"}


# -- randomness --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_comparison")
def test_seeds(reconstruct: Run, pictures: Path, arrays: Load) -> None:
    runs = {}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        reconstruct("input=pictures/a.png", "num_samples=2", f"seed={seed}", f"output={name}")
        runs[name] = arrays(name)
    for key in ("samples", "y"):
        assert np.array_equal(runs["first"][key], runs["again"][key])
        assert not np.array_equal(runs["first"][key], runs["other"][key])
    assert not np.array_equal(runs["first"]["samples"][0, 0], runs["first"]["samples"][0, 1])


@pytest.mark.slow
@pytest.mark.usefixtures("without_comparison")
def test_image_i_depends_on_nothing_but_seed_and_i(reconstruct: Run, pictures: Path, arrays: Load) -> None:
    """The first image alone, in a folder, with more samples, and in other chunks: same measurement, same samples."""
    words = ("operator=denoising", "num_samples=2")
    reconstruct("input=pictures", *words, "output=folder")
    reconstruct("input=pictures/a.png", *words, "num_samples=3", "output=alone")
    reconstruct("input=pictures", *words, "output=chunks", "compute.max_rows=1")
    (pictures / "c.png").unlink()
    with Image.open(pictures / "b.png") as image:
        image.transpose(Image.Transpose.ROTATE_90).save(pictures / "a.png")
    reconstruct("input=pictures", *words, "output=others")

    folder, alone, chunks, others = (arrays(name) for name in ("folder", "alone", "chunks", "others"))
    assert np.array_equal(alone["y"][0], folder["y"][0])
    assert np.array_equal(others["y"][1], folder["y"][1])
    noise = folder["y"] - folder["x"]
    assert not np.allclose(noise[0], noise[1], atol=1e-3), "one noise for all"
    np.testing.assert_allclose(alone["samples"][0, :2], folder["samples"][0], atol=1e-4)
    np.testing.assert_allclose(others["samples"][1], folder["samples"][1], atol=1e-4)
    np.testing.assert_allclose(chunks["samples"], folder["samples"], atol=1e-4)


@pytest.mark.usefixtures("without_comparison")
def test_the_saved_configuration_repeats_the_run(
    invdiff: Run, reconstruct: Run, pictures: Path, arrays: Load, files: Run, tmp_path: Path
) -> None:
    reconstruct("input=pictures/b.png", "num_samples=2", "seed=3", "operator=gaussian_blur", "operator.std=1.5")
    config = OmegaConf.load("out/config.yaml")
    assert (config.seed, config.num_samples, config.operator.std, config.output) == (3, 2, 1.5, str(tmp_path / "out"))
    assert config.input == str(pictures / "b.png")
    before = files()
    done = invdiff("reconstruct", "--config-dir", "out", "--config-name", "config", "output=again/here")
    assert (done.code, done.err) == (0, "")
    assert np.array_equal(arrays("out")["samples"], arrays("again/here")["samples"])
    added = files() - before
    assert all(name.startswith("again/") for name in added), "hydra left something of its own"
    again = OmegaConf.load("again/here/config.yaml")
    assert again.pop("output") != config.pop("output")
    assert again == config
    assert "GaussianBlur · digits prior · daps" in done.out


# -- one sample, no truth, other channels ------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_sample_has_no_spread(reconstruct: Run, pictures: Path, metrics: Load, arrays: Load, files: Run) -> None:
    done = reconstruct("input=pictures/a.png", "num_samples=1")
    assert (done.code, done.err) == (0, "")
    found = metrics("out")
    check_metrics(found, ["a"], samples=1)
    assert found["images"][0]["psnr"] == found["images"][0]["psnr_mean"]
    assert "std.png" in found["notes"]
    assert "out/std.png" not in files()
    assert np.isnan(arrays("out")["std"]).all()
    assert np.isfinite(arrays("out")["mean"]).all()


@pytest.mark.parametrize(
    ("suffix", "shape"),
    [
        ("npy", (32, 32)),
        ("npz", (1, 32, 32)),
        ("pt", (1, 1, 32, 32)),
        ("pt", (3, 1, 32, 32)),
        ("npz", (3, 1, 32, 32)),
        ("npy", (3, 32, 32)),
    ],
)
def test_measurements(
    reconstruct: Run, digits: np.ndarray, metrics: Load, arrays: Load, files: Run, suffix: str, shape: tuple[int, ...]
) -> None:
    y = (digits if shape[0] == 3 else digits[:1]).reshape(shape) / 255
    if suffix == "npy":
        np.save("scan.npy", y)
    elif suffix == "npz":
        np.savez("scan.npz", y=y, other=np.zeros(3))
    else:
        torch.save(torch.from_numpy(y), "scan.pt")
    done = reconstruct(f"measurement=scan.{suffix}", "operator=denoising", "num_samples=2")
    assert (done.code, done.err) == (0, "")
    images = 3 if shape[0] == 3 else 1
    names = ["scan"] if images == 1 else ["scan_000", "scan_001", "scan_002"]
    found, kept = metrics("out"), arrays("out")
    check_metrics(found, names, samples=2)
    assert all(row["psnr"] is None and row["baseline_psnr"] is None for row in found["images"])
    assert all(row["misfit"] is not None for row in found["images"])
    assert "true image is not known" in str(found["notes"])
    assert set(kept) == {"samples", "mean", "std", "interval", "y", "names"}
    np.testing.assert_allclose(kept["y"], y.reshape(images, 1, 32, 32), rtol=1e-6)
    assert kept["samples"].shape == (images, 2, 1, 32, 32)
    is_picture(Path("out/comparison.png"), (600, 400))


def test_a_measurement_that_is_no_image(reconstruct: Run, digits: np.ndarray, arrays: Load) -> None:
    small = digits[:1].reshape(1, 8, 4, 8, 4).mean((2, 4)) / 255
    np.save("small.npy", small)
    done = reconstruct("measurement=small.npy", "operator=super_resolution", "operator.kernel=average", "num_samples=2")
    assert (done.code, done.err) == (0, "")
    assert arrays("out")["y"].shape == (1, 1, 8, 8)
    assert arrays("out")["samples"].shape == (1, 2, 1, 32, 32)


def test_nan_where_nothing_was_measured(reconstruct: Run, digits: np.ndarray, arrays: Load, metrics: Load) -> None:
    mask = np.zeros((32, 32), bool)
    mask[::2] = True
    np.save("mask.npy", mask)
    for name, hole in (("zero", 0), ("nan", np.nan)):
        np.save("y.npy", np.where(mask, digits[0] / 255, hole))
        done = reconstruct("measurement=y.npy", "operator.mask=mask.npy", "num_samples=2", f"output={name}")
        assert (done.code, done.err) == (0, "")
    assert np.array_equal(arrays("zero")["samples"], arrays("nan")["samples"])
    assert metrics("zero")["images"][0]["misfit"] == metrics("nan")["images"][0]["misfit"]
    assert Path("zero/comparison.png").read_bytes()[:4] == Path("nan/comparison.png").read_bytes()[:4]


@pytest.mark.usefixtures("without_comparison")
def test_measured_here_and_given_back(reconstruct: Run, pictures: Path, arrays: Load) -> None:
    """A measurement that the command made itself, read as real data, gives the same samples."""
    words = ("operator=gaussian_blur", "operator.std=1", "num_samples=2")
    reconstruct("input=pictures", "output=made", *words)
    reconstruct("measurement=made/samples.npz", "output=given", *words)
    assert np.array_equal(arrays("made")["samples"], arrays("given")["samples"])


def test_colour_of_any_size(invdiff: Run, colour_weights: Path, metrics: Load, arrays: Load) -> None:
    done = invdiff(
        "reconstruct",
        f"prior.weights={colour_weights}",
        "data=rocket",
        "size=24",
        "num_samples=2",
        "sampler=dps",
        "sampler.schedule.steps=2",
        "output=out",
    )
    assert (done.code, done.err) == (0, "")
    assert arrays("out")["samples"].shape == (1, 2, 3, 24, 24)
    found = metrics("out")
    check_metrics(found, ["rocket"], samples=2)
    assert "32x32" in found["notes"]["lpips"]
    assert found["cost"]["vjps"] == found["cost"]["forwards"] == 4
    is_picture(Path("out/mean.png"), (24, 24), mode="RGB")


@pytest.mark.usefixtures("without_comparison")
def test_images_smaller_than_the_window_of_ssim(invdiff: Run, colour_weights: Path, metrics: Load) -> None:
    words = ("data=cat", "size=8", "num_samples=1", "sampler=daps", "sampler.schedule.steps=1", "output=out")
    done = invdiff("reconstruct", f"prior.weights={colour_weights}", *words)
    assert (done.code, done.err) == (0, "")
    check_metrics(metrics("out"), ["cat"], samples=1)
    assert metrics("out")["images"][0]["ssim"] is None
    assert metrics("out")["images"][0]["psnr"] is not None


@pytest.mark.usefixtures("without_comparison")
def test_a_photograph_lying_on_its_side(reconstruct: Run, digits: np.ndarray, arrays: Load) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(digits[0]))).save("turned.png", exif=exif)
    reconstruct("input=turned.png", "num_samples=1", "sampler.schedule.steps=1")
    np.testing.assert_allclose(arrays("out")["x"][0, 0], digits[0] / 255, atol=1e-6)


@pytest.mark.usefixtures("without_comparison")
def test_generated_truths(reconstruct: Run, arrays: Load) -> None:
    reconstruct("data=generated", "data.count=2", "data.steps=4", "num_samples=1", "output=two")
    reconstruct("data=generated", "data.steps=4", "num_samples=1", "output=one")
    assert arrays("two")["names"].tolist() == ["generated_000", "generated_001"]
    np.testing.assert_allclose(arrays("one")["x"][0], arrays("two")["x"][0], atol=1e-4)
    assert not np.allclose(arrays("two")["x"][0], arrays("two")["x"][1], atol=0.1)


@pytest.mark.parametrize(("strict", "code"), [("false", 0), ("true", 3)])
def test_a_result_that_does_not_explain_the_data_is_named(
    strict: str, code: int, reconstruct: Run, tmp_path: Path, digits: np.ndarray, metrics: Load
) -> None:
    np.save(tmp_path / "y.npy", digits[:1, None].astype(np.float32))  # 0 to 255, the prior has 0 to 1
    words = (
        "measurement=y.npy",
        "operator=denoising",
        "noise.sigma=2",
        "num_samples=2",
        f"strict={strict}",
        "checks=false",
    )
    done = reconstruct(*words)
    assert done.code == code
    found = metrics("out")["verdict"]
    assert found[0]["kind"] == "misfit"
    assert found[0]["severe"]
    assert found[-1]["kind"] == "few samples"
    assert all(done.out.count(finding["words"]) == 1 for finding in found)
    assert done.err == ("" if code == 0 else f"invdiff: strict=true: {found[0]['words']}; results are in out\n")
    again = reconstruct(*words, "overwrite=false")  # the results are there already
    assert (again.code, again.err) == (done.code, done.err)


@pytest.mark.usefixtures("without_comparison")
def test_strict_ends_well_where_nothing_is_severe(reconstruct: Run, pictures: Path, metrics: Load) -> None:
    done = reconstruct("input=pictures/a.png", "operator=denoising", "num_samples=2", "strict=true")
    assert (done.code, done.err) == (0, "")
    assert not any(finding["severe"] for finding in metrics("out")["verdict"])


@pytest.mark.usefixtures("without_comparison")
def test_poisson_counts(reconstruct: Run, pictures: Path, metrics: Load, arrays: Load) -> None:
    done = reconstruct("input=pictures/a.png", "noise=poisson", "operator=denoising", "num_samples=1")
    assert (done.code, done.err) == (0, "")
    counts = arrays("out")["y"] / 0.01
    assert np.allclose(counts, counts.round(), atol=1e-3)
    check_metrics(metrics("out"), ["a"], samples=1)


@pytest.mark.usefixtures("without_comparison")
def test_blur_is_the_operator_that_was_asked_for(reconstruct: Run, pictures: Path, arrays: Load) -> None:
    reconstruct("input=pictures/a.png", "operator=gaussian_blur", "operator.std=2", "noise.sigma=1e-4", "num_samples=1")
    found = arrays("out")
    clean = GaussianBlur(std=2.0)(torch.from_numpy(found["x"]))
    np.testing.assert_allclose(found["y"], clean.numpy(), atol=1e-3)


# -- measurements that cannot tell some images apart -------------------------------------------------------------------


@pytest.mark.slow
def test_phase_retrieval(reconstruct: Run, pictures: Path, metrics: Load, arrays: Load) -> None:
    """Samples as the sampler gave them; mean, std and scores of aligned ones; the best of several only on demand."""
    words = ("input=pictures", "operator=phase_retrieval", "noise.sigma=0.02", "num_samples=2")
    done = reconstruct(*words)
    assert (done.code, done.err) == (0, "")
    found, kept = metrics("out"), arrays("out")
    assert set(found["mean"]) == {*SCORES, "psnr_raw"}
    assert "PhaseRetrieval cannot tell some images apart" in done.out
    assert "best by" not in done.out
    operator, x = PhaseRetrieval(), torch.from_numpy(kept["x"])
    samples = torch.from_numpy(kept["samples"])
    for i, row in enumerate(found["images"]):
        raw = [psnr(sample, x[i]) for sample in samples[i]]
        moved = [psnr(operator.align(sample[None], x[i : i + 1])[0], x[i]) for sample in samples[i]]
        assert row["psnr_raw"] == pytest.approx(np.mean(raw))
        assert row["psnr"] == pytest.approx(np.mean(moved))
    mean = operator.align(torch.from_numpy(kept["mean"]), x)
    wanted = [psnr(one, truth) for one, truth in zip(mean, x, strict=True)]
    assert [row["psnr_mean"] for row in found["images"]] == pytest.approx(wanted)
    assert kept["y"].shape == (3, 1, 64, 64)

    done = reconstruct(*words, "evaluation.best_of=true", "output=best")
    assert set(metrics("best")["mean"]) == {*SCORES, "psnr_raw", "psnr_best_oracle", "psnr_best_misfit"}
    assert "best by truth (oracle)" in done.out
    assert "best by misfit" in done.out
    assert metrics("best")["mean"]["psnr"] == found["mean"]["psnr"]


@pytest.mark.usefixtures("without_comparison")
def test_best_of_for_any_operator(reconstruct: Run, pictures: Path, metrics: Load) -> None:
    reconstruct("input=pictures/a.png", "num_samples=3", "evaluation.best_of=true")
    found = metrics("out")["mean"]
    assert set(found) == {*SCORES, "psnr_best_oracle", "psnr_best_misfit"}
    assert found["psnr_best_oracle"] > found["psnr"]
    assert found["psnr_best_oracle"] >= found["psnr_best_misfit"]
