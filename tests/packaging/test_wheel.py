"""The wheel holds what the package needs and nothing else, and works where the source tree is not."""

import os
import re
import shutil
import site
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest

from invdiff.priors.library import BUNDLED

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "invdiff": "invdiff",
    "operators": "invdiff/operators",
    "priors": "invdiff/priors",
    "configs": "invdiff/configs",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="needs a git checkout"),
]


def run(*words: str | Path, **options: object) -> str:
    # Nothing of the environment of this process may lead the other one back to the source tree.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(w) for w in words], capture_output=True, text=True, timeout=900, check=False, env=environment, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is committed, and nothing that merely lies around."""
    folder = tmp_path_factory.mktemp("clone") / "source"
    run("git", "clone", "--quiet", "--no-local", ROOT, folder)
    return folder


@pytest.fixture(scope="session")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation, where the build requirement is met: no network is needed then.
    recent = int(version("setuptools").partition(".")[0]) >= 77 if _installed("setuptools") else False
    isolation = ["--no-build-isolation"] if recent else []
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", folder, clone)
    (path,) = folder.glob("invdiff-*.whl")
    return path


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except ImportError:
        return False


@pytest.fixture(scope="session")
def names(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_every_module_and_configuration_is_in_it(clone: Path, names: set[str]) -> None:
    wanted = {
        f"{target}/{path.relative_to(clone / folder)}"
        for folder, target in FOLDERS.items()
        for path in (clone / folder).rglob("*")
        if path.suffix in (".py", ".yaml") or path.name == "py.typed"
    }
    assert len(wanted) > 50
    assert wanted - names == set()


def test_every_bundled_prior_is_in_it(clone: Path, names: set[str]) -> None:
    weights = {path.name for path in (clone / "priors" / "weights").glob("*.safetensors")}
    assert weights
    assert weights <= {f"{name}.safetensors" for name in BUNDLED}, "weights that no name leads to"
    assert {f"invdiff/priors/weights/{name}" for name in weights} <= names


def test_the_templates_of_the_report_are_in_it(clone: Path, names: set[str]) -> None:
    templates = {f"invdiff/report/templates/{path.name}" for path in (clone / "invdiff/report/templates").iterdir()}
    assert templates
    assert templates <= names


def test_nothing_else_is_in_it(names: set[str]) -> None:
    assert {re.sub(r"-[0-9][^/]*(?=\.dist-info)", "", name.split("/")[0]) for name in names} == {
        "invdiff",
        "invdiff.dist-info",
    }
    strays = [
        name for name in names if re.search(r"(^|/)(tests?|notebooks|benchmarks|__pycache__|\.git|runs)(/|$)", name)
    ]
    assert strays == []
    kinds = {Path(name).suffix for name in names if ".dist-info" not in name}
    assert kinds <= {".py", ".yaml", ".typed", ".safetensors", ".npz", ".md", ".png", ".json", ".jinja", ".css", ".js"}
    assert any(re.search(r"dist-info/(licenses/)?LICENSE$", name) for name in names)


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    binaries = folder / ("Scripts" if os.name == "nt" else "bin")
    python = binaries / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # Paths from a .pth file come after the environment's own, and .pth files beyond them (an editable install is one)
    # are not read: the wheel wins.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return binaries


def test_it_works_elsewhere(installed: Path, tmp_path: Path) -> None:
    where = run(
        installed / "python",
        "-c",
        "import invdiff, invdiff.operators, invdiff.priors, invdiff.configs\n"
        "for m in (invdiff, invdiff.operators, invdiff.priors, invdiff.configs): print(m.__file__)",
        cwd=tmp_path,
    ).split()
    assert len(where) == 4
    assert all(Path(path).resolve().is_relative_to(installed.parent.resolve()) for path in where), where

    words = ["reconstruct", "prior=digits", "data=generated", "num_samples=2", "output=out"]
    said = run(installed / "invdiff", *words, cwd=tmp_path)
    assert "are in out" in said
    for name in ("comparison.png", "mean.png", "std.png", "samples.npz", "metrics.json", "config.yaml"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert len(list((tmp_path / "out" / "samples").glob("*.png"))) == 2
    assert "digits" in run(installed / "invdiff", "list", "priors", cwd=tmp_path)
