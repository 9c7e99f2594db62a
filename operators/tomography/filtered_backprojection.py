"""Filtered back-projection: the classical image from a sinogram, for parallel and fan beams.

Spec    Kak and Slaney, Principles of Computerized Tomographic Imaging (1988), chapter 3: the band-limited ramp, sampled
        in space and not in frequency (which would lose the mean of the image), and for a fan with a straight detector
        the cosine of the ray before it and the squared inverse distance after it.
        Lines measured several times share their weight, smoothly at both ends of the angular range: Noo et al., Image
        reconstruction from fan-beam projections on less than a short scan, Phys. Med. Biol. 47 (2002), equation 35.
        Unmeasured lines (limited angle) count as zero.
"""

import math

import torch
from torch import Tensor

from .projection import Scan

FILTERS = ("ram-lak", "hann")

# The weight of a view rises over this angle at both ends of the range, where other views repeat its lines.
TAPER = math.radians(10)

# Of unevenly spaced views: a gap of more than so many usual ones is a missing wedge.
GAP = 5


def filtered_backprojection(y: Tensor, scan: Scan, size: tuple[int, int], window: str) -> Tensor:
    """Images (B, C, H, W) from line integrals (B, C, detectors, views), lengths in pixels; differentiable."""
    angles, cells = scan.angles(), scan.cells()
    fan = torch.atan(cells / scan.source)
    if scan.step is None:
        weights = uneven(scan, angles)[:, None] * fan.cos()
    else:
        weights = abs(scan.step) * redundancy(abs(scan.step), scan, angles, fan) * fan.cos()
    filtered = _filter(y.mT * weights.to(y), scan, window)
    rows = filtered.flatten(0, 1)  # (K, views, detectors)
    height, width = size
    down = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2 - scan.pivot[1]
    right = torch.arange(width, dtype=torch.float64) - (width - 1) / 2 - scan.pivot[0]
    middle = (scan.detectors - 1) / 2 - scan.shift
    image = y.new_zeros(rows.shape[0], height * width)
    for view, angle in enumerate(angles):
        # Distance from the source, relative to that of the axis of rotation; 1 where rays are parallel.
        distance = 1 + (right * angle.sin() + down * angle.cos()) / scan.source
        across = (right * angle.cos() - down * angle.sin()) / scan.spacing + scan.aside
        position = across / distance + middle
        image = image + _interpolate(rows[:, view], position.flatten()) * (distance**-2).flatten().to(y)
    return image.reshape(*y.shape[:2], height, width)


def redundancy(step: float, scan: Scan, angles: Tensor, fan: Tensor) -> Tensor:
    """The weight of each ray, (views, detectors): weights of rays along one line sum to one.

    The ray at angle `fan` of the view at `angle` is the one at `-fan` of the view at `angle + 2 fan + pi`, reversed.
    """
    low, high = min(scan.turns) - step / 2, max(scan.turns) + step / 2
    turn = math.pi if scan.source == math.inf else 2 * math.pi
    turns = (high - low) / turn
    complete = abs(turns - round(turns)) < 1e-6  # every line is measured equally often

    def smooth(angle: Tensor) -> Tensor:
        depth = torch.minimum(angle - low, high - angle)
        return (depth > 0).double() if complete else torch.sin(math.pi / 2 * (depth / TAPER).clamp(0, 1)) ** 2

    own = smooth(angles)[:, None]
    most = math.ceil((high - low) / (2 * math.pi)) + 1
    total = sum(
        smooth(angles[:, None] + shift + 2 * math.pi * m)
        for m in range(-most, most + 1)
        for shift in (torch.zeros_like(fan), 2 * fan + math.pi)
    )
    return own / total


def uneven(scan: Scan, angles: Tensor) -> Tensor:
    """The angle that each of unevenly spaced views stands for, (views,): half way to its neighbours on both sides.

    A gap of more than `GAP` usual ones was not measured and belongs to nobody. Lines of a fan count as measured twice.
    """
    turn = math.pi if scan.source == math.inf else 2 * math.pi
    order = (angles % turn).sort()
    gap = torch.cat([order.values[1:], order.values[:1] + turn]) - order.values
    usual = gap[gap > 0].median()
    gap = torch.where(gap > GAP * usual, usual, gap)
    weight = torch.empty_like(gap)
    weight[order.indices] = (gap + gap.roll(1)) / 2
    return weight * math.pi / turn


def _filter(y: Tensor, scan: Scan, window: str) -> Tensor:
    """The ramp filter along the last axis."""
    length = 2 ** math.ceil(math.log2(2 * scan.detectors))  # twice as long, against circular convolution
    n = torch.fft.fftfreq(length, 1 / length, dtype=torch.float64).round()
    ramp = torch.where(n % 2 == 1, -1 / (math.pi * n.where(n != 0, 1)) ** 2, 0)
    ramp[0] = 0.25
    response = torch.fft.rfft(ramp).real / abs(scan.spacing)
    if window == "hann":
        response = response * (0.5 + 0.5 * torch.cos(2 * math.pi * torch.fft.rfftfreq(length, dtype=torch.float64)))
    return torch.fft.irfft(torch.fft.rfft(y, length) * response.to(y), length)[..., : scan.detectors]


def _interpolate(rows: Tensor, position: Tensor) -> Tensor:
    """Each row (K, n) between its entries at fractional positions (m,), zero outside: (K, m)."""
    padded = torch.nn.functional.pad(rows, (1, 1))
    last = padded.shape[1] - 1
    position = (position + 1).clamp(0, last)
    left = position.floor().clamp(max=last - 1)
    above = (position - left).to(rows)
    left = left.long().to(rows.device)
    return torch.lerp(padded[:, left], padded[:, left + 1], above)
