"""The report of a benchmark: the command beside a row repeats it."""

import html
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from invdiff.benchmark.store import Store
from invdiff.samplers import MCG

Run = Callable[..., Any]


def scores(folder: str) -> dict[str, list[float]]:
    """PSNR of every sample, by the fingerprint of the run."""
    found: dict[str, list[float]] = {}
    for row in Store(Path(folder)).table(["psnr"]).to_pylist():
        found.setdefault(row["run"], []).append(row["psnr"])
    return found


def commands(folder: str) -> dict[str, list[str]]:
    """Words of the command beside each row, by the fingerprint of the run."""
    text = (Path(folder) / "report.html").read_text()
    blocks = re.findall(r'<details class="again" id="again-(\w+)">.*?<pre class="command">(.*?)</pre>', text, re.DOTALL)
    return {run: shlex.split(html.unescape(command))[1:] for run, command in blocks}


@pytest.mark.slow
def test_the_command_of_every_row_repeats_it(invdiff: Run, tmp_path: Path) -> None:
    """Own settings and fitted ones, a sampler chosen automatically, noise of its own."""
    done = invdiff(
        *("benchmark", "prior=digits", "data=generated", "images=1", "output=out", "num_samples=1"),
        "samplers=[{bold:{sampler:daps,prior_std:0.2,schedule:{steps:3}}},{chosen:{sampler:auto}}]",
        "operators=[{loud:{operator:inpainting,keep:0.5,noise:{sigma:0.2}}}]",
        *("budget.own=true", "budget.calls=[100]"),
    )
    assert done.code == 0, done.err
    before, ways = scores("out"), commands("out")
    assert len(before) == 4
    assert ways.keys() == before.keys()
    for run, words in ways.items():
        assert invdiff(*words, f"output=again_{run}").code == 0
        assert scores(f"again_{run}") == {run: before[run]}


@pytest.mark.slow
def test_a_page_after_a_kill(invdiff: Run) -> None:
    """What is resumed has its page at the end, though nothing was left to compute."""
    words = ("benchmark", "prior=digits", "samplers=[{daps:{schedule:{steps:3}}}]", "operators=[denoising]", "images=1")
    assert invdiff(*words, "output=out").code == 0
    page = Path("out/report.html")
    before = page.read_bytes()
    page.unlink()
    done = invdiff(*words, "output=out")
    assert done.out.splitlines()[-1].startswith("0 rows computed")
    assert page.read_bytes() == before


@pytest.mark.slow
def test_recommended_settings_hold_where_nothing_else_is_said(invdiff: Run) -> None:
    """Those of mcg on blurs have zeta 4; what is written stands, and the command of a row asks for the same again."""
    words = (
        *("benchmark", "prior=digits", "data=generated", "images=1", "num_samples=1"),
        "samplers=[{mcg:{schedule:{steps:3}}},{mine:{sampler:mcg,zeta:0.7,schedule:{steps:3}}}]",
        "operators=[gaussian_blur,denoising]",
    )
    zetas = {}
    for folder, more in (("out", ()), ("plain", ("recommended=false",))):
        assert invdiff(*words, *more, f"output={folder}").code == 0
        for record in Store(Path(folder)).all_records().values():
            zetas[folder, record["sampler"], record["operator"]] = record["settings"]["sampler"]["zeta"]
    default = MCG().zeta
    assert zetas["out", "mcg", "gaussian_blur"] == 4.0
    assert zetas["out", "mcg", "denoising"] == zetas["plain", "mcg", "gaussian_blur"] == default
    assert {zeta for (_, label, _), zeta in zetas.items() if label == "mine"} == {0.7}

    recommended = next(
        run
        for run, record in Store(Path("out")).all_records().items()
        if record["sampler"] == "mcg" and record["operator"] == "gaussian_blur"
    )
    assert invdiff(*commands("out")[recommended], "output=again").code == 0
    assert scores("again") == {recommended: scores("out")[recommended]}
