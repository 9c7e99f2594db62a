"""The skeletons in docs/skeletons keep the contracts when they are copied under another name, as their headers say."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKELETONS = Path(__file__).parents[1] / "docs" / "skeletons"
CHECKS = {
    "sampler": "check_sampler(MySampler.example())",
    "operator": "check_operator(*MyOperator.example())",
    "prior": "check_prior(MyPrior.example())",
}


@pytest.mark.slow
def test_they_keep_the_contracts(tmp_path: Path) -> None:
    """In a process of its own: classes are registered when they are defined, and other tests walk the registry."""
    code = "from invdiff.contracts import *\n"
    for kind, check in CHECKS.items():
        shutil.copy(SKELETONS / f"{kind}.py", tmp_path / f"my_{kind}.py")
        code += f"from my_{kind} import *\n{check}\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
