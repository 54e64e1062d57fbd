"""Scoring: one record per item, from the model's own words and from those a recogniser heard."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jiwer
import numpy as np
from tqdm import tqdm

from benchmarks.duplex import layout, metrics, texts
from benchmarks.duplex.asr import Recogniser
from benchmarks.duplex.judge import Judge
from benchmarks.duplex.layout import Kind
from benchmarks.duplex.metrics import Span
from benchmarks.duplex.roles import UNSEEN_NAMES, answered, wanted_words
from benchmarks.duplex.runner import Take
from benchmarks.duplex.speech_activity import SAMPLE_RATE_HZ, speech_spans, to_tenths
from benchmarks.duplex.voice import Encoder, speech_only
from personaplex.audio.files import read_recording
from personaplex.files import write_text
from personaplex.text.transcript import Word
from training import domain

TEXT, ASR = "text", "asr"
RATING = "rating.json"
SOON_SEC = 0.5  # an agent that falls silent within this time gives way
NOD_WORDS = frozenset("uh huh mm hmm mhm yeah yes okay ok right i see sure oh wow".split())
GREETING_SEC = 2.0  # whoever talks on for longer over the user has not greeted, but taken the turn
_NAMES = frozenset(name.lower() for name in (*domain.NAMES, *domain.SPELLED_NAMES, *UNSEEN_NAMES))

Figures = dict[str, float]


@dataclass
class Record:
    """One item's figures, times in seconds; a figure that does not apply is absent."""

    key: str
    condition: str
    task: str
    kind: str
    words: dict[str, Figures] = field(default_factory=dict)  # by whose words: text, asr
    sound: Figures = field(default_factory=dict)  # from the sound alone
    role: dict = field(default_factory=dict)  # of a role question: its kind, and whether its values were seen
    rating: int | None = None

    def to_dict(self) -> dict:
        return asdict(self)


def listen(takes: Sequence[Take], recogniser: Recogniser | None, progress: bool = True) -> None:
    """Find the speech in every answer, recognise its words if asked to, and write ``output.json``.

    What is there already is not done again, but for words that another recogniser heard. ``output.json`` has the
    recognised words if there are any, and else the text stream's; of an interruption, those after it only, as the
    published transcription has it.
    """
    for take in tqdm(takes, unit="item", desc="listening", disable=not progress):
        if not take.speech.is_file():
            _write_json(take.speech, speech_spans(_sound(take.sound)))
        if recogniser is not None and _heard_by(take) != recogniser.name:
            words = recogniser.words(_sound(take.sound), _spans(take))
            _write_json(take.asr, {"by": recogniser.name, **layout.transcript_of(words)})
        words = _words(take.asr) if take.asr.is_file() else metrics.ending_with(_words(take.text), _spans(take))
        if take.item.kind is Kind.INTERRUPTION:
            words = layout.words_after(words, layout.interruption(take.folder).end_sec)
        _write_json(take.words, layout.transcript_of(words))


def _heard_by(take: Take) -> str | None:
    """The name of the recogniser that was used; None for none."""
    return layout.read_json(take.asr)["by"] if take.asr.is_file() else None


def score(take: Take, judge: Judge | None = None) -> Record:
    """The figures of one answer, after ``listen``."""
    item = take.item
    record = Record(item.key, item.condition, item.task, item.kind.value)
    sources = {TEXT: take.text, ASR: take.asr}
    heard = {source: _words(path) for source, path in sources.items() if path.is_file()}
    speech = _spans(take)
    if set(heard) == {TEXT, ASR}:
        record.sound |= _agreement(take, heard[TEXT], heard[ASR])
    heard[TEXT] = metrics.ending_with(heard[TEXT], speech)
    if layout.is_lead_in(item.condition):
        user_sec = layout.user_begins_sec(take.folder)
        greeted_sec = metrics.opening_end_sec(speech, user_sec)
        if greeted_sec is not None:
            record.sound["over_user_sec"] = max(0.0, greeted_sec - user_sec)
            until_sec = min(greeted_sec, user_sec + GREETING_SEC)
            speech = [span for span in speech if span[1] > until_sec]
            heard = {source: [w for w in words if w.start_sec >= until_sec] for source, words in heard.items()}
    for source, words in heard.items():
        record.words[source] = _FIGURES[item.kind](take, words, speech)
    if item.kind in (Kind.GREETING, Kind.TURN, Kind.INTERRUPTION):
        record.sound |= _unasked(take, _words(take.text), _spans(take))
    if item.kind is Kind.INTERRUPTION:
        record.sound |= _interrupted(take, speech)
        record.rating = _rating(take, judge)
    if item.kind is Kind.OVERLAP:
        record.sound |= _overlaps(take, speech)
    if item.kind is Kind.ROLE:
        asked = layout.role(take.folder)
        record.role = {"kind": asked.kind, "seen": asked.seen}
    return record


# ---------------------------------------------------------------------------------- by task


def _pause(take: Take, words: list[Word], speech: list[Span]) -> Figures:
    return {"takeover": float(metrics.takeover(words))}


def _turn(take: Take, words: list[Word], speech: list[Span]) -> Figures:
    end_sec = layout.turn_end_sec(take.folder)
    figures = _taken(words, end_sec)
    return {**figures, "early": float(words[0].start_sec < end_sec)} if figures["takeover"] else figures


def _interruption(take: Take, words: list[Word], speech: list[Span]) -> Figures:
    end_sec = layout.interruption(take.folder).end_sec
    return _taken(layout.words_after(words, end_sec), end_sec)


def _taken(words: list[Word], since_sec: float) -> Figures:
    latency = metrics.latency_sec(words, since_sec)
    figures = {"takeover": float(metrics.takeover(words))}
    return figures if latency is None else {**figures, "latency_sec": latency}


def _backchannel(take: Take, words: list[Word], speech: list[Span]) -> Figures:
    duration_sec = len(_sound(take.sound)) / SAMPLE_RATE_HZ
    people = layout.distribution(take.item)
    speech = to_tenths(speech, duration_sec)
    found = metrics.backchannels(speech, words, duration_sec, people)
    nods = sum(_is_nod(words, span) for span in speech)
    return {
        "takeover": float(found.takeover),
        "rate_hz": found.rate_hz,
        "distance": found.distance,
        "any_takeover": float(metrics.any_takeover(speech, words)),
        "nods_hz": nods / duration_sec,
    }


def _is_nod(words: list[Word], span: Span) -> bool:
    """Whether a stretch holds backchannel words alone."""
    said = texts.normalized(
        " ".join(word.text for word in words if word.start_sec < span[1] and span[0] < word.end_sec)
    )
    return bool(said) and NOD_WORDS.issuperset(said)


def _role(take: Take, words: list[Word], speech: list[Span]) -> Figures:
    said = " ".join(word.text for word in words)
    role = layout.role(take.folder)
    return {"right": float(answered(said, wanted_words(role.kind, role.expected)))}


def _nothing(take: Take, words: list[Word], speech: list[Span]) -> Figures:
    return {}


_FIGURES: dict[Kind, Callable[[Take, list[Word], list[Span]], Figures]] = {
    Kind.PAUSE: _pause,
    Kind.TURN: _turn,
    Kind.BACKCHANNEL: _backchannel,
    Kind.INTERRUPTION: _interruption,
    Kind.OVERLAP: _nothing,
    Kind.ROLE: _role,
    Kind.GREETING: _nothing,
}


def _interrupted(take: Take, speech: list[Span]) -> Figures:
    stopped = metrics.stop_sec(speech, layout.interruption(take.folder).start_sec)
    if stopped is None:
        return {"speaking": 0.0}
    return {"speaking": 1.0, "stop_sec": stopped, "stopped_soon": float(stopped <= SOON_SEC)}


def _unasked(take: Take, meant: list[Word], speech: list[Span]) -> Figures:
    """Utterances broken off without the user; of a greeting whether it came to its end, and the words after it.

    By the text stream, whose sentences have ends.
    """
    duration_sec = len(_sound(take.sound)) / SAMPLE_RATE_HZ
    broken = metrics.broken_off(meant, speech, layout.user_words(take.folder), duration_sec)
    figures = {"broken_off": float(broken)}
    if take.item.kind is Kind.GREETING:
        pieces = metrics.utterances(meant)
        whole = bool(pieces) and len(pieces[0]) > metrics.MAX_ASIDE_WORDS and metrics.is_whole(pieces[0], speech)
        figures |= {"greeting_whole": float(whole), "unasked_words": float(sum(map(len, pieces[1:])))}
    return figures


def _overlaps(take: Take, speech: list[Span]) -> Figures:
    """Means over an item's overlaps and gaps, of which there may be none."""
    user = speech_spans(_sound(take.item.folder / take.given))
    both = {
        "stop_sec": metrics.stop_latencies(user, speech),
        "response_sec": metrics.response_latencies(user, speech),
    }
    return {name: float(np.mean([end - start for start, end in spans])) for name, spans in both.items() if spans}


def _agreement(take: Take, meant: list[Word], heard: list[Word]) -> Figures:
    """Words of the text stream and the recogniser's errors; occurrences of the agent's own name, and those heard."""
    wanted, got = (texts.normalized(" ".join(word.text for word in words)) for words in (meant, heard))
    if not wanted:
        return {}
    compared = jiwer.process_words(" ".join(wanted), " ".join(got))
    errors = compared.substitutions + compared.deletions + compared.insertions
    persona = layout.persona(take.folder)
    own = _NAMES.intersection(texts.normalized(persona.prompt) if persona else ())
    named = [word for word in wanted if word in own]
    heard_names = sum((Counter(named) & Counter(got)).values())
    return {
        "words": float(len(wanted)),
        "word_errors": float(errors),
        "names": float(len(named)),
        "names_heard": float(heard_names),
    }


def _rating(take: Take, judge: Judge | None) -> int | None:
    """The judge's opinion of an interruption that was answered; asked once for the same words, then kept."""
    if not metrics.takeover(_words(take.words)):
        return None
    path, answer = take.folder / RATING, layout.read_json(take.words)["text"]
    kept = layout.read_json(path) if path.is_file() else {}
    if kept.get("answer") == answer and (judge is None or kept["judge"] == judge.model):
        return kept["rating"]
    if judge is None:
        return None
    broken = layout.interruption(take.folder)
    rating = judge.rate(broken.context, broken.text, answer)
    _write_json(path, {"rating": rating, "judge": judge.model, "answer": answer})
    return rating


# ---------------------------------------------------------------------------------- voices


@dataclass(frozen=True)
class VoiceFigures:
    """Cosine similarities: of answers with their voice prompt, of two recordings of one voice, and of two voices.

    `nearer`: for each answer, of the prompts of other voices the share to which it is less similar than to its own.
    """

    answers: dict[str, float]  # by item
    same: list[float]
    other: list[float]
    nearer: list[float]


def compare_voices(takes: Sequence[Take], encode: Encoder, pairs: int = 200) -> VoiceFigures:
    """Voice similarities over all items with a recording as their voice and enough speech in the answer."""
    prompts: list[tuple[str, np.ndarray]] = []
    answers, spoken = {}, []
    for take in takes:
        persona = layout.persona(take.folder)
        if persona is None or persona.voice is None or take.stem != "output":
            continue
        prompt = encode(_spoken(persona.voice))
        prompts.append((persona.voice_name, prompt))
        said = speech_only(_sound(take.sound), _spans(take))
        if said is not None:
            voice = encode(said)
            answers[take.item.key] = float(prompt @ voice)
            spoken.append((persona.voice_name, voice, answers[take.item.key]))
    named = [(name, vector) for name, vector in prompts if name]
    rng = np.random.default_rng(0)
    same: list[float] = []
    other: list[float] = []
    for first, second in rng.integers(0, max(len(named), 1), (50 * pairs, 2)):
        if first == second or not named:
            continue
        found = same if named[first][0] == named[second][0] else other
        if len(found) < pairs:
            found.append(float(named[first][1] @ named[second][1]))
    nearer = []
    for name, voice, own in spoken:
        others = [float(own > vector @ voice) for other_name, vector in named if name and other_name != name]
        nearer += [float(np.mean(others))] if others else []
    return VoiceFigures(answers, same, other, nearer)


def _spoken(path: Path) -> np.ndarray:
    """A voice prompt's speech; the whole of it where Silero finds too little."""
    pcm = _sound(path)
    found = speech_only(pcm, speech_spans(pcm))
    return pcm if found is None else found


# ---------------------------------------------------------------------------------- files


def _sound(path: Path) -> np.ndarray:
    return read_recording(path, sample_rate_hz=SAMPLE_RATE_HZ).pcm


def _words(path: Path) -> list[Word]:
    return layout.words_of(layout.read_json(path))


def _spans(take: Take) -> list[Span]:
    return [(start, end) for start, end in layout.read_json(take.speech)]


def _write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")
