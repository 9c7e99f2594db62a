"""What Windows lacks is not needed: the commands run with `fcntl` and `resource` unimportable."""

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT = """
import sys
import psutil  # which itself imports `resource` on POSIX
sys.modules["fcntl"] = sys.modules["resource"] = None
import warnings
warnings.filterwarnings("ignore", message="only soft file lock is available")
"""

RUN = """
from invdiff.cli.main import main

def run(*words):
    sys.argv = ["invdiff", *words, "prior=digits", "compute.progress=false"]
    try:
        main()
    except SystemExit as stop:
        return stop.code or 0
    return 0
"""

COMMANDS = """
assert run("reconstruct", "data=generated", "sampler=daps", "sampler.schedule.steps=2", "output=one") == 0
words = ("benchmark", "samplers=[{daps:{schedule:{steps:2}}}]", "operators=[denoising]", "images=1", "output=out")
assert run(*words) == 0
assert run("benchmark", "output=busy") == 2
"""

BUSY = """
from pathlib import Path
from invdiff.io.lock import held
with held(Path(), print, alone=True):
    print("held", flush=True)
    sys.stdin.readline()
"""


def python(code: str, folder: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_without_fcntl_and_resource(tmp_path: Path) -> None:
    (tmp_path / "busy").mkdir()
    busy = python(WITHOUT + BUSY, tmp_path / "busy")
    try:
        assert busy.stdout is not None
        assert busy.stdout.readline() == "held\n"
        done = python(WITHOUT + RUN + COMMANDS, tmp_path)
        _, errors = done.communicate(timeout=200)
    finally:
        busy.communicate("\n", timeout=60)
    assert done.returncode == 0, errors
    assert (tmp_path / "one" / "metrics.json").exists()
    assert (tmp_path / "out" / "report.html").exists()
    assert not list(tmp_path.glob("*/.lock*"))
    assert f"error: another run is writing into busy (process {busy.pid} on " in errors.splitlines()[-1]
