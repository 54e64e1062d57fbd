"""Users as the embedded model hears them: their voices, pauses, microphones and what is around them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import signal

from training import kept_out, sentences, tts
from training.tts import SAMPLE_RATE_HZ, TRIM_LEAD_SEC, trimmed
from training.tts_neural import HIBARI_PITCH_HZ

HESITATION_SEC = (0.4, 2.0)
TWICE_SHARE = 0.2  # of those who hesitate, where the sentence is long
TWICE_WORDS = 7
ORDER_PAUSE_SEC = (0.25, 1.5)  # as people pause while they order
ORDER_PAUSE_SHARE = 0.35  # of the places between two pieces of an order
THINKING_SHARE = 0.7
CLEAN_SHARE = 0.35  # of the users have no noise
NOISE_SNR_DB = (5.0, 35.0)
NOISE_POLE_MAX = 0.97  # the nearer to 1, the duller the noise
MU_LAW = 255

# Kept out of the language model's training (the codec has heard espeak-ng's); `training.evaluate` asks with them.
HELD_OUT_USER_VOICES = ("slt_hts", "espeak:en-gb-x-rp+m7", "espeak:en-us+f5")
USER_ESPEAK_VOICES = tuple(v for v in tts.ESPEAK_VARIANTS if not v.endswith(("+m7", "+f5")))
USER_RECORDED_VOICES = (*tts.FLITE_VOICES, "ked")  # concatenated from a person's recordings
USER_VOICE_SHARES: tuple[tuple[tuple[str, ...], float], ...] = (
    (USER_RECORDED_VOICES, 0.5),
    (USER_ESPEAK_VOICES, 0.28),
    (tts.ESPEAK_CHARACTERS, 0.22),
)
# Where hibari is at hand: any pitch and vocal tract, and the others for breadth.
NEURAL_USER_VOICE_SHARES = (
    ((tts.HIBARI,), 0.5),
    (USER_RECORDED_VOICES, 0.22),
    (USER_ESPEAK_VOICES, 0.16),
    (tts.ESPEAK_CHARACTERS, 0.12),
)
_HIBARI_PITCH, _HIBARI_FORMANT = (0.5, 1.35), (0.82, 1.15)  # of its own
_KOKORO_FORMANT = (0.94, 1.06)  # its pitch moves with it


@dataclass(frozen=True)
class UserSpeaker:
    """One user's voice and microphone, fixed for a stream."""

    voice: str
    tempo: float
    pitch_hz: float
    formant: float
    gain_db: float
    snr_db: float | None  # their speech to the noise
    noise_pole: float  # of the noise's filter, 0 for white noise
    channel: str  # flat, telephone, dull or room


def random_user(rng: random.Random, voice: str | None = None, *, neural: bool = False) -> UserSpeaker:
    """A user with this voice, or with any; `neural`: hibari's among them."""
    if voice is None:
        drawn = NEURAL_USER_VOICE_SHARES if neural else USER_VOICE_SHARES
        voices, shares = [voices for voices, _ in drawn], [share for _, share in drawn]
        voice = rng.choice(rng.choices(voices, shares)[0])
    kept_out.refuse_voice(voice)
    pitch_hz, formant = tts.own_pitch_hz(voice) or rng.uniform(85.0, 190.0), rng.uniform(0.86, 1.18)
    if voice == tts.HIBARI:
        pitch_hz, formant = HIBARI_PITCH_HZ * rng.uniform(*_HIBARI_PITCH), rng.uniform(*_HIBARI_FORMANT)
    elif voice in USER_RECORDED_VOICES:
        pitch_hz *= rng.uniform(0.75, 1.35)
    elif voice.startswith(tts.KOKORO_PREFIX):
        formant = rng.uniform(*_KOKORO_FORMANT)
    return UserSpeaker(
        voice=voice,
        tempo=rng.uniform(0.8, 1.25),
        pitch_hz=pitch_hz,
        formant=formant,
        gain_db=rng.uniform(-12.0, 2.0),
        snr_db=None if rng.random() < CLEAN_SHARE else rng.uniform(*NOISE_SNR_DB),
        noise_pole=rng.uniform(0.0, NOISE_POLE_MAX),
        channel=rng.choices(("flat", "telephone", "dull", "room"), (5, 2, 1, 2))[0],
    )


def say_as_user(rng: random.Random, user: UserSpeaker, text: str) -> tts.Utterance:
    return tts.speak(
        text,
        user.voice,
        tempo=user.tempo * rng.uniform(0.93, 1.07),
        pitch_hz=user.pitch_hz * rng.uniform(0.96, 1.04),
        pitch_range=rng.uniform(0.6, 1.6),
        formant=user.formant,
    )


def hesitating(rng: random.Random, utterance: tts.Utterance) -> tts.Utterance:
    """The same words with a silence before one or two of them: a user who is not done yet."""
    count = 2 if len(utterance.words) >= TWICE_WORDS and rng.random() < TWICE_SHARE else 1
    places = rng.sample(range(1, len(utterance.words)), count)
    return with_pauses(utterance, {index: rng.uniform(*HESITATION_SEC) for index in places})


def ordering(rng: random.Random, utterance: tts.Utterance, pieces: Iterable[str]) -> tts.Utterance:
    """An order with pauses between its pieces now and then; without where the words cannot be told apart."""
    counts = [len(piece.split()) for piece in pieces]
    if sum(counts) != len(utterance.words):
        return utterance
    places = np.cumsum(counts)[:-1].tolist()
    paused = [index for index in places if rng.random() < ORDER_PAUSE_SHARE]
    return with_pauses(utterance, {index: rng.uniform(*ORDER_PAUSE_SEC) for index in paused})


def with_pauses(utterance: tts.Utterance, pauses_sec: Mapping[int, float]) -> tts.Utterance:
    """The same words with silences before those of these numbers."""
    pcm, words, moved_sec, at = [], [], 0.0, 0
    for index, word in enumerate(utterance.words):
        if index in pauses_sec:
            cut = int(word.start_sec * SAMPLE_RATE_HZ)
            pcm += [utterance.pcm[at:cut], np.zeros(int(pauses_sec[index] * SAMPLE_RATE_HZ), np.float32)]
            moved_sec, at = moved_sec + pauses_sec[index], cut
        words.append(replace(word, start_sec=word.start_sec + moved_sec, end_sec=word.end_sec + moved_sec))
    if not pcm:
        return utterance
    return replace(utterance, pcm=np.concatenate([*pcm, utterance.pcm[at:]]), words=tuple(words), phones=())


def thinking(rng: random.Random, first: tts.Utterance, second: tts.Utterance) -> tts.Utterance:
    """Two halves of a sentence, spoken apart, with a pause for thought between them more often than not."""
    pause_sec = rng.uniform(*HESITATION_SEC) if rng.random() < THINKING_SHARE else rng.uniform(0.0, 0.1)
    before, before_words = trimmed(first)
    after, _ = trimmed(second)
    moved_sec = len(before) / SAMPLE_RATE_HZ + pause_sec - (second.words[0].start_sec - TRIM_LEAD_SEC)
    words = [
        replace(word, start_sec=at_sec, end_sec=word.end_sec + at_sec - word.start_sec)
        for word, (_, at_sec) in zip(first.words, before_words, strict=True)
    ]
    words += [replace(w, start_sec=w.start_sec + moved_sec, end_sec=w.end_sec + moved_sec) for w in second.words]
    silence = np.zeros(int(pause_sec * SAMPLE_RATE_HZ), np.float32)
    return replace(first, pcm=np.concatenate([before, silence, after]), words=tuple(words), phones=())


def level(pcm: np.ndarray) -> float:
    """The root mean square of the samples that are not silent, or 1 without any."""
    sounding = pcm[np.abs(pcm) > 1e-3]
    return float(np.sqrt(np.mean(np.square(sounding)))) if len(sounding) else 1.0


def through_mu_law(pcm: np.ndarray) -> np.ndarray:
    """pcm [T] after µ-law coding in 8 bits (ITU-T G.711)."""
    pcm = pcm.clip(-1, 1)
    curved = np.sign(pcm) * np.log1p(MU_LAW * np.abs(pcm)) / np.log1p(MU_LAW)
    coarse = np.round(curved * 127) / 127
    return np.sign(coarse) * np.expm1(np.abs(coarse) * np.log1p(MU_LAW)) / MU_LAW


def second_talker(rng: random.Random, length: int) -> np.ndarray:
    """Another person talking about something else: [length] float32."""
    talker = random_user(rng)
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < length:
        parts.append(say_as_user(rng, talker, sentences.voice_text(rng)).pcm)
        parts.append(np.zeros(int(rng.uniform(0.1, 1.0) * SAMPLE_RATE_HZ), np.float32))
    return np.concatenate(parts)[:length]


def through_microphone(
    pcm: np.ndarray, user: UserSpeaker, noise: np.random.Generator, *, hiss: bool = True
) -> np.ndarray:
    """pcm [T] float32 -> the same speech as this user's microphone hears it; without `hiss`, in silence."""
    if user.channel == "telephone":
        sos = signal.butter(4, (300, 3400), "bandpass", fs=SAMPLE_RATE_HZ, output="sos")
        pcm = through_mu_law(signal.sosfilt(sos, pcm))
    elif user.channel == "dull":
        pcm = signal.sosfilt(signal.butter(2, 3000, fs=SAMPLE_RATE_HZ, output="sos"), pcm)
    elif user.channel == "room":
        length = int(noise.uniform(0.05, 0.2) * SAMPLE_RATE_HZ)
        tail = noise.standard_normal(length) * np.exp(-5.0 * np.arange(length) / length) * 0.02
        tail[0] = 1.0
        pcm = signal.fftconvolve(pcm, tail)[: len(pcm)]
    pcm = pcm * 10 ** (user.gain_db / 20)
    if hiss and user.snr_db is not None:
        around = signal.lfilter([1.0], [1.0, -user.noise_pole], noise.standard_normal(len(pcm)))
        pcm = pcm + around * level(pcm) / level(around) * 10 ** (-user.snr_db / 20)
    return np.clip(pcm, -1.0, 1.0).astype(np.float32)
