"""Reading foreign checkpoints without running their code.

A `.safetensors` file holds tensors only. A `.pt` or `.pth` file is a pickle, and a pickle can run anything; PyTorch's
`weights_only` reads one as long as it holds tensors and plain containers. Older networks were pickled whole, their
classes with them. Those need `trust_pickle`: an unpickler then builds tensors, and inert placeholders for all other
objects, so that nothing named in the file is imported or called.

Every refusal is a ValueError of one line.
"""

import hashlib
import io
import pickle
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Source:
    """Source and licence of a well-known checkpoint."""

    page: str
    licence: str


_OPENAI = "https://github.com/openai/guided-diffusion#download-pre-trained-models"
_NVLABS = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
_INVERSEBENCH = Source("https://github.com/devzhk/InverseBench/releases/tag/diffusion-prior", "MIT, of the repository")
_SCORE_SDE = (
    "https://github.com/yang-song/score_sde_pytorch#pretrained-checkpoints, folder exp/ve/{} of its Google drive"
)

SOURCES = {
    "ffhq_10m.pt": Source(
        "https://drive.google.com/drive/folders/1jElnRoFv7b31fG0v6pTSQkelbSX3xGZh, the folder of the DPS paper",
        "none stated",
    ),
    "diffusion_ffhq_10m.pt": Source("https://huggingface.co/deepinv/diffunet", "see its page"),
    **{
        name: Source(_OPENAI, "MIT")
        for name in (
            "64x64_diffusion.pt",
            "128x128_diffusion.pt",
            "256x256_diffusion.pt",
            "256x256_diffusion_uncond.pt",
            "512x512_diffusion.pt",
            "lsun_bedroom.pt",
            "lsun_cat.pt",
            "lsun_horse.pt",
        )
    },
    **{
        name: Source(_NVLABS + name, "CC BY-NC-SA 4.0")
        for name in (
            "edm-cifar10-32x32-uncond-vp.pkl",
            "edm-cifar10-32x32-uncond-ve.pkl",
            "edm-cifar10-32x32-cond-vp.pkl",
            "edm-cifar10-32x32-cond-ve.pkl",
            "edm-ffhq-64x64-uncond-vp.pkl",
            "edm-ffhq-64x64-uncond-ve.pkl",
            "edm-afhqv2-64x64-uncond-vp.pkl",
            "edm-afhqv2-64x64-uncond-ve.pkl",
            "edm-imagenet-64x64-cond-adm.pkl",
        )
    },
    **dict.fromkeys(
        (
            "blackhole.pt",
            "ffhq256.pt",
            "fwi-5m.pt",
            "in-scatter-5m.pt",
            "mri-brain.pt",
            "mri-knee.pt",
            "ns-5m.pt",
        ),
        _INVERSEBENCH,
    ),
    "celebahq_256_ncsnpp.pth": Source(_SCORE_SDE.format("celebahq_256_ncsnpp_continuous"), "Apache 2.0"),
    "ffhq_1024_ncsnpp.pth": Source(_SCORE_SDE.format("ffhq_1024_ncsnpp_continuous"), "Apache 2.0"),
}
"""By file name. The names for score_sde are ours, as all of its files are called checkpoint_N.pth."""


# -- reading -----------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path, *, sha256: str | None = None, trust_pickle: bool = False) -> Any:
    """The contents of a checkpoint: tensors by name, or the containers around them, on the CPU.

    sha256        expected hash of the file, in hexadecimal digits, None: not checked
    trust_pickle  read a pickle that holds more than tensors and plain containers; other objects become `Placeholder`

    Raises ValueError if the file is missing, damaged, of another hash, or a pickle that needs `trust_pickle`.
    """
    path = Path(path)
    if not path.is_file():
        source = SOURCES.get(path.name)
        found = f"; get it from {source.page} (licence: {source.licence})" if source else ""
        raise ValueError(f"checkpoint not found: {path}{found}")
    if sha256 is not None:
        check_hash(path, sha256)
    if path.suffix == ".safetensors":
        try:
            with safe_open(str(path), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        except (SafetensorError, OSError) as error:
            raise ValueError(f"checkpoint cannot be read, it may be incomplete: {path}: {error}") from error
    foreign: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles in a newer protocol, which are read below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        content = _read_inert(path, foreign)
    except Exception as error:  # a damaged file raises any exception
        raise _unreadable(path, error) from error
    if foreign and not trust_pickle:
        raise ValueError(
            f"{path} is a pickle that holds more than tensors (it names {foreign[0]!r}), none of its code was run; "
            "trust_pickle=true reads its tensors"
        )
    return content


def check_hash(path: Path, sha256: str) -> None:
    """Raises ValueError for a file of another SHA-256."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise ValueError(
            f"checkpoint must have the SHA-256 {sha256}, got {found}: {path} is another file or incomplete; "
            "download it again, or read it anyway with sha256=null"
        )


def _unreadable(path: Path, error: Exception) -> ValueError:
    lines = str(error).splitlines() or [type(error).__name__]
    return ValueError(f"checkpoint cannot be read, it may be incomplete: {path}: {lines[0].partition('. ')[0]}")


def read_tensors(
    path: str | Path, *, key: str | None = None, sha256: str | None = None, trust_pickle: bool = False
) -> dict[str, Tensor]:
    """The weights in a checkpoint by their names, float32, without the "module." of a data-parallel training.

    key       the entry of the file that holds them, if it has several
    The rest  as in `read_checkpoint`

    Raises ValueError as `read_checkpoint`, and if there are no weights or they hold NaN or infinity.
    """
    content = read_checkpoint(path, sha256=sha256, trust_pickle=trust_pickle)
    if key is not None:
        if not isinstance(content, Mapping) or key not in content:
            raise ValueError(f"{path} has no entry {key!r}{_entries(content)}")
        content = content[key]
    return weights_of(content, path)


def weights_of(content: Any, path: str | Path) -> dict[str, Tensor]:
    """Plain weights from a mapping of tensors or a pickled module; see `read_tensors`."""
    weights = _module_weights(content) if _module_state(content) is not None else content
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ValueError(f"{path} holds no weights by name{_entries(content)}; name the entry by key=")
    prefix = "module." if all(name.startswith("module.") for name in weights) else ""
    plain = {name.removeprefix(prefix): w.detach() for name, w in weights.items()}
    for name, w in plain.items():
        if w.is_floating_point():
            if not w.isfinite().all():
                raise ValueError(f"checkpoint is damaged: {path} holds NaN or infinity in {name}")
            plain[name] = w.float()
    return plain


def _entries(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f", it is a {type(content).__name__}"
    names = [str(name) for name in content]
    return f", its entries are {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"


# -- networks ----------------------------------------------------------------------------------------------------------


def build(network: Callable[[], Network], weights: Mapping[str, Tensor], path: str | Path) -> Network:
    """The network made by `network`, with these weights.

    It is made on the meta device, without random numbers, and takes the tensors themselves. ValueError names the first
    weight that is missing, superfluous or of another shape.
    """
    try:
        with torch.device("meta"):
            made = network()
    except (ValueError, RuntimeError, AssertionError, IndexError) as error:
        raise ValueError(f"no such network can be built from {path}: {error}") from error
    wanted = made.state_dict()
    for name, tensor in wanted.items():
        if name not in weights:
            raise ValueError(f"{path} does not fit this network: it lacks {name}")
        if weights[name].shape != tensor.shape:
            shapes = f"{tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
            raise ValueError(f"{path} does not fit this network: {name} is {shapes}")
    for name in weights:
        if name not in wanted:
            raise ValueError(f"{path} does not fit this network, which has no {name}")
    made.load_state_dict(dict(weights), assign=True)
    return made.requires_grad_(False).eval()


def save_network(network: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the weights by their own names to a `.safetensors` file, in their own precision."""
    tensors = {name: w.detach().cpu().contiguous() for name, w in network.state_dict().items()}
    save_file(tensors, str(path), metadata=dict(metadata or {}) or None)


def metadata_of(path: str | Path) -> dict[str, str]:
    """What `save_network` wrote beside the weights."""
    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata() or {})


# -- pickles -----------------------------------------------------------------------------------------------------------


class Placeholder(dict[Any, Any]):
    """Stands for an object of a class that was not imported, with its constructor arguments and its state."""

    name = "?"
    args: tuple[Any, ...]
    state: Any
    dump_patches = False  # PyTorch reads this attribute of a module in its older format

    def __new__(cls, *args: Any, **settings: Any) -> "Placeholder":
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args: Any, **settings: Any) -> "Placeholder":
        """A pickle may call the result of a call, such as that of `getattr`."""
        return Placeholder()

    def append(self, item: Any) -> None:
        """Called by a pickle on a list."""

    def extend(self, items: Any) -> None:
        """Called by a pickle on a list."""

    def add(self, item: Any) -> None:
        """Called by a pickle on a set."""


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


_STORED = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "Size"): torch.Size,
    **{("torch", f"{kind}Storage"): getattr(torch, f"{kind}Storage") for kind in _STORED},
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, dict, list, tuple, int, float, bool, str)
    },
}


def _read_inert(path: Path, foreign: list[str]) -> Any:
    """The contents of a pickle, with placeholders for all objects but tensors; their names are added to `foreign`."""

    class Inert(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in _KNOWN:
                return _KNOWN[module, name]
            if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
            foreign.append(f"{module}.{name}")
            return type("Placeholder", (Placeholder,), {"name": f"{module}.{name}"})

    def load(file: Any, **settings: Any) -> Any:
        return Inert(file, **settings).load()

    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                first = load(file)
            if first != torch.serialization.MAGIC_NUMBER:
                return first
        inert = types.SimpleNamespace(Unpickler=Inert, load=load, __name__="inert")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about placeholders, whose source is not that of the class
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=inert)
    except Exception as error:
        raise _unreadable(path, error) from error


def _module_state(thing: Any) -> Mapping[str, Any] | None:
    """The attributes of a pickled `nn.Module`, None for other objects."""
    if isinstance(thing, Placeholder):
        # A class pickled by its source (NVlabs) passes its state to the function that rebuilds it.
        given = [a["state"] for a in thing.args if isinstance(a, Mapping) and "state" in a]
        return next((s for s in (thing.state, *given) if isinstance(s, Mapping) and "_parameters" in s), None)
    return None


def _module_weights(thing: Any, prefix: str = "") -> dict[str, Tensor]:
    """`state_dict()` of a pickled module."""
    state = _module_state(thing)
    if state is None:
        return {}
    forgotten = state.get("_non_persistent_buffers_set", ())
    own = {**state["_parameters"], **{k: v for k, v in state["_buffers"].items() if k not in forgotten}}
    weights = {prefix + name: tensor for name, tensor in own.items() if isinstance(tensor, Tensor)}
    for name, module in state["_modules"].items():
        weights.update(_module_weights(module, f"{prefix}{name}."))
    return weights


def class_name(thing: Any) -> str | None:
    """The name of the class of a pickled object."""
    if not isinstance(thing, Placeholder):
        return None
    given = [a["class_name"] for a in thing.args if isinstance(a, Mapping) and "class_name" in a]
    return str(given[0]) if given else thing.name.rpartition(".")[2]
