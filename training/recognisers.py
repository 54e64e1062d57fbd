"""Whisper as a recogniser without a grammar, DNSMOS, and word error rates over normalised words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import jiwer
import numpy as np
import soxr

from training.neural_voices import REQUIREMENTS, WHISPER_BASE, VoicesError, in_package, prepared
from training.tts import SAMPLE_RATE_HZ
from training.tts_neural import spelled_out

RECOGNISER_HZ = 16_000
_SPOKEN = {
    "mr": "mister", "mrs": "missus", "dr": "doctor", "st": "saint", "ok": "okay", "grey": "gray", "colour": "color",
    "favourite": "favorite", "neighbourhood": "neighborhood", "honour": "honor", "labour": "labor",
    "theatre": "theater", "harbour": "harbor", "humour": "humor", "oclock": "o'clock",
}  # fmt: skip
_ORDINAL = re.compile(r"\b(\d+)(?:st|nd|rd|th)\b")
_DOLLARS = re.compile(r"\$\s?(\d+)(?:\.(\d\d))?")


def normal_words(text: str) -> str:
    """Lower case, numbers as words, American spelling, no punctuation but apostrophes inside words."""
    text = text.lower().replace("’", "'").replace("%", " percent ").replace("&", " and ")
    text = _DOLLARS.sub(lambda m: f"{m[1]} dollars" + (f" and {m[2]} cents" if m[2] and m[2] != "00" else ""), text)
    text = re.sub(r"(\d),(\d{3})", r"\1\2", text)
    text = spelled_out(_ORDINAL.sub(r"\1", text))
    text = re.sub(r"[^a-z' ]", " ", text)
    words = (word.strip("'") for word in text.split())
    return " ".join(_SPOKEN.get(word, word) for word in words if word)


def same_words(left: Sequence[str], right: Sequence[str]) -> dict[int, int]:
    """Places of ``left`` → those of the same words in ``right``, in order; both normal."""
    blocks = difflib.SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
    return {block.a + i: block.b + i for block in blocks for i in range(block.size)}


def words_wrong(said: Sequence[str], heard: Sequence[str]) -> float:
    """Word error rate of all together: substituted, left out and added words over those said."""
    pairs = [(normal_words(a), normal_words(b)) for a, b in zip(said, heard, strict=True)]
    pairs = [(a, b) for a, b in pairs if a]
    return float(jiwer.wer([a for a, _ in pairs], [b for _, b in pairs])) if pairs else 0.0


class Whisper:
    """Whisper in CTranslate2's form, greedy, on one thread; some 1.7 s of a core for up to 30 s of sound."""

    def __init__(self, folder: Path | None = None, *, beam: int = 1) -> None:
        """folder: of the weights; Whisper base without it. VoicesError where something is not installed."""
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise VoicesError(f"{error.name} is missing; pip install -r {REQUIREMENTS}") from error
        path = folder or prepared(WHISPER_BASE)
        self._model = WhisperModel(str(path), device="cpu", compute_type="int8", cpu_threads=1, local_files_only=True)
        self._beam = beam

    def hear(self, pcm: np.ndarray, rate_hz: int = SAMPLE_RATE_HZ) -> str:
        """pcm: [T] float32 -> its transcript, as it writes it."""
        wave = soxr.resample(pcm, rate_hz, RECOGNISER_HZ).astype(np.float32)
        segments, _ = self._model.transcribe(
            wave, language="en", beam_size=self._beam, without_timestamps=True, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in segments)

    def timed_words(self, pcm: np.ndarray, rate_hz: int = SAMPLE_RATE_HZ) -> list[tuple[str, float, float]]:
        """pcm: [T] float32 -> (word, its start and end in seconds), from the decoder's attention, to about 0.1 s."""
        wave = soxr.resample(pcm, rate_hz, RECOGNISER_HZ).astype(np.float32)
        segments, _ = self._model.transcribe(
            wave, language="en", beam_size=self._beam, word_timestamps=True, condition_on_previous_text=False
        )
        words = (word for segment in segments for word in segment.words or ())
        return [(word.word.strip(), float(word.start), float(word.end)) for word in words]


class Dnsmos:
    """DNSMOS p808: an estimate of people's ratings, 1 to 5 (ITU-T P.808; Reddy et al. 2021)."""

    _SEC, _WINDOW, _HOP, _BANDS = 9.01, 321, 160, 120

    def __init__(self) -> None:
        try:
            import librosa
            import onnxruntime
        except ImportError as error:
            raise VoicesError(f"{error.name} is missing; pip install -r {REQUIREMENTS}") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = in_package("speechmos", "dnsmos_models/model_v8.onnx")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._librosa = librosa

    def rate(self, pcm: np.ndarray, rate_hz: int = SAMPLE_RATE_HZ) -> float:
        """pcm: [T] float32 in -1..1 -> the mean over stretches of 9 s, one a second; a shorter one is repeated."""
        wave = np.clip(soxr.resample(pcm, rate_hz, RECOGNISER_HZ).astype(np.float32), -1.0, 1.0)
        length = int(self._SEC * RECOGNISER_HZ)
        while len(wave) < length:
            wave = np.append(wave, wave)
        starts = range(0, len(wave) - length + 1, RECOGNISER_HZ)
        return float(np.mean([self._rated(wave[start : start + length]) for start in starts]))

    def _rated(self, wave: np.ndarray) -> float:
        mel = self._librosa.feature.melspectrogram(
            y=wave[: -self._HOP], sr=RECOGNISER_HZ, n_fft=self._WINDOW, hop_length=self._HOP, n_mels=self._BANDS
        )
        features = ((self._librosa.power_to_db(mel, ref=np.max) + 40) / 40).T.astype(np.float32)
        return float(self._session.run(None, {"input_1": features[None]})[0][0][0])
