"""Priors: denoisers at every noise level."""

from .as_prior import as_prior
from .base import Prior
from .callable import CallablePrior
from .closed_form.base import ClosedFormPrior
from .closed_form.diagonal_gaussian import DiagonalGaussianPrior
from .closed_form.empirical import EmpiricalPrior
from .closed_form.gaussian import GaussianPrior
from .closed_form.gaussian_field import GaussianFieldPrior
from .closed_form.gaussian_mixture import GaussianMixturePrior
from .closed_form.low_rank import LowRankMixturePosterior, LowRankMixturePrior
from .codec import Codec
from .codecs.autoencoder import Autoencoder
from .codecs.latent import LatentPrior
from .codecs.linear import LinearCodec
from .identify import read_prior
from .library import bundled, load_prior
from .networks.adm import ADMPrior
from .networks.deepinv_prior import DeepinvPrior
from .networks.diffusers_prior import DiffusersPrior
from .networks.edm import EDMPrior
from .networks.flow import FlowPrior
from .networks.ncsnpp import NCSNppPrior
from .networks.nvlabs_edm import NVLabsEDMPrior
from .networks.parametrised import ParametrisedPrior

__all__ = [
    "ADMPrior",
    "Autoencoder",
    "CallablePrior",
    "ClosedFormPrior",
    "Codec",
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
    "LinearCodec",
    "LowRankMixturePosterior",
    "LowRankMixturePrior",
    "NCSNppPrior",
    "NVLabsEDMPrior",
    "ParametrisedPrior",
    "Prior",
    "as_prior",
    "bundled",
    "load_prior",
    "read_prior",
]
