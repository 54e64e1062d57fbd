"""The two neural synthesisers behind `training.tts`: hibari and Kokoro, with each phone's and word's exact time.

Both get the same phones (hibari's reading of English) and return their durations in units of 25 ms, so a recording
comes with its alignment. The durations of stress and length marks are added to the vowel they belong to. Phones are
named as flite names its own (ARPAbet), so that one reader of phones learns from all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from training import neural_voices
from training.tts_engines import RawSpeech, TtsError

SAMPLE_RATE_HZ = 24_000
UNIT_SEC = 0.025
PAUSE = "pau"
HIBARI_PITCH_HZ = 190.0  # about, as it speaks
HIBARI_DURATIONS = "/Clip_output_0"
_STRESS, _LENGTH, _SPACE = "ˈˌ", "ː", " "
_PUNCTUATION = frozenset('.,!?;:—…"“”()')
_STYLE_ROWS = 510  # styles a voice, by the number of phones
_ARPABET = dict(
    pair.split("=")
    for pair in (
        "A=ey I=ay O=ow Q=ow W=aw Y=oy S=sh T=dx a=ae b=b d=d e=eh f=f h=hh i=iy j=y k=k l=l m=m n=n o=ao p=p r=r s=s "
        "t=t u=uw v=v w=w x=k z=z ɑ=aa ɐ=ax ɒ=aa æ=ae ɔ=ao ð=dh ʤ=jh ə=ax ɚ=er ɛ=eh ɜ=er ɡ=g ɪ=ih ɨ=ih ŋ=ng θ=th ɹ=r "
        "ɾ=dx ʃ=sh ʧ=ch ʊ=uh ʌ=ah ʒ=zh ʔ=t ᵊ=ax ᵻ=ih c=k"
    ).split()
)
_DIGITS = re.compile(r"\d+")
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def number_words(number: int) -> str:
    """0 to 999 999 as it is read; larger numbers digit by digit."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10 - 2] + (f" {_ONES[number % 10]}" if number % 10 else "")
    for unit, name in ((1000, "thousand"), (100, "hundred")):
        if unit <= number < 1000 * unit:
            rest = f" {number_words(number % unit)}" if number % unit else ""
            return f"{number_words(number // unit)} {name}{rest}"
    return " ".join(_ONES[int(digit)] for digit in str(number))


def spelled_out(text: str) -> str:
    """The text with its whole numbers as words, so that each of its words is one that is said."""
    return _DIGITS.sub(lambda match: number_words(int(match.group())), text)


def timed(
    symbols: str, units: Sequence[float] | np.ndarray
) -> tuple[list[tuple[str, float]], list[tuple[float, float]]]:
    """Phones (name, end in seconds) and words (start, end) of one sentence.

    symbols: those that have a number, as the model was told them. units: how long each lasts, the padding before
    the first and after the last included, in units of 25 ms.
    """
    if len(units) != len(symbols) + 2:
        raise TtsError(f"{len(symbols)} symbols came with {len(units)} lengths instead of {len(symbols) + 2}")
    ends_sec = np.cumsum(np.asarray(units, np.float64)) * UNIT_SEC
    phones: list[tuple[str, float]] = [(PAUSE, float(ends_sec[0]))]
    words: list[tuple[float, float]] = []
    start_sec: float | None = None

    def end_word(end_sec: float) -> None:
        nonlocal start_sec
        if start_sec is not None:
            words.append((start_sec, end_sec))
        start_sec = None

    for index, symbol in enumerate(symbols):
        began_sec, end_sec = float(ends_sec[index]), float(ends_sec[index + 1])
        if symbol == _SPACE or symbol in _PUNCTUATION:
            end_word(began_sec if symbol != _SPACE else end_sec)
            phones.append((PAUSE, end_sec))
            continue
        start_sec = began_sec if start_sec is None else start_sec
        if symbol in _STRESS:
            continue  # its time goes to the phone after it, whose end alone is told
        if symbol == _LENGTH and phones[-1][0] != PAUSE:
            phones[-1] = (phones[-1][0], end_sec)
        elif symbol in _ARPABET:
            phones.append((_ARPABET[symbol], end_sec))
    end_word(float(ends_sec[-2]))
    phones.append((PAUSE, float(ends_sec[-1])))
    return phones, words


def _short_spaces(phones: Iterable[tuple[str, float]], shortest_sec: float = 0.08) -> list[tuple[str, float]]:
    """Phones whose pauses between words are real: three units or less are the time of the phone before."""
    kept: list[tuple[str, float]] = []
    before_sec = 0.0
    for name, end_sec in phones:
        if name == PAUSE and kept and end_sec - before_sec < shortest_sec:
            kept[-1] = (kept[-1][0], end_sec)
        else:
            kept.append((name, end_sec))
        before_sec = end_sec
    return kept


class _Said:
    """Sentences of one text, put one behind the other."""

    def __init__(self, text: str) -> None:
        self._text, self._sec = text, 0.0
        self._pcm: list[np.ndarray] = []
        self._phones: list[tuple[str, float]] = []
        self._words: list[tuple[float, float]] = []

    def add(self, pcm: np.ndarray, symbols: str, units: np.ndarray) -> None:
        phones, words = timed(symbols, units)
        self._phones += [(name, end_sec + self._sec) for name, end_sec in _short_spaces(phones)]
        self._words += [(start_sec + self._sec, end_sec + self._sec) for start_sec, end_sec in words]
        self._pcm.append(pcm)
        self._sec += len(pcm) / SAMPLE_RATE_HZ

    def speech(self) -> RawSpeech:
        if not self._pcm:
            raise TtsError(f"nothing of {self._text!r} can be said")
        written = self._text.split()
        names = written if len(written) == len(self._words) else [f"word{i}" for i in range(len(self._words))]
        words = [(name, *span) for name, span in zip(names, self._words, strict=True)]
        pcm = np.clip(np.round(np.concatenate(self._pcm) * 32767), -32768, 32767).astype(np.int16)
        return RawSpeech(pcm, SAMPLE_RATE_HZ, self._phones, words)


def _session(model: str | bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class HibariEngine:
    """One woman's voice in 8 MB, fifty times as fast as speech, whose pitch can be moved without artefacts."""

    def __init__(self) -> None:
        try:
            import hibari
            import onnx

            from training.onnx_graphs import with_output
        except ImportError as error:
            raise TtsError(f"{error.name} is missing; pip install -r {neural_voices.REQUIREMENTS}") from error
        self._synth, self._voice = hibari.dsp.synth, hibari.Hibari()
        model = with_output(onnx.load(self._voice.model_path), HIBARI_DURATIONS)
        self._session, self._spoken = _session(model.SerializeToString()), 0

    @cached_property
    def _british(self) -> Callable[[str], str]:
        from hibari.g2p import G2P

        return G2P(british=True)

    def symbols(self, text: str, *, british: bool = False) -> Iterator[tuple[str, list[int]]]:
        """For each sentence the symbols that have a number, and their numbers."""
        read = self._british if british else self._voice.g2p
        for sentence in self._voice.split_sentences(text):
            known = "".join(symbol for symbol in read(sentence) if symbol in self._voice.vocab)
            if known.strip():
                yield known, [0, *(self._voice.vocab[symbol] for symbol in known), 0]

    def speak(self, text: str, voice: str, *, tempo: float, pitch_hz: float | None, pitch_range: float) -> RawSpeech:
        text = spelled_out(text)
        said, factor = _Said(text), 1.0 if pitch_hz is None else pitch_hz / HIBARI_PITCH_HZ
        for symbols, numbers in self.symbols(text):
            self._spoken += 1
            told = {"ids": np.array([numbers], np.int64), "speed": np.array([tempo], np.float32)}
            *spectra, pitch, units = self._session.run(None, told)
            spectra, pitch = [part.reshape(part.shape[-2:]) for part in spectra], pitch.reshape(-1)
            voiced = pitch > 40.0
            mean = float(np.exp(np.log(pitch[voiced]).mean())) if voiced.any() else HIBARI_PITCH_HZ
            moved = np.where(voiced, mean * (np.maximum(pitch, 1.0) / mean) ** pitch_range * factor, pitch)
            pcm = self._synth(*spectra, moved.astype(np.float32), np.random.default_rng(self._spoken))
            said.add(pcm, symbols, units.reshape(-1))
        return said.speech()


def mixture(voice: str) -> dict[str, float]:
    """Each style's share in `af_heart` or `af_heart=0.6,am_echo=0.4`."""
    try:
        shares = {name: float(share or 1.0) for name, _, share in (part.partition("=") for part in voice.split(","))}
    except ValueError as error:
        raise TtsError(f"kokoro:{voice} is not a mixture; write NAME or NAME=0.6,NAME=0.4") from error
    if not np.isclose(sum(shares.values()), 1.0, atol=0.01):
        raise TtsError(f"kokoro:{voice}: the shares add up to {sum(shares.values()):.2f}, not 1")
    return shares


class KokoroEngine:
    """28 English voices and any mixture of them, about as fast as speech on one core. Its pitch cannot be moved."""

    def __init__(self) -> None:
        try:
            model = neural_voices.prepared(neural_voices.KOKORO_MODEL)
            self._styles = neural_voices.prepared(neural_voices.KOKORO_STYLES)
        except neural_voices.VoicesError as error:
            raise TtsError(str(error)) from error
        self._reader, self._session = HibariEngine(), _session(str(model))
        self._loaded: dict[str, np.ndarray] = {}

    def _style(self, name: str) -> np.ndarray:
        """[510, 256] float32."""
        if name not in self._loaded:
            path = self._styles / f"{name}.bin"
            if not path.exists():
                known = ", ".join(sorted(path.stem for path in self._styles.glob("*.bin")))
                raise TtsError(f"Kokoro has no voice {name!r}; allowed: {known}")
            self._loaded[name] = np.fromfile(path, np.float32).reshape(_STYLE_ROWS, -1)
        return self._loaded[name]

    def speak(self, text: str, voice: str, *, tempo: float, pitch_hz: float | None, pitch_range: float) -> RawSpeech:
        text = spelled_out(text)
        said, shares = _Said(text), mixture(voice)
        british = max(shares, key=shares.__getitem__).startswith("b")
        for symbols, numbers in self._reader.symbols(text, british=british):
            row = min(len(symbols), _STYLE_ROWS - 1)
            style = sum(share * self._style(name)[row] for name, share in shares.items())
            told = {"tokens": np.array([numbers], np.int64), "style": style[None].astype(np.float32)}
            pcm, units = self._session.run(None, told | {"speed": np.array([tempo], np.float32)})
            said.add(pcm.reshape(-1), symbols, units.reshape(-1))
        return said.speech()
