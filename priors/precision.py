"""Compute policy of networks: bf16 where the hardware is fast at it, float32 elsewhere.

Only the inside of a network runs in bf16; images, operators and everything a sampler computes stay in float32.
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


def autocast(precision: str, device: torch.device | str) -> AbstractContextManager:
    """The context in which networks run under a precision; `auto` asks the hardware."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    device_type = torch.device(device).type
    if precision == "bfloat16" or (precision == "auto" and fast_bf16(device_type)):
        return torch.autocast(device_type, dtype=torch.bfloat16)
    return nullcontext()
