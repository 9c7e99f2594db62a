"""What the command says about itself, and how long it takes to say it."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from invdiff import __version__
from invdiff.samplers import all_samplers

Run = Callable[..., Any]

# Slow to import, and not needed to tell what there is.
HEAVY = ("deepinv", "lpips", "matplotlib", "skimage", "scipy", "torchvision", "pandas")


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help(invdiff: Run, words: list[str]) -> None:
    done = invdiff(*words)
    assert (done.code, done.err) == (0, "")
    for command in ("reconstruct", "train", "check-operator", "list"):
        assert f"  {command}  " in done.out
    assert "usage: invdiff COMMAND" in done.out


@pytest.mark.parametrize("words", [["--version"], ["-V"], ["reconstruct", "--version"]])
def test_version(invdiff: Run, words: list[str]) -> None:
    assert invdiff(*words).out == f"invdiff {__version__}\n"


@pytest.mark.slow
def test_help_of_reconstruct(invdiff: Run) -> None:
    done = invdiff("reconstruct", "--help")
    assert (done.code, done.err) == (0, "")
    for words in (
        "usage: invdiff reconstruct",
        "sampler: afdps, aldi, auto, bffg, callable, daps",
        "num_samples: 4",
        "seed: 0",
        "comparison.png",
    ):
        assert words in done.out
    assert "HydraConfig" not in done.out
    # It shows the options of what is chosen.
    assert "zeta" not in done.out
    assert "zeta: " in invdiff("reconstruct", "sampler=dps", "--help").out


@pytest.mark.slow
def test_help_of_train(invdiff: Run) -> None:
    done = invdiff("train", "--help")
    assert (done.code, done.err) == (0, "")
    for words in ("usage: invdiff train data=IMAGES", "learning_rate", "prior.safetensors"):
        assert words in done.out


def test_help_of_list(invdiff: Run) -> None:
    done = invdiff("list", "--help")
    assert (done.code, done.err) == (0, "")
    assert "usage: invdiff list" in done.out


def test_the_composed_configuration(invdiff: Run) -> None:
    done = invdiff("reconstruct", "operator=super_resolution", "--cfg", "job", "operator.factor=8", "output=here")
    assert (done.code, done.err) == (0, "")
    config = OmegaConf.create(done.out)
    assert (config.operator.factor, config.output, config.sampler["_target_"].split(".")[-1]) == (8, "here", "Auto")
    assert "hydra" not in config
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("heading", ["operators", "noises", "samplers", "priors", "data"])
def test_list(invdiff: Run, heading: str) -> None:
    group = {"operators": "operator", "noises": "noise", "samplers": "sampler", "priors": "prior"}.get(heading, heading)
    done = invdiff("list", heading)
    assert (done.code, done.err) == (0, "")
    title, *lines = done.out.partition("\n\n")[0].splitlines()  # what each sampler can solve follows
    assert title.startswith(f"{heading}, chosen with {group}=")
    folder = files("invdiff.configs") / group
    names = [e.name.removesuffix(".yaml") for e in folder.iterdir() if ".yaml" in e.name] if folder.is_dir() else []
    wanted = {"auto", "callable", *all_samplers()} if group == "sampler" else set(names)
    assert wanted <= {line.split()[0] for line in lines}
    assert all(len(line.split()) > 2 for line in lines), "a config without a first line that explains it"


def test_list_everything(invdiff: Run) -> None:
    done = invdiff("list")
    assert all(
        f"{heading}, chosen with" in done.out for heading in ("operators", "noises", "samplers", "priors", "data")
    )


@pytest.mark.slow
def test_start_up_is_light_and_needs_no_unicode(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from invdiff.cli.main import main\n"
        "for words in (['--help'], ['list'], ['reconstruct', '--help'], ['train', '--help']):\n"
        "    sys.argv = ['invdiff', *words]\n"
        "    try:\n        main()\n"
        "    except SystemExit as stop:\n        assert not stop.code, stop.code\n"
        f"    loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    assert not loaded, (words, loaded)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        timeout=280,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"usage: ") == 3


@pytest.mark.parametrize(
    ("said", "waits"), [({}, "10000"), ({"OMP_WAIT_POLICY": "active"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")]
)
def test_waiting_threads_give_up_their_core_soon_unless_told_otherwise(
    invdiff: Run, monkeypatch: pytest.MonkeyPatch, said: dict[str, str], waits: str | None
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is as before when the test is over
        os.environ.pop(name)
    os.environ |= said
    assert invdiff("list", "samplers").code == 0
    assert os.environ.get("GOMP_SPINCOUNT") == waits


@pytest.mark.slow
def test_what_the_package_exports_is_there_when_it_is_asked_for() -> None:
    """Though importing it imports nothing slow."""
    code = (
        "import sys, invdiff; assert 'torch' not in sys.modules; assert {*invdiff.__all__} <= {*dir(invdiff)}\n"
        "for name in invdiff.__all__: getattr(invdiff, name)\n"
        "invdiff.operators.Inpainting, invdiff.samplers.DPS\n"
        "try: invdiff.nothing\n"
        "except AttributeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert (done.stdout, done.stderr) == ("module 'invdiff' has no attribute 'nothing'\n", "")


@pytest.mark.slow
def test_help_of_names(invdiff: Run) -> None:
    done = invdiff("help", "ct", "daps", "quantisation")
    assert (done.code, done.err) == (0, "")
    for words in (
        "range of the evenly spaced views in degrees",  # of the docstring
        "views: null",
        "# degrees, stop or [start, stop]",  # of the configuration
        "sampler=daps",
        "# length of the chain",
        "operator=quantisation",
        "noise=quantisation",
    ):
        assert words in done.out
    assert "usage: invdiff tune" in invdiff("help", "tune").out
    assert "did you mean dps?" in invdiff("help", "dpss").err
    assert "invdiff help ct explains it" in invdiff("list", "ct").err
    assert "did you mean samplers?" in invdiff("list", "sampler").err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("reconstruct", ("device: null", "sigma: 0.05", "seed: 0")),
        ("benchmark", ("device: null", "sigma: 0.05", "seed: 0")),
        ("check-measurement", ("images: 4", "sigma: 0.05")),
        ("check-prior", ("grid: 8",)),
    ],
)
def test_help_explains_options(invdiff: Run, command: str, options: tuple[str, ...]) -> None:
    lines = invdiff(command, "--help").out.splitlines()
    for option in options:
        line = next(line for line in lines if line.strip().startswith(option))
        assert "#" in line or option == "seed: 0"
    assert any("%Y-%m-%d" in line for line in lines), "interpolations are shown as they are"
