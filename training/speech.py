"""Speaks the domain to disk: agent clips, user sessions and voice prompts, as fixed-length streams.

    python -m training.speech --out build/nano/speech --hours 20 --processes 2

A shard is `ROLE_NNNN.npy`, int16 [streams, samples] at 24 kHz, with `ROLE_NNNN.json` saying what is
where. Shards are independent and seeded by their number, so the command can be stopped and resumed,
and any number of them is a balanced sample. Hardly any recording is meant to be used twice: tempo,
pitch and liveliness are drawn anew for each one.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import random
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyloudnorm
from scipy import signal

from training import domain, sentences, tts

log = logging.getLogger(__name__)

SAMPLE_RATE_HZ = tts.SAMPLE_RATE_HZ
TRIM_LEAD_SEC, TRIM_TAIL_SEC = 0.04, 0.08  # what is left of the silence around a sentence
STREAM_SEC = {"agent": 24.0, "user": 20.0, "voice": 4.0}
STREAMS_PER_SHARD = {"agent": 16, "user": 20, "voice": 96}
SHARD_PATTERN = ("agent", "user", "agent", "user", "agent", "user", "agent", "voice", "agent", "user")
VOICE_LUFS = -24.0

AGENT_LUFS = (-21.5, -18.5)  # of what the agent says
AGENT_VOICE_WEIGHTS = dict(slt=3, rms=2, awb=3, kal16=3)
AGENT_VOICES = tuple(AGENT_VOICE_WEIGHTS)
AGENT_KIND_WEIGHTS = dict(
    greet=20, name=12, place=10, price=14, hours=6, robot=2, help=3, rude=2, beyond=3, unknown=3, how=2, thanks=2,
    bye=2, nod=4, repeat=3,
)  # fmt: skip
SPELLED_SHARE = 0.2  # of the agents' streams, those that say nothing but names that are spelled
USER_KIND_WEIGHTS = dict(
    name=12, place=10, price=9, hours=8, hello=2, how=5, thanks=3, bye=3, robot=4, help=4, rude=5, beyond=11, mumble=6
)
STORY_SHARE = 0.25  # of the users: they tell a story before they ask
STORY_SENTENCES = (3, 5)
FILLER_SHARE = 0.3  # of the questions, those with a word before them
LED_IN_SHARE = 0.3  # … and those with a pause for thought, or none, after their beginning
THINKING_SHARE = 0.7

HESITATION_SHARE = 0.35  # of the user's sentences of this many words
HESITATION_WORDS = 4
HESITATION_SEC = (0.4, 2.0)

CLEAN_SHARE = 0.35  # of the users, those without a noise
NOISE_SNR_DB = (5.0, 35.0)
NOISE_POLE_MAX = 0.97  # the nearer to 1, the duller the noise
SECOND_TALKER_SHARE = 0.25  # of the users, those behind whom somebody else speaks
SECOND_TALKER_DB = (-22.0, -8.0)
MU_LAW = 255

# Never spoken with to the language model (the codec has heard those of espeak-ng); `training.evaluate` asks with them.
HELD_OUT_USER_VOICES = ("slt_hts", "espeak:en-gb-x-rp+m7", "espeak:en-us+f5")
USER_ESPEAK_VOICES = tuple(v for v in tts.ESPEAK_VARIANTS if not v.endswith(("+m7", "+f5")))
USER_RECORDED_VOICES = (*tts.FLITE_VOICES, "ked")  # made of a person's recordings
USER_VOICE_SHARES = ((USER_RECORDED_VOICES, 0.5), (USER_ESPEAK_VOICES, 0.28), (tts.ESPEAK_CHARACTERS, 0.22))


@dataclass
class Clip:
    """One sentence inside a stream; times in seconds from the start of the stream."""

    kind: str
    text: str
    start_sec: float
    end_sec: float
    words: list[tuple[str, float]]
    slots: dict[str, str] = field(default_factory=dict)  # what fills them, of the agent's sentences


@dataclass
class Stream:
    """What one row of a shard holds. `end_sec`: where silence or background noise goes on to the end."""

    voice: str
    clips: list[Clip] = field(default_factory=list)
    end_sec: float = 0.0


def trimmed(utterance: tts.Utterance) -> tuple[np.ndarray, list[tuple[str, float]]]:
    """The speech without the synthesiser's own silence around it: pcm and (word, start in seconds)."""
    words = utterance.words
    first_sec = max(0.0, words[0].start_sec - TRIM_LEAD_SEC)
    last_sec = min(len(utterance.pcm) / SAMPLE_RATE_HZ, words[-1].end_sec + TRIM_TAIL_SEC)
    pcm = utterance.pcm[int(first_sec * SAMPLE_RATE_HZ) : int(last_sec * SAMPLE_RATE_HZ)]
    return pcm, [(word.text, word.start_sec - first_sec) for word in words]


def say_as_agent(rng: random.Random, voice: str, text: str) -> tts.Utterance:
    """One reading in an agent voice: recognisably the same speaker, never twice the same sound."""
    pitch_hz = tts.FLITE_VOICES[voice] * rng.uniform(0.94, 1.06)
    return tts.speak(text, voice, tempo=rng.uniform(0.95, 1.2), pitch_hz=pitch_hz, pitch_range=rng.uniform(0.7, 1.4))


@dataclass(frozen=True)
class UserSpeaker:
    """How one user sounds for the length of a stream, their microphone included."""

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
        voices, shares = zip(*USER_VOICE_SHARES, strict=True)
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
    """The root mean square of what sounds in it, or 1 where nothing does."""
    sounding = pcm[np.abs(pcm) > 1e-3]
    return float(np.sqrt(np.mean(np.square(sounding)))) if len(sounding) else 1.0


def through_mu_law(pcm: np.ndarray) -> np.ndarray:
    """pcm [T] as a telephone line's 8 bits leave it (ITU-T G.711's curve)."""
    pcm = pcm.clip(-1, 1)
    curved = np.sign(pcm) * np.log1p(MU_LAW * np.abs(pcm)) / np.log1p(MU_LAW)
    coarse = np.round(curved * 127) / 127
    return np.sign(coarse) * np.expm1(np.abs(coarse) * np.log1p(MU_LAW)) / MU_LAW


def second_talker(rng: random.Random, length: int) -> np.ndarray:
    """Somebody who speaks of something else for `length` samples: [length] float32."""
    talker, parts = random_user(rng), []
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


class _Row:
    """A stream being filled with sentences."""

    def __init__(self, role: str, voice: str) -> None:
        self.pcm = np.zeros(int(STREAM_SEC[role] * SAMPLE_RATE_HZ), np.float32)
        self.stream = Stream(voice)
        self.at_sec = 0.0

    def add(self, utterance: tts.Utterance, tail_sec: float, **clip) -> bool:
        """Puts the sentence at `at_sec`; False (and nothing done) if it does not fit."""
        pcm, words = trimmed(utterance)
        start = int(self.at_sec * SAMPLE_RATE_HZ)
        if start + len(pcm) + int(tail_sec * SAMPLE_RATE_HZ) > len(self.pcm):
            return False
        self.pcm[start : start + len(pcm)] = pcm
        start_sec, end_sec = start / SAMPLE_RATE_HZ, (start + len(pcm)) / SAMPLE_RATE_HZ
        placed = [(text, start_sec + word_sec) for text, word_sec in words]
        self.stream.clips.append(Clip(start_sec=start_sec, end_sec=end_sec, words=placed, **clip))
        self.at_sec = self.stream.end_sec = end_sec
        return True


class _Cycle:
    """Draws without repeating until everything was drawn once, so counts stay even."""

    def __init__(self, rng: random.Random, items) -> None:
        self._rng, self._items, self._left = rng, list(items), []

    def draw(self):
        if not self._left:
            self._left = self._rng.sample(self._items, len(self._items))
        return self._left.pop()


def _weighted(rng: random.Random, weights: dict[str, int]) -> _Cycle:
    return _Cycle(rng, [item for item, weight in weights.items() for _ in range(weight)])


def agent_rows(rng: random.Random, count: int):
    """Streams of agent sentences with short silences between them."""
    trained = domain.SLOT_VALUES | {"price": domain.TRAINED_PRICES}
    values = {slot: _Cycle(rng, words) for slot, words in trained.items()}
    spelled = values | {"name": _Cycle(rng, domain.SPELLED_NAMES)}
    templates: dict[str, list[str]] = {}
    for kind, text in sentences.agent_templates():
        templates.setdefault(kind, []).append(text)
    cycles = {kind: _Cycle(rng, texts) for kind, texts in templates.items()}
    usual, naming = _weighted(rng, AGENT_KIND_WEIGHTS), _Cycle(rng, sentences.NAMING_KINDS)
    voices = _weighted(rng, AGENT_VOICE_WEIGHTS)
    for _ in range(count):
        row = _Row("agent", voices.draw())
        row.at_sec = rng.uniform(0.4, 0.5)
        kinds, said = (naming, spelled) if rng.random() < SPELLED_SHARE else (usual, values)
        while True:
            kind = kinds.draw()
            template = cycles[kind].draw()
            slots = {slot: words.draw() for slot, words in said.items() if f"{{{slot}}}" in template}
            text = template.format(**slots)
            utterance = say_as_agent(rng, row.stream.voice, text)
            if not row.add(utterance, 0.3, kind=kind, text=text, slots=slots):
                break
            row.at_sec += rng.uniform(0.4, 0.5)
        row.pcm = at_loudness(row.pcm, rng.uniform(*AGENT_LUFS))
        yield row


def user_rows(rng: random.Random, count: int):
    """Streams of one user each; half of them start to speak at once, half after some background."""
    texts: dict[str, list[str]] = {}
    for kind, text in sentences.user_sentences():
        texts.setdefault(kind, []).append(text)
    cycles = {kind: _Cycle(rng, said) for kind, said in texts.items()}
    kinds, fillers = _weighted(rng, USER_KIND_WEIGHTS), _Cycle(rng, sentences.FILLERS)
    openings = _Cycle(rng, sentences.STORY_OPENINGS)
    noise = np.random.default_rng(rng.getrandbits(32))
    for index in range(count):
        user = random_user(rng)
        row = _Row("user", user.voice)
        row.at_sec = rng.uniform(0.0, 0.15) if index % 2 else rng.uniform(2.0, 3.0)
        told = rng.randint(*STORY_SENTENCES) if rng.random() < STORY_SHARE else 0
        while True:
            kind = sentences.STORY if told > 0 else kinds.draw()
            if kind == sentences.MUMBLE:
                text = sentences.mumbled(rng)
            else:
                text = openings.draw() if told > 0 and not row.stream.clips else cycles[kind].draw()
            told -= 1
            text, said = ask(rng, user, kind, text, fillers)
            if not row.add(said, 1.6, kind=kind, text=text):
                break
            row.at_sec += rng.uniform(0.6, 1.0)
        if rng.random() < SECOND_TALKER_SHARE:
            talker = second_talker(rng, len(row.pcm))
            row.pcm += talker * level(row.pcm) / level(talker) * 10 ** (rng.uniform(*SECOND_TALKER_DB) / 20)
        row.pcm = through_microphone(row.pcm, user, noise)
        yield row


def ask(
    rng: random.Random, user: UserSpeaker, kind: str, text: str, fillers: _Cycle
) -> tuple[str, tts.Utterance]:  # fmt: skip
    """A sentence as people say it: with something before it, or with a pause in it, now and then; and its text."""
    halves = sentences.led_in_questions(kind) if kind in sentences.TURNS and rng.random() < LED_IN_SHARE else ()
    if halves:
        first, second = rng.choice(halves)
        return f"{first} {second}", thinking(rng, say_as_user(rng, user, first), say_as_user(rng, user, second))
    if kind in sentences.TURNS and rng.random() < FILLER_SHARE:
        text = sentences.with_filler(fillers.draw(), text)
    said = say_as_user(rng, user, text)
    if len(said.words) >= HESITATION_WORDS and rng.random() < HESITATION_SHARE:
        said = hesitating(rng, said)
    return text, said


def voice_prompt(rng: random.Random, voice: str) -> np.ndarray:
    """A voice prompt of an agent voice, [T] float32, 1.5 to 4 s, at -24 LUFS."""
    parts = [say_as_agent(rng, voice, sentences.voice_text(rng)).pcm for _ in range(2)]
    pcm = np.concatenate(parts)[: int(rng.uniform(1.5, 4.0) * SAMPLE_RATE_HZ)]
    return at_loudness(pcm)


def at_loudness(pcm: np.ndarray, lufs: float = VOICE_LUFS) -> np.ndarray:
    """[T] float32 at this loudness, that of voice prompts; one short word is measured as if it were repeated."""
    meter = pyloudnorm.Meter(SAMPLE_RATE_HZ)
    shortest = int(meter.block_size * SAMPLE_RATE_HZ) + 1
    loudness = meter.integrated_loudness(np.resize(pcm, max(len(pcm), shortest)))
    return (pcm * 10 ** ((lufs - loudness) / 20)).clip(-1.0, 1.0).astype(np.float32)


def voice_rows(rng: random.Random, count: int):
    """Streams that are one voice prompt each, from their first sample on."""
    voices = _weighted(rng, AGENT_VOICE_WEIGHTS)
    for _ in range(count):
        row = _Row("voice", voices.draw())
        pcm = voice_prompt(rng, row.stream.voice)
        row.pcm[: len(pcm)] = pcm
        row.stream.end_sec = len(pcm) / SAMPLE_RATE_HZ
        yield row


ROLES = {"agent": agent_rows, "user": user_rows, "voice": voice_rows}


def shard_role(index: int) -> str:
    return SHARD_PATTERN[index % len(SHARD_PATTERN)]


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"{shard_role(index)}_{index:04d}.npy"


def speak_shard(job: tuple[Path, int]) -> float:
    """Speaks one shard unless it is there already; returns its seconds."""
    folder, index = job
    path, role = shard_path(folder, index), shard_role(index)
    if not path.exists():
        rows = list(ROLES[role](random.Random(f"nano-{index}"), STREAMS_PER_SHARD[role]))
        pcm = np.stack([np.round(row.pcm * 32767) for row in rows]).astype(np.int16)
        path.with_suffix(".json").write_text(json.dumps([asdict(row.stream) for row in rows]))
        partial = path.with_suffix(".tmp.npy")
        np.save(partial, pcm)
        partial.rename(path)  # a shard that has its name is whole
    return STREAMS_PER_SHARD[role] * STREAM_SEC[role]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/nano/speech"))
    parser.add_argument("--hours", type=float, default=20.0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    started, spoken_sec, jobs, planned_sec = time.monotonic(), 0.0, [], 0.0
    while planned_sec < options.hours * 3600:
        role = shard_role(len(jobs))
        planned_sec += STREAMS_PER_SHARD[role] * STREAM_SEC[role]
        jobs.append((options.out, len(jobs)))
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for seconds in pool.imap(speak_shard, jobs):
            spoken_sec += seconds
            log.info("%.2f h of speech after %.0f s", spoken_sec / 3600, time.monotonic() - started)


if __name__ == "__main__":
    main()
