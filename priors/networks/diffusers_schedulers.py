"""Schedulers of `diffusers`: noise levels, time input and parametrisation of a network, from their configuration."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .network_time import DiscreteTime, EDMTime, FlowTime, NetworkTime, Parametrisation, VETime

PREDICTIONS: dict[str, Parametrisation] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
SPECIAL: dict[str, Parametrisation] = {
    "ScoreSdeVeScheduler": "score",
    "CMStochasticIterativeScheduler": "consistency",  # no posterior mean, see formats/consistency.py
    "FlowMatchEulerDiscreteScheduler": "flow",
    "FlowMatchHeunDiscreteScheduler": "flow",
}
CHAINS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")


def prediction(scheduler: Mapping[str, Any]) -> Parametrisation:
    """Parametrisation of the network, from a scheduler's configuration."""
    if scheduler.get("_class_name") in SPECIAL:
        return SPECIAL[scheduler["_class_name"]]
    name = scheduler.get("prediction_type", "epsilon")
    if name not in PREDICTIONS:
        raise ValueError(f"prediction_type of the scheduler must be one of {', '.join(PREDICTIONS)}, got {name!r}")
    if name == "epsilon" and scheduler.get("rescale_betas_zero_snr", False):
        raise ValueError(
            "prediction_type of a scheduler with rescale_betas_zero_snr must be v_prediction or sample, got epsilon: "
            "its last steps are pure noise, and a network that predicts noise determines no image there"
        )
    return PREDICTIONS[name]


def network_time(scheduler: Mapping[str, Any], *, steps_of_flow: float | None = None) -> NetworkTime:
    """Noise levels and time steps, from a scheduler's configuration; missing entries have diffusers' defaults.

    steps_of_flow  what a network of a flow takes at t = 1; None: `num_train_timesteps`
    """
    name = scheduler.get("_class_name", "a scheduler without _class_name")
    if SPECIAL.get(name) == "flow":
        if scheduler.get("invert_sigmas", False):
            raise ValueError("invert_sigmas of the scheduler must be false, got true")
        steps = scheduler.get("num_train_timesteps", 1000) if steps_of_flow is None else steps_of_flow
        return FlowTime(data_at=0, time_scale=float(steps))
    if scheduler.get("timestep_type", "discrete") != "discrete":
        raise ValueError(f"timestep_type of the scheduler must be discrete, got {scheduler['timestep_type']!r}")
    if name == "ScoreSdeVeScheduler":
        return VETime(scheduler.get("sigma_min", 0.01), scheduler.get("sigma_max", 1348.0), time_input="sigma")
    if name == "CMStochasticIterativeScheduler":
        low, high = scheduler.get("sigma_min", 0.002), scheduler.get("sigma_max", 80.0)
        return EDMTime(scheduler.get("sigma_data", 0.5), low, high, time_scale=1000.0)
    if name not in CHAINS and not {"beta_schedule", "trained_betas"} & set(scheduler):
        raise ValueError(
            f"the scheduler must be a chain of betas, got {name}; wrap the network by hand: "
            "ParametrisedPrior(network, parametrisation, schedule)"
        )
    steps, trained = scheduler.get("num_train_timesteps", 1000), scheduler.get("trained_betas")
    first, last = scheduler.get("beta_start", 0.0001), scheduler.get("beta_end", 0.02)
    rule = scheduler.get("beta_schedule", "linear")
    if trained is not None:
        chain = DiscreteTime.of_betas(trained)
    elif rule == "linear":
        chain = DiscreteTime.linear(steps, first, last)
    elif rule == "scaled_linear":
        chain = DiscreteTime.scaled_linear(steps, first, last)
    elif rule == "squaredcos_cap_v2":
        chain = DiscreteTime.cosine(steps)
    elif rule == "sigmoid":
        ramp = torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid()
        chain = DiscreteTime.of_betas((first + (last - first) * ramp).tolist())
    else:
        raise ValueError(
            f"{name}: unknown beta_schedule {rule!r}; known are linear, scaled_linear, squaredcos_cap_v2 and sigmoid"
        )
    if scheduler.get("rescale_betas_zero_snr", False):
        return DiscreteTime(_to_pure_noise(chain.alphas_cumprod))
    return chain


def _to_pure_noise(alphas_cumprod: Sequence[float]) -> tuple[float, ...]:
    """Shifted and scaled so that the last step is pure noise (arXiv:2305.08891, Algorithm 1)."""
    root = torch.tensor(alphas_cumprod, dtype=torch.float64).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return tuple((root**2).tolist())
