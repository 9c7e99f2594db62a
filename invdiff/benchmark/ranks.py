"""Several processes on one benchmark, started by `torchrun`; alone, this process is rank 0 of 1."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

_Thing = TypeVar("_Thing")


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is. All ranks must make the same calls in the same order."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process prints, and writes all files besides the rows."""
        return self.rank == 0

    def from_first(self, thing: _Thing) -> _Thing:
        """The object of rank 0, on every rank."""
        if self.count == 1:
            return thing
        box: list[Any] = [thing]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, thing: _Thing) -> list[_Thing]:
        """The objects of all ranks, in their order; waits for all."""
        if self.count == 1:
            return [thing]
        boxes: list[Any] = [None] * self.count
        dist.all_gather_object(boxes, thing)
        return boxes


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of this process, from the environment that `torchrun` sets; messages go by gloo, over the CPU.

    The tasks of one submitit job are ranks as well.
    """
    if "SUBMITIT_EXECUTOR" in os.environ and "WORLD_SIZE" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export()
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
