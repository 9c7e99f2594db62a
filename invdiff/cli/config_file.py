"""The configuration a command ran with, kept beside its results."""

from collections.abc import Container
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from invdiff.io.atomic import write_atomically


def write_config(config: DictConfig, folder: Path, *, without: Container[str] = (), name: str = "config.yaml") -> None:
    """Write it to `folder`, interpolations resolved: whole, or not at all and the one of an earlier run stays.

    without  keys at its top that this run has no use for
    """
    kept = OmegaConf.masked_copy(config, [str(key) for key in config if key not in without])
    write_atomically(folder / name, OmegaConf.to_yaml(kept, resolve=True).encode())
