"""The README's examples run as they stand: Python one after the other, commands as far as their configuration."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from invdiff.report.compatibility import markdown

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_python_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert "DPS" in capsys.readouterr().out


def commands() -> list[str]:
    lines = [line.partition("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith("invdiff reconstruct")]


@pytest.mark.parametrize("command", commands())
def test_commands_compose(command: str, tmp_path: Path) -> None:
    words = [word for word in shlex.split(command) if word != "-m" and "," not in word]
    program = Path(sys.executable).with_name(words.pop(0))  # also where the environment is not activated
    done = subprocess.run([program, *words, "--cfg", "job"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "_target_: invdiff.samplers" in done.stdout


def test_ci_finds_the_test_command() -> None:
    after = README.partition("<!-- test command -->")[2]
    assert after.lstrip().startswith("```bash\npython3 -m venv .venv && ")
    assert after.partition("```bash")[2].partition("```")[0].strip().endswith(".venv/bin/pytest -n 2")


def test_table_of_samplers_is_the_generated_one() -> None:
    table = README.partition("--markdown` -->\n")[2].partition("\n<!-- end of samplers -->")[0]
    assert table == markdown(), "run: invdiff list samplers --markdown"
