"""What images look like: denoisers at every noise level."""

from .adm import ADMPrior
from .base import Prior
from .closed_form import ClosedFormPrior
from .deepinv_prior import DeepinvPrior
from .diagonal_gaussian import DiagonalGaussianPrior
from .diffusers_prior import DiffusersPrior
from .edm import EDMPrior
from .empirical import EmpiricalPrior
from .flow import FlowPrior
from .foreign import CallablePrior, as_prior
from .gaussian import GaussianPrior
from .gaussian_field import GaussianFieldPrior
from .gaussian_mixture import GaussianMixturePrior
from .latent import LatentPrior
from .library import bundled, load_prior
from .low_rank_mixture import LowRankMixturePrior
from .low_rank_posterior import LowRankMixturePosterior
from .ncsnpp import NCSNppPrior
from .nvlabs_edm import NVLabsEDMPrior
from .parametrised import ParametrisedPrior

__all__ = [
    "ADMPrior",
    "CallablePrior",
    "ClosedFormPrior",
    "DeepinvPrior",
    "DiagonalGaussianPrior",
    "DiffusersPrior",
    "EDMPrior",
    "EmpiricalPrior",
    "FlowPrior",
    "GaussianFieldPrior",
    "GaussianMixturePrior",
    "GaussianPrior",
    "LatentPrior",
    "LowRankMixturePosterior",
    "LowRankMixturePrior",
    "NCSNppPrior",
    "NVLabsEDMPrior",
    "ParametrisedPrior",
    "Prior",
    "as_prior",
    "bundled",
    "load_prior",
]
