"""Unconditional pixel-space models of `diffusers` as priors: a `UNet2DModel` with the scheduler it was trained with.

Reads      a folder as `save_pretrained` writes it, of a pipeline (`model_index.json`, `unet/`, `scheduler/`; DDPM,
           DDIM, PNDM, score SDE) or of a bare network with a `scheduler_config.json` beside it, or `hf://owner/repo`.
Form       from the scheduler's configuration: betas and prediction type (`epsilon`, `v_prediction`, `sample`) of a
           variance-preserving chain on [-1, 1], or the range of a variance-exploding one on [0, 1], whose network says
           the score. The scheduler's clipping belongs to its sampler and plays no role: D is what the network says.
Left out   latent models (a UNet on the codes of an autoencoder): such a prior knows codes and no images, so operators
           would have to be composed with its decoder. Text-conditional networks. Both are refused in one line.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .base import per_row
from .network_time import DiscreteTime, NetworkTime, VETime
from .parametrised import Parametrisation, ParametrisedPrior

SCHEME = "hf://"
PREDICTIONS: dict[str, Parametrisation] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
CHAINS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
WEIGHTS = "diffusion_pytorch_model"
CONFIGS = ("model_index.json", "config.json", "scheduler_config.json", "*/config.json", "*/scheduler_config.json")


class DiffusersPrior(ParametrisedPrior):
    """A `UNet2DModel` and the configuration of its scheduler.

    unet         with its `config`, which tells the shape of its images
    scheduler    the scheduler's `config`, a mapping, as in `scheduler_config.json`
    class_label  of a class-conditional network: the class that images belong to
    value_range  range of the images at hand
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: Mapping[str, Any],
        *,
        class_label: int | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        config: Mapping[str, Any] = unet.config  # type: ignore[assignment]  # diffusers lays it there
        channels, out = config["in_channels"], config["out_channels"]
        if out not in (channels, 2 * channels):
            raise ValueError(
                f"a denoiser gives as many channels as it takes, or twice as many with a variance; this UNet takes "
                f"{channels} and gives {out}"
            )
        wants_label = config.get("num_class_embeds") is not None or config.get("class_embed_type") is not None
        if wants_label and class_label is None:
            raise ValueError("this UNet is class-conditional: give class_label=, the number of the class")
        if class_label is not None and not wants_label:
            raise ValueError(f"this UNet knows no classes, got class_label={class_label}")
        size = config.get("sample_size")
        if size is not None:
            size = (size, size) if isinstance(size, int) else tuple(size)
        exploding = scheduler.get("_class_name") == "ScoreSdeVeScheduler"
        super().__init__(
            _Network(unet),
            "score" if exploding else prediction(scheduler),
            network_time(scheduler),
            shape=None if size is None else (channels, *size),
            channels=channels,
            value_range=value_range,
            network_range=(0.0, 1.0) if exploding else (-1.0, 1.0),
            learned_variance=out == 2 * channels,
            class_label=class_label,
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        class_label: int | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> "DiffusersPrior":
        """Read a folder, or a repository of the Hugging Face Hub.

        path  a folder of a pipeline or of a network, or hf://owner/repo, with @revision where another than the newest
              is meant; what was downloaded once is read from the cache of `huggingface_hub`, and with HF_HUB_OFFLINE=1
              nothing else is tried

        Weights are `.safetensors`, or a `.bin` that is read without executing code. Raises ValueError, in one line,
        where the extra is missing or the folder does not hold such a model.
        """
        folder = _download(str(path)) if str(path).startswith(SCHEME) else Path(path).expanduser()
        if not folder.is_dir():
            raise ValueError(f"no such folder: {path} (a repository of the Hub is written {SCHEME}owner/repo)")
        unet_folder, config, scheduler = _configs(folder)
        _refuse(folder, config)
        unet = _read_unet(unet_folder)
        return cls(unet, scheduler, class_label=class_label, value_range=(value_range[0], value_range[1]))

    @classmethod
    def example(cls) -> "DiffusersPrior":
        """With a stand-in of a few weights, so that it can be tried where diffusers is not installed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            unet = _StandIn(channels=1, sample_size=16)
        return cls(unet, {"_class_name": "DDPMScheduler"})


class _Network(nn.Module):
    """The calling convention of `ParametrisedPrior` for a `UNet2DModel`."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.unet(x, t, class_labels=label, return_dict=False)[0]


class _StandIn(nn.Module):
    """The interface of a `UNet2DModel`, as far as it is used here."""

    def __init__(self, channels: int, sample_size: int) -> None:
        super().__init__()
        self.config = {"in_channels": channels, "out_channels": channels, "sample_size": sample_size}
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None, return_dict: bool) -> tuple[Tensor]:
        return (torch.tanh(self.convolution(x) + per_row(t, x) / 1000),)


# -- the scheduler -----------------------------------------------------------------------------------------------------


def prediction(scheduler: Mapping[str, Any]) -> Parametrisation:
    """What the network says, of a scheduler's configuration."""
    name = scheduler.get("prediction_type", "epsilon")
    if name not in PREDICTIONS:
        raise ValueError(f"prediction_type must be one of {', '.join(PREDICTIONS)}, the scheduler says {name!r}")
    return PREDICTIONS[name]


def network_time(scheduler: Mapping[str, Any]) -> NetworkTime:
    """Noise levels and time steps, of a scheduler's configuration; what it leaves out has diffusers' defaults."""
    name = scheduler.get("_class_name", "a scheduler without _class_name")
    if name == "ScoreSdeVeScheduler":
        return VETime(scheduler.get("sigma_min", 0.01), scheduler.get("sigma_max", 1348.0), told="sigma")
    if name not in CHAINS and not {"beta_schedule", "trained_betas"} & set(scheduler):
        raise ValueError(
            f"{name} is no chain of betas; wrap the network by hand: "
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


def _configs(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Where the network lies, its configuration and that of its scheduler; published pipelines may lie flat."""
    if (index := folder / "model_index.json").is_file():
        parts = _json(index)
        kind = parts.get("_class_name", "a pipeline")
        latent = [part for part in ("vae", "vqvae", "movq", "text_encoder") if part in parts]
        if latent or "unet" not in parts:
            reason = f"works on the codes of a {latent[0]}" if latent else "has no unet"
            raise ValueError(
                f"{folder} holds a {kind}, which {reason}; a prior of images is an unconditional UNet2DModel on pixels "
                "(DDPMPipeline, DDIMPipeline, ScoreSdeVePipeline)"
            )
    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    if not (unet_folder / "config.json").is_file():
        raise ValueError(f"{unet_folder} has no config.json: no folder that diffusers' save_pretrained wrote")
    places = [folder / "scheduler", folder, unet_folder.parent / "scheduler"]
    found = [place / "scheduler_config.json" for place in places if (place / "scheduler_config.json").is_file()]
    if not found:
        raise ValueError(
            f"{folder} has no scheduler_config.json, so its noise levels are not known; save the scheduler it was "
            "trained with into it: DDPMScheduler(...).save_pretrained(folder)"
        )
    return unet_folder, _json(unet_folder / "config.json"), _json(found[0])


def _json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"cannot read {path}: no configuration of diffusers")
    return read


def _refuse(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("_class_name", "a network without _class_name")
    if kind != "UNet2DModel":
        raise ValueError(f"{folder} holds a {kind}; a prior of images is an unconditional UNet2DModel")


def _read_unet(folder: Path) -> nn.Module:
    _extra("diffusers")
    from diffusers import UNet2DModel

    names = {path.name for path in folder.iterdir()}
    safe = any(name.endswith(".safetensors") for name in names)
    plain = any(name in names for name in (f"{WEIGHTS}.safetensors", f"{WEIGHTS}.safetensors.index.json"))
    try:
        return UNet2DModel.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=safe,
            variant="fp16" if safe and not plain and f"{WEIGHTS}.fp16.safetensors" in names else None,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"cannot read the UNet2DModel in {folder}: {' '.join(str(error).split())[:300]}") from error


def _extra(module: str) -> ModuleType:
    """The module, or which extra has it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"this prior needs {module}: pip install 'invdiff[diffusers]' ({error})") from error


def _download(address: str) -> Path:
    """The folder of a repository of the Hub, from the cache where it cannot be reached."""
    hub = _extra("huggingface_hub")
    repository, _, revision = address.removeprefix(SCHEME).partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ValueError(f"a repository is written {SCHEME}owner/repo or {SCHEME}owner/repo@revision, got {address}")

    def fetch(patterns: Sequence[str]) -> Path:
        try:
            return Path(
                hub.snapshot_download(
                    repository, revision=revision or None, allow_patterns=list(patterns), etag_timeout=10
                )
            )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"cannot get {address}: {reason}; path= also takes a folder") from error

    folder = fetch(CONFIGS)
    unet_folder, config, _ = _configs(folder)
    _refuse(folder, config)  # before the weights, which are large
    prefix = "" if unet_folder == folder else f"{unet_folder.name}/"
    folder = fetch([*CONFIGS, f"{prefix}{WEIGHTS}*.safetensors*"])
    if not any(unet_folder.glob("*.safetensors")):
        folder = fetch([*CONFIGS, f"{prefix}{WEIGHTS}.bin"])
    return folder
