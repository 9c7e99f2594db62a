"""Folders of configurations from --config-dir, any number of them, and what their files may not do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import OmegaConf

from invdiff.io import BadInput

CONFIGS = "pkg://invdiff.configs"
_HARMLESS = ("help", "hydra_help", "job", "overrides", "runtime")  # sections that hydra fills in, and texts
_REFUSED = ("--config-path", "-cp", "--experimental-rerun")


class Folders(SearchPathPlugin):
    """Adds the folders of the command line behind the configurations of the package."""

    wanted: ClassVar[list[Path]] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.wanted:
            search_path.append("command-line", f"file://{folder}")


def take_folders(flags: Sequence[str]) -> list[str]:
    """The other flags; the folders of --config-dir are searched from now on, those of an earlier command no more.

    Raises BadInput for a folder that does not exist, and for flags of hydra that replace our configurations.
    """
    Plugins.instance().register(Folders)
    Folders.wanted = []
    others, words = [], iter(flags)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in _REFUSED:
            raise BadInput(f"{flag} cannot be used here; a folder of configurations goes in --config-dir=FOLDER")
        if flag not in ("--config-dir", "-cd"):
            others.append(word)
            continue
        folder = Path(value if equals else next(words)).absolute()
        if not folder.is_dir():
            raise BadInput(f"--config-dir must be a folder, got {folder}")
        Folders.wanted.append(folder)
    return others


def check_hydra_section(default_name: str, name: str, words: Sequence[str], *, sweep: bool) -> None:
    """Raise BadInput where files of the user's folders set hydra itself: callbacks, launchers and loggers run code.

    default_name, name  the configuration of the command, and the one of --config-name
    words               overrides; trust=hydra allows it
    sweep               -m: each job may choose other files, so that no file may name hydra
    """
    searched = any(word.lstrip("+").startswith("hydra.searchpath=") for word in words)
    if any("trust=hydra" in word for word in words) or not (Folders.wanted or searched or name != default_name):
        return
    where = _named_in_a_file(sweep) or _set(default_name, name, words, sweep, searched)
    if where is not None:
        raise BadInput(
            f"{where} by a configuration in --config-dir and may run any code; remove it, or add trust=hydra if "
            "you trust the folder"
        )


def _named_in_a_file(sweep: bool) -> str | None:
    for folder in Folders.wanted:
        for path in sorted(folder.rglob("*.yaml")):
            below = path.relative_to(folder).parts[0] == "hydra"
            if below or (sweep and "hydra" in path.read_text(errors="replace")):
                return f"hydra is set in {path}"
    return None


def _set(default_name: str, name: str, words: Sequence[str], sweep: bool, searched: bool) -> str | None:
    theirs, wanted = _hydra_section(name, words, sweep), Folders.wanted
    Folders.wanted = []
    try:
        own = [word for word in words if word.startswith("hydra") and "searchpath" not in word]
        ours = _hydra_section(default_name, own, sweep)
    finally:
        Folders.wanted = wanted
    keys = [key for key in {**ours, **theirs} if not (searched and key == "searchpath")]
    return next((f"hydra.{key} is set" for key in keys if ours.get(key) != theirs.get(key)), None)


def _hydra_section(name: str, words: Sequence[str], sweep: bool) -> dict[str, Any]:
    loader = ConfigLoaderImpl(create_config_search_path(CONFIGS))
    config = loader.load_configuration(name, list(words), RunMode.MULTIRUN if sweep else RunMode.RUN)
    section: Any = OmegaConf.to_container(config.hydra, resolve=False)
    return {key: value for key, value in section.items() if key not in _HARMLESS} | {
        f"job.{key}": section["job"].get(key) for key in ("chdir", "env_set", "env_copy")
    }
