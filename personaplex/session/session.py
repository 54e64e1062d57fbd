"""Conversations on one engine: slots, prompts and their snapshots."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from personaplex.config import MOST_TOLD_TOKENS, PERSONA_WINDOW, PUBLISHED_WINDOW, checked_window
from personaplex.engine.engine import Engine, Snapshot
from personaplex.errors import CapacityError, InputError
from personaplex.messages import FrameOutput, Progress, SamplingOptions, Voice
from personaplex.models.temporal import PREFILL_CHUNK_FRAMES
from personaplex.session.prompt_frames import PromptBuilder
from personaplex.session.snapshots import SnapshotStore, read_snapshot, snapshot_key, state_key
from personaplex.text.prompt import prepare_prompt, prepare_told
from personaplex.text.tokenizer import TextTokenizer
from personaplex.weights.load import LoadedModel, VoicePrompt, read_voice_pt

PREFILL_PIECE_FRAMES = 8
"""Frames of a prompt computed at once, between two frames of those who talk meanwhile."""


class Session:
    """A loaded model with room for ``slots`` conversations."""

    def __init__(
        self, loaded: LoadedModel, *, slots: int = 1, context: int | None = None,
        window: str = PERSONA_WINDOW, snapshot_folder: str | Path | None = None,
    ):  # fmt: skip
        """``context`` shortens the cache (frames); ``snapshot_folder`` keeps prompted states on disk too.

        ``window``: what a full cache forgets. "persona": the oldest frames of the conversation, never its prompt.
        "published": the oldest of all, and so the prompt first, as the model's authors have it.
        """
        self.loaded, self.window = loaded, checked_window(window)
        self.engine = Engine(
            loaded.config, loaded.lm, loaded.mimi, slots=slots, context=context,
            cache_dtype=loaded.cache_dtype, device=loaded.device,
        )  # fmt: skip
        self.tokenizer = TextTokenizer(loaded.tokenizer_path, loaded.config.lm.text_card)
        self._builder = PromptBuilder(loaded.config)
        self._model = state_key(loaded.fingerprint, loaded.state_format, self.engine.context)
        self._store = SnapshotStore(self._model, self.engine.check, snapshot_folder)
        self._free = list(range(slots))
        # Held while stepping or prompting: there is one engine state.
        self._engine_lock = threading.Lock()

    @property
    def model_key(self) -> str:
        """Identity of weights, number format and cache length; a snapshot must have the same (``state_key``)."""
        return self._model

    def prepare(
        self, *, voice: Voice | None, text: str, truncate_text: bool = False, progress: Progress | None = None
    ) -> Snapshot:
        """The state after the hybrid prompt, computed once per voice and text.

        An empty text means no text segment, no voice means the model's own. Needs a free slot while it
        works. Raises PromptError when the text is too long and ``truncate_text`` is false, or the cache too short for
        voice and text.
        """
        work = self.prepare_in_pieces(voice=voice, text=text, truncate_text=truncate_text)
        while True:
            try:
                done, total = next(work)
            except StopIteration as finished:
                return finished.value
            if progress is not None:
                progress(done, total)

    def prepare_in_pieces(
        self, *, voice: Voice | None, text: str, truncate_text: bool = False
    ) -> Generator[tuple[int, int], None, Snapshot]:
        """``prepare`` as a generator, so that other conversations go on between its pieces.

        Yields (frames done, frames in all); returns the snapshot.
        """
        limit = self.loaded.config.prompt.max_text_tokens
        tokens = prepare_prompt(text, self.tokenizer, limit, truncate=truncate_text).tokens
        voice = self._builder.listened(voice)
        voice_key = _voice_key(voice)
        # The published window adds nothing, so that what 0.1.0 kept is still found.
        stays = [self.window] if self.window != PUBLISHED_WINDOW else []
        key = snapshot_key([self._model, voice_key, str(tokens), *stays])
        found = self._store.get(key)
        if found is not None:
            yield 1, 1
            return found
        role = self._builder.role(tokens)
        self._check_fits(self._builder.voice_frames(voice) + role.shape[0])
        with _BorrowedSlot(self) as row:
            yield from self._prompt_voice(row, voice, voice_key, role.shape[0])
            done = int(self.engine.state.frames.position[row])
            total = done + role.shape[0]
            self._check_fits(total)
            for piece in role.split(self._piece_frames()):
                with self._engine_lock:
                    self.engine.prefill_frames(row, piece)
                done += piece.shape[0]
                yield done, total
            with self._engine_lock:
                self.engine.reset_codec(row)
                if self.window == PERSONA_WINDOW:
                    self.engine.keep(row)
                found = self.engine.export(row)
        self._store.put(key, found)
        return found

    def _check_fits(self, prompt_frames: int) -> None:
        self._builder.check_fits(prompt_frames, self.engine.context, self.window)

    def start(self, snapshot: Snapshot, options: SamplingOptions | None = None) -> Conversation:
        """Begin a conversation in a free slot; raises CapacityError when all are taken."""
        row = self._take_slot()
        try:
            with self._engine_lock:
                self.engine.load(row, snapshot)
                self.engine.set_sampling(row, options or SamplingOptions())
        except BaseException:
            self._return_slot(row)
            raise
        return Conversation(self, row)

    def step_together(self, heard: Mapping[Conversation, np.ndarray]) -> dict[Conversation, FrameOutput]:
        """One frame of several conversations in one step of the engine: pcm [frame_samples] float32 each."""
        given = torch.zeros(self.engine.slots, self.engine.frame_samples)
        active = torch.zeros(self.engine.slots, dtype=torch.bool)
        for conversation, frame in heard.items():
            row = conversation._checked_row(frame)
            given[row], active[row] = torch.from_numpy(frame), True
        with self._engine_lock:
            out = self.engine.step(given, active)
            assert out.pcm is not None, "a whole frame has sound"
            pcm, text, tokens = out.pcm.cpu().numpy(), out.text.tolist(), out.tokens.cpu().numpy()
        # Copies: a view of one row would keep all rows in memory.
        outputs = {c: FrameOutput(pcm[c._row].copy(), text[c._row], tokens[c._row].copy()) for c in heard}
        return {c: c._take_finished() or output for c, output in outputs.items()}

    def voice_snapshot(self, voice: Voice) -> Snapshot:
        """The state after the voice segment alone, to be kept as that voice."""
        heard = self._builder.listened(voice)
        with _BorrowedSlot(self) as row:
            for _ in self._prompt_voice(row, heard, _voice_key(heard), 0):
                pass
            with self._engine_lock:
                return self.engine.export(row)

    def _prompt_voice(
        self, row: int, voice: Voice | None, voice_key: str, frames_after: int
    ) -> Generator[tuple[int, int], None, None]:
        """Put the voice segment into a freshly reset slot."""
        key = snapshot_key([self._model, "voice", voice_key])
        found = self._store.get(key)
        with self._engine_lock:
            self.engine.reset(row)
            if found is None and voice is not None and voice.snapshot_path is not None:
                found = read_snapshot(voice.snapshot_path, self._model, self.engine.check)
            if found is not None:
                self.engine.load(row, found)
        if found is not None or voice is None:
            return
        if voice.embeddings_path is not None:
            yield from self._remember_voice(row, read_voice_pt(voice.embeddings_path, self.loaded.config), frames_after)
        elif voice.pcm is not None:
            yield from self._speak_voice(row, voice.pcm, frames_after)
            with self._engine_lock:
                self._store.put(key, self.engine.export(row))

    def _remember_voice(
        self, row: int, published: VoicePrompt, frames_after: int
    ) -> Generator[tuple[int, int], None, None]:
        """Put the embeddings of a published voice file into the cache, piece by piece."""
        embeddings, done = published.embeddings[:, 0, 0], 0
        for piece in embeddings.split(self._piece_frames()):
            with self._engine_lock:
                self.engine.prefill_embeddings(row, piece, published.cache[0])
            done += piece.shape[0]
            yield done, embeddings.shape[0] + frames_after

    def _speak_voice(self, row: int, pcm: np.ndarray, frames_after: int) -> Generator[tuple[int, int], None, None]:
        """Encode a recording as one stream and force it, piece by piece."""
        whole = self._whole_frames(pcm)
        done, total = 0, whole.shape[0] // self.engine.frame_samples + frames_after
        pieces = self.engine.encode(whole)
        heard: list[torch.Tensor] = []
        while True:
            with self._engine_lock:
                codes = next(pieces, None)
            heard += [] if codes is None else [codes.cpu()]
            waiting = sum(map(len, heard))
            if waiting and (codes is None or waiting >= self._piece_frames()):
                if self.engine.slots > 1:
                    yield done, total  # encoding and prompting are a piece each
                with self._engine_lock:
                    self.engine.prefill_frames(row, self._builder.voice(torch.cat(heard)))
                heard = []
            if codes is None:
                return
            done += codes.shape[0]
            yield done, total

    def _piece_frames(self) -> int:
        """Frames of a prompt computed at once: few where other conversations may wait for theirs.

        Independent of the conversations that are open just now, so that each is the same in any company.
        """
        return PREFILL_PIECE_FRAMES if self.engine.slots > 1 else PREFILL_CHUNK_FRAMES

    def _whole_frames(self, pcm: np.ndarray) -> torch.Tensor:
        """Fill the last frame up with zeros: float32 [samples] → [F · frame_samples]."""
        missing = -len(pcm) % self.engine.frame_samples
        return torch.nn.functional.pad(torch.from_numpy(np.ascontiguousarray(pcm, dtype=np.float32)), (0, missing))

    def _take_slot(self) -> int:
        if not self._free:
            raise CapacityError(f"all {self.engine.slots} conversations are taken; close one or start with more slots")
        row = min(self._free)  # a frame computes the slots up to the last one taken
        self._free.remove(row)
        return row

    def _return_slot(self, row: int) -> None:
        self._free.append(row)


class Conversation:
    """One slot in use; close it (or use it in a ``with``) to give the slot back."""

    def __init__(self, session: Session, row: int):
        self._session, self._row, self._open = session, row, True
        self._finished: FrameOutput | None = None

    def step(self, pcm: np.ndarray) -> FrameOutput:
        """Hear one frame, say one: pcm [frame_samples] float32 in −1..1."""
        return self._session.step_together({self: pcm})[self]

    def tell(self, text: str) -> int:
        """Tell the model something new, between two frames: "The pool is closed today.".

        The text goes into the model's memory as the role did, between system tags, one token a frame, all at once; no
        sound is heard or said meanwhile, and the next ``step`` goes on where the last one ended. It is kept like the
        role; in the published window it is forgotten like the role. The 200 tokens of a conversation include the tags.
        → how many tokens may be told still. Raises PromptError, before anything changes, for text that is empty or too
        long, and where the context is too short to keep it.
        """
        self._check_open()
        session = self._session
        with session._engine_lock:
            row = self._row
            told, kept = session.engine.told_and_kept(row)
            tokens = prepare_told(text, session.tokenizer, told).tokens
            session._builder.check_told_fits(kept, len(tokens), session.engine.context)
            out = session.engine.tell(row, session._builder.text(tokens))
            if bool(out.valid[row]):
                assert out.pcm is not None, "a told frame finishes the sound before it"
                self._finished = FrameOutput(
                    out.pcm[row].cpu().numpy().copy(), int(out.text[row]), out.tokens[row].cpu().numpy().copy()
                )
        return MOST_TOLD_TOKENS - told - len(tokens)

    def _take_finished(self) -> FrameOutput | None:
        """The frame that a telling finished, once: the next step's own is the last told one, which nobody said."""
        finished, self._finished = self._finished, None
        return finished

    def _check_open(self) -> None:
        if not self._open:
            raise InputError("this conversation is closed; start another one")

    def _checked_row(self, pcm: np.ndarray) -> int:
        """The slot, if it may take this frame."""
        self._check_open()
        expected = self._session.engine.frame_samples
        if pcm.shape != (expected,) or pcm.dtype != np.float32:
            raise InputError(f"a frame is {expected} float32 samples; {pcm.dtype} {list(pcm.shape)} was given")
        if not np.isfinite(pcm).all():
            raise InputError("a frame holds NaN or infinite samples; only finite values in -1..1 are speech")
        return self._row

    def abandon(self) -> None:
        """Close a conversation whose state cannot be trusted any more; nothing of it stays in the slot."""
        if self._open:
            try:
                with self._session._engine_lock:
                    self._session.engine.wipe(self._row)
            finally:
                self.close()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._session._return_slot(self._row)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _BorrowedSlot:
    """A free slot for as long as a ``with`` lasts."""

    def __init__(self, session: Session):
        self._session = session

    def __enter__(self) -> int:
        self._row = self._session._take_slot()
        return self._row

    def __exit__(self, *_: object) -> None:
        self._session._return_slot(self._row)


def _voice_key(voice: Voice | None) -> str:
    """Identity of a voice: its content, not its name."""
    if voice is None:
        return "none"
    path = voice.snapshot_path or voice.embeddings_path
    if path is not None:
        return snapshot_key(["file", path.read_bytes()])
    return snapshot_key(["pcm", np.ascontiguousarray(voice.pcm, dtype=np.float32).tobytes()])
