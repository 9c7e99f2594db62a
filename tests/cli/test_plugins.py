"""A sampler of an outsider, and operators and priors of another package, are used like those of this package."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from invdiff.samplers.from_file import from_file, sampler_in

Run = Callable[..., Any]

PLUG_AND_PLAY = Path(__file__).parents[2] / "docs" / "skeletons" / "plugandplay.py"
CALLABLE = ("sampler=callable", "sampler.file=mine.py:PlugAndPlay", "sampler.settings.schedule.steps=3")
PACKAGE = '''
from invdiff.operators import LinearOperator
from invdiff.priors import load_prior


class Dim(LinearOperator):
    """Darker images."""

    def __init__(self, gain: float = 0.5):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        return self.gain * x

    def adjoint(self, y):
        return self.gain * y

    def image_shape(self, measurement_shape):
        return measurement_shape


def small():
    """Digits of a package."""
    return load_prior("digits")
'''
POINTS = """[invdiff.samplers]
plugandplay = outsider.sampler:PlugAndPlay
[invdiff.operators]
dim = outsider:Dim
[invdiff.priors]
small = outsider:small
"""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Modules and paths that a plug-in leaves in this process go again, and with them its classes."""
    paths = list(sys.path)
    yield
    sys.path[:] = paths
    for name in [name for name in sys.modules if name == "mine" or name.partition(".")[0] == "outsider"]:
        del sys.modules[name]


@pytest.fixture
def mine(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUG_AND_PLAY.read_text())


@pytest.fixture
def installed(tmp_path: Path) -> None:
    """A package with entry points on the path."""
    (tmp_path / "outsider").mkdir()
    (tmp_path / "outsider" / "__init__.py").write_text(PACKAGE)
    (tmp_path / "outsider" / "sampler.py").write_text(PLUG_AND_PLAY.read_text())
    info = tmp_path / "outsider-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    sys.path.insert(0, str(tmp_path))


def test_it_is_one_file_of_fifty_lines() -> None:
    assert len(PLUG_AND_PLAY.read_text().splitlines()) <= 50


@pytest.mark.usefixtures("mine")
def test_a_file_is_checked_and_listed(invdiff: Run) -> None:
    done = invdiff("check-sampler", *CALLABLE)
    assert (done.code, done.err) == (0, "")
    assert "PlugAndPlay on GaussianBlur, images of 1x8x8, 3 steps" in " ".join(done.out.split())

    done = invdiff("list", "samplers", "sampler.file=mine.py:PlugAndPlay")
    assert (done.code, done.err) == (0, "")
    assert "plug-and-play restoration" in done.out
    assert any(line.split()[:2] == ["plugandplay", "yes"] for line in done.out.splitlines())

    done = invdiff("list", "operators", "--markdown")
    assert done.err.strip() == "invdiff: error: --markdown must go with samplers, the only list with such a table"
    assert "unknown list 'sampler'" in invdiff("list", "sampler").err
    assert "usage: invdiff list" in invdiff("list", "--help").out


@pytest.mark.slow
@pytest.mark.usefixtures("mine", "without_comparison")
def test_a_file_in_every_command(invdiff: Run) -> None:
    done = invdiff("reconstruct", *CALLABLE, "prior=digits", "data=generated", "num_samples=1", "output=out")
    assert (done.code, done.err) == (0, "")
    again = invdiff("reconstruct", "--config-dir=out", "--config-name=config", "output=again", "trust=mine.py")
    assert (again.code, again.err) == (0, "")
    scores = [json.loads(Path(f"{folder}/metrics.json").read_text())["images"] for folder in ("out", "again")]
    assert scores[0] == scores[1]

    own = "{mine:{sampler:callable,file:mine.py:PlugAndPlay,settings:{schedule:{steps:3}}}}"
    done = invdiff("benchmark", f"samplers=[{own}]", "images=1", "num_samples=1", "output=table")
    assert (done.code, done.err) == (0, "")
    assert "mine" in Path("table/leaderboard.md").read_text()

    done = invdiff("calibrate", *CALLABLE, "images=20", "num_samples=2", "output=ranks")
    assert (done.code, done.err) == (0, "")
    assert "calibration" in done.out

    done = invdiff("reconstruct", "prior=digits", "data=generated", "operator=hdr", "sampler=mcg", "output=bad")
    assert "MCG needs a linear operator" in done.err
    done = invdiff("reconstruct", "prior=digits", "data=generated", "operator=hdr", *CALLABLE, "output=bad")
    assert "PlugAndPlay needs a linear operator (HDR is not); compatible samplers: " in done.err


@pytest.mark.slow
@pytest.mark.usefixtures("mine")
def test_a_file_is_tuned(invdiff: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna", reason="the extra invdiff[tune] is not installed")
    monkeypatch.setattr("invdiff.cli.tune_command.save_figure", lambda figure, path: None)
    done = invdiff("tune", *CALLABLE, "+space.zeta=[0,1]", "trials=2", "images=2", "output=found")
    assert (done.code, done.err) == (0, "")
    assert OmegaConf.load("found/sampler/best.yaml").file.endswith("mine.py:PlugAndPlay")
    words = ("prior=digits", "data=generated", "num_samples=1", "output=out")
    assert invdiff("reconstruct", "--config-dir=found", "sampler=best", "trust=mine.py", *words).code == 0


@pytest.mark.usefixtures("installed")
def test_an_installed_package_is_listed(invdiff: Run) -> None:
    lines = ("Darker images.", "Digits of a package.", "plug-and-play restoration")
    for group, line in zip(("operators", "priors", "samplers"), lines, strict=True):
        assert line in invdiff("list", group).out


@pytest.mark.slow
@pytest.mark.usefixtures("installed", "without_comparison")
def test_an_installed_package(invdiff: Run) -> None:
    parts = ("sampler=plugandplay", "operator=dim", "prior=small")
    words = ("operator.gain=0.25", "sampler.schedule.steps=3", "data=generated", "num_samples=1", "output=out")
    done = invdiff("reconstruct", *parts, *words)
    assert (done.code, done.err) == (0, "")
    done = invdiff("check-sampler", "sampler=plugandplay")
    assert (done.code, done.err) == (0, "")
    help_text = invdiff("reconstruct", "--help").out
    assert "plugandplay" in help_text
    assert "dim" in help_text
    done = invdiff(
        "benchmark", "samplers=[{plugandplay:{schedule:{steps:2}}}]", "operators=[dim]", "images=1", "output=b"
    )
    assert (done.code, done.err) == (0, "")


@pytest.mark.usefixtures("mine")
def test_a_file_from_python(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    sampler: Any = from_file(path, {"zeta": 0.5, "schedule": {"steps": 4}})
    assert (type(sampler).__name__, sampler.zeta, sampler.schedule.steps) == ("PlugAndPlay", 0.5, 4)
    for file, words in (
        (None, "give file="),
        ("absent.py", "no such file"),
        ("mine.txt", "must be a Python file"),
        (f"{path}:DPS", "has no sampler 'DPS' \\(samplers: PlugAndPlay\\)"),
    ):
        with pytest.raises(ValueError, match=words):
            sampler_in(file)
    (tmp_path / "two.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="defines 0 samplers; name one"):
        sampler_in(tmp_path / "two.py")
    with pytest.raises(ValueError, match="has no setting 'zta'; did you mean zeta"):
        from_file(path, {"zta": 1})
