"""Unconditional pixel-space models of `diffusers` as priors: a `UNet2DModel` with the scheduler it was trained with.

Reads      a folder as `save_pretrained` writes it, of a pipeline (`model_index.json`, `unet/`, `scheduler/`; DDPM,
           DDIM, PNDM, score SDE, consistency models) or of a bare network with a `scheduler_config.json` beside it, or `hf://owner/repo`.
Form       from the scheduler's configuration: betas and prediction type (`epsilon`, `v_prediction`, `sample`) of a
           variance-preserving chain on [-1, 1], or the range of a variance-exploding one on [0, 1], whose network
           predicts the score. The scheduler's clipping belongs to its sampler and is not applied.
Left out   latent models (a UNet on the codes of an autoencoder), see `latent.py`, and text-conditional networks.
"""

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.shapes import sigma_per_row

from ..base import Prior
from .network_time import DiscreteTime, EDMTime, NetworkTime, Parametrisation, VETime
from .parametrised import ParametrisedPrior

SCHEME = "hf://"
PREDICTIONS: dict[str, Parametrisation] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
SPECIAL: dict[str, Parametrisation] = {
    "ScoreSdeVeScheduler": "score",
    "CMStochasticIterativeScheduler": "consistency",  # no posterior mean, see formats/consistency.py
}
CHAINS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
AUTOENCODERS = ("vae", "vqvae", "movq")  # names in pipelines
WEIGHTS = "diffusion_pytorch_model"
HUB_SECONDS = 10  # time limit for an answer of the Hub
CONFIGS = ("model_index.json", "config.json", "scheduler_config.json", "*/config.json", "*/scheduler_config.json")


class DiffusersPrior(ParametrisedPrior):
    """A `UNet2DModel` and the configuration of its scheduler.

    unet         with its `config`, which holds the shape of its images
    scheduler    the scheduler's `config`, a mapping, as in `scheduler_config.json`
    class_label  of a class-conditional network: the class that images belong to
    value_range  range of the given images
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: Mapping[str, Any],
        *,
        class_label: int | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        config: Mapping[str, Any] = unet.config  # type: ignore[assignment]  # set by diffusers
        channels, out = config["in_channels"], config["out_channels"]
        if out not in (channels, 2 * channels):
            raise ValueError(
                f"out_channels of a UNet with {channels} input channels must be {channels} or {2 * channels}, got {out}"
            )
        wants_label = config.get("num_class_embeds") is not None or config.get("class_embed_type") is not None
        if wants_label and class_label is None:
            raise ValueError("class_label must be given for this class-conditional UNet, got none")
        if class_label is not None and not wants_label:
            raise ValueError(f"class_label must be null for a UNet without classes, got {class_label}")
        size = config.get("sample_size")
        if size is not None:
            size = (size, size) if isinstance(size, int) else tuple(size)
        exploding = scheduler.get("_class_name") == "ScoreSdeVeScheduler"
        super().__init__(
            _Network(unet),
            prediction(scheduler),
            network_time(scheduler),
            shape=None if size is None else (channels, *size),
            channels=channels,
            value_range=value_range,
            network_range=(0.0, 1.0) if exploding else (-1.0, 1.0),
            learned_variance=out == 2 * channels,
            class_label=class_label,
        )

    @classmethod
    def of_codes(
        cls,
        unet: nn.Module,
        scheduler: Mapping[str, Any],
        *,
        class_label: int | None = None,
        code_range: tuple[float, float] = (-5.0, 5.0),
    ) -> "DiffusersPrior":
        """The network of a latent model, as a prior of codes: it takes them unchanged, in units of their own.

        code_range  of clean codes, which have a standard deviation of about 1; for divergence alone
        """
        if scheduler.get("_class_name") == "ScoreSdeVeScheduler":
            raise ValueError(
                "the scheduler of a UNet on codes must be a variance-preserving chain, got ScoreSdeVeScheduler"
            )
        low, high = code_range
        if not low < high:
            raise ValueError(f"code_range must be (low, high) with low < high, got ({low}, {high})")
        made = cls(unet, scheduler, class_label=class_label, value_range=(-1.0, 1.0))  # no change of variable
        made.value_range = made.network_range = (float(low), float(high))
        made.unit = 1.0
        return made

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        class_label: int | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> "DiffusersPrior":
        """Read a folder, or a repository of the Hugging Face Hub.

        path  a folder of a pipeline or of a network, or hf://owner/repo, with @revision for another than the newest.
              Downloaded files are read from the cache of `huggingface_hub`, with HF_HUB_OFFLINE=1 only from there

        Weights are `.safetensors`, or a `.bin` that is read without executing code. Raises ValueError if
        the extra is missing or the folder does not hold such a model.
        """
        unet, scheduler = read_unet(local_folder(path, latent=False))
        return cls(unet, scheduler, class_label=class_label, value_range=(value_range[0], value_range[1]))

    @classmethod
    def example(cls) -> "DiffusersPrior":
        """With a small stand-in, which works without diffusers."""
        return cls(example_unet(channels=1, sample_size=16), {"_class_name": "DDPMScheduler"})

    @classmethod
    def variants(cls) -> dict[str, Prior]:
        unet, ddpm = example_unet(channels=1, sample_size=8), {"_class_name": "DDPMScheduler"}
        return {
            "example": cls.example(),
            "any size": cls(example_unet(channels=1, sample_size=None), ddpm, value_range=(-1.0, 3.0)),
            "v": cls(unet, {**ddpm, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
            "ve": cls(unet, {"_class_name": "ScoreSdeVeScheduler"}),
            "codes": cls.of_codes(unet, ddpm),
        }


class _Network(nn.Module):
    """The calling convention of `ParametrisedPrior` for a `UNet2DModel`."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.unet(x, t, class_labels=label, return_dict=False)[0]


class StandIn(nn.Module):
    """The interface of a `UNet2DModel` used here."""

    def __init__(self, channels: int, sample_size: int | None) -> None:
        super().__init__()
        self.config = {"in_channels": channels, "out_channels": channels, "sample_size": sample_size}
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None, return_dict: bool) -> tuple[Tensor]:
        return (torch.tanh(self.convolution(x) + sigma_per_row(t, x) / 1000),)


def example_unet(channels: int, sample_size: int | None) -> StandIn:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StandIn(channels, sample_size)


# -- the scheduler -----------------------------------------------------------------------------------------------------


def prediction(scheduler: Mapping[str, Any]) -> Parametrisation:
    """Parametrisation of the network, from a scheduler's configuration."""
    if scheduler.get("_class_name") in SPECIAL:
        return SPECIAL[scheduler["_class_name"]]
    name = scheduler.get("prediction_type", "epsilon")
    if name not in PREDICTIONS:
        raise ValueError(f"prediction_type of the scheduler must be one of {', '.join(PREDICTIONS)}, got {name!r}")
    return PREDICTIONS[name]


def network_time(scheduler: Mapping[str, Any]) -> NetworkTime:
    """Noise levels and time steps, from a scheduler's configuration; missing entries have diffusers' defaults."""
    name = scheduler.get("_class_name", "a scheduler without _class_name")
    if name == "ScoreSdeVeScheduler":
        return VETime(scheduler.get("sigma_min", 0.01), scheduler.get("sigma_max", 1348.0), time_input="sigma")
    if name == "CMStochasticIterativeScheduler":
        low, high = scheduler.get("sigma_min", 0.002), scheduler.get("sigma_max", 80.0)
        return EDMTime(scheduler.get("sigma_data", 0.5), low, high, time_scale=1000.0)
    if name not in CHAINS and not {"beta_schedule", "trained_betas"} & set(scheduler):
        raise ValueError(
            f"the scheduler must be a chain of betas, got {name}; wrap the network by hand: "
            "ParametrisedPrior(network, parametrisation, schedule)"
        )
    steps, trained = scheduler.get("num_train_timesteps", 1000), scheduler.get("trained_betas")
    first, last = scheduler.get("beta_start", 0.0001), scheduler.get("beta_end", 0.02)
    rule = scheduler.get("beta_schedule", "linear")
    if trained is not None:
        chain = DiscreteTime.of_betas(trained)
    elif rule == "linear":
        chain = DiscreteTime.linear(steps, first, last)
    elif rule == "scaled_linear":
        chain = DiscreteTime.scaled_linear(steps, first, last)
    elif rule == "squaredcos_cap_v2":
        chain = DiscreteTime.cosine(steps)
    elif rule == "sigmoid":
        ramp = torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid()
        chain = DiscreteTime.of_betas((first + (last - first) * ramp).tolist())
    else:
        raise ValueError(
            f"{name}: unknown beta_schedule {rule!r}; known are linear, scaled_linear, squaredcos_cap_v2 and sigmoid"
        )
    if scheduler.get("rescale_betas_zero_snr", False):
        return DiscreteTime(_to_pure_noise(chain.alphas_cumprod))
    return chain


def _to_pure_noise(alphas_cumprod: Sequence[float]) -> tuple[float, ...]:
    """Shifted and scaled so that the last step is pure noise (arXiv:2305.08891, Algorithm 1)."""
    root = torch.tensor(alphas_cumprod, dtype=torch.float64).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return tuple((root**2).tolist())


# -- files -------------------------------------------------------------------------------------------------------------


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
    parts = _parts(folder)
    return next((name for name in AUTOENCODERS if name in parts), None)


def read_unet(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The UNet2DModel and the configuration of its scheduler."""
    unet_folder, _, scheduler = _configs(folder)
    return read_model(unet_folder, "UNet2DModel"), scheduler


def read_model(folder: Path, kind: str) -> nn.Module:
    """A model of `diffusers`, float32. ValueError if weights are damaged, missing, superfluous or not finite."""
    model_class = getattr(_extra("diffusers"), kind)
    names = {path.name for path in folder.iterdir()}
    safe = any(name.endswith(".safetensors") for name in names)
    plain = any(name in names for name in (f"{WEIGHTS}.safetensors", f"{WEIGHTS}.safetensors.index.json"))
    try:
        with torch.random.fork_rng(devices=[]), _quiet():  # it draws weights first and warns about those it keeps
            model, found = model_class.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=safe,
                variant="fp16" if safe and not plain and f"{WEIGHTS}.fp16.safetensors" in names else None,
                low_cpu_mem_usage=False,
                torch_dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"cannot read the {kind} in {folder}: {' '.join(str(error).split())[:300]}") from error
    if found["missing_keys"]:
        raise ValueError(f"weights in {folder} do not fit config.json: {found['missing_keys'][0]} is missing")
    if found["unexpected_keys"]:
        left = found["unexpected_keys"][0]
        raise ValueError(f"weights in {folder} do not fit config.json, which has no {left}")
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"checkpoint is damaged: {folder} holds NaN or infinity in {name}")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the warnings of `diffusers`: those that matter are errors here."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _parts(folder: Path) -> dict[str, Any]:
    """The index of a pipeline, empty for a bare network."""
    index = folder / "model_index.json"
    return read_config(index) if index.is_file() else {}


def _configs(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Folder of the network, its configuration and that of its scheduler; published pipelines may have no folders."""
    parts = _parts(folder)
    if parts and ("text_encoder" in parts or "unet" not in parts):
        reason = "works on text" if "text_encoder" in parts else "has no unet"
        raise ValueError(
            f"{folder} holds a {parts.get('_class_name', 'pipeline')}, which {reason}; a prior of images is an "
            "unconditional UNet2DModel on pixels (DDPMPipeline, DDIMPipeline, ScoreSdeVePipeline)"
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


def _extra(module: str) -> ModuleType:
    """The module; ValueError names the extra that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"this prior needs {module}: pip install 'invdiff[diffusers]' ({error})") from error


def _download(address: str, *, latent: bool | None) -> Path:
    """The folder of a repository of the Hub, from the cache where it cannot be reached."""
    hub = _extra("huggingface_hub")
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
    for part in [_configs(folder)[0], *([] if autoencoder is None else [folder / autoencoder])]:
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
