"""Calibrations that were measured and stored: those of the package, and those in files of `invdiff calibrate`.

A file holds a list under `calibrations`; one belongs to a run whose key is equal to its own. Where two have that key,
one on images of the world comes before one on draws of the prior, and a later one before an earlier one.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from invdiff.correction import Correction
from invdiff.fingerprint import of_module, settings_of
from invdiff.io import BadInput
from invdiff.priors import Prior
from invdiff.problem import InverseProblem
from invdiff.recorded import description, is_opaque, response
from invdiff.samplers import Sampler
from invdiff.shapes import describe_shape
from invdiff.streams import generator


def bundled_file() -> Path:
    """The calibrations of this package, made by `benchmarks/calibrations.py`."""
    return Path(str(files("invdiff.priors"))) / "weights" / "calibrations.json"


def key_of(
    problem: InverseProblem, prior: Prior, sampler: Sampler, num_samples: int, *, probe: bool = True
) -> dict[str, Any]:
    """All that a calibration depends on, as JSON.

    prior        class and a hash of its file, or of its tensors
    operator     class and arguments but the seed of what is drawn at random: another draw of the same law
    noise        likewise
    sampler      with all settings; `auto` is resolved before
    num_samples  S
    probe        False: no call of operator or prior, and no hash of tensors. Otherwise functions and other things
                 without a value are told apart by their result for one random image; the package has none of these
    """
    operator = description(problem.operator)
    # A large network of the user's is not hashed for a look-up among priors of the package, which have a hash.
    hashed = prior.weights_hash or (of_module(prior) if probe else None)
    weights = {"class": type(prior).__qualname__, "weights": hashed}
    x = torch.rand(1, *problem.image_shape, generator=generator(0, "generate", 0))
    with torch.no_grad():
        if probe and is_opaque(operator):
            operator["response"] = response(problem.operator.select(torch.zeros(1, dtype=torch.long))(x))
        if probe and not prior.state_dict():
            z = x if prior.codec is None else prior.codec.encode(x)
            weights["response"] = str(response(prior.diffusion.denoise(z, 0.5)))
    return {
        "prior": weights,
        "operator": operator,
        "noise": description(problem.noise),
        "sampler": settings_of(sampler),
        "num_samples": num_samples,
    }


def read_calibrations(path: Path) -> list[Correction]:
    """The calibrations in a file, in its order. Raises BadInput for a file that holds none."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["calibrations"]
        found = [Correction.from_json(entry) for entry in entries]
    except FileNotFoundError:
        raise BadInput(f"calibration: no such file: {path}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadInput(f"calibration: {path} must be a calibration.json of invdiff calibrate: {reason}") from error
    except ValueError as error:
        raise BadInput(f"calibration: {path}: {error}") from error
    if not found:
        raise BadInput(f"calibration: {path} holds no calibration; invdiff calibrate writes one")
    return found


def find_calibration(
    key: Mapping[str, Any], known: Sequence[Correction], image_shape: tuple[int, ...]
) -> tuple[Correction | None, str]:
    """The calibration with this key, and "90 % intervals: ..." in words; without one, how the nearest differs.

    image_shape  (C, H, W): the words say where the calibration is of images of another size
    """
    fitting = [one for one in known if one.key == key]
    if fitting:
        best = next((one for one in reversed(fitting) if not one.drawn), fitting[-1])
        other = "" if best.shape == image_shape else f"; measured at {describe_shape(best.shape)}"
        return best, f"{best}{other}"
    words = "90 % intervals: not measured for this prior, operator, noise and sampler"
    gaps = [list(_gaps(one.key, key, "")) for one in known if one.key.get("prior") == key["prior"]]
    nearest = min(gaps, key=len, default=[])
    if 0 < len(nearest) <= 3:
        words += f" (measured with {', '.join(nearest)})"
    return None, words


def _gaps(own: Any, wanted: Any, name: str) -> Iterator[str]:
    """Values of one key that differ in another, `sampler.schedule.steps=100 and not 40`."""
    if isinstance(own, Mapping) and isinstance(wanted, Mapping) and own.get("class") == wanted.get("class"):
        for part in {**own, **wanted}:
            yield from _gaps(own.get(part), wanted.get(part), f"{name}.{part}" if name else str(part))
    elif own != wanted:
        yield f"{name}={_short(own)} and not {_short(wanted)}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("class", "other values")).rpartition(".")[2]
    return "null" if value is None else str(value)
