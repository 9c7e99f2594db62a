"""Settings of samplers: the recommended ones of each operator, and reading and changing them by name.

Settings have three owners: defaults stand in the dataclass of a sampler, recommended ones in `RECOMMENDED`, published
ones in `configs/experiment/paper/`.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any

from invdiff.latent import in_codes
from invdiff.operators import Noise, Operator
from invdiff.priors import Prior
from invdiff.samplers.base import Sampler, all_samplers
from invdiff.schedules import VP
from invdiff.user_module import file_of

# By sampler, then by class of operator or by trait (see `_traits`), the class first. "Brains" are validation slices of
# 128x128 pixels with the small brain prior, noise 0.025; figures are dB of one sample.
RECOMMENDED: dict[str, dict[str, dict[str, Any]]] = {
    "daps": {
        # Many levels matter more than longer chains or more steps of the ODE. Phase retrieval, best of 4 on 4 brains:
        # 22.4 dB with 100 levels, 23.7 with 200 of five calls, 26.4 with 400 of one.
        "ambiguous": {
            "schedule.steps": 400,
            "schedule.sigma_max": 20.0,
            "schedule.sigma_min": 0.01,
            "prior_std": 0.25,
            "inner": "hamiltonian",
            "chain_steps": 30,
        },
        # The published chains with half the levels, one network call each. A measured step size is worse: a large step
        # leaves the range where the response has a slope. HDR 15.1 -> 23.6, nonlinear blur 21.2 -> 25.0 dB (16 brains).
        "nonlinear": {
            "schedule.steps": 100,
            "schedule.sigma_max": 5.0,
            "schedule.sigma_min": 0.05,
            "inner": "langevin",
            "prior_std": None,
            "step_size": 5e-6,
            "tau": 0.005,
        },
        "not Gaussian": {
            "schedule.steps": 100,
            "schedule.sigma_max": 20.0,
            "schedule.sigma_min": 0.01,
            "prior_std": 0.25,
            "inner": "hamiltonian",
            "chain_steps": 30,
        },
    },
    "dps": {
        # With the default of 2 images end clipped. 2 brains, noise 0.025: energy score x 1000 35 and 33, misfit 10 and
        # 20; with 0.5 29 and 23; with 1 23 and 21, misfit 1.9 and 1.0.
        "HDR": {"zeta": 1.0},
        # A gradient of a stand-in misleads less from the highest levels down. JPEG of 2 digits, noise 0.005, 0.025 and
        # 0.125: energy score x 1000 28, 30, 42; from sigma 3 33, 46, 64. Quantised: 10, 12, 27 and 13, 18, 34.
        "stepped": {"schedule": VP(steps=100), "zeta": 1.0},
    },
    "mcg": {
        # Conjugate gradients are long at higher levels, and gain nothing. Not searched.
        "CT": {"schedule.sigma_max": 5.0, "zeta": 0.0},
        # 2 brains: 20.6 -> 24.7 dB. At low noise levels the projection amplifies the noise of the measurement.
        "GaussianBlur": {"zeta": 4.0, "project_above": 1.0},
        "MotionBlur": {"schedule.sigma_max": 3.0, "zeta": 4.0, "project_above": 1.0},  # 2 brains: 24.5 dB
    },
    "mmps": {
        # 4 digits, noise 0.005, 0.025, 0.125: energy score x 1000 of inpainting 42, 44, 56, as with three iterations of
        # gmres; of MRI 14, 21, 38 (23, 43, 57). Four iterations of cg diverge on compressed sensing.
        "Inpainting": {"iterations": 2, "solver": "cg"},
        "MRI": {"iterations": 2, "solver": "cg"},
    },
    "momentdraw": {
        # 4 brains, HDR: energy score 29.5 with 16 levels, 28.9 with these, at as many calls of the network; `inner` 5
        # and 10 are no better and cost more calls of the operator.
        "nonlinear": {
            "schedule.steps": 20,
            "schedule.sigma_min": 0.01,
            "root": 2,
            "iterations": 5,
            "inner": 3,
        },
    },
    "reddiff": {
        # lam counts in units of the noise of y over the norm of the operator. 2 digits, noise 0.005, 0.025 and 0.125:
        # energy score x 1000 of denoising 4, 15, 60 (with the default 4, 21, 93), coded diffraction 3, 12, 37 (3, 15,
        # 61), super-resolution 91, 97, 150, Gaussian blur 104, 106, 147. The others are converted from one noise.
        "Blur": {"schedule.sigma_max": 2.0, "schedule.sigma_min": 0.05, "lam": 2.0},
        "CircularBlur": {"schedule.sigma_max": 2.0, "schedule.sigma_min": 0.05, "lam": 2.0},
        "CodedDiffraction": {"lam": 8.0},
        "Denoising": {"lam": 10.0},
        "GaussianBlur": {"schedule.sigma_max": 2.0, "schedule.sigma_min": 0.05, "lam": 2.0},
        "HDR": {"schedule.sigma_max": 2.0, "schedule.sigma_min": 0.1, "learning_rate": 0.05, "lam": 10.0},
        "Inpainting": {"lam": 1.0},
        "MotionBlur": {"schedule.sigma_max": 2.0, "schedule.sigma_min": 0.05, "lam": 2.0},
        "NonlinearBlur": {"schedule.sigma_max": 2.0, "schedule.sigma_min": 0.05, "lam": 2.0},
        "PhaseRetrieval": {"schedule.sigma_max": 2.0, "lam": 70.0},
        "SuperResolution": {"lam": 2.5},
    },
}

RECOMMENDED["rsd"] = RECOMMENDED["reddiff"]  # its objective, with a force between particles


@dataclass(frozen=True)
class Settled:
    """A sampler with its settings for one problem.

    sampler  ready to run
    changed  by dotted name, what the recommendation changed: (default, recommended)
    where    the operator class or trait that it was recommended for; None where nothing was changed
    """

    sampler: Sampler
    changed: Mapping[str, tuple[Any, Any]]
    where: str | None

    def __str__(self) -> str:
        """One line for the user, empty where nothing was changed."""
        if not self.changed:
            return ""
        settings = ", ".join(f"{name}={_shown(new)} ({_shown(old)})" for name, (old, new) in self.changed.items())
        return f"{self.sampler.name()}, recommended for {self.where} (default in brackets): {settings}"


def settings_for(
    sampler: str | type[Sampler],
    operator: Operator,
    noise: Noise,
    prior: Prior,
    *,
    given: Mapping[str, Any] | None = None,
    recommended: bool = True,
) -> Settled:
    """The settings of a sampler for an operator: defaults, then the recommended ones, then those that are given.

    sampler      a class or its name
    given        by dotted name, `schedule.sigma_max`, or a whole `schedule`; they win
    recommended  False: defaults and given settings alone

    Raises ValueError for an unknown name of a sampler or setting, and for values that the sampler refuses.
    """
    cls = sampler_class(sampler) if isinstance(sampler, str) else sampler
    given, default = dict(given or {}), cls()
    table = RECOMMENDED.get(cls.name(), {}) if recommended else {}
    traits = _traits(in_codes(operator, prior.codec), noise)
    where = next((name for name in traits if name in table), None)
    advised = {} if where is None else dict(table[where])
    if recommended and prior.codec is not None:
        highest = _highest_level(with_settings(default, advised | given), prior.diffusion)
        if highest is not None:
            advised[LEVEL], where = highest, where or "the levels of the prior"
    # A given schedule is whole: nothing inside it is advised.
    advised = {n: value for n, value in advised.items() if n not in given and n.partition(".")[0] not in given}
    made = with_settings(default, advised | given)
    changed = {name: (setting(default, name), value) for name, value in advised.items() if _has(default, name)}
    changed = {name: pair for name, pair in changed.items() if pair[0] != pair[1]}
    return Settled(made, changed, where if changed else None)


LEVEL = "schedule.sigma_max"


def _highest_level(sampler: Sampler, diffusion: Prior) -> float | None:
    """`schedule.sigma_max` at which a network of codes was trained, where sampling would start above it.

    A network that predicts noise errs in proportion to the level there, by more than codes are wide. None: no change.
    """
    start = setting(sampler, LEVEL) if _has(sampler, LEVEL) else None
    highest = diffusion.sigma_range[1] / diffusion.scale
    return highest if not diffusion.bounded_error and start is not None and start > highest else None


def _traits(operator: Operator, noise: Noise) -> list[str]:
    """The names under which settings for this problem may stand, most specific first."""
    traits = {
        "ambiguous": operator.ambiguous,
        "stepped": operator.stepped,
        "nonlinear": not operator.linear and operator.differentiable and noise.gaussian,
        "not Gaussian": operator.differentiable and not noise.gaussian,
    }
    return [type(operator).__name__, *(name for name, there in traits.items() if there)]


def sampler_class(name: str) -> type[Sampler]:
    """The sampler of this name, `auto` included. Raises ValueError with the names that there are."""
    from_auto = {cls.name(): cls for cls in Sampler.__subclasses__() if cls.resolve is not Sampler.resolve}
    known = all_samplers() | from_auto
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"unknown sampler {name!r}{hint} (samplers: {', '.join(known)})")
    return known[name]


def setting(sampler: Any, name: str) -> Any:
    """The setting of a sampler under a dotted name, `schedule.sigma_max`."""
    for part in name.split("."):
        sampler = getattr(sampler, part)
    return sampler


def _has(sampler: Any, name: str) -> bool:
    try:
        setting(sampler, name)
    except AttributeError:
        return False
    return True


def with_settings(sampler: Any, settings: Mapping[str, Any]) -> Any:
    """The sampler with other settings under their dotted names.

    Raises ValueError for a name that it does not have and for a value that it refuses.
    """
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    known = [field.name for field in fields(sampler)]
    for name, value in settings.items():
        first, _, rest = name.partition(".")
        if first not in known:
            what = type(sampler).__name__.lower()
            close = get_close_matches(first, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{what} has no setting {first!r}{hint} (settings: {', '.join(known) or 'none'})")
        if rest:
            inner.setdefault(first, {})[rest] = value
        else:
            own[first] = value
    for first, more in inner.items():
        own[first] = with_settings(own.get(first, getattr(sampler, first)), more)
    return replace(sampler, **own)


def as_config(thing: Any) -> Any:
    """A sampler, and the dataclasses inside it, as a node from which hydra makes it again, every setting included.

    A sampler that was read from a file is read from it again.

    Raises ValueError for a setting that is no dataclass, number, word, truth value, list or None.
    """
    if is_dataclass(thing) and not isinstance(thing, type):
        cls = type(thing)
        settings = {f.name: as_config(getattr(thing, f.name)) for f in fields(thing)}
        file = file_of(cls.__module__)
        if file is not None:
            return from_file_node(f"{file}:{cls.__qualname__}", settings)
        return {"_target_": f"{cls.__module__}.{cls.__qualname__}", **settings}
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, (tuple, list)):
        return [as_config(value) for value in thing]
    raise ValueError(f"a setting like {thing!r} cannot be written as a configuration, so the sampler cannot be tuned")


def from_file_node(file: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The node of a sampler in a file; `_convert_` so that the settings arrive as plain values."""
    target = "invdiff.samplers.from_file.from_file"
    return {"_target_": target, "_convert_": "all", "file": file, "settings": dict(settings)}


def given_settings(sampler: Sampler, named: Collection[str] = ()) -> dict[str, Any]:
    """Settings of a sampler that differ from its defaults or were named, by dotted name: `given` of `settings_for`.

    named  dotted names; that of a dataclass stands for all settings inside it
    """
    return dict(_given(sampler, type(sampler)(), named, ""))


def _given(thing: Any, default: Any, named: Collection[str], before: str) -> Iterator[tuple[str, Any]]:
    for field in fields(thing):
        name, value = before + field.name, getattr(thing, field.name)
        own = getattr(default, field.name, None)
        if not is_dataclass(value):
            if value != own or any(n == name or name.startswith(f"{n}.") for n in named):
                yield name, value
            continue
        if type(value) is not type(own):  # another class, with all its settings
            yield name, value
            named = [*named, name]
        yield from _given(value, own, named, f"{name}.")


def dotted(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= dotted(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return found


def _shown(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
