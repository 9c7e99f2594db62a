"""Posterior samplers, one per file, in families."""

from invdiff.engine.step import Step
from invdiff.samplers.auto import Auto
from invdiff.samplers.base import Needs, Sampler, all_samplers
from invdiff.samplers.baselines.graphla import GraphLa
from invdiff.samplers.baselines.myula import MYULA
from invdiff.samplers.baselines.tv import TV
from invdiff.samplers.baselines.wavelets import Wavelets
from invdiff.samplers.ensemble.aldi import ALDI
from invdiff.samplers.ensemble.eki import EKI
from invdiff.samplers.ensemble.enkg import EnKG
from invdiff.samplers.flow.flair import FLAIR
from invdiff.samplers.flow.flowdps import FlowDPS
from invdiff.samplers.flow.flower import Flower
from invdiff.samplers.flow.pnpflow import PnPFlow
from invdiff.samplers.guidance.dps import DPS
from invdiff.samplers.guidance.dreamguider import Dreamguider
from invdiff.samplers.guidance.dsg import DSG
from invdiff.samplers.guidance.flowchef import FlowChef
from invdiff.samplers.guidance.lgd import LGD
from invdiff.samplers.guidance.lmaps import LMAPS
from invdiff.samplers.guidance.mcg import MCG
from invdiff.samplers.guidance.mgps import MGPS
from invdiff.samplers.guidance.mmps import MMPS
from invdiff.samplers.guidance.momentdraw import MomentDraw
from invdiff.samplers.guidance.pigdm import PiGDM
from invdiff.samplers.guidance.sag import SAG
from invdiff.samplers.guidance.sitcom import SITCOM
from invdiff.samplers.guidance.tmpd import TMPD
from invdiff.samplers.latent.latino import LATINO
from invdiff.samplers.latent.p2l import P2L
from invdiff.samplers.latent.psld import PSLD
from invdiff.samplers.latent.resample import ReSample
from invdiff.samplers.latent.stsl import STSL
from invdiff.samplers.particles.afdps import AFDPS
from invdiff.samplers.particles.base import ParticleSampler
from invdiff.samplers.particles.bffg import BFFG
from invdiff.samplers.particles.compose import compose
from invdiff.samplers.particles.fkc import FKC
from invdiff.samplers.particles.fps import FPS
from invdiff.samplers.particles.mcgdiff import MCGDiff
from invdiff.samplers.particles.rdmc import RDMC
from invdiff.samplers.particles.smc import SMC
from invdiff.samplers.particles.tds import TDS
from invdiff.samplers.projection.ddnm import DDNM
from invdiff.samplers.projection.ddrm import DDRM
from invdiff.samplers.projection.ilvr import ILVR
from invdiff.samplers.projection.repaint import RePaint
from invdiff.samplers.projection.scoresde import ScoreSDE
from invdiff.samplers.settings import settings_for
from invdiff.samplers.splitting.daps import DAPS
from invdiff.samplers.splitting.diffpir import DiffPIR
from invdiff.samplers.splitting.dpir import DPIR
from invdiff.samplers.splitting.lanpaint import LanPaint
from invdiff.samplers.splitting.pnpdm import PnPDM
from invdiff.samplers.splitting.red import RED
from invdiff.samplers.variational.dflow import DFlow
from invdiff.samplers.variational.dsd import DSD
from invdiff.samplers.variational.reddiff import REDDiff
from invdiff.samplers.variational.rsd import RSD
from invdiff.samplers.variational.scorepriorvi import ScorePriorVI

__all__ = [
    "AFDPS",
    "ALDI",
    "BFFG",
    "DAPS",
    "DDNM",
    "DDRM",
    "DPIR",
    "DPS",
    "DSD",
    "DSG",
    "EKI",
    "FKC",
    "FLAIR",
    "FPS",
    "ILVR",
    "LATINO",
    "LGD",
    "LMAPS",
    "MCG",
    "MGPS",
    "MMPS",
    "MYULA",
    "P2L",
    "PSLD",
    "RDMC",
    "RED",
    "RSD",
    "SAG",
    "SITCOM",
    "SMC",
    "STSL",
    "TDS",
    "TMPD",
    "TV",
    "Auto",
    "DFlow",
    "DiffPIR",
    "Dreamguider",
    "EnKG",
    "FlowChef",
    "FlowDPS",
    "Flower",
    "GraphLa",
    "LanPaint",
    "MCGDiff",
    "MomentDraw",
    "Needs",
    "ParticleSampler",
    "PiGDM",
    "PnPDM",
    "PnPFlow",
    "REDDiff",
    "RePaint",
    "ReSample",
    "Sampler",
    "ScorePriorVI",
    "ScoreSDE",
    "Step",
    "Wavelets",
    "all_samplers",
    "compose",
    "settings_for",
]
