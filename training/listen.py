"""Judges of generated speech: a recogniser with the domain's grammar, and the nearest voice by timbre."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property

import jiwer
import numpy as np
import pocketsphinx
import soxr

from training import domain, sentences, tts
from training.codec.loss import mel_filters

RECOGNISER_HZ = 16_000
TIMBRE_WINDOW, TIMBRE_BANDS = 1024, 40
BROKEN_OFF_WEIGHT = 0.01  # that no word follows, after each that is not the last
_WHOLE, _BROKEN_OFF = "whole", "broken off"  # a decoder's searches
_FLITE_TO_CMU = {"ax": "AH", "axr": "ER", "pau": ""}


@dataclass(frozen=True)
class Grammar:
    """The recogniser's grammar: the agent's sentences, one or two, with any name, place or price in them.

    `names`, `places`: those that it may say besides the ones that training knows as words.
    """

    names: tuple[str, ...] = ()
    places: tuple[str, ...] = ()

    def slots(self) -> dict[str, tuple[str, ...]]:
        """Slot → its possible values."""
        known = domain.SLOT_VALUES
        return known | {"name": known["name"] + self.names, "place": known["place"] + self.places}

    def jsgf(self, broken_off: bool = False) -> str:
        """The rules for a sentence or two, said to their ends, or of which the last may end after any word."""
        slots = {slot: [value.lower() for value in values] for slot, values in self.slots().items()}
        rules = [f"<{slot}> = {' | '.join(values)};" for slot, values in slots.items()]
        rules.append(f"<sentence> = {' | '.join(f'({text})' for text in _templates())};")
        if broken_off:
            begun = {slot: parts for slot, values in slots.items() if (parts := _beginnings(values))}
            rules += [f"<begun_{slot}> = {' | '.join(parts)};" for slot, parts in begun.items()]
            cut = {f"<{slot}>": f"<begun_{slot}>" for slot in begun}
            rules.append(f"<begun> = {' | '.join(_breakable(text, cut) for text in _templates())};")
        rules.append(f"public <said> = [<sentence>] {'<begun>' if broken_off else '<sentence>'};")
        return "\n".join(["#JSGF V1.0; grammar domain;", *rules, ""])

    def decoder(self) -> pocketsphinx.Decoder:
        """pocketsphinx for RECOGNISER_HZ that hears nothing else, with names and places as flite says them."""
        decoder = pocketsphinx.Decoder(samprate=RECOGNISER_HZ, loglevel="FATAL")
        templates = (re.sub(r"{\w+}", "", text) for _, text in sentences.agent_templates())
        words = {word for text in templates for word in sentences.spoken_words(text)}
        own = {word.lower() for values in self.slots().values() for value in values for word in value.split()}
        for word in sorted(words | own):
            known = decoder.lookup_word(word)
            if known is None or word in own:
                name = word if known is None else f"{word}(9)"
                decoder.add_word(name, _pronunciation(word), False)
        decoder.add_jsgf_string(_WHOLE, self.jsgf())
        decoder.add_jsgf_string(_BROKEN_OFF, self.jsgf(broken_off=True))
        return decoder

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        """One sentence or two, to their ends."""
        said = "|".join(_templates())
        for slot, values in self.slots().items():
            said = said.replace(f"<{slot}>", f"(?:{'|'.join(values).lower()})")
        return re.compile(f"(?:{said})(?: (?:{said}))?")

    def without_stray_word(self, words: list[str]) -> list[str]:
        """The words without the last where it begins a sentence after a whole one, and no other follows.

        To the grammar a breath after "uh huh" is the beginning of another sentence.
        """
        stray = not self._whole.fullmatch(" ".join(words)) and self._whole.fullmatch(" ".join(words[:-1]))
        return words[:-1] if stray else words


def hear(decoder: pocketsphinx.Decoder, pcm: np.ndarray) -> bool:
    """Decodes pcm, [T] float32 at RECOGNISER_HZ; whether anything was heard."""
    decoder.start_utt()
    decoder.process_raw((pcm.clip(-1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    return decoder.hyp() is not None


def hear_sentences(decoder: pocketsphinx.Decoder, pcm: np.ndarray) -> bool:
    """Decode with a grammar: whole sentences first, sentences broken off where none is found.

    A grammar of whole sentences hears nothing in half of one; one of halves mishears more in a whole one.
    """
    for search in (_WHOLE, _BROKEN_OFF):
        decoder.activate_search(search)
        if hear(decoder, pcm):
            return True
    return False


def _beginnings(values: list[str]) -> list[str]:
    """Prefixes of the values' words that are not values themselves."""
    said = {" ".join(words[:count]) for words in map(str.split, values) for count in range(1, len(words))}
    return sorted(said - set(values))


def _breakable(text: str, begun: dict[str, str]) -> str:
    """A JSGF expansion for a sentence that may end after any word. `begun`: the rules for its slots broken off."""
    left = ""
    for word in reversed(text.split()):
        left = f"{word} {_rather(left, '<NULL>')}" if left else word
        if word in begun:
            left = _rather(left, begun[word])
    return f"({left})"


def _rather(usual: str, broken_off: str) -> str:
    return f"(/{1 - BROKEN_OFF_WEIGHT}/ {usual} | /{BROKEN_OFF_WEIGHT}/ {broken_off})"


def _templates() -> list[str]:
    """The agent's sentences as a recogniser reports them, with <slots>; each greeting with each question."""
    texts = [text for kind, text in sentences.agent_templates() if kind != sentences.GREET]
    hellos, offers = zip(*(text.split(". ") for text in sentences.GREETINGS), strict=True)
    texts += [f"{hello}. {offer}" for hello in hellos for offer in offers]
    said = (text.lower().replace("{", "<").replace("}", ">").split() for text in texts)
    return [" ".join(word.strip(".,?!") for word in words) for words in said]


def _pronunciation(word: str) -> str:
    """CMU phones of a word as flite says it."""
    phones = [phone.name for phone in tts.speak(word, "slt").phones]
    return " ".join(filter(None, (_FLITE_TO_CMU.get(phone, phone.upper()) for phone in phones)))


class Recogniser:
    """pocketsphinx with the domain's grammar: it recognises nothing but the agent's sentences."""

    def __init__(self) -> None:
        self._grammar = Grammar()
        self._decoder = self._grammar.decoder()

    def words(self, pcm: np.ndarray, sample_rate_hz: int = tts.SAMPLE_RATE_HZ) -> list[str]:
        """pcm: [T] float32 -> the words heard."""
        sound = soxr.resample(pcm.astype(np.float32), sample_rate_hz, RECOGNISER_HZ)
        if not hear_sentences(self._decoder, sound):
            return []
        return self._grammar.without_stray_word(self._decoder.hyp().hypstr.split())


def word_errors(wanted: list[str], heard: list[str]) -> int:
    """Edit distance in words: substitutions, deletions and insertions."""
    compared = jiwer.process_words(" ".join(wanted), " ".join(heard))
    return compared.substitutions + compared.deletions + compared.insertions


class Timbres:
    """Tells voices apart by the average spectrum of their speech."""

    def __init__(self, samples: dict[str, list[np.ndarray]]) -> None:
        """samples: recordings of each voice, [T] float32 at 24 kHz."""
        self._known = {voice: np.mean([_timbre(pcm) for pcm in heard], 0) for voice, heard in samples.items()}

    def nearest(self, pcm: np.ndarray) -> str:
        """pcm: [T] float32 at 24 kHz -> the voice that it sounds most like."""
        heard = _timbre(pcm)
        return min(self._known, key=lambda voice: float(np.square(self._known[voice] - heard).sum()))


def _timbre(pcm: np.ndarray) -> np.ndarray:
    """[TIMBRE_BANDS]: log-mel bands, averaged over what is loud; how loud it is does not matter."""
    window = TIMBRE_WINDOW
    pieces = np.lib.stride_tricks.sliding_window_view(pcm, window)[:: window // 2] * np.hanning(window)
    bands = np.abs(np.fft.rfft(pieces)) @ mel_filters(window, TIMBRE_BANDS).numpy()
    power = bands.sum(1)
    spectra = np.log(bands[power > 0.3 * power.mean()] + 1e-3)
    average = spectra.mean(0)
    return average - average.mean()


@dataclass(frozen=True)
class Share:
    """A share, with the counts behind it."""

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
