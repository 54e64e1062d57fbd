"""Listens to generated speech: words by a recogniser with the domain's grammar, the speaker by pitch."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pocketsphinx
import soxr

from training import domain, tts

RECOGNISER_HZ = 16_000
PITCH_RANGE_HZ = (60.0, 320.0)
PITCH_WINDOW_SEC = 0.04
VOICED_CORRELATION = 0.5
_FLITE_TO_CMU = {"ax": "AH", "axr": "ER", "pau": ""}


def grammar() -> str:
    """JSGF of everything the agent may say, any name with any place, one sentence or two."""
    names = " | ".join(name.lower() for name in domain.NAMES)
    places = " | ".join(place.lower() for place in domain.PLACES)
    sentences = []
    for _, text in domain.agent_templates():
        words = text.lower().replace("{name}", "<name>").replace("{place}", "<place>")
        sentences.append(" ".join(w.strip(".,?!") for w in words.split()))
    said = " | ".join(f"({sentence})" for sentence in sentences)
    return (
        "#JSGF V1.0; grammar domain;\n"
        f"<name> = {names};\n<place> = {places};\n<sentence> = {said};\npublic <said> = <sentence> [<sentence>];\n"
    )


def _pronunciation(word: str) -> str:
    """CMU phones of a word as flite says it."""
    phones = [phone.name for phone in tts.speak(word, "slt").phones]
    return " ".join(filter(None, (_FLITE_TO_CMU.get(phone, phone.upper()) for phone in phones)))


class Recogniser:
    """pocketsphinx with the domain's grammar: what was said, if it was something the agent says at all."""

    def __init__(self) -> None:
        self._decoder = pocketsphinx.Decoder(samprate=RECOGNISER_HZ, loglevel="FATAL")
        words = {w for text in domain.tokenizer_corpus() for w in domain.spoken_words(text.replace("<system>", ""))}
        own = {word.lower() for word in domain.content_words()}
        for word in sorted(words | own):
            known = self._decoder.lookup_word(word)
            if known is None or word in own:
                name = word if known is None else f"{word}(9)"
                self._decoder.add_word(name, _pronunciation(word), False)
        self._decoder.add_jsgf_string("domain", grammar())
        self._decoder.activate_search("domain")

    def words(self, pcm: np.ndarray, sample_rate_hz: int = tts.SAMPLE_RATE_HZ) -> list[str]:
        """pcm: [T] float32 -> the words heard."""
        sound = soxr.resample(pcm.astype(np.float32), sample_rate_hz, RECOGNISER_HZ)
        self._decoder.start_utt()
        self._decoder.process_raw((sound.clip(-1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr.split() if found else []


def word_errors(wanted: list[str], heard: list[str]) -> int:
    """Edit distance in words."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(wanted, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def median_pitch_hz(pcm: np.ndarray, sample_rate_hz: int = tts.SAMPLE_RATE_HZ) -> float:
    """Median pitch of the voiced parts by autocorrelation; NaN where nothing is voiced."""
    sound = soxr.resample(pcm.astype(np.float32), sample_rate_hz, RECOGNISER_HZ)
    window = int(PITCH_WINDOW_SEC * RECOGNISER_HZ)
    low, high = (int(RECOGNISER_HZ / f) for f in (PITCH_RANGE_HZ[1], PITCH_RANGE_HZ[0]))
    pitches = []
    loud = 0.3 * np.sqrt(np.mean(sound**2))
    for at in range(0, len(sound) - window - high, window // 2):
        piece = sound[at : at + window]
        if np.sqrt(np.mean(piece**2)) < max(loud, 1e-4):
            continue
        shifted = np.lib.stride_tricks.sliding_window_view(sound[at + low : at + high + window], window)
        correlation = shifted @ piece / (np.linalg.norm(shifted, axis=1) * np.linalg.norm(piece) + 1e-9)
        best = int(correlation.argmax())
        if correlation[best] > VOICED_CORRELATION:
            pitches.append(RECOGNISER_HZ / (low + best))
    return float(np.median(pitches)) if pitches else float("nan")


@dataclass(frozen=True)
class Share:
    """A figure that is a share of something counted."""

    right: int
    total: int

    @property
    def value(self) -> float:
        return self.right / self.total if self.total else float("nan")

    @classmethod
    def of(cls, outcomes: list[bool]) -> Share:
        return cls(sum(map(bool, outcomes)), len(outcomes))


def report(figures: dict[str, Share | float]) -> str:
    """A table and one JSON line."""
    width = max(map(len, figures))
    lines, values = [], {}
    for name, figure in figures.items():
        if isinstance(figure, Share):
            lines.append(f"{name:<{width}}  {figure.value:7.1%}  ({figure.right} of {figure.total})")
            values[name] = round(figure.value, 4)
        else:
            lines.append(f"{name:<{width}}  {figure:7.2f}")
            values[name] = round(figure, 3)
    return "\n".join([*lines, json.dumps(values)])
