"""Mixtures of probabilistic principal component analysers: what images look like, with exact posteriors at image size.

Paper   Tipping & Bishop 1999, Mixtures of probabilistic principal component analyzers, Neural Computation 11(2).
Model   sum_k w_k N(m_k, F_k F_k^T + s_k^2 I), F_k with few columns.
Cost    a denoiser call is two products of the images with all K r directions.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .closed_form import ClosedFormPrior, Problem
from .low_rank_posterior import LowRankMixturePosterior
from .mixture import MixturePrior, checked_weights
from .whitening import decompose

KIND = "low_rank_mixture"


class LowRankMixturePrior(MixturePrior):
    """sum_k weights_k N(means_k, factors_k factors_k^T + noise_std_k^2 I).

    weights      (K,), 0 or more, sum 1
    means        (K, C, H, W), image units
    factors      (K, n, r), n = C H W, pixels in the order of `means.flatten(1)`, r at most n
    noise_std    (K,), positive, image units
    value_range  range of clean images

    Raises ValueError, in one line, where these do not fit together.
    """

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        factors: Tensor,
        noise_std: Tensor,
        *,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        log_weights = checked_weights(weights, means)
        count, n = len(means), means[0].numel()
        if factors.dim() != 3 or factors.shape[:2] != (count, n) or factors.shape[2] > n:
            raise ValueError(
                f"factors of {count} means of {n} values are ({count}, {n}, r), r <= {n}, got {tuple(factors.shape)}"
            )
        if not bool(factors.isfinite().all()):
            raise ValueError("factors must be finite, they hold NaN or infinity")
        if noise_std.shape != (count,) or not bool((noise_std > 0).all() and noise_std.isfinite().all()):
            raise ValueError(f"noise_std must be {count} positive numbers, got {noise_std.tolist()}")
        # By QR and not by the Gram matrix: columns that depend on each other, or are zero, get a basis all the same.
        basis, triangle = torch.linalg.qr(factors.double())
        turn, singular, _ = torch.linalg.svd(triangle)
        noise = noise_std.double() ** 2
        self._set(log_weights, means, (basis @ turn).mT.contiguous(), singular**2 + noise[:, None], noise)
        self.value_range = (float(value_range[0]), float(value_range[1]))

    @property
    def factors(self) -> Tensor:
        """(K, n, r), with orthogonal columns, strongest first."""
        excess = (self.variances - self.rest[:, None]).clamp(min=0).sqrt()
        return (self.directions * excess[..., None]).mT.to(self.means.dtype)

    @property
    def noise_std(self) -> Tensor:
        """(K,)."""
        return self.rest.sqrt().to(self.means.dtype)

    def posterior_and_evidence(self, problem: Problem) -> tuple[ClosedFormPrior, Tensor]:
        self.check(problem)
        posterior = LowRankMixturePosterior(self, decompose(problem, self.offsets.device))
        return posterior, posterior.evidence

    # -- files ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float16) -> None:
        """Write everything needed to load it again to one `.safetensors` file; means and factors in `dtype`."""
        header = {"kind": KIND, "shape": self.shape, "value_range": self.value_range}
        tensors = {
            "weights": self.weights.to("cpu", torch.float32),
            "means": self.means.detach().to("cpu", dtype).contiguous(),
            "factors": self.factors.detach().to("cpu", dtype).contiguous(),
            "noise_std": self.noise_std.to("cpu", torch.float32),
        }
        save_file(tensors, str(path), metadata={"invdiff": json.dumps(header)})

    @classmethod
    def load(cls, path: str | Path) -> "LowRankMixturePrior":
        """Read a file written by `save`; tensors only, no code is executed.

        Raises ValueError, in one line, where the file is missing, damaged or not of this kind.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"prior weights not found: {path}")
        try:
            with safe_open(str(path), framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("invdiff", "null"))
                tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118, not a dict
        except (SafetensorError, json.JSONDecodeError, OSError) as error:
            raise ValueError(f"prior weights cannot be read: {path}: {error}") from error
        if not isinstance(header, Mapping) or header.get("kind") != KIND:
            raise ValueError(
                f"prior weights of another kind: {path} holds no {KIND}; `LowRankMixturePrior.save` writes one"
            )
        try:
            weights, means, factors, noise_std = (tensors[k] for k in ("weights", "means", "factors", "noise_std"))
            if tuple(means.shape[1:]) != tuple(header["shape"]):
                raise ValueError(f"means of {tuple(means.shape[1:])} where the header says {tuple(header['shape'])}")
            prior = cls(weights, means, factors, noise_std, value_range=tuple(header["value_range"]))
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"prior weights do not fit their header: {path}: {error}") from error
        return prior.eval()

    @classmethod
    def example(cls) -> "LowRankMixturePrior":
        return _example()


def _example() -> LowRankMixturePrior:
    generator = torch.Generator().manual_seed(0)
    wave = torch.linspace(0, 3.14, 16)
    patterns = torch.stack([torch.outer((i * wave).cos(), (j * wave).cos()) for i in range(1, 4) for j in range(4)])
    means = 0.5 + 0.1 * patterns[:3, None]
    factors = 0.02 * torch.randn(3, 4, 12, generator=generator) @ patterns.flatten(1)
    return LowRankMixturePrior(torch.tensor([0.5, 0.3, 0.2]), means, factors.mT, torch.tensor([0.03, 0.05, 0.04]))
