"""A whole frame as one CUDA graph: one launch, one wait.

Copies of the microphone's samples in and of speech and tokens out are nodes of the graph, between
pinned host memory and the device; listening runs beside the language model on a stream of its own.

There is a graph for each number of slots in ``slot_buckets``: the first n slots are one, so a
machine with room for many conversations does not pay for all of them while few are taken. A
predictor that needs a bound on the filled cache gets a graph for each of ``span_buckets`` too.
Sampling options and positions are data on the device; weights and states keep their addresses:
only ``recapture`` is needed after something else changed, such as the weights' format.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from personaplex.engine.prediction import StepOutput
from personaplex.errors import first_line

log = logging.getLogger(__name__)

WARM_UP_FRAMES = 3
"""Eager frames before a capture: libraries choose their algorithms and take their memory in these."""

FIRST_SPAN_FRAMES = 64


class CaptureFailed(Exception):
    """A frame cannot be recorded here, with the reason; no state was changed."""


Frame = Callable[..., StepOutput]
"""``Engine.frame``: pcm [n, samples], uniform [n, 9], active [n] bool, all on the device, span, beside."""

Beside = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]


def slot_buckets(slots: int) -> tuple[int, ...]:
    """Powers of two below ``slots``, and ``slots``."""
    return (*(1 << n for n in range((slots - 1).bit_length())), slots)


def span_buckets(context: int, needs_span: bool) -> tuple[int, ...]:
    """Bounds of the filled cache that have a graph of their own, in frames."""
    if not needs_span:
        return (context,)
    found = [FIRST_SPAN_FRAMES]
    while found[-1] < context:
        found.append(found[-1] * 2)
    return (*found[:-1], context)


def at_least(buckets: tuple[int, ...], value: int) -> int:
    """The smallest bucket that holds ``value``."""
    return next(bucket for bucket in buckets if bucket >= value)


@dataclass
class FrameBuffers:
    """Host buffers that a frame reads and writes; rows are slots."""

    pcm: Tensor  # [B, frame_samples] float32
    uniform: Tensor  # [B, 9] float32
    active: Tensor  # [B] bool
    spoken: Tensor  # [B, frame_samples] float32
    tokens: Tensor  # [B, 17] int64
    valid: Tensor  # [B] bool

    @classmethod
    def empty(cls, slots: int, frame_samples: int, draws: int, streams: int, pinned: bool) -> FrameBuffers:
        def host(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, pin_memory=pinned)

        return cls(
            host(slots, frame_samples), host(slots, draws), host(slots, dtype=torch.bool), host(slots, frame_samples),
            host(slots, streams, dtype=torch.int64), host(slots, dtype=torch.bool),
        )  # fmt: skip


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection meanwhile: destroying an unused graph while another is recorded would break that one."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Capture:
    """Records work once as a CUDA graph; tests on the CPU replace it."""

    def __init__(self, device: str):
        self.device = torch.device(device)
        self._stream = torch.cuda.Stream(self.device)
        self._side = torch.cuda.Stream(self.device)
        self._done = torch.cuda.Event()
        # Graphs of one engine never run at the same time: they share their memory.
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[Beside], StepOutput]) -> tuple[Callable[[], None], StepOutput]:
        """→ a function that replays the work, and the static output that every replay fills."""
        torch.cuda.synchronize(self.device)
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        cause: BaseException | None = None
        try:
            with (
                _no_collection(),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                try:
                    out = work(self.beside)
                except BaseException as error:
                    cause = error
                    raise
        except BaseException as error:
            self._clean_up(before)
            if cause is not None and error is not cause:  # ending the capture failed, too; that error says less
                raise cause from None
            raise
        return graph.replay, out

    def _clean_up(self, before: torch.cuda.Stream) -> None:
        """After a failed capture PyTorch up to 2.11 stays on its stream and keeps allocating from its pool."""
        torch.cuda.set_stream(before)
        with suppress(RuntimeError, AttributeError):  # a newer PyTorch has done it already
            torch._C._cuda_endAllocateToPool(before.device_index, self._pool)

    def warm_up(self, work: Callable[[Beside], StepOutput]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP_FRAMES):
                work(self.beside)
                self._stream.synchronize()
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def beside(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Start ``work`` on a second stream; the returned function makes the first one wait for it."""
        main = torch.cuda.current_stream(self.device)
        self._side.wait_stream(main)
        with torch.cuda.stream(self._side):
            result = work()

        def join() -> Tensor:
            main.wait_stream(self._side)
            return result

        return join

    def wait(self) -> None:
        """Wait until the launched work is done: the only such point of a frame."""
        self._done.record(torch.cuda.current_stream(self.device))
        self._done.synchronize()


class FrameGraphs:
    """Runs ``Engine.frame`` from host tensors to host tensors."""

    def __init__(
        self, frame: Frame, *, slots: int, context: int, needs_span: bool, frame_samples: int, draws: int, streams: int,
        device: str, capture: Capture | None = None,
    ):  # fmt: skip
        """draws: uniform numbers a slot and frame; streams: rows of a token column."""
        self._frame, self._device = frame, device
        self._capture = capture or Capture(device)
        self._buffers = FrameBuffers.empty(slots, frame_samples, draws, streams, pinned=device != "cpu")
        self.slot_buckets, self.span_buckets = slot_buckets(slots), span_buckets(context, needs_span)
        self._graphs: dict[tuple[int, int], tuple[Callable[[], None], StepOutput]] = {}

    def recapture(self) -> None:
        """Forget every graph: the next frames record new ones. Needed when weights were loaded anew."""
        self._graphs.clear()

    def prepare(self) -> None:
        """Record all graphs now, so that no conversation waits for one. Raises CaptureFailed."""
        for slots in self.slot_buckets:
            for span in self.span_buckets:
                self._graph(slots, span)

    @torch.inference_mode()
    def __call__(self, pcm: Tensor, uniform: Tensor, active: Tensor, span: int) -> StepOutput:
        """pcm [B, frame_samples] float32, uniform [B, 9] float32 and active [B] bool, on the CPU.

        → tokens, validity and speech on the CPU; logits of the first n ≥ highest active slots on the device,
        where the next frame overwrites them. Raises CaptureFailed where a frame cannot be recorded.
        """
        moving = active.nonzero()
        busy = at_least(self.slot_buckets, int(moving.max()) + 1 if len(moving) else 1)
        replay, out = self._graph(busy, at_least(self.span_buckets, span))
        held = self._buffers
        held.pcm.copy_(pcm)
        held.uniform.copy_(uniform)
        held.active.copy_(active)
        replay()
        self._capture.wait()
        valid = held.valid & (torch.arange(len(active)) < busy)
        tokens = held.tokens.clone()
        return replace(out, text=tokens[:, 0], tokens=tokens, valid=valid, pcm=held.spoken.clone())

    def _graph(self, slots: int, span: int) -> tuple[Callable[[], None], StepOutput]:
        found = self._graphs.get((slots, span))
        if found is None:
            log.info("recording the frame of %d slots and %d frames of cache", slots, span)
            found = self._graphs[slots, span] = self._record(slots, span)
        return found

    @torch.inference_mode()
    def _record(self, slots: int, span: int) -> tuple[Callable[[], None], StepOutput]:
        held = self._buffers

        def work(beside: Beside) -> StepOutput:
            pcm, uniform, active = (
                host[:slots].to(self._device, non_blocking=True) for host in (held.pcm, held.uniform, held.active)
            )
            out = self._frame(pcm, uniform, active, span, beside)
            held.tokens[:slots].copy_(out.tokens, non_blocking=True)
            held.valid[:slots].copy_(out.valid, non_blocking=True)
            assert out.pcm is not None, "a whole frame has sound"
            held.spoken[:slots].copy_(out.pcm, non_blocking=True)
            return out

        # Nobody moves while a graph is warmed up: no state changes.
        held.active.zero_()
        try:
            self._capture.warm_up(work)
            return self._capture.record(work)
        except Exception as error:  # of the driver, a library that cannot be captured, the compiler, too little memory
            raise CaptureFailed(f"{type(error).__name__}: {first_line(str(error))}") from error
