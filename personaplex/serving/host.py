"""The host of the page's model: chosen for this machine, loaded in the background, served."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from personaplex.config import NANO
from personaplex.errors import DownloadError, WeightsError
from personaplex.messages import ConversationServer, Limits
from personaplex.personas.voices import VoiceFinder
from personaplex.serving.hosted import Host, Hosted, Loading
from personaplex.serving.metrics import Metrics
from personaplex.serving.zerogpu import Hold, ZeroGpuServer, conversation_on_gpu, seconds_asked
from personaplex.settings import MOST_AT_ONCE, Settings, on_zerogpu

if TYPE_CHECKING:
    from personaplex.machine.choose import Choice
    from personaplex.machine.inspect import Machine
    from personaplex.session.session import Session
    from personaplex.weights.load import LoadedModel

log = logging.getLogger(__name__)

LENT_CONVERSATION_SEC = 60.0
"""On a lent GPU, where nobody chose otherwise: with its start, and half as much again on the largest card, it fits in
two minutes, the least that a visitor has a day (Hugging Face, "Spaces ZeroGPU")."""


class ModelHost(Host):
    """Loads the model once, in a thread of its own, while the page is already up."""

    def __init__(
        self, settings: Settings, *, metrics: Metrics | None = None, edge_ms: Callable[[], float] | None = None
    ) -> None:
        """``edge_ms`` measures the processor time that a frame of a conversation costs outside the engine."""
        self._edge_ms = edge_ms
        self.lends_gpu = on_zerogpu()
        longest = settings.conversation_sec
        if longest is None:
            longest = LENT_CONVERSATION_SEC if self.lends_gpu else Limits.conversation_sec
        limits = Limits(slots=settings.conversations or 1, waiting=settings.waiting, conversation_sec=longest)
        super().__init__(settings, limits, metrics)
        self._session: Session | None = None
        # The decorator must be met before the page is launched, the session may come later.
        self._gpu_call = self._lent(conversation_on_gpu(self._lent_session, self.limits)) if self.lends_gpu else None
        self._machine: Machine | None = None  # where a GPU is lent, none is looked at

    def start(self, after_sec: float = 0.0) -> None:
        if self.lends_gpu:  # what stands in for CUDA until a GPU is lent does so in the main thread only
            self._load()
        else:
            super().start(after_sec)

    def load(self) -> None:
        chosen = self._choose()
        try:
            self.hosted = self._host(chosen)
        except (DownloadError, WeightsError) as error:
            if chosen.asked_for or chosen.model == NANO:
                raise
            log.warning("%s cannot be had, so %s runs instead: %s", chosen.model, NANO, error)
            self.hosted = self._host(self._take_nano(chosen, str(error)))

    def _choose(self) -> Choice:
        """Decide what runs, before anyone talks: looking at the machine keeps its memory busy for a moment."""
        from personaplex.machine.choose import choose, choose_on_zerogpu, inspect_here

        if self.lends_gpu:
            return self._decided(choose_on_zerogpu(self.settings))
        self._machine = inspect_here(self.settings.device)
        return self._decided(choose(self._machine, self.settings))

    def _take_nano(self, refused: Choice, why: str) -> Choice:
        from personaplex.machine.choose import nano_instead

        return self._decided(nano_instead(refused, why))

    def _decided(self, choice: Choice) -> Choice:
        """Publish the choice to the page and the log, and return it."""
        from personaplex.machine.report import choice_line, report

        if self._machine is None:
            lent = "ZeroGPU: one is lent for each conversation"
            self.findings = [("GPU", lent), ("auto takes" if not choice.asked_for else "runs", choice_line(choice))]
        else:
            self.findings = report(self._machine, choice)
        log.info("running %s", choice_line(choice))
        return choice

    def _host(self, chosen: Choice) -> Hosted:
        """Load a model and open its server."""
        self.loading = Loading("starting PyTorch")
        from personaplex.weights.load import load_model

        is_here = chosen.model == NANO or Path(chosen.model).is_dir()
        reading = f"reading the model {chosen.model}"
        fetching = f"fetching the model {chosen.model}, unless it is here (the 7B: 16.7 GB)"
        self.loading = Loading(reading if is_here else fetching)

        def progress(done: int, total: int) -> None:
            self.loading = Loading(reading, done, total)

        loaded = load_model(
            chosen.model, format=chosen.format, device=chosen.device, progress=progress,
            slots=1 if self._is_lent(chosen) else self.settings.conversations or 1, context=self.settings.context,
            kv_cache=self.settings.kv_cache,
        )  # fmt: skip
        self._count_conversations(chosen, loaded)
        self.loading = Loading("getting ready")
        return self._open(chosen, loaded)

    def _count_conversations(self, chosen: Choice, loaded: LoadedModel) -> None:
        """Settle how many may talk at once, and say why."""
        from personaplex.serving.capacity import Capacity, capacity_of

        count = self.settings.conversations
        if count is not None:
            capacity = Capacity(count, f"{count}: asked for")
        elif self._is_lent(chosen):
            capacity = Capacity(MOST_AT_ONCE, f"{MOST_AT_ONCE}, each with a GPU of its own while Spaces lends so many")
        else:
            self.loading = Loading("measuring how many conversations fit")
            capacity = capacity_of(chosen, loaded, self.settings.context, self._edge_ms)
        self.limits = replace(self.limits, slots=capacity.conversations)
        self.findings = [*self.findings, ("conversations", capacity.reason)]
        log.info("conversations at once: %s", capacity.reason)

    def _is_lent(self, chosen: Choice) -> bool:
        return self.lends_gpu and chosen.device != "cpu"  # what runs on the processor costs nobody's quota

    def _lent_session(self) -> Session:
        assert self._session is not None, "a conversation needs the model to be loaded"
        return self._session

    def _lent(self, call: Hold) -> Hold:
        import spaces

        return spaces.GPU(duration=seconds_asked(self.limits))(call)

    def _serve(self, session: Session, lent: bool) -> ConversationServer:
        if lent:
            assert self._gpu_call is not None, "this machine lends one"
            return ZeroGpuServer(self._gpu_call, self.limits, self.metrics)
        from personaplex.serving.server import DuplexServer

        return DuplexServer(session, self.limits, self.metrics)

    @property
    def _saved_voices(self) -> Path | None:
        return self.settings.home if self.settings.offer_saved_voices else None

    def _open(self, chosen: Choice, loaded: LoadedModel) -> Hosted:
        from personaplex.session.session import Session

        lent = self._is_lent(chosen)
        slots = 1 if lent else self.limits.slots  # of a process: each call has its own
        session = self._session = Session(
            loaded, slots=slots, context=self.settings.context, window=self.settings.window
        )
        if not lent:
            session.engine.warm_up()
        config = loaded.config
        return Hosted(
            reason=chosen.reason,
            name=config.name,
            format=loaded.format.value,
            device=str(loaded.device),
            context_frames=session.engine.context,
            max_prompt_tokens=config.prompt.max_text_tokens,
            sample_rate_hz=config.mimi.sample_rate,
            frame_sec=config.mimi.frame_sec,
            text_padding_id=config.lm.existing_text_padding_id,
            tokenizer=session.tokenizer,
            finder=VoiceFinder(config, self._saved_voices, loaded.folder, loaded.unpack_voice, allow_files=False),
            server=self._serve(session, lent),
            is_lent=lent,
        )
