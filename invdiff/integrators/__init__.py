"""Integrators: how a sampler moves from noise level to noise level with a denoiser, guided or not."""

from typing import Literal

from invdiff.integrators.base import Denoiser, Integrator, Noise, centred
from invdiff.integrators.bdia import BDIA
from invdiff.integrators.conjugate import Conjugate
from invdiff.integrators.ddim import DDIM, ddim_step
from invdiff.integrators.deis import DEIS
from invdiff.integrators.dpm import DPMSolver
from invdiff.integrators.dpm_v3 import DPMSolverV3
from invdiff.integrators.er_sde import ERSDE
from invdiff.integrators.heun import Heun
from invdiff.integrators.iia import IIA

__all__ = [
    "BDIA",
    "DDIM",
    "DEIS",
    "ERSDE",
    "IIA",
    "NAMED",
    "Conjugate",
    "DPMSolver",
    "DPMSolverV3",
    "Denoiser",
    "Heun",
    "Integrator",
    "Name",
    "Noise",
    "centred",
    "ddim_step",
    "named",
]

Name = Literal[
    "ancestral", "euler", "heun", "churn", "dpm_2m", "dpm_3m", "dpm_2m_sde", "deis", "er_sde", "conjugate", "bdia"
]
NAMED: dict[str, Integrator] = {
    "ancestral": DDIM(eta=1.0),
    "euler": DDIM(eta=0.0),
    "heun": Heun(),
    "churn": Heun(churn=40.0, churn_low=0.025, churn_high=25.0, swell=1.003),
    "dpm_2m": DPMSolver(order=2),
    "dpm_3m": DPMSolver(order=3),
    "dpm_2m_sde": DPMSolver(order=2, eta=1.0),
    "deis": DEIS(),
    "er_sde": ERSDE(),
    "conjugate": Conjugate(),
    "bdia": BDIA(),
}


def named(integrator: Integrator | Name) -> Integrator:
    """The integrator of this name with its usual settings; one that is given comes back as it is."""
    return NAMED[integrator] if isinstance(integrator, str) else integrator
