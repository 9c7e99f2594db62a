"""What a sampler returns: samples, what can be said from them, and what they cost."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Cost:
    """Counts are per image: one call on a batch of 8 counts 8.

    forwards        evaluations of the prior's denoiser
    vjps            vector-Jacobian products through it
    operator_calls  forward, adjoint, pseudo-inverse, solve, and products with the operator's Jacobian
    seconds         wall time of the sampler, callbacks and progress left out
    peak_memory_mb  of the device, or on the CPU of the process so far (`engine.device.peak_memory_mb`)
    """

    forwards: int = 0
    vjps: int = 0
    operator_calls: int = 0
    seconds: float = 0.0
    peak_memory_mb: float = 0.0


@dataclass(frozen=True, eq=False)
class Posterior:
    """Posterior samples of a batch of images.

    samples      (B, S, C, H, W), image units
    diverged_at  (B, S) step at which a sample became non-finite or left every reasonable range; -1: it did not
    cost         what was computed
    """

    samples: Tensor
    diverged_at: Tensor
    cost: Cost

    @property
    def diverged(self) -> Tensor:
        """(B, S) bool: samples that are no samples; `mean` and `std` leave them out."""
        return self.diverged_at >= 0

    @property
    def mean(self) -> Tensor:
        """Posterior mean (B, C, H, W) over the samples that did not diverge; NaN where all did."""
        return self._kept().nanmean(1)

    @property
    def std(self) -> Tensor:
        """Posterior standard deviation (B, C, H, W), unbiased over the samples kept; NaN where fewer than two were."""
        kept = self._kept()
        count = (~self.diverged).sum(1).reshape(-1, *[1] * (self.samples.dim() - 2))
        squares = (kept - kept.nanmean(1, keepdim=True)).square().nansum(1)
        return torch.where(count > 1, squares / (count - 1).clamp(min=1), torch.nan).sqrt()

    def _kept(self) -> Tensor:
        diverged = self.diverged.reshape(*self.diverged.shape, *[1] * (self.samples.dim() - 2))
        return torch.where(diverged, torch.nan, self.samples)
