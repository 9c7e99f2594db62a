"""LaTeX and CSV of a benchmark's tables."""

import csv
import io
import math

from invdiff.benchmark.summary import Comparison, Estimate, Standing
from invdiff.report.exports import in_csv, in_latex

SHARED = {
    "operator": {"_target_": "x.Blur", "std": 2.0},
    "noise": {"_target_": "x.Noise"},
    "prior": {"name": "my_prior"},
    "num_samples": 4,
    "seed": 0,
}


def comparison() -> Comparison:
    scores = {"energy": Estimate(0.12345, 0.001), "psnr_mean": Estimate(27.5, math.nan)}
    first = Standing(run="a", label="dps_50%", settings={}, images=2, samples=8, scores=scores, best=True, forwards=9)
    second = Standing(run="b", label="daps", settings={}, images=2, samples=8, scores={"energy": Estimate(0.2, 0.1)})
    absent = Standing(run="c", label="mcg", settings={}, reason="needs a linear operator")
    return Comparison("task", "blur", None, SHARED, [first, second, absent], None)


def test_latex() -> None:
    text = in_latex([comparison()])
    assert "\\toprule" in text
    assert r"prior my\_prior" in text
    (row,) = (line for line in text.splitlines() if line.startswith("dps"))
    assert row.startswith(r"dps\_50\% & \textbf{0.1235 $\pm$ 0.0010}")
    assert row.count("&") == text.split("\\begin{tabular}{")[1].split("}")[0].count("r")
    assert "mcg" not in text


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(in_csv([comparison()]))))
    assert [row["sampler"] for row in rows] == ["dps_50%", "daps", "mcg"]
    assert (float(rows[0]["energy"]), float(rows[0]["energy_se"])) == (0.12345, 0.001)
    assert (rows[0]["psnr_mean_se"], rows[1]["psnr_mean"], rows[2]["forwards"]) == ("", "", "")
    assert {row["budget"] for row in rows} == {"own settings"}
