"""Forward models and measurement noise: what was measured."""

from .base import LinearOperator, Operator, SpectralOperator
from .denoising import Denoising
from .foreign import CallableOperator, LinearCallableOperator, as_operator
from .gaussian_blur import GaussianBlur
from .inpainting import Inpainting
from .noise import GaussianNoise, Noise, PoissonNoise
from .separable import SeparableOperator
from .super_resolution import SuperResolution

__all__ = [
    "CallableOperator",
    "Denoising",
    "GaussianBlur",
    "GaussianNoise",
    "Inpainting",
    "LinearCallableOperator",
    "LinearOperator",
    "Noise",
    "Operator",
    "PoissonNoise",
    "SeparableOperator",
    "SpectralOperator",
    "SuperResolution",
    "as_operator",
]
