"""What the page knows of the model that talks, wherever that runs; nothing here reaches PyTorch."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from personaplex.errors import PersonaPlexError
from personaplex.messages import ConversationServer, Limits
from personaplex.personas.voices import VoiceFinder
from personaplex.serving.metrics import Metrics
from personaplex.settings import Settings
from personaplex.text.tokenizer import TextTokenizer
from personaplex.text.transcript import Transcript
from personaplex.words.hearing import Recognition
from personaplex.words.recogniser import chosen

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFacts:
    """What can be told of a model in plain values, wherever it runs."""

    reason: str  # why this model runs, as a clause
    name: str
    format: str
    device: str
    context_frames: int
    max_prompt_tokens: int
    sample_rate_hz: int
    frame_sec: float
    text_padding_id: int


@dataclass(frozen=True)
class Hosted(ModelFacts):
    """A model that is ready to talk."""

    tokenizer: TextTokenizer
    finder: VoiceFinder
    server: ConversationServer
    is_lent: bool = False  # on a GPU that is lent for each conversation

    @property
    def family(self) -> str:
        return self.finder.family

    def new_transcript(self) -> Transcript:
        return Transcript(self.tokenizer, self.text_padding_id, self.frame_sec)


@dataclass(frozen=True)
class Loading:
    """Progress of the start."""

    stage: str = "looking at this machine"
    done: int = 0
    total: int = 0
    error: str = ""  # loading is over, and failed

    @property
    def sentence(self) -> str:
        if self.error:
            return f"The model could not be loaded: {self.error}"
        share = f": {100 * self.done / self.total:.0f} %" if self.total else ""
        return f"Loading – {self.stage}{share}"


class Host:
    """What the page knows of where conversations run; a subclass gets hold of it in a thread of its own."""

    lends_gpu = False
    """Whether this is a place that lends a GPU for each conversation."""

    def __init__(self, settings: Settings, limits: Limits, metrics: Metrics | None = None) -> None:
        self.settings, self.limits = settings, limits
        self.metrics = metrics or Metrics()
        kind = chosen(settings.user_words)
        self.recognition = Recognition(kind) if kind is not None else None
        self.loading = Loading()
        self.hosted: Hosted | None = None
        self.findings: list[tuple[str, str]] = []
        """The report of ``doctor``, once the machine has been looked at: (item, finding)."""
        self._over = threading.Event()
        self._closed = False
        self._begin_after_sec = 0.0
        self._thread = threading.Thread(target=self._load, name="loader", daemon=True)

    @property
    def is_lent(self) -> bool:
        """Whether conversations run on a GPU that is lent for each, at a visitor's cost."""
        return self.lends_gpu if self.hosted is None else self.hosted.is_lent

    def start(self, after_sec: float = 0.0) -> None:
        """Begin to load, a little later if asked to."""
        self._begin_after_sec = after_sec
        self._thread.start()

    def wait(self, timeout_sec: float | None = None) -> bool:
        """Wait until loading has succeeded or failed; false if it is still under way after ``timeout_sec``."""
        return self._over.wait(timeout_sec)

    def close(self) -> None:
        """End every conversation with a message to its visitor; what is still loading is left alone."""
        self._closed = True
        if self.hosted is not None:
            self.hosted.server.close()
        if self.recognition is not None:
            self.recognition.close()

    # -- the loading thread ------------------------------------------------------------------

    def _load(self) -> None:
        time.sleep(self._begin_after_sec)
        try:
            self.load()
            if self._closed and self.hosted is not None:
                self.hosted.server.close()
        except PersonaPlexError as error:
            self._failed(str(error))
        except Exception as error:
            log.exception("loading failed")
            self._failed(f"{type(error).__name__}: {error}")
        finally:
            self._over.set()

    def load(self) -> None:
        """Set ``hosted``; PersonaPlexError with a sentence where that cannot be done."""
        raise NotImplementedError

    def _failed(self, error: str) -> None:
        log.error("the model could not be loaded: %s", error)
        if self.hosted is None:
            self.loading = Loading(error=error)
