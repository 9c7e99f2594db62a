"""Exact posteriors of a low-rank mixture for batches of images with some pixels measured.

Model       y_b = M_b x_b + noise with M_b a mask. Component k sees S_k = (rest_k + noise^2) I + F_k^T M F_k on the
            measured pixels: the r x r matrices F_k^T M_b F_k of all images are one product of their masks with the
            products of all pairs of directions. The same numbers as `LowRankMixturePrior.posterior`, which takes any
            operator and one image at a time.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .low_rank import LowRankMixturePrior
from .mixture import standard_normal

# Numbers held at a time.
CHUNK = 1 << 24


@torch.no_grad()
def evidence_of_pixels(prior: LowRankMixturePrior, y: Tensor, seen: Tensor, noise_std: Tensor) -> Tensor:
    """log p(y) of the measured pixels of each image, (B,), in float64.

    y          (B, C, H, W), any value where `seen` is False
    seen       (B, C, H, W) bool
    noise_std  of the measurement, () or (B,), positive
    """
    rows = _Pixels(prior, y, seen, noise_std)
    return torch.cat([rows.joint(part).logsumexp(1) for part in rows.parts()])


@torch.no_grad()
def draws_given_pixels(
    prior: LowRankMixturePrior, y: Tensor, seen: Tensor, noise_std: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """A draw from p(x | y) of each image, (B, C, H, W); arguments as in `evidence_of_pixels`.

    generators  one per image
    """
    rows = _Pixels(prior, y, seen, noise_std)
    return torch.cat([rows.draw(part, [generators[i] for i in part.tolist()]) for part in rows.parts()])


class _Pixels:
    """Rows (B, n) relative to the centre of the prior, zero where nothing was measured."""

    def __init__(self, prior: LowRankMixturePrior, y: Tensor, seen: Tensor, noise_std: Tensor) -> None:
        self.prior, self.shape = prior, tuple(y.shape[1:])
        device = prior.offsets.device
        self.seen = seen.expand(y.shape).flatten(1).to(device)
        self.y = torch.where(self.seen, y.flatten(1).to(device, torch.float64) - prior.middle, 0.0)
        self.noise = noise_std.to(device, torch.float64).square().expand(len(y))
        excess = (prior.variances - prior.rest[:, None]).clamp(min=0)
        self.factors = excess.sqrt()[..., None] * prior.directions  # F^T, (K, r, n)
        components, rank, n = self.factors.shape
        self.pairs = torch.einsum("krn,ksn->nkrs", self.factors, self.factors).reshape(n, -1)
        self.rank, self.step = rank, max(1, CHUNK // (components * rank**2 + n))

    def parts(self) -> tuple[Tensor, ...]:
        return torch.arange(len(self.y)).split(self.step)

    def _inner(self, part: Tensor, mask: Tensor) -> Tensor:
        """Cholesky factors of v I + F^T M F with v = rest + noise, (B, K, r, r)."""
        gram = (mask @ self.pairs).reshape(len(part), -1, self.rank, self.rank)
        level = self.prior.rest + self.noise[part, None]
        return torch.linalg.cholesky(gram + torch.diag_embed(level[..., None].expand(*level.shape, self.rank)))

    def joint(self, part: Tensor) -> Tensor:
        """log(w_k p_k(y)), (B, K)."""
        return self._joint(part)[0]

    def _joint(self, part: Tensor) -> tuple[Tensor, Tensor]:
        prior, y, mask = self.prior, self.y[part], self.seen[part].double()
        means, level = prior.offsets, prior.rest + self.noise[part, None]
        inner = self._inner(part, mask)
        squares = y.square().sum(1, keepdim=True) - 2 * y @ means.mT + mask @ means.square().mT  # |M (y - m_k)|^2
        seen_means = (mask @ (self.factors * means[:, None]).flatten(0, 1).mT).unflatten(1, (-1, self.rank))
        along = (y @ self.factors.flatten(0, 1).mT).unflatten(1, (-1, self.rank)) - seen_means  # F^T M (y - m_k)
        half = torch.linalg.solve_triangular(inner, along[..., None], upper=False)[..., 0]
        quadratic = (squares - half.square().sum(2)).clamp(min=0) / level
        count = mask.sum(1, keepdim=True)
        volume = (count - self.rank) * level.log() + 2 * inner.diagonal(dim1=2, dim2=3).log().sum(2)
        return prior.log_weights - 0.5 * (quadratic + volume + count * math.log(2 * math.pi)), inner

    def draw(self, part: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Matheron's rule: a draw of the component, moved by the gain times the misfit of its own measurement."""
        prior, y, mask = self.prior, self.y[part], self.seen[part].double()
        joint, inner = self._joint(part)
        chosen = torch.cat(
            [torch.multinomial(p, 1, generator=g) for p, g in zip(joint.softmax(1).cpu(), generators, strict=True)]
        ).to(y.device)
        n = y.shape[1]
        z = torch.cat([standard_normal(1, self.rank + 2 * n, y, g) for g in generators])
        z_along, z_rest, z_noise = z.split([self.rank, n, n], 1)
        x = prior.offsets[chosen] + prior.rest[chosen, None].sqrt() * z_rest
        found = torch.empty_like(x)
        for k in chosen.unique().tolist():
            rows, factors = chosen == k, self.factors[k]
            own = x[rows] + z_along[rows] @ factors
            # The isotropic part is drawn in all directions: what F adds is beyond it.
            noise = self.noise[part][rows, None]
            missing = y[rows] - mask[rows] * (own + noise.sqrt() * z_noise[rows])
            inside = torch.cholesky_solve((missing @ factors.mT)[..., None], inner[rows, k])[..., 0]
            solved = (missing - mask[rows] * (inside @ factors)) / (prior.rest[k] + noise)
            found[rows] = own + prior.rest[k] * solved + (solved @ factors.mT) @ factors
        return (prior.middle + found).reshape(-1, *self.shape).to(prior.means.dtype)
