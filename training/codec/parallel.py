"""Data-parallel training in several processes of one thread: on a busy machine far quicker than one with many threads.

Every process draws its own crops; gradients and codebook statistics are summed. All functions do
nothing in a process that is alone.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from personaplex.native.process import KEPT_FOR_TRAINING, keep_freed_memory


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_(tensor: Tensor) -> Tensor:
    """Sums a contiguous tensor over the processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def from_first_(tensor: Tensor) -> Tensor:
    """Copies the first process's tensor to all, in place."""
    if world() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def barrier() -> None:
    if world() > 1:
        dist.barrier()


def _work(index: int, processes: int, meeting: str, work: Callable, arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a dying parent sends; ignored in the background
    torch.set_num_threads(1)
    keep_freed_memory(KEPT_FOR_TRAINING)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=index, world_size=processes)
    try:
        work(*arguments)
    finally:
        dist.destroy_process_group()


def run(processes: int, work: Callable, *arguments: object) -> None:
    """Calls `work(*arguments)` in `processes` processes that can reach each other."""
    if processes <= 1:
        keep_freed_memory(KEPT_FOR_TRAINING)
        work(*arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        torch.multiprocessing.spawn(_work, (processes, meeting, work, arguments), nprocs=processes)
