"""README and docs: Python examples run, commands compose, links lead to files, the table of samplers is current."""

import re
import shlex
from pathlib import Path

import pytest

from helpers import composed
from invdiff.report.compatibility import markdown

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "results").glob("*.md"))]
EXAMPLES = [
    ROOT / "README.md",
    ROOT / "docs" / "samplers.md",
    pytest.param(ROOT / "docs" / "operators.md", marks=pytest.mark.slow),
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", EXAMPLES, ids=["README", "samplers", "operators"])
def test_python_examples_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The blocks of a page run one after the other."""
    namespace: dict = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), namespace)
    assert capsys.readouterr().out


def commands() -> list[str]:
    lines = [line.partition("  #")[0].strip() for page in PAGES for line in "".join(blocks(page, "bash")).splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith("invdiff reconstruct")))


@pytest.mark.parametrize("command", commands())
def test_commands_compose(command: str) -> None:
    words = [word for word in shlex.split(command)[2:] if word[0] != "-" and "," not in word]
    words = [f"++{word}" if word.startswith("sampler.settings.") else word for word in words]  # as the command does
    assert composed(*words).sampler["_target_"].startswith("invdiff.samplers")


def test_links_lead_to_files() -> None:
    links = [(page, link) for page in LINKED for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())]
    assert [link for page, link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_ci_finds_the_test_command() -> None:
    after = README.partition("<!-- test command -->")[2]
    assert after.lstrip().startswith("```bash\npython3 -m venv .venv && ")
    assert after.partition("```bash")[2].partition("```")[0].strip().endswith(".venv/bin/pytest -n 2")


def test_table_of_samplers_is_the_generated_one() -> None:
    page = (ROOT / "docs" / "samplers.md").read_text()
    table = page.partition("<!-- samplers:")[2].partition("-->\n")[2].partition("\n<!-- end of samplers -->")[0]
    assert table == markdown(), "run: invdiff list samplers --markdown"
