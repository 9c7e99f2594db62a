"""Posterior samplers, one per file, in families."""

from invdiff.engine.step import Step
from invdiff.samplers.auto import Auto
from invdiff.samplers.base import Needs, Sampler, all_samplers
from invdiff.samplers.ensemble.eki import EKI
from invdiff.samplers.ensemble.enkg import EnKG
from invdiff.samplers.guidance.dps import DPS
from invdiff.samplers.guidance.mcg import MCG
from invdiff.samplers.guidance.mmps import MMPS
from invdiff.samplers.guidance.momentdraw import MomentDraw
from invdiff.samplers.guidance.pigdm import PiGDM
from invdiff.samplers.particles.afdps import AFDPS
from invdiff.samplers.particles.base import ParticleSampler
from invdiff.samplers.particles.compose import compose
from invdiff.samplers.particles.fkc import FKC
from invdiff.samplers.particles.fps import FPS
from invdiff.samplers.particles.mcgdiff import MCGDiff
from invdiff.samplers.particles.rdmc import RDMC
from invdiff.samplers.particles.tds import TDS
from invdiff.samplers.settings import settings_for
from invdiff.samplers.splitting.daps import DAPS
from invdiff.samplers.splitting.lanpaint import LanPaint
from invdiff.samplers.splitting.pnpdm import PnPDM
from invdiff.samplers.variational.reddiff import REDDiff
from invdiff.samplers.variational.rsd import RSD

__all__ = [
    "AFDPS",
    "DAPS",
    "DPS",
    "EKI",
    "FKC",
    "FPS",
    "MCG",
    "MMPS",
    "RDMC",
    "RSD",
    "TDS",
    "Auto",
    "EnKG",
    "LanPaint",
    "MCGDiff",
    "MomentDraw",
    "Needs",
    "ParticleSampler",
    "PiGDM",
    "PnPDM",
    "REDDiff",
    "Sampler",
    "Step",
    "all_samplers",
    "compose",
    "settings_for",
]
