"""Fitting of mixture priors: EM for a mixture of probabilistic principal component analysers.

Paper       Tipping & Bishop 1999, Mixtures of probabilistic principal component analyzers, Neural Computation 11(2),
            section 3 and appendix C: given the responsibilities, the weighted mean and the leading eigenvectors of the
            weighted covariance maximise the likelihood in closed form.
Start       Arthur & Vassilvitskii 2007, k-means++, with a few of Lloyd's iterations.
Departures  the noise variance has a floor, and the closed form is the maximum above it; a component that is left with
            fewer than two images, a copy of one of them, is seeded again with half of those of the largest one; of the
            iterations, the one that explains the held-out images best is kept.
Cost        an iteration takes O(N K n r) for the responsibilities and, for the directions of a component with m
            images, O(min(m, n)^2 max(m, n)); beyond `EXACT` images and pixels these come from a block Krylov space that
            holds the earlier directions, so that the likelihood still cannot fall.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..closed_form.low_rank import LowRankMixturePrior

EXACT = 1536  # the largest Gram matrix that is decomposed in full: a second or two on one core
LLOYD = 5
LEAST_IMAGES = 2  # of a component; seeding all below rank + 2 again cost 700 nats per held-out brain slice
OVERSAMPLING = 8


@dataclass(frozen=True, kw_only=True)
class MixtureRecipe:
    """A mixture and its fit.

    components   Gaussians in the mixture, K
    rank         directions of each of them, r; around them it has one noise level in all pixels
    channels     1 reads grey images, 3 RGB
    size         side that larger images are brought to by averaging over areas, pixels; None leaves them as they are
    iterations, minutes   bounds of the run
    tolerance    the run also ends when an iteration gains less than this, nats per image
    batch        images that are compared with the components at a time
    noise_floor  least standard deviation of a component's noise, image units
    held_out     images kept for validation
    """

    components: int = 100
    rank: int = 16
    channels: int = 1
    size: int | None = None
    iterations: int = 30
    minutes: float = 10.0
    tolerance: float = 0.1
    batch: int = 512
    noise_floor: float = 0.005
    held_out: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("components", "rank", "channels", "iterations", "batch", "held_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a mixture must be an integer >= 1, got {getattr(self, name)}")
        if self.size is not None and self.size < 2:
            raise ValueError(f"size of a mixture's images must be >= 2 pixels, or null, got {self.size}")
        for name in ("minutes", "noise_floor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} of a mixture must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance of a mixture must be >= 0 nats per image, got {self.tolerance}")


def stack_images(images: Sequence[np.ndarray], size: int | None = None) -> Tensor:
    """uint8 images [H, W, C] of one size as float32 (N, C, H, W) in [0, 1].

    size  side to bring them to by averaging over areas; they must be squares at least as large

    Raises ValueError where their sizes differ, or do not go with `size`.
    """
    shapes = sorted({image.shape[:2] for image in images})
    if len(shapes) > 1:
        (a, b), (c, d) = shapes[0], shapes[-1]
        raise ValueError(f"a mixture needs images of one size, got {a}x{b} and {c}x{d}; pad_to= makes them equal")
    height, width = shapes[0]
    if size is not None and (height != width or height < size):
        raise ValueError(f"size={size} needs square images of {size} pixels or more, got {height}x{width}")
    stack = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2))
    if size in (None, height):
        return stack.float() / 255
    return torch.cat([functional.interpolate(part.float() / 255, size, mode="area") for part in stack.split(512)])


@dataclass(frozen=True)
class Components:
    """Parameters of a mixture: covariance k is noise[k] I + U (variances[k] - noise[k]) U^T with U = directions[k].

    weights (K,), variances (K, r) and noise (K,) are float64; means (K, n) and directions (K, n, r), orthonormal
    columns, have the type of the images.
    """

    weights: Tensor
    means: Tensor
    directions: Tensor
    variances: Tensor
    noise: Tensor

    def joint(self, x: Tensor) -> Tensor:
        """ln(weight_k p_k(x)) in float64, (B, n) -> (B, K)."""
        n, rank = self.directions.shape[1:]
        columns = []
        for mean, directions, variances, noise in zip(
            self.means, self.directions, self.variances, self.noise, strict=True
        ):
            # From the difference itself: |x|^2 - 2 x mean + |mean|^2 would lose the digits at the size of the noise.
            away = x - mean
            along = (away @ directions).double().square() @ (1 / noise - 1 / variances)
            columns.append(away.square().sum(1).double() / noise - along)
        volume = self.variances.log().sum(1) + (n - rank) * self.noise.log() + n * math.log(2 * math.pi)
        return self.weights.log() - 0.5 * (torch.stack(columns, 1) + volume)

    def prior(self, shape: tuple[int, int, int], value_range: tuple[float, float] = (0.0, 1.0)) -> LowRankMixturePrior:
        """The fitted prior of images (C, H, W), in the image units of a value range."""
        scale = (self.variances - self.noise[:, None]).clamp(min=0).sqrt()
        fitted = LowRankMixturePrior(
            self.weights.float().cpu(),
            self.means.float().reshape(-1, *shape).cpu(),
            (self.directions * scale[:, None].to(self.directions)).float().cpu(),
            self.noise.sqrt().float().cpu(),
        )
        return fitted if value_range == fitted.value_range else fitted.in_units(value_range)


class MixtureFit:
    """Fits a recipe to images, in `folder`: `checkpoint.pt`, `prior.safetensors` (the best iteration), `log.jsonl`.

    images    (N, C, H, W), image units
    held_out  (M, C, H, W): images that are scored and never fitted
    value_range  what 0 and 1 in the images stand for: the image units of `prior.safetensors`

    Raises ValueError for images that are too few, too small for the rank, or not finite.
    """

    def __init__(
        self,
        recipe: MixtureRecipe,
        images: Tensor,
        held_out: Tensor,
        folder: Path,
        *,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.value_range = value_range
        _check_images(recipe, images, held_out)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.recipe, self.folder = recipe, folder
        self.shape = (images.shape[1], images.shape[2], images.shape[3])
        self.images, self.held_out = images.flatten(1).to(device), held_out.flatten(1).to(device)
        self.components: Components | None = None
        self.iteration, self.seconds, self.best = 0, 0.0, -math.inf
        self.gain = math.inf  # of the last iteration, nats per image; infinite after one that seeded components again
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, on_iteration: Callable[[dict[str, float | list[int]]], None] | None = None) -> LowRankMixturePrior:
        """Iterate until a bound is reached, with `on_iteration(row of the log)` after each. Returns the best mixture.

        A run that was stopped goes on from the last iteration that was finished.
        """
        if (self.folder / "checkpoint.pt").exists():
            self.resume()
        clock = time.monotonic() - self.seconds
        if self.progress() < 1:
            joint = self.start() if self.components is None else self.joint(self.images)
        while self.progress() < 1:
            responsibilities, reseeded = self.responsibilities(joint)
            self.components = self.maximise(responsibilities)
            before = float(joint.logsumexp(1).mean()) if self.iteration else -math.inf
            joint = self.joint(self.images)
            likelihood = float(joint.logsumexp(1).mean())
            if not math.isfinite(likelihood):
                raise FloatingPointError(f"the log-likelihood became {likelihood}; a larger noise_floor may help")
            self.iteration += 1
            self.gain = math.inf if reseeded else likelihood - before
            self.seconds = time.monotonic() - clock
            row = self.validate(likelihood, reseeded)
            if on_iteration is not None:
                on_iteration(row)
        return LowRankMixturePrior.load(self.folder / "prior.safetensors")

    def progress(self) -> float:
        """Share of the run that is done, by iterations or by time, whichever is further; 1 once it has converged."""
        share = max(self.iteration / self.recipe.iterations, self.seconds / (60 * self.recipe.minutes))
        return 1.0 if self.gain < self.recipe.tolerance else share

    # -- the start -----------------------------------------------------------------------------------------------------

    def start(self) -> Tensor:
        """k-means, as ln(weight_k p_k(x)) of round clusters of one width, (N, K)."""
        source = torch.Generator().manual_seed(self.recipe.seed)
        centres = self.images[torch.randint(len(self.images), (1,), generator=source)]
        nearest = _squared_distances(self.images, centres)[:, 0]
        while len(centres) < self.recipe.components:
            far = nearest if nearest.sum() > 0 else torch.ones_like(nearest)  # fewer different images than components
            chosen = self.images[torch.multinomial(far.cpu(), 1, generator=source)]
            nearest = torch.minimum(nearest, _squared_distances(self.images, chosen)[:, 0])
            centres = torch.cat([centres, chosen])
        for _ in range(LLOYD):
            labels = _squared_distances(self.images, centres).argmin(1)
            counts = labels.bincount(minlength=len(centres))
            sums = torch.zeros_like(centres).index_add_(0, labels, self.images)
            centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centres)
        distances = _squared_distances(self.images, centres).double()
        variance = distances.amin(1).mean() / self.images.shape[1]
        return -0.5 * distances / variance.clamp(min=self.recipe.noise_floor**2)

    # -- one iteration -------------------------------------------------------------------------------------------------

    def joint(self, images: Tensor) -> Tensor:
        """ln(weight_k p_k(x)) of all images, (N, K), in batches."""
        assert self.components is not None
        return torch.cat([self.components.joint(batch) for batch in images.split(self.recipe.batch)])

    def responsibilities(self, joint: Tensor) -> tuple[Tensor, list[int]]:
        """p(component given image), (N, K), and the components that had too few images and were seeded again."""
        found = joint.softmax(1)
        dead = (found.sum(0) < LEAST_IMAGES).nonzero().flatten().tolist()
        if dead:
            found = joint.index_fill(1, torch.tensor(dead, device=joint.device), -math.inf).softmax(1)
        for k in dead:
            largest = int(found.sum(0).argmax())
            half = self._far_half(found[:, largest])
            found[half, k] = found[half, largest]
            found[half, largest] = 0
        return found, dead

    def _far_half(self, share: Tensor) -> Tensor:
        """Rows of the half of a component's images that lies towards the one that is farthest from their mean."""
        rows = (share > 0.5).nonzero().flatten()
        if len(rows) < 2:  # spread over images that other components share: take the likeliest of them
            rows = share.topk(min(2 * LEAST_IMAGES, len(share))).indices.sort().values
        away = self.images[rows] - self.images[rows].mean(0)
        along = away @ away[away.square().sum(1).argmax()]
        return rows[along.argsort(descending=True, stable=True)[: (len(rows) + 1) // 2]]

    def maximise(self, responsibilities: Tensor) -> Components:
        """The mixture of the greatest expected log-likelihood, given responsibilities (N, K) in float64."""
        count, n = self.images.shape
        rank = self.recipe.rank
        source = torch.Generator().manual_seed(self.recipe.seed + 1 + self.iteration)
        means, bases, variances, noise = [], [], [], []
        for k, share in enumerate(responsibilities.T):
            rows = (share > 1e-12).nonzero().flatten()
            weight = (share[rows] / share[rows].sum()).to(self.images)
            mean = weight @ self.images[rows]
            scaled = (self.images[rows] - mean) * weight.sqrt()[:, None]
            earlier = None if self.components is None else self.components.directions[k]
            basis, along = leading_directions(scaled, rank, start=earlier, generator=source)
            rest = (float(scaled.double().square().sum()) - float(along.sum())) / (n - rank)
            noise.append(max(rest, self.recipe.noise_floor**2))
            means.append(mean)
            bases.append(basis)
            # A direction with less variance than the noise is not counted as one.
            variances.append(along.clamp(min=noise[-1]))
        return Components(
            weights=responsibilities.sum(0) / count,
            means=torch.stack(means),
            directions=torch.stack(bases),
            variances=torch.stack(variances),
            noise=torch.tensor(noise, dtype=torch.float64, device=self.images.device),
        )

    def validate(self, likelihood: float, reseeded: list[int]) -> dict[str, float | list[int]]:
        """Score the held-out images, log, and save: the mixture if it is the best so far, and where the run is."""
        assert self.components is not None
        held_out = float(self.joint(self.held_out).logsumexp(1).mean())
        row: dict[str, float | list[int]] = {
            "iteration": self.iteration,
            "minutes": round(self.seconds / 60, 2),
            "log_likelihood": round(likelihood, 3),
            "held_out": round(held_out, 3),
            "reseeded": reseeded,
        }
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        if held_out > self.best:
            self.best = held_out
            self.components.prior(self.shape, self.value_range).save(self.folder / "prior.safetensors")
        self.save_checkpoint()
        return row

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        state = {
            "components": {f.name: getattr(self.components, f.name) for f in fields(Components)},
            "progress": {name: getattr(self, name) for name in ("iteration", "seconds", "best", "gain")},
            "fitted": self._fitted(),
            "recipe": json.dumps(asdict(self.recipe)),
        }
        partial = self.folder / "checkpoint.pt.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "checkpoint.pt")

    def resume(self) -> None:
        """Go on from `checkpoint.pt`; the bounds may have changed since, the mixture and its images may not."""
        path = self.folder / "checkpoint.pt"
        state = torch.load(path, map_location=self.images.device, weights_only=True)
        if state.get("fitted") != self._fitted():
            raise ValueError(
                f"{path} holds another fit: {state.get('fitted', 'of a network')}, this one is {self._fitted()}; "
                "choose another output folder, or remove that one"
            )
        self.components = Components(**state["components"])
        for name, value in state["progress"].items():
            setattr(self, name, value)

    def _fitted(self) -> dict[str, int | list[int]]:
        return {
            "components": self.recipe.components,
            "rank": self.recipe.rank,
            "images": len(self.images),
            "shape": list(self.shape),
        }


def _check_images(recipe: MixtureRecipe, images: Tensor, held_out: Tensor) -> None:
    if images.dim() != 4 or not images.is_floating_point() or held_out.shape[1:] != images.shape[1:]:
        raise ValueError(
            "images and held-out images must be floating-point (N, C, H, W) of one size, got "
            f"{images.dtype} {tuple(images.shape)} and {tuple(held_out.shape)}"
        )
    if not len(held_out):
        raise ValueError("a mixture needs held-out images to choose the best iteration by, got none")
    if not images.isfinite().all() or not held_out.isfinite().all():
        raise ValueError("images to fit a mixture to must be finite, these hold NaN or infinity")
    count, n = len(images), images[0].numel()
    if recipe.rank >= n:
        raise ValueError(f"rank={recipe.rank} must be less than the {n} values of an image")
    if count < recipe.components * LEAST_IMAGES:
        raise ValueError(
            f"components={recipe.components} need at least {recipe.components * LEAST_IMAGES} images, got {count}; "
            "take fewer components or more images"
        )


def _squared_distances(x: Tensor, centres: Tensor) -> Tensor:
    """|x_i - c_k|^2, (N, n) and (K, n) -> (N, K)."""
    squares = x.square().sum(1, keepdim=True) - 2 * x @ centres.mT + centres.square().sum(1)
    return squares.clamp(min=0)


def leading_directions(
    rows: Tensor, rank: int, *, start: Tensor | None, generator: torch.Generator, exact: int = EXACT
) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors (n, rank) of rows^T rows, with their eigenvalues (rank,) in float64, from rows (m, n).

    start      (n, rank), directions that do no worse than these are found whatever the size
    generator  of the rest of the space that is searched beyond `exact` rows and columns
    """
    m, n = rows.shape
    if min(m, n) <= exact:
        basis = None
        short = rows if m <= n else rows.mT
    else:
        basis = _krylov_basis(rows, rank, start, generator)
        short = (rows @ basis).mT
    short = short.double()
    values, vectors = torch.linalg.eigh(short @ short.mT)
    values, vectors = values.flip(0)[:rank].clamp(min=0), vectors.flip(1)[:, :rank]
    if basis is not None:
        return basis @ vectors.to(basis), values
    if m > n:
        return vectors.to(rows), values
    # Fewer rows than directions: those that are missing are zero, with no variance.
    real = values > 1e-12 * values[:1]
    directions = torch.where(real, short.mT @ vectors / values.clamp(min=torch.finfo(torch.float64).tiny).sqrt(), 0.0)
    missing = rank - len(values)
    return functional.pad(directions, (0, missing)).to(rows), functional.pad(values * real, (0, missing))


def _krylov_basis(rows: Tensor, rank: int, start: Tensor | None, generator: torch.Generator) -> Tensor:
    """Orthonormal (n, q) that spans `start`, random directions, and both of them multiplied by rows^T rows."""

    def blocks() -> Iterator[Tensor]:
        wanted = OVERSAMPLING if start is not None else rank + OVERSAMPLING
        random = torch.randn(rows.shape[1], wanted, generator=generator, dtype=torch.float64).to(rows)
        block = random if start is None else torch.cat([start, random], 1)
        for _ in range(3):
            block = torch.linalg.qr(block).Q
            yield block
            block = rows.mT @ (rows @ block)

    return torch.linalg.qr(torch.cat(list(blocks()), 1)).Q
