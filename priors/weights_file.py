"""Weights files of the package's own priors: `.safetensors` tensors with a JSON header under the key `invdiff`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_weights(path: str | Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write one file; `header["kind"]` names the class that reads it, none for networks."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, str(path), metadata={"invdiff": json.dumps(header)})


def has_header(path: Path) -> bool:
    """Whether a `.safetensors` file was written by `write_weights`, whatever its kind; False for a damaged one."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return "invdiff" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def weights_kind(path: str | Path) -> str | None:
    """`kind` of the header, None for networks. Raises ValueError as `read_weights`."""
    return _read(Path(path), tensors=False)[0].get("kind")


def read_weights(path: str | Path, kind: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and float32 tensors of a file written by `write_weights`; no code is executed.

    Raises ValueError, one line, where the file is missing, damaged, not finite or of another kind.
    """
    path = Path(path)
    header, tensors = _read(path, tensors=True)
    if header.get("kind") != kind:
        names = [name or "network" for name in (kind, header.get("kind"))]
        raise ValueError(f"prior weights must be of kind {names[0]}, got {names[1]}: {path}")
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise ValueError(f"prior weights are damaged: {path} holds NaN or infinity in {bad[0]}")
    return header, {name: tensor.float() for name, tensor in tensors.items()}


def interval(name: str, values: Any, low: float = -math.inf) -> tuple[float, float]:
    """Two finite numbers of a header in order, above `low`. Raises ValueError for anything else."""
    if not isinstance(values, (list, tuple)) or len(values) != 2:
        raise ValueError(f"{name} must be two numbers, got {str(values)[:60]}")
    first, last = (float(value) for value in values)
    if not low < first < last < math.inf:
        raise ValueError(f"{name} must be two numbers in order above {low:g}, got {first:g} and {last:g}")
    return first, last


def _read(path: Path, *, tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise ValueError(f"prior weights not found: {path}")
    if path.suffix in (".pt", ".pth", ".ckpt", ".bin", ".pkl"):
        raise ValueError(
            f"prior weights must be a .safetensors file of invdiff train; {path} is a torch checkpoint: use "
            "prior=parametrised prior.network=my_unet.py:load, a function that loads it"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("invdiff", "null"))
            found = {name: file.get_tensor(name) for name in (file.keys() if tensors else ())}
    except (SafetensorError, json.JSONDecodeError, OSError, RecursionError) as error:
        raise ValueError(f"prior weights cannot be read: {path}: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"prior weights have no invdiff header: {path}; `invdiff train` writes files with one")
    return header, found
