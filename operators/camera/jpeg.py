"""JPEG: compression and decompression.

Model   A x = decode(encode(x)), by libjpeg, on 8-bit values. Gradients are those of averaging colour;
        rounding, of pixels and of cosine coefficients, and clipping count as the identity, so that gradients do not
        vanish outside [0, 1].
Shapes  x (B, C, H, W) in [0, 1], grey or RGB, any size -> y (B, C, H, W) in [0, 1], multiples of 1 / 255.
Spec    "JPEG restoration" of RED-diff has no noise (`noise=none`). Its codec drops every other colour sample where
        libjpeg averages, and has no 8-bit values: scores differ slightly.
"""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from invdiff.shapes import describe_shape

from ..core.base import SameShape, Variants, straight_through

# Pixels that share one colour sample: down, right.
SUBSAMPLINGS = {"4:4:4": (1, 1), "4:2:2": (1, 2), "4:2:0": (2, 2)}

# Colour differences Cb and Cr of red, green and blue (JFIF), and back.
TO_CHROMA = ((-0.299 / 1.772, -0.587 / 1.772, 0.5), (0.5, -0.587 / 1.402, -0.114 / 1.402))
FROM_CHROMA = ((0.0, 1.402), (-0.114 * 1.772 / 0.587, -0.299 * 1.402 / 0.587), (1.772, 0.0))

LONGEST = 65500  # limit of libjpeg, in pixels per side


class JPEG(SameShape):
    """Compression and decompression.

    quality      1 (worst) to 100, as in libjpeg, an integer or one per image, (B,)
    subsampling  pixels that share one colour sample: `4:2:0` two by two, `4:2:2` two in a row, `4:4:4` none
    """

    per_image = ("quality",)
    quality: Tensor

    def __init__(self, *, quality: int | Tensor = 10, subsampling: str = "4:2:0") -> None:
        super().__init__()
        value = torch.as_tensor(quality)
        if value.dim() > 1:
            raise ValueError(
                f"jpeg: quality must be an integer or one per image, (B,), got shape {describe_shape(value.shape)}"
            )
        if not ((value >= 1) & (value <= 100) & (value == value.round())).all():
            raise ValueError(f"jpeg: quality must be an integer from 1 (worst) to 100, got {quality}")
        if subsampling not in SUBSAMPLINGS:
            raise ValueError(f"jpeg: subsampling must be one of {', '.join(SUBSAMPLINGS)}, got {subsampling!r}")
        self.register_buffer("quality", value.reshape(-1).long())
        self.subsampling = subsampling

    def forward(self, x: Tensor) -> Tensor:
        qualities = self.quality.expand(len(x)).tolist()
        rows = [self._file(row, quality) for row, quality in zip(x.detach().cpu(), qualities, strict=True)]
        return straight_through(torch.stack(rows).to(x.device), self.surrogate(x))

    def _file(self, x: Tensor, quality: int) -> Tensor:
        """One image, (C, H, W), through a file in memory; NaN everywhere for an image with NaN."""
        if x.isnan().any():
            return torch.full_like(x, torch.nan)
        pixels = (255 * x.clamp(0, 1)).round().to(torch.uint8).movedim(0, -1).numpy()
        file = io.BytesIO()
        image = Image.fromarray(pixels[..., 0] if len(x) == 1 else pixels)
        image.save(file, "JPEG", quality=quality, subsampling=self.subsampling)
        with Image.open(file) as image:
            decoded = torch.from_numpy(np.array(image))
        return decoded.reshape(pixels.shape).movedim(-1, 0).to(x.dtype) / 255

    def surrogate(self, x: Tensor) -> Tensor:
        """The codec without rounding and clipping: cosine transforms cancel, colour is averaged and interpolated."""
        down, right = SUBSAMPLINGS[self.subsampling]
        if x.shape[1] == 1 or down * right == 1:
            return x
        chroma = torch.einsum("kc,bchw->bkhw", x.new_tensor(TO_CHROMA), x)
        height, width = x.shape[-2:]
        coarse = avg_pool2d(pad(chroma, (0, -width % right, 0, -height % down), mode="replicate"), (down, right))
        if down == 2:
            coarse = interpolate(coarse, -2)
        smooth = interpolate(coarse, -1)[..., :height, :width]
        return x + torch.einsum("ck,bkhw->bchw", x.new_tensor(FROM_CHROMA), smooth - chroma)

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        if shape[0] not in (1, 3):
            return f"jpeg: an image must be grey or RGB, 1 or 3 channels, got {describe_shape(shape)}"
        if max(shape[-2:]) > LONGEST:
            return f"jpeg: an image must have <= {LONGEST} pixels per side, got {describe_shape(shape)}"
        return None

    def first_guess(self, y: Tensor) -> Tensor:
        return y

    @classmethod
    def example(cls) -> tuple["JPEG", tuple[int, ...]]:
        return cls(), (3, 16, 16)

    @classmethod
    def variants(cls) -> Variants:
        return {
            "example": cls.example(),
            "grey": (cls(quality=50), (1, 9, 8)),
            "4:2:2": (cls(subsampling="4:2:2"), (3, 9, 7)),
            "4:4:4": (cls(subsampling="4:4:4"), (3, 9, 7)),
            "per-image": (cls(quality=torch.tensor([5, 20, 90])), (3, 9, 7)),
        }


def interpolate(coarse: Tensor, axis: int) -> Tensor:
    """Twice as many samples along an axis, as libjpeg decodes: three quarters of the nearest, one of the next."""
    first, last = coarse.narrow(axis, 0, 1), coarse.narrow(axis, -1, 1)
    before = torch.cat([first, coarse.narrow(axis, 0, coarse.shape[axis] - 1)], axis)
    after = torch.cat([coarse.narrow(axis, 1, coarse.shape[axis] - 1), last], axis)
    pairs = torch.stack([(3 * coarse + before) / 4, (3 * coarse + after) / 4], axis)
    return pairs.flatten(axis - 1, axis)
