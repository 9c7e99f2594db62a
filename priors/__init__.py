"""What images look like: denoisers at every noise level."""

from .base import Prior
from .edm import EDMPrior
from .gaussian import GaussianPrior
from .library import bundled, load_prior

__all__ = ["EDMPrior", "GaussianPrior", "Prior", "bundled", "load_prior"]
