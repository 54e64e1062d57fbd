"""Layers that stay in host memory and stream through the GPU, for a GPU too small for all of them.

Two buffers on the device take turns: while one layer computes, the next one's weights are copied. A model runs
its layers in the order that ``stream`` yields them, in a frame or in a prompt, eagerly or while a CUDA graph
records it: the copies become nodes of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from personaplex.nn.linear import Linear
from personaplex.nn.module_list import M, ModuleList
from personaplex.nn.weight import Weight

BUFFERS = 2
ALIGNMENT_BYTES = 256


@dataclass(frozen=True)
class _Place:
    """One tensor of a weight in a layer's block of bytes."""

    weight: Weight
    name: str
    tensor: Tensor
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.tensor.nbytes


def _places(layer: nn.Module) -> list[_Place]:
    """All tensors of a layer's linear weights, one after the other in a block of bytes."""
    places: list[_Place] = []
    for linear in (module for module in layer.modules() if isinstance(module, Linear)):
        linear.use_row_layout_()
        for name, tensor in linear.loaded.tensors().items():
            end = places[-1].stop if places else 0
            places.append(_Place(linear.loaded, name, tensor, -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES))
    return places


def _to_host(places: list[_Place], pinned: bool) -> Tensor:
    """One layer's weights as one block of bytes in host memory."""
    block = torch.empty(places[-1].stop if places else 0, dtype=torch.uint8, pin_memory=pinned)
    for place in places:
        block[place.start : place.stop] = place.tensor.contiguous().view(-1).view(torch.uint8).cpu()
    return block


def _point_to(buffer: Tensor, places: list[_Place]) -> None:
    """Make a layer's weights views of ``buffer``; ``stream`` copies their bytes there before the layer's turn."""
    for place in places:
        view = buffer[place.start : place.stop].view(place.tensor.dtype).view(place.tensor.shape)
        setattr(place.weight, place.name, view)


class _Transfers:
    """Copies on a CUDA stream of their own, ordered by events; on a CPU everything happens at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def mark(self) -> torch.cuda.Event | None:
        """An event at this point of the computing stream."""
        return None if self._stream is None else torch.cuda.current_stream(self._device).record_event()

    def start(self, copy: Callable[[], object], after: torch.cuda.Event | None) -> torch.cuda.Event | None:
        """Start ``copy`` once the event ``after`` has passed → the event that marks its completion."""
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            if self._stream is not None and after is not None:
                self._stream.wait_event(after)
            copy()
            return None if self._stream is None else self._stream.record_event()

    def wait(self, event: torch.cuda.Event | None) -> None:
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)


class StreamedLayers(ModuleList[M]):
    """The same layers in the same order; the weights of those from ``kept`` on are copied in for each use.

    Only ``stream`` copies: whoever runs the layers iterates over that. Iterating over the list itself does not.
    """

    def __init__(self, layers: ModuleList[M], kept: int, device: torch.device | str) -> None:
        """layers: with all weights loaded, those from ``kept`` on in host memory, the norms on the device."""
        super().__init__(layers)
        device = torch.device(device)
        self._kept, self._transfers = kept, _Transfers(device)
        self._blocks: list[Tensor] = []
        streamed = list(self)[kept:]
        size = max((places[-1].stop for places in map(_places, streamed) if places), default=0)
        self._device_buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in streamed[:BUFFERS]]
        for index, layer in enumerate(streamed):  # one after the other: each frees what it held before
            places = _places(layer)
            self._blocks.append(_to_host(places, pinned=device.type == "cuda"))
            _point_to(self._device_buffers[index % BUFFERS], places)

    @property
    def host_bytes(self) -> int:
        """Bytes copied from host memory in each frame."""
        return sum(block.nbytes for block in self._blocks)

    def stream(self) -> Iterator[M]:
        """Yield the layers in order, each with its weights on the device until the next one is asked for.

        To be exhausted: a layer's copy starts when the buffer's last user has been computed.
        """
        layers = list(self)
        free = [self._transfers.mark()] * BUFFERS
        coming = [self._bring(index, free) for index in range(min(BUFFERS, len(self._blocks)))]
        yield from layers[: self._kept]
        for index, layer in enumerate(layers[self._kept :]):
            self._transfers.wait(coming[index])
            yield layer
            free[index % BUFFERS] = self._transfers.mark()
            if index + BUFFERS < len(self._blocks):
                coming.append(self._bring(index + BUFFERS, free))

    def _bring(self, index: int, free: list[torch.cuda.Event | None]) -> torch.cuda.Event | None:
        block, buffer = self._blocks[index], self._device_buffers[index % BUFFERS]
        return self._transfers.start(
            lambda: buffer[: block.nbytes].copy_(block, non_blocking=True), free[index % BUFFERS]
        )


def in_turn(layers: ModuleList[M]) -> Iterator[M]:
    """A model's layers in the order they run, streamed ones with their weights on the device."""
    return layers.stream() if isinstance(layers, StreamedLayers) else iter(layers)


def layers_that_fit(layer_bytes: int, layers: int, free_bytes: int) -> int:
    """Number of layers that can stay on the device: all, or those that fit beside the two buffers."""
    if layers * layer_bytes <= free_bytes:
        return layers
    return max(0, min(layers - 1, free_bytes // layer_bytes - BUFFERS))
