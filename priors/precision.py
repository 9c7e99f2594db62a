"""Compute policy of networks: bf16 where the hardware is fast at it and its error is bounded, float32 elsewhere.

Only the inside of a network runs in bf16; images, operators and everything a sampler computes keep their type. A
network that predicts the noise or the score errs by about sigma / 512 in bf16, more than an image at high noise
(`Prior.bounded_error`): there `auto` takes float32.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

PRECISIONS = ("auto", "float32", "bfloat16")


@cache
def fast_bf16(device_type: str) -> bool:
    """Whether bf16 convolutions run natively: CUDA from Ampere on, CPUs with AMX or AVX512-BF16."""
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    if device_type == "cpu":
        # The public get_cpu_capability() stops at AVX512; only these two report native bf16.
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return False


def chosen(precision: str, device: torch.device | str, *, bounded_error: bool = True) -> str:
    """The precision in effect, `float32` or `bfloat16`; `auto` asks the hardware."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision != "auto":
        return precision
    return "bfloat16" if bounded_error and fast_bf16(torch.device(device).type) else "float32"


def autocast(precision: str, device: torch.device | str) -> AbstractContextManager:
    """The context in which networks run under a precision; `auto` asks the hardware."""
    if chosen(precision, device) == "bfloat16":
        return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
    return nullcontext()
