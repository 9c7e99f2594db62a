"""Distances between the set of all samples of a run and the set of the true images: FID and KID, by torchmetrics.

Both are of the features of a network; the published ones are of InceptionV3 with the weights of torch-fidelity.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from invdiff.benchmark.store import Store

# torchmetrics is optional and slow to import: it is imported where it is used.

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"  # as torch-fidelity saves what it downloads
LAYER = 2048  # features of InceptionV3's last pooling: those of the published FID
SUBSET = 1000  # images of a subset of KID, where there are as many
AT_ONCE = 64  # images in the network


@dataclass(frozen=True)
class SetScores:
    """Of one run: `fid` and `kid`, or the reasons why they are missing."""

    scores: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def unavailable(features: nn.Module | None = None) -> str | None:
    """None where FID and KID of these features can be computed, otherwise the reason. Never downloads.

    features  as of `set_distances`
    """
    if find_spec("torchmetrics") is None:
        return "FID and KID need the package torchmetrics"
    if features is not None:
        return None
    if find_spec("torch_fidelity") is None:
        return "FID and KID need the package torch-fidelity"
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if path.is_file():
        return None
    return f"FID and KID need InceptionV3's weights, {INCEPTION}, in {path.parent.name}/ of torch.hub"


@torch.no_grad()
def set_distances(
    samples: Tensor,
    truths: Tensor,
    features: nn.Module | None = None,
    *,
    value_range: tuple[float, float] = (0.0, 1.0),
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """`fid` and `kid` of samples (N, C, H, W) to true images (M, C, H, W), of C = 1 or 3. Ask `unavailable` first.

    features  network from float images (B, 3, H, W) in [0, 1] to (B, F); None: InceptionV3, on bytes, as published

    Images are clamped to the value range, grey ones repeated to three channels. KID is the mean over torchmetrics'
    100 random subsets of 1000 images, or of as many as there are, and the same at every call. FID of few images is
    biased upwards, the more so the fewer they are. Raises ValueError for fewer than two images in a set, for other
    numbers of channels and for images that are not finite.
    """
    for name, images in (("samples", samples), ("truths", truths)):
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"FID and KID need images of 1 or 3 channels, got {name} of {_size(images)}")
        if len(images) < 2:
            raise ValueError(f"FID and KID need at least 2 images in a set, got {len(images)} in {name}")
        if not images.isfinite().all():
            raise ValueError(f"FID and KID need finite images, and {name} has others; leave out diverged samples")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    # torchmetrics draws from the global generator: dummy images to try the network with, and KID's subsets.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):  # of the memory KID takes
        torch.manual_seed(0)
        network = LAYER if features is None else features
        shape = (3, *samples.shape[-2:])
        fid = FrechetInceptionDistance(feature=network, normalize=True, input_img_size=shape).to(device)
        subset = min(SUBSET, len(samples), len(truths))
        kid = KernelInceptionDistance(feature=network, normalize=True, subset_size=subset).to(device)
        for images, real in ((truths, True), (samples, False)):
            for batch in _colour(images, value_range).split(AT_ONCE):
                fid.update(batch.to(device), real=real)
                kid.update(batch.to(device), real=real)
        return {"fid": float(fid.compute()), "kid": float(kid.compute()[0])}


def of_runs(
    store: Store,
    rows: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]],
    *,
    device: torch.device | str = "cpu",
) -> dict[str, SetScores]:
    """FID and KID of every run of a store, over all samples of all its images that did not diverge.

    rows  of the store (`invdiff.benchmark.summary.rows_by_image`)

    They use the samples in `reconstructions/`, not aligned with the truth. A run has none where some of its images are
    missing there: the sets would differ.
    """
    reason = unavailable()
    if reason is not None:
        return {run: SetScores(notes={"fid": reason, "kid": reason}) for run in rows}
    return {run: _of_run(store, run, images, device) for run, images in rows.items()}


def _of_run(
    store: Store, run: str, images: Mapping[int, Sequence[Mapping[str, Any]]], device: torch.device | str
) -> SetScores:
    label = (store.record(run) or {"sampler": run})["sampler"]
    why = f"fid, kid of {label}"
    saved = _saved(store.folder / "reconstructions", run, images)
    missing = len(images) - len(saved)
    if missing:
        return SetScores(
            notes={
                why: f"the samples of {missing} of {len(images)} image(s) are not in reconstructions/; "
                "save.reconstructions=true keeps those that are computed from then on"
            }
        )
    samples, truths = torch.cat([s.samples for s in saved]), torch.stack([s.truth for s in saved])
    try:
        found = set_distances(samples, truths, value_range=saved[0].value_range, device=device)
    except ValueError as error:
        return SetScores(notes={why: str(error)})
    return SetScores(scores=found)


@dataclass(frozen=True)
class _Saved:
    """An image of a run, with its samples that did not diverge."""

    samples: Tensor
    truth: Tensor
    value_range: tuple[float, float]


def _saved(folder: Path, run: str, images: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[_Saved]:
    """Saved samples of these images, each once; files of an image with another key are skipped."""
    found: dict[int, _Saved] = {}
    for path in sorted(folder.glob(f"{run}-*.npz")):
        with np.load(path) as arrays:
            if "keys" not in arrays:  # of an earlier version, without keys
                continue
            keys = arrays["keys"].tolist()
            wanted = [
                (k, i)
                for k, i in enumerate(arrays["images"].tolist())
                if i in images and images[i][0]["image_key"] == keys[k]
            ]
            if not wanted:
                continue
            samples, truth = torch.from_numpy(arrays["samples"]), torch.from_numpy(arrays["x"])
            low, high = arrays["value_range"].tolist()
        for k, i in wanted:
            kept = [row["sample"] for row in images[i] if row["diverged_at"] is None]
            found[i] = _Saved(samples[k, kept], truth[k], (low, high))
    return [found[i] for i in sorted(found)]


def _colour(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    """In [0, 1], of three channels."""
    low, high = value_range
    return ((images.float().clamp(low, high) - low) / (high - low)).expand(-1, 3, -1, -1)


def _size(images: Tensor) -> str:
    return "x".join(map(str, images.shape[1:]))
