"""The configuration beside the results: resolved, whole, or the earlier one."""

import errno
import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from invdiff.cli.config_file import write_config

CONFIG = OmegaConf.create({"seed": 3, "sampler": {"seed": "${seed}", "steps": 10}, "recipe": None})


def test_it_holds_what_the_run_used(tmp_path: Path) -> None:
    write_config(CONFIG, tmp_path, without=("recipe",))
    assert OmegaConf.load(tmp_path / "config.yaml") == {"seed": 3, "sampler": {"seed": 3, "steps": 10}}


def test_a_full_disk_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(CONFIG, tmp_path)
    earlier = (tmp_path / "config.yaml").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_config(OmegaConf.create({"seed": 4}), tmp_path)
    assert caught.value.filename == str(tmp_path / "config.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_bytes() == earlier
