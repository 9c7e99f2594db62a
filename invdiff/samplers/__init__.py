"""Posterior samplers, one per file; every one is found by walking this package."""

import inspect
from importlib import import_module
from pkgutil import walk_packages

from invdiff.engine.step import Step
from invdiff.samplers.auto import Auto
from invdiff.samplers.base import Needs, Sampler
from invdiff.samplers.ensemble.enkg import EnKG
from invdiff.samplers.guidance.dps import DPS
from invdiff.samplers.guidance.mcg import MCG
from invdiff.samplers.guidance.mmps import MMPS
from invdiff.samplers.guidance.pigdm import PiGDM
from invdiff.samplers.particles.afdps import AFDPS
from invdiff.samplers.particles.base import ParticleSampler
from invdiff.samplers.particles.fkc import FKC
from invdiff.samplers.particles.mcgdiff import MCGDiff
from invdiff.samplers.particles.tds import TDS
from invdiff.samplers.splitting.daps import DAPS
from invdiff.samplers.splitting.lanpaint import LanPaint
from invdiff.samplers.splitting.pnpdm import PnPDM
from invdiff.samplers.variational.reddiff import REDDiff

__all__ = [
    "AFDPS",
    "DAPS",
    "DPS",
    "FKC",
    "MCG",
    "MMPS",
    "TDS",
    "Auto",
    "EnKG",
    "LanPaint",
    "MCGDiff",
    "Needs",
    "ParticleSampler",
    "PiGDM",
    "PnPDM",
    "REDDiff",
    "Sampler",
    "Step",
    "all_samplers",
]


def all_samplers() -> dict[str, type[Sampler]]:
    """Every sampler of the package by the name of its file, in alphabetical order."""
    found = {}
    for module_info in walk_packages(__path__, f"{__name__}."):
        module = import_module(module_info.name)
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, Sampler) and not inspect.isabstract(cls) and cls.__module__ == module.__name__:
                found[module_info.name.rpartition(".")[2]] = cls
    return dict(sorted(found.items()))
