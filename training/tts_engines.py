"""The three synthesisers behind `training.tts`: thin wrappers that return what each programme gives.

Each engine's `speak(text, voice, *, tempo, pitch_hz, pitch_range)` returns a RawSpeech at the
programme's own sample rate.
"""

from __future__ import annotations

import ctypes
import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile


class TtsError(ValueError):
    """A voice that does not exist, a text that cannot be said, or a programme that is not installed."""


@dataclass
class RawSpeech:
    """`pcm`: [T] int16. `phones`: (name, end in seconds). `words`: (name, start, end in seconds)."""

    pcm: np.ndarray
    sample_rate_hz: int
    phones: list[tuple[str, float]] = field(default_factory=list)
    words: list[tuple[str, float, float]] = field(default_factory=list)


def _load_library(name: str, package: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise TtsError(f"{name} is missing; install the Debian package {package}") from error


_POINTER = ctypes.c_void_p
_TEXT = ctypes.c_char_p


class _FliteWave(ctypes.Structure):
    _fields_ = [
        ("type", _TEXT),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_int16)),
    ]


class _FliteVoice(ctypes.Structure):
    _fields_ = [("name", _TEXT), ("features", _POINTER)]


class FliteEngine:
    """flite's shared libraries: no process a sentence, and its utterance tree for exact times."""

    _SIGNATURES = {
        "flite_synth_text": (_POINTER, [_TEXT, _POINTER]),
        "utt_relation": (_POINTER, [_POINTER, _TEXT]),
        "utt_wave": (_POINTER, [_POINTER]),
        "relation_head": (_POINTER, [_POINTER]),
        "item_next": (_POINTER, [_POINTER]),
        "flite_ffeature_string": (_TEXT, [_POINTER, _TEXT]),
        "flite_ffeature_float": (ctypes.c_float, [_POINTER, _TEXT]),
        "flite_get_param_float": (ctypes.c_float, [_POINTER, _TEXT, ctypes.c_float]),
        "flite_feat_set_float": (None, [_POINTER, _TEXT, ctypes.c_float]),
        "delete_utterance": (None, [_POINTER]),
    }
    # from a token to its first and last segment
    _FIRST = b"daughter1.R:SylStructure.daughter1.daughter1.R:Segment."
    _LAST = b"daughtern.R:SylStructure.daughtern.daughtern.R:Segment."

    def __init__(self) -> None:
        self._lib = _load_library("libflite.so.1", "flite")
        _load_library("libflite_usenglish.so.1", "flite")
        _load_library("libflite_cmulex.so.1", "flite")
        for name, (result, arguments) in self._SIGNATURES.items():
            function = getattr(self._lib, name)
            function.restype, function.argtypes = result, arguments
        self._lib.flite_init()
        self._voices: dict[str, tuple[int, float, float]] = {}

    def _voice(self, name: str) -> tuple[int, float, float]:
        """The voice's address, and the mean and spread of its usual pitch in Hz."""
        if name not in self._voices:
            library = _load_library(f"libflite_cmu_us_{name}.so.1", "flite")
            register = getattr(library, f"register_cmu_us_{name}")
            register.restype, register.argtypes = _POINTER, [_POINTER]
            address = register(None)
            features = ctypes.cast(address, ctypes.POINTER(_FliteVoice)).contents.features
            spread_hz = self._lib.flite_get_param_float(features, b"int_f0_target_stddev", 15.0)
            mean_hz = self._lib.flite_get_param_float(features, b"int_f0_target_mean", 100.0)
            self._voices[name] = (address, mean_hz, spread_hz)
        return self._voices[name]

    def speak(self, text: str, voice: str, *, tempo: float, pitch_hz: float | None, pitch_range: float) -> RawSpeech:
        address, mean_hz, spread_hz = self._voice(voice)
        features = ctypes.cast(address, ctypes.POINTER(_FliteVoice)).contents.features
        target_hz = mean_hz if pitch_hz is None else pitch_hz
        set_float = self._lib.flite_feat_set_float
        set_float(features, b"duration_stretch", 1.0 / tempo)
        set_float(features, b"int_f0_target_mean", target_hz)
        set_float(features, b"int_f0_target_stddev", spread_hz * pitch_range * target_hz / mean_hz)
        utterance = self._lib.flite_synth_text(text.encode("ascii", "replace"), address)
        if not utterance:
            raise TtsError(f"flite could not say {text!r}")
        try:
            return self._read(utterance)
        finally:
            self._lib.delete_utterance(utterance)

    def _items(self, utterance: int, relation: bytes):
        item = self._lib.relation_head(self._lib.utt_relation(utterance, relation))
        while item:
            yield item
            item = self._lib.item_next(item)

    def _read(self, utterance: int) -> RawSpeech:
        wave = ctypes.cast(self._lib.utt_wave(utterance), ctypes.POINTER(_FliteWave)).contents
        pcm = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).copy()
        string, number = self._lib.flite_ffeature_string, self._lib.flite_ffeature_float
        phones = [(string(item, b"name").decode(), number(item, b"end")) for item in self._items(utterance, b"Segment")]
        words = []
        for item in self._items(utterance, b"Token"):
            end_sec = number(item, self._LAST + b"end")
            if end_sec > 0.0:  # a token of punctuation alone has no segment
                start_sec = number(item, self._FIRST + b"p.end")
                words.append((string(item, b"name").decode(), start_sec, end_sec))
        return RawSpeech(pcm, wave.sample_rate, phones, words)


class _EspeakEvent(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", _POINTER),
        ("id", ctypes.c_uint64),
    ]


class EspeakEngine:
    """espeak-ng's shared library; word times come from its events."""

    _SYNCHRONOUS, _UTF8, _WORD, _LIST_END = 2, 1, 1, 0
    _RATE, _PITCH, _RANGE = 1, 3, 4
    _USUAL_WORDS_PER_MIN, _USUAL_PITCH, _USUAL_RANGE = 175, 50, 50
    _USUAL_PITCH_HZ = 118.0

    def __init__(self) -> None:
        self._lib = _load_library("libespeak-ng.so.1", "espeak-ng")
        self._rate_hz = self._lib.espeak_Initialize(self._SYNCHRONOUS, 0, None, 0)
        if self._rate_hz <= 0:
            raise TtsError("espeak-ng finds no data; install the Debian package espeak-ng-data")
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_int16), ctypes.c_int, ctypes.POINTER(_EspeakEvent)
        )
        self._pieces: list[np.ndarray] = []
        self._events: list[tuple[int, float]] = []
        self._callback = kind(self._collect)  # kept: the library holds only its address
        self._lib.espeak_SetSynthCallback(self._callback)
        self._lib.espeak_Synth.argtypes = [
            _TEXT, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint, _POINTER, _POINTER,
        ]  # fmt: skip

    def _collect(self, wave, num_samples, events) -> int:
        if num_samples > 0 and wave:
            self._pieces.append(np.ctypeslib.as_array(wave, (num_samples,)).copy())
        index = 0
        while events[index].type != self._LIST_END:
            if events[index].type == self._WORD:
                self._events.append((events[index].text_position - 1, events[index].audio_position_ms / 1000))
            index += 1
        return 0

    def speak(self, text: str, voice: str, *, tempo: float, pitch_hz: float | None, pitch_range: float) -> RawSpeech:
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise TtsError(f"espeak-ng has no voice {voice!r}; see `espeak-ng --voices=en` and +f1..+f5, +m1..+m8")
        octaves = 0.0 if pitch_hz is None else math.log2(pitch_hz / self._USUAL_PITCH_HZ)
        pitch = round(min(99.0, max(0.0, self._USUAL_PITCH * (1.0 + octaves))))
        self._lib.espeak_SetParameter(self._RATE, round(self._USUAL_WORDS_PER_MIN * tempo), 0)
        self._lib.espeak_SetParameter(self._PITCH, pitch, 0)
        self._lib.espeak_SetParameter(self._RANGE, round(min(99.0, self._USUAL_RANGE * pitch_range)), 0)
        self._pieces, self._events = [], []
        data = text.encode()
        self._lib.espeak_Synth(data, len(data) + 1, 0, 1, 0, self._UTF8, None, None)
        if not self._pieces:
            raise TtsError(f"espeak-ng could not say {text!r}")
        pcm = np.concatenate(self._pieces)
        return RawSpeech(pcm, self._rate_hz, [], self._spans(text, pcm))

    def _spans(self, text: str, pcm: np.ndarray) -> list[tuple[str, float, float]]:
        """A word lasts until the next one starts; the last until the sound ends."""
        loud = np.flatnonzero(np.abs(pcm) > 100)
        sound_end_sec = (loud[-1] + 1 if len(loud) else len(pcm)) / self._rate_hz
        starts: dict[int, float] = {}
        tokens = list(re.finditer(r"\S+", text))
        for position, start_sec in self._events:
            for index, token in enumerate(tokens):
                if token.start() <= position < token.end():
                    starts.setdefault(index, start_sec)
        order = sorted(starts)
        ends = [starts[index] for index in order[1:]] + [sound_end_sec]
        return [
            (tokens[index].group(), starts[index], max(end_sec, starts[index]))
            for index, end_sec in zip(order, ends, strict=True)
        ]


class FestivalEngine:
    """festival's voices, in one helper process fed with Scheme over a pipe.

    It dies at a sentence in some thousands; then another process says it at a slightly different tempo.
    """

    _NAMES = {"slt_hts": "cmu_us_slt_arctic_hts", "ked": "ked_diphone"}
    _PACKAGES = {"slt_hts": "festvox-us-slt-hts", "ked": "festvox-kdlpc16k"}
    _PROSODY = {
        "slt_hts": """
(if (not (boundp 'base_params)) (set! base_params hts_engine_params))
(set! hts_engine_params (append (list (list "-fm" {semitones}) (list "-r" {speed})) base_params))""",
        "ked": """
(set! int_lr_params (list (list 'target_f0_mean {pitch_hz}) (list 'target_f0_std {spread_hz})
  '(model_f0_mean 170) '(model_f0_std 34)))""",
    }
    _SAY = """
(voice_{name})
(Parameter.set 'Duration_Stretch {stretch})
{prosody}
(set! utt (utt.synth (Utterance Text "{text}")))
(utt.save.wave utt "{path}" 'riff)
(mapcar (lambda (s) (format t "phone %s %f\\n" (item.name s) (item.feat s "end"))) (utt.relation.items utt 'Segment))
(mapcar (lambda (k) (if (item.daughter1 k)
  (format t "word %s %f %f\\n" (item.name k)
    (item.feat k "daughter1.word_start") (item.feat k "daughtern.word_end"))))
  (utt.relation.items utt 'Token))
(format t "said\\n")
(fflush nil)
"""
    USUAL_PITCH_HZ = {"slt_hts": 175.0, "ked": 105.0}
    _USUAL_SPREAD = 0.13  # of the diphone voice's pitch
    _NUDGES = (1.0, 1.01, 0.99, 1.02)  # of the tempo, where it died

    def __init__(self) -> None:
        program = shutil.which("festival")
        if program is None:
            raise TtsError("festival is missing; install the Debian package festival")
        self._program = program
        self._folder = tempfile.TemporaryDirectory()
        self._process = self._started()
        self._send('(format t "voices %l\\n" (voice.list)) (fflush nil)')
        self._installed = next((line for line in self._lines() if line.startswith("voices")), "")

    def require(self, voice: str) -> None:
        """Raises TtsError where festival lacks this voice."""
        name, package = self._NAMES[voice], self._PACKAGES[voice]
        if name not in self._installed:
            raise TtsError(f"festival lacks its voice {name}; install the Debian package {package}")

    def _started(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([self._program, "--pipe"], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def _lines(self) -> Iterator[str]:
        """festival's output, line by line, until the process ends."""
        assert self._process.stdout is not None
        return iter(self._process.stdout)

    def _send(self, scheme: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(scheme + "\n")
        self._process.stdin.flush()

    def _ask(self, scheme: str) -> tuple[list[str], bool]:
        """The answer's lines, and whether it is complete; if not, a new process replaces this one."""
        lines: list[str] = []
        try:
            self._send(scheme)
            for line in self._lines():
                if line.strip() == "said":
                    return lines, True
                lines.append(line.rstrip())
        except BrokenPipeError:
            pass  # it had died before
        with suppress(BrokenPipeError), self._process:
            self._process.kill()
        self._process = self._started()
        return lines, False

    def speak(self, text: str, voice: str, *, tempo: float, pitch_hz: float | None, pitch_range: float) -> RawSpeech:
        path = Path(self._folder.name) / "said.wav"
        usual_hz = self.USUAL_PITCH_HZ[voice]
        pitch_hz = pitch_hz or usual_hz
        clean = text.replace("\\", " ").replace('"', " ")
        name = self._NAMES[voice]
        for nudge in self._NUDGES:
            speed = tempo * nudge
            prosody = self._PROSODY[voice].format(
                semitones=12.0 * math.log2(pitch_hz / usual_hz),
                speed=speed,
                pitch_hz=pitch_hz,
                spread_hz=pitch_hz * self._USUAL_SPREAD * pitch_range,
            )
            say = self._SAY.format(name=name, stretch=1.0 / speed, prosody=prosody, text=clean, path=path)
            lines, whole = self._ask(say)
            if whole:
                break
        else:
            raise TtsError(f"festival stopped at {text!r}: {' | '.join(lines[-3:])}")
        phones, words = [], []
        for kind, *told in filter(None, map(str.split, lines)):
            if kind == "phone":
                phones.append((told[0], float(told[1])))
            elif kind == "word":
                words.append((told[0], float(told[1]), float(told[2])))
        pcm, rate_hz = soundfile.read(path, dtype="int16")
        sounding = [end_sec for name, end_sec in phones if name != "pau"]
        words = [(name, start, end if end > start else sounding[-1]) for name, start, end in words]
        return RawSpeech(pcm, rate_hz, phones, words)
