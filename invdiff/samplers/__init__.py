"""Posterior samplers, one per file; every one is found by walking this package."""

import inspect
from importlib import import_module
from pkgutil import iter_modules

from .afdps import AFDPS
from .auto import Auto
from .base import Needs, Sampler, Step
from .daps import DAPS
from .dps import DPS
from .enkg import EnKG
from .fkc import FKC
from .lanpaint import LanPaint
from .mcg import MCG
from .mcgdiff import MCGDiff
from .mmps import MMPS
from .pigdm import PiGDM
from .pnpdm import PnPDM
from .reddiff import REDDiff
from .smc import ParticleSampler
from .tds import TDS

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
    for module_info in iter_modules(__path__):
        module = import_module(f"{__name__}.{module_info.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, Sampler) and not inspect.isabstract(cls) and cls.__module__ == module.__name__:
                found[module_info.name] = cls
    return dict(sorted(found.items()))
