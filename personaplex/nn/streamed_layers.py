"""Layers that stay in host memory and stream through the GPU, for a GPU too small for all of them.

Two buffers on the device take turns: while one layer computes, the next one's weights are on their
way. Iterating over ``StreamedLayers`` is all a model has to do, in a frame or in a prompt, eagerly or
while a CUDA graph records it: the copies become nodes of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from personaplex.nn.linear import Linear, WeightFormat

BUFFERS = 2
ALIGNMENT_BYTES = 256


class _HostLayer:
    """One layer's weights in host memory, as one block of bytes, and where they lie in a device buffer."""

    def __init__(self, layer: nn.Module, pinned: bool):
        self._places: list[tuple[Linear, str, int, int, torch.dtype, torch.Size]] = []
        pieces, end = [], 0
        for linear in (module for module in layer.modules() if isinstance(module, Linear)):
            if linear.format is WeightFormat.INT4:
                linear.use_row_layout_()
            for name in ("data", "scale"):
                tensor = getattr(linear, name)
                if tensor is not None:
                    start = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
                    end = start + tensor.nbytes
                    self._places.append((linear, name, start, end, tensor.dtype, tensor.shape))
                    pieces.append((start, tensor))
        self.block = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)
        for start, tensor in pieces:
            self.block[start : start + tensor.nbytes] = tensor.contiguous().view(-1).view(torch.uint8).cpu()
        for linear, name, *_ in self._places:
            setattr(linear, name, None)  # the copy is what there is from now on: `point_to` names it

    def point_to(self, buffer: Tensor) -> None:
        """The layer's weights are views of ``buffer`` from now on; what they hold there comes by copying."""
        for linear, name, start, end, dtype, shape in self._places:
            setattr(linear, name, buffer[start:end].view(dtype).view(shape))


class _Transfers:
    """Copies on a stream of their own, and who waits for whom; on a CPU everything happens at once."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._device = device

    def mark(self) -> Any:
        """A point in the computing stream."""
        return torch.cuda.current_stream(self._device).record_event() if self._cuda else None

    def start(self, copy: Callable[[], Tensor], after: Any) -> Any:
        """Copy once the point ``after`` has passed → the point at which the copy is there."""
        with torch.cuda.stream(self._stream) if self._cuda else nullcontext():
            if after is not None:
                self._stream.wait_event(after)
            copy()
            return self._stream.record_event() if self._cuda else None

    def wait(self, point: Any) -> None:
        if point is not None:
            torch.cuda.current_stream(self._device).wait_event(point)


class StreamedLayers(nn.ModuleList):
    """The same layers in the same order; those from ``kept`` on have their weights brought when their turn comes."""

    def __init__(self, layers: nn.ModuleList, kept: int, device: torch.device | str):
        """layers: with all weights loaded, those from ``kept`` on in host memory, the norms on the device."""
        super().__init__(nn.ModuleList.__iter__(layers))
        device = torch.device(device)
        self._kept, self._transfers = kept, _Transfers(device)
        streamed = list(nn.ModuleList.__iter__(self))[kept:]
        self._hosts = [_HostLayer(layer, pinned=device.type == "cuda") for layer in streamed]
        size = max((host.block.nbytes for host in self._hosts), default=0)
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in self._hosts[:BUFFERS]]
        for index, host in enumerate(self._hosts):
            host.point_to(self._buffers[index % BUFFERS])

    @property
    def host_bytes(self) -> int:
        """What a frame brings from host memory."""
        return sum(host.block.nbytes for host in self._hosts)

    def __iter__(self) -> Iterator[nn.Module]:
        layers = list(super().__iter__())
        begun = self._transfers.mark()
        free = [begun] * BUFFERS
        coming = [self._bring(index, free) for index in range(min(BUFFERS, len(self._hosts)))]
        yield from layers[: self._kept]
        for index, layer in enumerate(layers[self._kept :]):
            self._transfers.wait(coming[index])
            yield layer
            free[index % BUFFERS] = self._transfers.mark()
            if index + BUFFERS < len(self._hosts):
                coming.append(self._bring(index + BUFFERS, free))

    def _bring(self, index: int, free: list[Any]) -> Any:
        block, buffer = self._hosts[index].block, self._buffers[index % BUFFERS]
        return self._transfers.start(
            lambda: buffer[: block.nbytes].copy_(block, non_blocking=True), free[index % BUFFERS]
        )


def layers_that_fit(layer_bytes: int, layers: int, free_bytes: int) -> int:
    """How many layers can stay on the device: all, or what is left beside the two buffers."""
    if layers * layer_bytes <= free_bytes:
        return layers
    return max(0, min(layers - 1, free_bytes // layer_bytes - BUFFERS))
