"""Users as the embedded model hears them: their voices, pauses, microphones and what is around them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
from scipy import signal

from training import sentences, tts
from training.tts import SAMPLE_RATE_HZ, TRIM_LEAD_SEC, trimmed

HESITATION_SEC = (0.4, 2.0)
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


def random_user(rng: random.Random, voice: str | None = None) -> UserSpeaker:
    if voice is None:
        voices, shares = [voices for voices, _ in USER_VOICE_SHARES], [share for _, share in USER_VOICE_SHARES]
        voice = rng.choice(rng.choices(voices, shares)[0])
    pitch_hz = tts.own_pitch_hz(voice) or rng.uniform(85.0, 190.0)
    if voice in USER_RECORDED_VOICES:
        pitch_hz *= rng.uniform(0.75, 1.35)
    return UserSpeaker(
        voice=voice,
        tempo=rng.uniform(0.8, 1.25),
        pitch_hz=pitch_hz,
        formant=rng.uniform(0.86, 1.18),
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
    """The same words with a silence before one of them: a user who is not done yet."""
    index = rng.randrange(1, len(utterance.words))
    pause_sec, cut = rng.uniform(*HESITATION_SEC), int(utterance.words[index].start_sec * SAMPLE_RATE_HZ)
    silence = np.zeros(int(pause_sec * SAMPLE_RATE_HZ), np.float32)
    later = tuple(
        replace(word, start_sec=word.start_sec + pause_sec, end_sec=word.end_sec + pause_sec)
        for word in utterance.words[index:]
    )
    pcm = np.concatenate([utterance.pcm[:cut], silence, utterance.pcm[cut:]])
    return replace(utterance, pcm=pcm, words=utterance.words[:index] + later, phones=())


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


def through_microphone(pcm: np.ndarray, user: UserSpeaker, noise: np.random.Generator) -> np.ndarray:
    """pcm [T] float32 -> the same speech as this user's microphone hears it."""
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
    if user.snr_db is not None:
        hiss = signal.lfilter([1.0], [1.0, -user.noise_pole], noise.standard_normal(len(pcm)))
        pcm = pcm + hiss * level(pcm) / level(hiss) * 10 ** (-user.snr_db / 20)
    return np.clip(pcm, -1.0, 1.0).astype(np.float32)
