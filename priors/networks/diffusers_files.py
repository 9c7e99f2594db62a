"""Folders of `diffusers`, as `save_pretrained` writes them, and repositories of the Hugging Face Hub: their models.

Weights are `.safetensors`, or for networks and autoencoders a `.bin` that is read without executing code.
"""

import importlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

SCHEME = "hf://"
AUTOENCODERS = ("vae", "vqvae", "movq")  # names in pipelines
WEIGHTS, TEXT_WEIGHTS = "diffusion_pytorch_model", "model"
HUB_SECONDS = 10  # time limit for an answer of the Hub
CONFIGS = ("model_index.json", "config.json", "scheduler_config.json", "*/config.json", "*/scheduler_config.json")


@dataclass(frozen=True)
class TextKind:
    """Of a text-conditional pipeline: folder and class of its network, and how many text encoders it has."""

    folder: str
    network: str
    encoders: int

    @property
    def texts(self) -> list[str]:
        """Folders of text encoders and tokenizers."""
        ends = ["", *(f"_{i}" for i in range(2, self.encoders + 1))]
        return [name + end for end in ends for name in ("text_encoder", "tokenizer")]


TEXT_KINDS = {
    "StableDiffusionPipeline": TextKind("unet", "UNet2DConditionModel", 1),
    "StableDiffusionXLPipeline": TextKind("unet", "UNet2DConditionModel", 2),
    "StableDiffusion3Pipeline": TextKind("transformer", "SD3Transformer2DModel", 3),
    "FluxPipeline": TextKind("transformer", "FluxTransformer2DModel", 2),
}


def local_folder(path: str | Path, *, latent: bool | None) -> Path:
    """The folder of a model, from the Hub where the path is hf://owner/repo.

    latent  a model of codes, with its autoencoder; None: either

    Raises ValueError, before weights are read or downloaded, if there is none or one of another kind.
    """
    folder = _download(str(path), latent=latent) if str(path).startswith(SCHEME) else Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"no such folder: {path} (a repository of the Hub is written {SCHEME}owner/repo)")
    _check_kind(folder, latent=latent)
    return folder


def autoencoder_in(folder: Path) -> str | None:
    """Name of the autoencoder in a pipeline, None if there is none."""
    parts = parts_of(folder)
    return next((name for name in AUTOENCODERS if name in parts), None)


def read_unet(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The UNet2DModel and the configuration of its scheduler."""
    unet_folder, _, scheduler = _configs(folder)
    return read_model(unet_folder, "UNet2DModel"), scheduler


def read_model(folder: Path, kind: str, *, library: Literal["diffusers", "transformers"] = "diffusers") -> nn.Module:
    """A model, float32. ValueError if weights are damaged, missing, superfluous or not finite.

    library  `transformers` reads `.safetensors` alone, and leaves out what its networks do not have
    """
    model_class, weights = getattr(extra(library), kind), WEIGHTS if library == "diffusers" else TEXT_WEIGHTS
    if not folder.is_dir():
        raise ValueError(f"no such folder: {folder}, which must hold a {kind}")
    names = {path.name for path in folder.iterdir()}
    safe = library == "transformers" or any(name.endswith(".safetensors") for name in names)
    plain = any(name in names for name in (f"{weights}.safetensors", f"{weights}.safetensors.index.json"))
    half = {f"{weights}.fp16.safetensors", f"{weights}.safetensors.index.fp16.json"}
    options = {"low_cpu_mem_usage": False} if library == "diffusers" else {}
    try:
        with torch.random.fork_rng(devices=[]), _quiet():  # it draws weights first and warns about those it keeps
            model, found = model_class.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=safe,
                variant="fp16" if safe and not plain and half & names else None,
                torch_dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise ValueError(f"cannot read the {kind} in {folder}: {' '.join(str(error).split())[:300]}") from error
    if found["missing_keys"]:
        raise ValueError(f"weights in {folder} do not fit config.json: {next(iter(found['missing_keys']))} is missing")
    if found["unexpected_keys"] and library == "diffusers":
        left = next(iter(found["unexpected_keys"]))
        raise ValueError(f"weights in {folder} do not fit config.json, which has no {left}")
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"checkpoint is damaged: {folder} holds NaN or infinity in {name}")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings and progress of `diffusers` and `transformers`: those that matter are errors here."""
    names = ("diffusers", "transformers") if importlib.util.find_spec("transformers") else ("diffusers",)
    loggers = [importlib.import_module(f"{name}.utils.logging") for name in names]
    before = [(logger.get_verbosity(), logger.is_progress_bar_enabled()) for logger in loggers]
    for logger in loggers:
        logger.set_verbosity(logger.CRITICAL)
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, (level, bar) in zip(loggers, before, strict=True):
            logger.set_verbosity(level)
            if bar:
                logger.enable_progress_bar()


def parts_of(folder: Path) -> dict[str, Any]:
    """The index of a pipeline, empty for a bare network."""
    index = folder / "model_index.json"
    return read_config(index) if index.is_file() else {}


def text_kind(folder: Path) -> TextKind | None:
    """Of a text-conditional pipeline that is known here, None for any other folder."""
    return TEXT_KINDS.get(str(parts_of(folder).get("_class_name")))


def scheduler_of(folder: Path) -> dict[str, Any]:
    """The configuration of the scheduler of a pipeline."""
    return read_config(folder / "scheduler" / "scheduler_config.json")


def _configs(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Folder of the network, its configuration and that of its scheduler; published pipelines may have no folders."""
    parts = parts_of(folder)
    if parts and ("text_encoder" in parts or "unet" not in parts):
        reason = "works on text" if "text_encoder" in parts else "has no unet"
        raise ValueError(
            f"{folder} holds a {parts.get('_class_name', 'pipeline')}, which {reason}; a prior of images is an "
            "unconditional UNet2DModel on pixels (DDPMPipeline, DDIMPipeline, ScoreSdeVePipeline), a prior of codes "
            f"that of an LDMPipeline or one of {', '.join(TEXT_KINDS)}"
        )
    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    if not (unet_folder / "config.json").is_file():
        raise ValueError(f"{unet_folder} has no config.json; give a folder written by save_pretrained of diffusers")
    places = [folder / "scheduler", folder, unet_folder.parent / "scheduler"]
    found = [place / "scheduler_config.json" for place in places if (place / "scheduler_config.json").is_file()]
    if not found:
        raise ValueError(
            f"{folder} has no scheduler_config.json, which holds the noise levels; save the scheduler of the training "
            "into it: DDPMScheduler(...).save_pretrained(folder)"
        )
    return unet_folder, read_config(unet_folder / "config.json"), read_config(found[0])


def read_config(path: Path) -> dict[str, Any]:
    """A configuration of diffusers."""
    try:
        read = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"cannot read {path}: not a configuration of diffusers")
    return read


def _check_kind(folder: Path, *, latent: bool | None) -> None:
    """ValueError unless the folder holds the configuration of an unconditional UNet2DModel, on codes or on pixels."""
    if text_kind(folder) is not None:
        if latent is False:
            raise ValueError(
                f"{folder} holds a {parts_of(folder)['_class_name']}, which works on codes with text; a prior of "
                "images works on pixels. prior=latent (LatentPrior.load) reads this one"
            )
        return
    _, config, _ = _configs(folder)
    kind = config.get("_class_name", "a network without _class_name")
    if kind != "UNet2DModel":
        raise ValueError(f"{folder} holds a {kind}; a prior of images is an unconditional UNet2DModel")
    autoencoder = autoencoder_in(folder)
    if autoencoder is not None and latent is False:
        raise ValueError(
            f"{folder} holds a UNet that works on the codes of a {autoencoder}; a prior of images works on pixels "
            "(DDPMPipeline, DDIMPipeline, ScoreSdeVePipeline). prior=latent (LatentPrior.load) reads this one"
        )
    if autoencoder is None and latent:
        raise ValueError(f"{folder} holds no autoencoder; DiffusersPrior.load reads networks on pixels")


def extra(module: str) -> ModuleType:
    """The module; ValueError names the extra that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"this prior needs {module}: pip install 'invdiff[diffusers]' ({error})") from error


def _download(address: str, *, latent: bool | None) -> Path:
    """The folder of a repository of the Hub, from the cache where it cannot be reached."""
    hub = extra("huggingface_hub")
    for module in ("constants", "errors"):  # some of its modules load on import only
        importlib.import_module(f"huggingface_hub.{module}")
    repository, _, revision = address.removeprefix(SCHEME).partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ValueError(f"a repository is written {SCHEME}owner/repo or {SCHEME}owner/repo@revision, got {address}")

    commit = _newest_commit(hub, address, repository, revision or None)

    def fetch(patterns: Sequence[str]) -> Path:
        try:
            return Path(
                hub.snapshot_download(
                    repository,
                    revision=commit or revision or None,
                    allow_patterns=list(patterns),
                    etag_timeout=HUB_SECONDS,
                    local_files_only=commit is None,
                )
            )
        except hub.errors.LocalEntryNotFoundError as error:
            why = "HF_HUB_OFFLINE is set" if hub.constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
            raise ValueError(
                f"cannot get {address}: it is not in the cache, and {why}; path= also takes a folder"
            ) from error
        except (OSError, ValueError) as error:
            raise _not_got(address, error) from error

    folder = fetch(CONFIGS)
    _check_kind(folder, latent=latent)  # before the weights, which are large
    autoencoder = autoencoder_in(folder)
    kind = text_kind(folder)
    network = _configs(folder)[0] if kind is None else folder / kind.folder
    for text in [] if kind is None else kind.texts:
        rest = f"{TEXT_WEIGHTS}*.safetensors*" if text.startswith("text_encoder") else "*"
        folder = fetch([*CONFIGS, f"{text}/{rest}"])
    for part in [network, *([] if autoencoder is None else [folder / autoencoder])]:
        prefix = "" if part == folder else f"{part.name}/"
        folder = fetch([*CONFIGS, f"{prefix}{WEIGHTS}*.safetensors*"])
        if not any(part.glob("*.safetensors")):
            folder = fetch([*CONFIGS, f"{prefix}{WEIGHTS}.bin"])
    return folder


def _newest_commit(hub: ModuleType, address: str, repository: str, revision: str | None) -> str | None:
    """The commit of all files; None if the Hub does not answer, and only its cache is left.

    Queried here because `snapshot_download` waits forever for a server that accepts the request and does not answer.
    """
    refusals = (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError, hub.errors.GatedRepoError)
    try:
        return str(hub.HfApi().model_info(repository, revision=revision, timeout=HUB_SECONDS).sha)
    except refusals as error:
        raise _not_got(address, error) from error
    except Exception:  # any HTTP library; `snapshot_download` reports that the Hub cannot be reached
        return None


def _not_got(address: str, error: Exception) -> ValueError:
    return ValueError(f"cannot get {address}: {' '.join(str(error).split())[:200]}; path= also takes a folder")
