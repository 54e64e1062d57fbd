"""The duplex engine: one call is one 80 ms frame of every slot.

It knows tensors only: no files, no text, no clocks. Weights are shared; each slot is one
conversation with its own position, noise and sampling options.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from personaplex.config import USER, LMConfig, ModelConfig
from personaplex.engine.backends.choose import codec_for, predictor_for
from personaplex.engine.backends.cpu_codec import NativeCodec
from personaplex.engine.backends.cuda_graphs import CaptureFailed, FrameGraphs
from personaplex.engine.columns import FrameClock, FrameState, agent_of, column_of, text_of, unheard_frame
from personaplex.engine.filled import FilledBounds
from personaplex.engine.prediction import Prediction, Predictor, StepOutput
from personaplex.engine.telling import LEAST_LIVE_FRAMES, ToldText, check_kept
from personaplex.errors import InputError
from personaplex.messages import SamplingOptions
from personaplex.models.language_model import LanguageModel
from personaplex.models.mimi import DecoderState, EncoderState, Mimi
from personaplex.models.temporal import ZERO_TOKEN
from personaplex.nn.attention import KeepingState
from personaplex.nn.sampling import SamplerState
from personaplex.nn.state import State, check_row, export_row, load_row_, reset_rows, row_view, rows_view

log = logging.getLogger(__name__)

MIN_CONTEXT_FRAMES = 4

ENCODE_PIECE_FRAMES = 8
"""Frames of a recording encoded at once, between two frames of those who talk meanwhile."""

ENCODE_PIECE_FRAMES_ALONE = 50
"""The same with one slot, where nobody waits: enough frames to use each weight often once it is read."""

DRAWS_PER_FRAME = 9
"""Uniform numbers a frame needs: one for the text token, one for each agent code."""

RunFrame = Callable[[Tensor, Tensor, Tensor, int], StepOutput]
"""pcm [B, frame_samples] float32, noise [B, 9] float32 and active [B] bool on the CPU, and a bound on the filled cache
→ the frame's output."""


@dataclass
class EngineState(State):
    """State of all conversations of an engine."""

    encoder: EncoderState
    decoder: DecoderState
    temporal: KeepingState
    frames: FrameState
    sampler: SamplerState


@dataclass(frozen=True)
class Snapshot:
    """One slot's whole state, on the CPU; it goes on bit-identically in any slot of the same engine kind."""

    tensors: dict[str, Tensor]
    noise: Tensor  # state of the slot's generator

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def checked_context(wanted: int | None, config: LMConfig) -> int:
    """The cache's length in frames, the model's own by default; raises InputError for one that it cannot have."""
    context = config.context if wanted is None else wanted
    if not MIN_CONTEXT_FRAMES <= context <= config.context:
        raise InputError(
            f"context is {context} frames; allowed for this model: {MIN_CONTEXT_FRAMES} to {config.context}"
        )
    return context


class Engine:
    """Listens and speaks, ``slots`` conversations at a time."""

    def __init__(
        self, config: ModelConfig, lm: LanguageModel, mimi: Mimi, *, slots: int = 1, context: int | None = None,
        cache_dtype: torch.dtype | None = None, device: str = "cpu", predictor: Predictor | None = None,
        graphs: bool = True,
    ):  # fmt: skip
        """``context`` is the cache's length in frames, the model's own by default; so is ``cache_dtype``.

        ``predictor`` computes the language model's part of a frame; by default the GPU's kernels or the CPU's
        compiled code where they can be had, else the models themselves. ``graphs``: record a GPU's frames as CUDA
        graphs.
        """
        context = checked_context(context, config.lm)
        if slots < 1:
            raise InputError(f"slots is {slots}; at least 1 is needed")
        self.config, self.lm, self.mimi = config, lm, mimi
        self.slots, self.context, self.device = slots, context, device
        self.state = EngineState(
            mimi.encoder_state(slots, device),
            mimi.decoder_state(slots, device),
            lm.temporal.initial_state(slots, context, cache_dtype or lm.activation_dtype, device),
            FrameState.empty(slots, config.lm, device),
            SamplerState.empty(slots, device),
        )
        self.codec: Mimi | NativeCodec = codec_for(mimi, device)
        self.filled = FilledBounds(slots, context)
        self._told = ToldText(self.state.temporal, self.state.frames, config.lm.max_period)
        self._predictor = predictor
        eager = not graphs or not device.startswith("cuda")
        self._run_frame: RunFrame | None = self._run_eagerly if eager else None
        self._clock = FrameClock(config.lm, device)
        self._noise = [torch.Generator() for _ in range(slots)]

    @property
    def frame_samples(self) -> int:
        return self.config.mimi.frame_samples

    @property
    def predictor(self) -> Predictor:
        """Computes the language model's part of a frame; chosen at the first use: a GPU may be lent only then."""
        if self._predictor is None:
            self._predictor = predictor_for(
                self.lm, slots=self.slots, context=self.context, device=self.device,
                cache_dtype=self.state.temporal.layers[0].keys.dtype,
            )  # fmt: skip
        return self._predictor

    @predictor.setter
    def predictor(self, predictor: Predictor) -> None:
        self._predictor = predictor

    @property
    def run_frame(self) -> RunFrame:
        """Runs the frames of ``step``: ``frame`` itself, or CUDA graphs of it, which are made at the first use."""
        if self._run_frame is None:
            self._run_frame = FrameGraphs(
                self.frame, slots=self.slots, context=self.context, needs_span=self.predictor.needs_span,
                frame_samples=self.frame_samples, draws=DRAWS_PER_FRAME, streams=self.config.lm.num_streams,
                device=self.device,
            )  # fmt: skip
        return self._run_frame

    @run_frame.setter
    def run_frame(self, run: RunFrame) -> None:
        self._run_frame = run

    def warm_up(self) -> None:
        """Do now what the first frame would wait for: record every graph, make compiled code's copies of weights."""
        run = self.run_frame
        if isinstance(run, FrameGraphs):
            try:
                run.prepare()
            except CaptureFailed as error:
                self._do_without_graphs(error)
        else:
            nobody = torch.zeros(self.slots, dtype=torch.bool)
            self.step(torch.zeros(self.slots, self.frame_samples), nobody)

    def _do_without_graphs(self, error: CaptureFailed) -> None:
        log.warning("frames run one operator after the other, slower: no CUDA graph can be recorded (%s)", error)
        self.run_frame = self._run_eagerly

    # -- one frame ---------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, pcm: Tensor, active: Tensor) -> StepOutput:
        """Hear one frame and say one.

        pcm: [B, frame_samples] float32 in −1..1; active: [B] bool on the CPU, which slots move.
        """
        uniform, span = self._prepare(active)
        try:
            out = self.run_frame(pcm, uniform, active, span)
        except CaptureFailed as error:
            self._do_without_graphs(error)
            out = self.run_frame(pcm, uniform, active, span)
        self._settle(active)
        return out

    @torch.inference_mode()
    def step_tokens(self, known: Tensor, active: Tensor) -> StepOutput:
        """One frame of the language model alone.

        known: [B, 17] int64, ``UNKNOWN`` where the model decides; user rows must be known.
        active: [B] bool on the CPU.
        """
        uniform, span = self._prepare(active)
        moves = active.to(self.device)
        forced, prediction = self._predict(self.state, known.to(self.device), uniform.to(self.device), moves, span)
        out = self._finish(self.state, prediction, forced[:, USER], moves)
        self._settle(active)
        return out

    def _run_eagerly(self, pcm: Tensor, uniform: Tensor, active: Tensor, span: int) -> StepOutput:
        return self.frame(pcm.to(self.device), uniform.to(self.device), active.to(self.device), span)

    def frame(
        self, pcm: Tensor, uniform: Tensor, active: Tensor, span: int,
        beside: Callable[[Callable[[], Tensor]], Callable[[], Tensor]] | None = None,
    ) -> StepOutput:  # fmt: skip
        """The device's side of a frame, for the first n ≤ B slots; free of host decisions for CUDA graphs.

        pcm [n, frame_samples] float32, uniform [n, 9] float32 and active [n] bool on the engine's device; span: a
        bound on the filled cache. ``beside`` starts work that may run at the same time and returns what waits for
        it: the encoder and the language model do not need each other's results.
        """
        state = self.state if pcm.shape[0] == self.slots else rows_view(self.state, 0, pcm.shape[0])

        def listen() -> Tensor:
            return self.codec.encode(pcm, state.encoder, active)[:, :, 0]

        heard = beside(listen) if beside is not None else listen
        _, prediction = self._predict(state, unheard_frame(pcm.shape[0], pcm.device), uniform, active, span)
        user = self._clock.hear(state.frames, heard(), active)
        return self._spoken(self._finish(state, prediction, user, active), state.decoder)

    def _spoken(self, out: StepOutput, decoder: DecoderState) -> StepOutput:
        """The same with its sound."""
        # Where there is nothing to play the codec wants codes all the same.
        playable = agent_of(out.tokens).clamp(0, self.config.lm.card - 1)[:, :, None]
        pcm = self.codec.decode(playable, decoder, out.valid)
        return replace(out, pcm=pcm.masked_fill(_is_lost(out)[:, None], torch.nan))

    def _prepare(self, active: Tensor) -> tuple[Tensor, int]:
        """The host's side of a frame → each moving slot's noise [B, 9], and how much of the cache may be filled."""
        uniform = torch.zeros(self.slots, DRAWS_PER_FRAME)
        rows = [row for row, moves in enumerate(active.tolist()) if moves]
        for row in rows:
            uniform[row] = torch.rand(DRAWS_PER_FRAME, generator=self._noise[row])
            self._told.before_frame(row, self.filled.position(row))
            self.filled.advance(row)
        return uniform, self.filled.span(rows)

    def _settle(self, active: Tensor) -> None:
        """What the host does after a frame: keep what was told before it."""
        for row, moves in enumerate(active.tolist()):
            if moves:
                self._told.after_frame(row)

    def _predict(
        self, state: EngineState, known: Tensor, uniform: Tensor, active: Tensor, span: int
    ) -> tuple[Tensor, Prediction]:
        """Read column t − 1 and complete column t → what was known of column t [B, 17], and the prediction."""
        read, forced = self._clock.begin(state.frames, known, active)
        # The very first call of a stream only takes note of what is known.
        moves = active & (state.frames.position > 0)
        return forced, self.predictor(read, forced, uniform, state.temporal, state.sampler, moves, span)

    def _finish(self, state: EngineState, prediction: Prediction, user: Tensor, active: Tensor) -> StepOutput:
        """Write column t, user [B, 8] its known rows, and return frame t − 1."""
        column = column_of(prediction.text, prediction.codes, user)
        tokens, valid = self._clock.finish(state.frames, column, active)
        return StepOutput(text_of(tokens), tokens, valid, prediction.text_logits, prediction.audio_logits)

    # -- prompts -----------------------------------------------------------------------------

    @torch.inference_mode()
    def prefill_frames(self, row: int, frames: Tensor) -> None:
        """Feed N frames at once whose tokens are all known: frames [N, 17] int64. Equal to N steps."""
        view = row_view(self.state, row)
        if int(frames.min()) < ZERO_TOKEN:
            raise InputError("prefill_frames needs every token of every frame; one is UNKNOWN")
        columns = self._clock.force(view.frames, frames.to(self.device))
        embedded = self.lm.temporal.embed(columns[None], self.lm.activation_dtype)
        while embedded.shape[1]:
            self._told.before_frame(row, self.filled.position(row))
            steps = self._told.unchanged_for(row, self.filled.position(row))
            piece, embedded = embedded[:, :steps], embedded[:, steps:]
            self.lm.temporal.prefill(piece, view.temporal, self.filled[row])
            self.filled.advance(row, piece.shape[1])

    def told_and_kept(self, row: int) -> tuple[int, int]:
        """Frames of text that a conversation was told so far, and frames that the cache keeps of it for good."""
        return self._told.counts(row)

    @torch.inference_mode()
    def tell(self, row: int, frames: Tensor) -> StepOutput:
        """Force N frames between two frames of a live conversation: frames [N, 17] int64, N ≥ 1.

        The first completes the frame before them, as the codes of a frame come in two calls; the others are computed
        at once. A slot that keeps its prompt keeps them, too. Raises InputError, before anything moves, for more than
        ``MOST_TOLD_TOKENS`` in all or more than the cache can keep.
        → the frame before them with its sound, in this slot's row, if it is ``valid``: it may be the last of another
        text, or there is none yet. The next step returns the last told frame, which is not valid.
        """
        self._told.check_fits(row, frames.shape[0])
        everywhere = frames[:1].expand(self.slots, -1)
        out = self._spoken(self.step_tokens(everywhere, torch.arange(self.slots) == row), self.state.decoder)
        if frames.shape[0] > 1:
            self.prefill_frames(row, frames[1:])
        self._told.add(row, frames.shape[0])
        return out

    @torch.inference_mode()
    def prefill_embeddings(self, row: int, embeddings: Tensor, columns: Tensor) -> None:
        """Start a slot that was reset from a published voice file; several calls take its embeddings piece by piece.

        embeddings: [T, dim], the transformer's inputs at positions 0 … T − 1; columns: [17, max_delay + 3]
        int64, the token ring as it stood after all of them. The next call is t = T + 1.
        """
        view = row_view(self.state, row)
        embedded = embeddings[None].to(self.device, self.lm.activation_dtype)
        self.lm.temporal.prefill(embedded, view.temporal, self.filled[row])
        view.frames.columns[0] = columns.to(self.device)
        view.frames.position.copy_(view.temporal.position + 1)
        self.filled.advance(row, embeddings.shape[0])

    @torch.inference_mode()
    def encode(self, pcm: Tensor) -> Iterator[Tensor]:
        """Encode a whole recording as one fresh stream, piece by piece.

        pcm: [F · frame_samples] float32 in −1..1 → codes [f, 8] int64 of the next f frames, until all F are done.
        """
        state = self.mimi.encoder_state(1, self.device)
        everyone = torch.ones(1, dtype=torch.bool, device=self.device)
        frames = ENCODE_PIECE_FRAMES_ALONE if self.slots == 1 else ENCODE_PIECE_FRAMES
        for piece in pcm.split(frames * self.config.mimi.frame_samples):
            yield self.mimi.encode(piece[None].to(self.device), state, everyone)[0].t()

    def keep(self, row: int) -> None:
        """Never overwrite what the language model's cache of a slot holds now.

        Raises InputError where less than ``LEAST_LIVE_FRAMES`` of the cache would be left for what follows.
        """
        filled = self.state.temporal.position[row]
        if int(filled) > self.context - LEAST_LIVE_FRAMES:
            most = self.context - LEAST_LIVE_FRAMES
            raise InputError(f"{int(filled)} frames cannot be kept in a context of {self.context}; {most} at most can")
        self.state.temporal.kept[row] = self.state.temporal.held[row] = filled

    # -- slots -------------------------------------------------------------------------------

    def reset(self, row: int) -> None:
        """Put a slot back to the very start."""
        reset_rows(self.state, self._only(row))
        self.filled.put(row, 0)
        self._told.forget(row)

    def wipe(self, row: int) -> None:
        """Reset a slot and zero its rings too: a NaN beyond what is filled would still reach the attention's sum."""
        self.reset(row)
        for leaf in self.state.leaves():
            if leaf.ring_axis is not None:
                leaf.tensor[row].zero_()

    def reset_codec(self, row: int) -> None:
        """Start fresh audio streams; the language model goes on. Done when a prompt is over."""
        reset_rows(self.state.encoder, self._only(row))
        reset_rows(self.state.decoder, self._only(row))

    def set_sampling(self, row: int, options: SamplingOptions) -> None:
        """Set a slot's sampling and start its noise from the seed."""
        self.state.sampler.set_row(row, options)
        self._noise[row].manual_seed(options.seed)

    def export(self, row: int) -> Snapshot:
        """Copy a slot's whole state to the CPU."""
        return Snapshot(export_row(self.state, row), self._noise[row].get_state())

    def check(self, snapshot: Snapshot) -> None:
        """Raise InputError unless a snapshot's values are consistent; reads nothing from the device.

        For snapshots from files: ``load`` checks types and shapes only.
        """
        check_row(self.state, snapshot.tensors)
        check_kept(snapshot.tensors, self.context)
        self._clock.check(snapshot.tensors["frames.columns"], int(snapshot.tensors["frames.position"]))
        try:
            torch.Generator().set_state(snapshot.noise)
        except (RuntimeError, TypeError) as error:
            raise InputError(f"the snapshot's noise is not a generator's state ({error}): make it again") from error

    def load(self, row: int, snapshot: Snapshot) -> None:
        """Put a snapshot into a slot; raises InputError when it is of another model, format or context."""
        load_row_(self.state, row, snapshot.tensors)
        self._noise[row].set_state(snapshot.noise)
        self.filled.put(row, int(snapshot.tensors["temporal.position"]))
        self._told.read(row, snapshot.tensors)

    def _only(self, row: int) -> Tensor:
        return torch.arange(self.slots, device=self.device) == row


def _is_lost(out: StepOutput) -> Tensor:
    """[B] bool: the language model's logits are not finite, which its tokens and so the speech would not show."""
    # A sum is finite only if all its terms are.
    sums = out.text_logits.sum(dim=1) + out.audio_logits.sum(dim=(1, 2))
    return out.valid & ~sums.isfinite()
