"""A configuration from somebody else is data: it runs no code unless the user names the code on the command line."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from invdiff.cli import targets
from invdiff.cli.groups import sampler_classes, sampler_node
from invdiff.io import BadInput

Run = Callable[..., Any]

PACKAGE = Path(targets.__file__).parents[1]
MARK = "import pathlib; pathlib.Path('ran').touch()\n"
CODE = "__import__('pathlib').Path('ran').touch()"
SYSTEM = {"_target_": "os.system", "command": "touch ran"}
HOSTILE: dict[str, dict[str, Any]] = {
    "sympify": {"_target_": "sympy.sympify", "a": CODE},
    "numpy.load": {"_target_": "numpy.load", "file": "x.npy", "allow_pickle": True},
    "torch.load": {"_target_": "torch.load", "f": "x.pt", "weights_only": False},
    "ours, but no object": {"_target_": "invdiff.io.atomic.write_atomically", "path": "ran", "data": "x"},
    "through one of ours": {"_target_": "invdiff.cli.app.os.system", "command": "touch ran"},
    "inside one of ours": {
        "_target_": "invdiff.samplers.DPS",
        "schedule": {"_target_": "os.system", "command": "touch ran"},
    },
    "in a list": {
        "_target_": "invdiff.operators.compose",
        "parts": [SYSTEM],
    },
    "a method": {"_target_": "invdiff.priors.EDMPrior.save", "path": "ran"},
    "a file": {"_target_": "invdiff.samplers.from_file.from_file", "file": "evil.py:Mine", "settings": {}},
    "a file by position": {"_target_": "invdiff.operators.from_file", "_args_": ["evil.py:Mine"]},
    "made by a resolver": {"_target_": "invdiff.samplers.DPS", "zeta": r"\${oc.create:{_target_:os.system}}"},
    "named by a resolver": {"_target_": "${oc.decode:os.system}", "command": "touch ran"},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_no_foreign_code(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text(MARK)
    node = OmegaConf.create({"sampler": HOSTILE[case]}).sampler
    with pytest.raises(BadInput, match=r"^sampler") as refused:
        targets.make(node)
    assert "\n" not in str(refused.value)
    assert not Path("ran").exists()


def test_every_sampler_of_the_package_can_be_made() -> None:
    ours = [cls for cls in sampler_classes().values() if cls.__module__.startswith("invdiff.")]
    assert len(ours) > 30
    for cls in ours:
        assert type(targets.make(OmegaConf.create(sampler_node(cls)), "sampler")) is cls
    assert targets.make(OmegaConf.create({"_target_": "invdiff.priors.networks.network_time.DiscreteTime.cosine"}), "t")


def test_one_place_makes_objects() -> None:
    others = [
        p.name for p in PACKAGE.rglob("*.py") if re.search(r"\b(instantiate|get_object|get_class)\(", p.read_text())
    ]
    assert others == ["targets.py"]


HYDRA = "# @package _global_\nhydra: {%s}\nsampler: {_target_: invdiff.samplers.DPS}\n"


@pytest.mark.parametrize(
    ("file", "text", "words", "said"),
    [
        ("sampler/best.yaml", f'_target_: sympy.sympify\na: "{CODE}"\n', ["sampler=best"], "trust=sympy.sympify"),
        ("sampler/best.yaml", "_target_: evil.Mine\n", ["sampler=best"], "trust=evil.Mine"),
        ("sampler/best.yaml", "a: !!python/name:os.system\n", ["sampler=best"], "not plain YAML"),
        ("sampler/best.yaml", HYDRA % "callbacks: {x: {_target_: evil.Mine}}", ["sampler=best"], "hydra.callbacks"),
        ("sampler/best.yaml", HYDRA % "job_logging: {'()': evil.Mine}", ["sampler=best"], "hydra.job_logging"),
        ("hydra/launcher/basic.yaml", "_target_: evil.Mine\n", ["-m", "seed=0,1"], "launcher/basic.yaml"),
        (
            "config.yaml",
            "output: x\nhydra: {callbacks: {x: {_target_: evil.Mine}}}\n",
            ["--config-name=config"],
            "hydra.callbacks",
        ),
        ("sampler/best.yaml", "_target_: evil.Mine\n", ["--config-path=x"], "--config-dir=FOLDER"),
    ],
)
def test_a_folder_of_somebody_else(invdiff: Run, file: str, text: str, words: list[str], said: str) -> None:
    path = Path("shared") / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    Path("evil.py").write_text(MARK)
    done = invdiff("reconstruct", "--config-dir=shared", *words, "output=out")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert said in done.err
    assert not Path("ran").exists()
    assert not Path("out").exists()


def test_two_folders(invdiff: Run) -> None:
    for folder, name in (("one", "mild"), ("two", "bold")):
        Path(folder, "sampler").mkdir(parents=True)
        Path(folder, "sampler", f"{name}.yaml").write_text("_target_: invdiff.samplers.DPS\nzeta: 2.5\n")
    both = ("--config-dir=one", "-cd", "two")
    for name in ("mild", "bold"):
        done = invdiff("reconstruct", *both, f"sampler={name}", "--cfg", "job")
        assert (done.code, done.err) == (0, "")
        assert "zeta: 2.5" in done.out
    assert "unknown sampler 'bold'" in invdiff("reconstruct", "--config-dir=one", "sampler=bold").err
    done = invdiff("benchmark", *both, "samplers=[mild,bold,boldd]", "output=out")
    assert "unknown sampler 'boldd'; did you mean bold?" in done.err
    assert "must be a folder" in invdiff("reconstruct", "--config-dir=three").err


def test_words_that_name_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.HydraConfig, "initialized", lambda: False)
    found = {}
    for word in (
        "sampler._target_=my.Sampler",
        "operator.file=cam.py:Camera",
        r"operator.file=a\:b.py\:Camera",
        "samplers=[dps,{mine:{sampler:callable,file:mine.py:Diff}}]",
        'prior.file="a b/net.py:f"',
        "trust=[x.y,z.py]",
    ):
        monkeypatch.setattr("sys.argv", ["invdiff", word])
        found[word] = list(targets._typed())
    assert list(found.values()) == [
        ["my.Sampler"],
        ["cam.py:Camera"],
        ["a:b.py:Camera"],
        ["mine.py:Diff"],
        ["a b/net.py:f"],
        ["x.y", "z.py"],
    ]
