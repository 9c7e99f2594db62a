"""How many samples to have in flight at once: as many as fill the device, fewer once they have not fitted."""

import torch

from invdiff.benchmark.budget import Speed

# Pixels in flight beyond which a device does not get faster; larger batches would only be stored later. Measured with
# the bundled networks: on a CPU the time of a pixel is the same from 2^15 on.
FULL = {"cpu": 2**17, "cuda": 2**23}
SHARE = 0.6  # of the free memory, for what the sampler and the operator keep comes on top of the network's


def likely_rows(shape: tuple[int, ...], particles: int, device: torch.device, speed: Speed) -> int:
    """Samples of images (C, H, W) that fill a device and are likely to fit; at least one."""
    rows = FULL.get(device.type, FULL["cpu"]) // (particles * shape[-1] * shape[-2])
    if device.type == "cuda" and speed.bytes is not None:
        free = torch.cuda.mem_get_info(device)[0]
        rows = min(rows, int(SHARE * free) // (particles * speed.bytes))
    return max(1, rows)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; on the CPU, torch has no class of its own for that."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
