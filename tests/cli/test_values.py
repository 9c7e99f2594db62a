"""Values of a configuration against the types of the parameters that they go to, and the file it is saved to."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from invdiff.cli.app import write_config
from invdiff.cli.values import check_config
from invdiff.io import BadInput


def config(**values: Any) -> DictConfig:
    schedule = {"_target_": "invdiff.schedules.EDM", "steps": 5} | values.pop("schedule", {})
    sampler = {"_target_": "invdiff.samplers.DAPS", "schedule": schedule} | values
    operator = {"_target_": "invdiff.operators.Inpainting", "mask": None}
    noise = {"_target_": "invdiff.operators.GaussianNoise", "sigma": 0.1}
    nodes = {"sampler": sampler, "operator": operator, "noise": noise}
    return OmegaConf.create(nodes | {"num_samples": 2, "evaluation": {"best_of": True}})


def test_what_fits() -> None:
    check_config(config(tau=None, inner="auto", unknown="left to the constructor"), {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler.schedule.steps": "many"}, "sampler.schedule.steps must be an integer >= 1, got many"),
        (
            {"sampler.inner": 3},
            "sampler.inner must be one of auto, langevin, hamiltonian, metropolis, closed_form, got 3",
        ),
        ({"sampler.tau": True}, "sampler.tau must be a number > 0 or null, got True"),
        ({"sampler.schedule": "steep"}, "sampler.schedule must be a Schedule, got steep"),
        ({"operator.mask": 3}, "operator.mask must be a word or null, got 3"),
        (
            {"noise.sigma": "auto"},
            "noise.sigma must be a number, got auto; only Gaussian noise of a real measurement= is estimated from it",
        ),
        ({"num_samples": 0}, "num_samples must be an integer >= 1, got 0"),
        ({"evaluation": None}, "evaluation.best_of must be true or false, got None"),
    ],
)
def test_the_option_is_named(changes: dict[str, Any], message: str) -> None:
    changed = config()
    for name, value in changes.items():
        OmegaConf.update(changed, name, value)
    with pytest.raises(BadInput) as caught:
        check_config(changed, {})
    assert str(caught.value) == message


def test_a_saved_configuration_is_whole_or_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = OmegaConf.create({"seed": 3, "sampler": {"seed": "${seed}", "steps": 10}, "recipe": None})
    write_config(node, tmp_path, without=("recipe",))
    assert OmegaConf.load(tmp_path / "config.yaml") == {"seed": 3, "sampler": {"seed": 3, "steps": 10}}
    earlier = (tmp_path / "config.yaml").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_config(OmegaConf.create({"seed": 4}), tmp_path)
    assert caught.value.filename == str(tmp_path / "config.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_bytes() == earlier
