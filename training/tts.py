"""Speech from text, with the time of every phone and word: the recordings the embedded model learns from.

Free synthesisers, all run on this machine:

| voice name | programme | what comes with the sound |
|---|---|---|
| `slt`, `rms`, `awb`, `kal16` | flite (its shared libraries, in this process) | phones and words |
| `espeak:VARIANT`, as `espeak:en-us+f3` | espeak-ng (its shared library) | words |
| `slt_hts`, `ked` | festival with festvox-us-slt-hts and festvox-kdlpc16k (one helper process) | phones and words |
| `hibari` | hibari-tts, any pitch and vocal tract (`training.tts_neural`) | phones and words |
| `kokoro:NAME`, `kokoro:NAME=0.6,NAME=0.4` | Kokoro-82M (`training.neural_voices` makes it ready) | phones and words |

Debian: `apt install flite espeak-ng festival festvox-us-slt-hts festvox-kdlpc16k`. The libraries keep global state,
so use one process per core, not threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import soxr

from training.tts_engines import EspeakEngine, FestivalEngine, FliteEngine, RawSpeech, TtsError
from training.tts_neural import HIBARI_PITCH_HZ, HibariEngine, KokoroEngine

__all__ = [
    "ESPEAK_CHARACTERS",
    "ESPEAK_VARIANTS",
    "FLITE_VOICES",
    "HIBARI",
    "KOKORO_PREFIX",
    "Phone",
    "SAMPLE_RATE_HZ",
    "TRIM_LEAD_SEC",
    "TRIM_TAIL_SEC",
    "TtsError",
    "Utterance",
    "Word",
    "available",
    "own_pitch_hz",
    "speak",
    "trimmed",
]

SAMPLE_RATE_HZ = 24_000
TRIM_LEAD_SEC, TRIM_TAIL_SEC = 0.04, 0.08  # what is left of the silence around a sentence
FLITE_VOICES = {"slt": 170.0, "rms": 100.0, "awb": 130.0, "kal16": 105.0}  # usual pitch in Hz
FESTIVAL_VOICES = FestivalEngine.USUAL_PITCH_HZ
ESPEAK_PREFIX = "espeak:"
HIBARI, KOKORO_PREFIX = "hibari", "kokoro:"
ESPEAK_VARIANTS = tuple(
    f"{ESPEAK_PREFIX}{accent}{variant}"
    for accent in ("en-us", "en", "en-gb-x-rp", "en-gb-scotland")
    for variant in ("", "+f1", "+f2", "+f3", "+f4", "+f5", "+m1", "+m2", "+m3", "+m4", "+m5", "+m7")
)
ESPEAK_CHARACTERS = tuple(
    f"{ESPEAK_PREFIX}en-us+{name}"
    for name in (
        "Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Gene", "Hugo", "Jacky", "Lee", "Marco", "Mario",
        "Michael", "adam", "anika", "aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward",
        "grandma", "grandpa", "john", "klatt", "klatt2", "klatt3", "klatt4", "linda", "max", "norbert", "pablo",
        "paul", "quincy", "rob", "robert", "sandro", "shelby", "steph", "travis", "victor", "zac",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Phone:
    name: str
    end_sec: float


@dataclass(frozen=True)
class Word:
    """One whitespace-separated word of the text, punctuation included."""

    text: str
    start_sec: float
    end_sec: float


@dataclass(frozen=True)
class Utterance:
    """`pcm`: [T] float32 in -1..1 at `sample_rate` Hz. `phones` is empty where the voice gives none."""

    pcm: np.ndarray
    sample_rate: int
    phones: tuple[Phone, ...]
    words: tuple[Word, ...]


Engine = FliteEngine | EspeakEngine | FestivalEngine | HibariEngine | KokoroEngine
_engines: dict[str, Engine] = {}  # one of each per process, made on first use


def _engine(voice: str) -> Engine:
    make: Callable[[], Engine]
    if voice == HIBARI:
        kind, make = "hibari", HibariEngine
    elif voice.startswith(KOKORO_PREFIX):
        kind, make = "kokoro", KokoroEngine
    elif voice.startswith(ESPEAK_PREFIX):
        kind, make = "espeak", EspeakEngine
    elif voice in FLITE_VOICES:
        kind, make = "flite", FliteEngine
    elif voice in FESTIVAL_VOICES:
        kind, make = "festival", FestivalEngine
    else:
        raise TtsError(
            f"unknown voice {voice!r}; allowed: {', '.join((*FLITE_VOICES, *FESTIVAL_VOICES, HIBARI))}, "
            "espeak:NAME or kokoro:NAME"
        )
    if kind not in _engines:
        _engines[kind] = make()
    engine = _engines[kind]
    if isinstance(engine, FestivalEngine):
        engine.require(voice)
    return engine


def available(voice: str) -> bool:
    """Whether this machine has the programme that speaks with `voice`."""
    try:
        _engine(voice)
    except TtsError:
        return False
    return True


def own_pitch_hz(voice: str) -> float | None:
    """The usual pitch of a voice; None where it has none of its own."""
    if voice == HIBARI:
        return HIBARI_PITCH_HZ
    return FLITE_VOICES.get(voice) or FESTIVAL_VOICES.get(voice)


def speak(
    text: str,
    voice: str = "slt",
    *,
    tempo: float = 1.0,
    pitch_hz: float | None = None,
    pitch_range: float = 1.0,
    formant: float = 1.0,
) -> Utterance:
    """Says `text`; 24 kHz mono. For `espeak:` voices `pitch_hz` is approximate, for `kokoro:` ones it is ignored.

    `formant` plays a slower (lower) reading faster (higher), so only the vocal tract's length changes.
    Raises TtsError for an unknown voice, an empty text or a missing programme.
    """
    if not text.strip():
        raise TtsError("nothing to say: the text is empty")
    if not (0.25 <= tempo <= 4.0 and 0.5 <= formant <= 2.0):
        raise TtsError(f"tempo {tempo} or formant {formant} out of range; allowed: 0.25..4 and 0.5..2")
    wanted_hz = pitch_hz if pitch_hz is not None else (None if formant == 1.0 else own_pitch_hz(voice))
    raw = _engine(voice).speak(
        text,
        voice.removeprefix(ESPEAK_PREFIX).removeprefix(KOKORO_PREFIX),
        tempo=tempo / formant,
        pitch_hz=None if wanted_hz is None else wanted_hz / formant,
        pitch_range=pitch_range,
    )
    return _finish(raw, text, formant)


def _finish(raw: RawSpeech, text: str, formant: float) -> Utterance:
    source_hz = raw.sample_rate_hz * formant
    pcm = soxr.resample(raw.pcm.astype(np.float32) / 32768.0, source_hz, SAMPLE_RATE_HZ)
    phones = tuple(Phone(name, end_sec / formant) for name, end_sec in raw.phones)
    words = _words_of(text, raw.words, formant)
    return Utterance(np.ascontiguousarray(pcm, np.float32), SAMPLE_RATE_HZ, phones, words)


def _words_of(text: str, spans: list[tuple[str, float, float]], formant: float) -> tuple[Word, ...]:
    """Joins the synthesiser's spans to the text's own words where the counts agree, as they nearly always do."""
    written = text.split()
    names = written if len(written) == len(spans) else [name for name, _, _ in spans]
    return tuple(
        Word(name, start_sec / formant, end_sec / formant)
        for name, (_, start_sec, end_sec) in zip(names, spans, strict=True)
    )


def trimmed(utterance: Utterance) -> tuple[np.ndarray, list[tuple[str, float]]]:
    """The speech without the synthesiser's own silence around it: pcm and (word, start in seconds)."""
    words = utterance.words
    first_sec = max(0.0, words[0].start_sec - TRIM_LEAD_SEC)
    last_sec = min(len(utterance.pcm) / SAMPLE_RATE_HZ, words[-1].end_sec + TRIM_TAIL_SEC)
    pcm = utterance.pcm[int(first_sec * SAMPLE_RATE_HZ) : int(last_sec * SAMPLE_RATE_HZ)]
    return pcm, [(word.text, word.start_sec - first_sec) for word in words]
