"""Curves of a run in TensorBoard or Weights & Biases, by their own clients; both are optional."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

# The extra to install for each, and its module.
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


class Logger(Protocol):
    """Receives numbers and pictures of a run; `step` never decreases."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name; a slash in a name makes a group."""

    def image(self, name: str, image: Tensor, step: int) -> None:
        """A picture (C, H, W) in [0, 1], C 1 or 3."""

    def close(self) -> None:
        """Write what is buffered."""


class TensorBoard:
    """Event files in `tensorboard/` under a folder: `tensorboard --logdir FOLDER` shows them."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))
        lines = (f"    {key}: {value}" for key, value in config.items())  # a markdown code block
        self._writer.add_text("config", "\n".join(lines), 0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, name: str, image: Tensor, step: int) -> None:
        self._writer.add_image(name, image, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases named after a folder, its files under it; project and account are those of wandb's own
    environment variables, WANDB_PROJECT and so on. WANDB_MODE=offline writes files only, for `wandb sync` later."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._image = wandb.Image
        settings = wandb.Settings(silent=True)
        self._run = wandb.init(name=folder.name, dir=str(folder), config=dict(config), settings=settings)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def image(self, name: str, image: Tensor, step: int) -> None:
        self._run.log({name: self._image(image)}, step=step)

    def close(self) -> None:
        self._run.finish()


class Several:
    """Passes everything on to any number of loggers."""

    def __init__(self, loggers: Sequence[Logger] = ()) -> None:
        self._loggers = loggers

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for logger in self._loggers:
            logger.scalars(values, step)

    def image(self, name: str, image: Tensor, step: int) -> None:
        for logger in self._loggers:
            logger.image(name, image, step)

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()


def check_loggers(names: object) -> list[str]:
    """Names of loggers, each once; raises ValueError for unknown ones and for packages that are not installed."""
    if not isinstance(names, Sequence) or isinstance(names, str):
        raise ValueError(f"log must be a list of {' and '.join(PACKAGES)}, such as [tensorboard], got {names}")
    for name in names:
        if name not in PACKAGES:
            raise ValueError(f"log: unknown logger {name!r}; available: {', '.join(PACKAGES)}")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ValueError(f"log=[{name}] needs the package {name}: pip install 'invdiff[{name}]'")
    return list(dict.fromkeys(names))


@contextmanager
def loggers(names: Sequence[str], folder: Path, config: DictConfig) -> Iterator[Logger]:
    """The named loggers of a run with this configuration, in its folder; closed at the end, however it ends."""
    kinds: dict[str, Callable[[Path, Mapping[str, Any]], Logger]] = {"tensorboard": TensorBoard, "wandb": WandB}
    settings: Any = OmegaConf.to_container(config, resolve=True)
    with ExitStack() as stack:
        made: list[Logger] = []
        for name in names:
            logger = kinds[name](folder, settings)
            stack.callback(logger.close)
            made.append(logger)
        yield Several(made)
