"""Posterior sampling for inverse problems with diffusion priors."""

from invdiff._version import __version__
from invdiff.driver import Compute, Interrupted, Unsupported
from invdiff.posterior import Posterior
from invdiff.priors import load_prior
from invdiff.problem import InverseProblem

__all__ = ["Compute", "Interrupted", "InverseProblem", "Posterior", "Unsupported", "__version__", "load_prior"]
