"""Judges a model by what people hear and say: `python -m training.judge --model nano --people PEOPLE`.

A recogniser without a grammar (Whisper base) and DNSMOS, people and neural voices that training never heard; beside
`training.evaluate`, whose recogniser knows all that nano may say. A row is done by itself:

| row | what |
|---|---|
| `words` | the agent's speech in each of its voices: words of its text stream misheard, DNSMOS p808 |
| `questions` | name, place, hours and goodbye asked by 28 of Kokoro's voices, those kept for tests apart |
| `orders` | orders of people kept for tests: the drink repeated; drink, size and milk |
| `pauses` | thirty such orders with a pause in them, and as recorded: talked over; the turn taken after them |
| `readings` | sentences read by people kept for tests: the turn taken, and the wait |
| `told` | a price or an hour told in mid-call: given when it is asked for; the older one still given |
| `greetings` | whole greetings in quiet, rumble, beside a fan, a street, in a cafe |

Echo and rumble beside talk are conditions of `python -m benchmarks.duplex`.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from personaplex.messages import SamplingOptions
from personaplex.personas.voices import catalogue
from personaplex.session.session import Session
from personaplex.weights.load import load_model
from training import judge_talks, kept_out, kokoro_speech, orders, recognisers, sentences
from training.evaluate import FRAME_SEC, Talk, Transcriber, Window, hold, right
from training.judge_talks import BACKGROUNDS, QUESTIONS, Maker
from training.tts import KOKORO_PREFIX

log = logging.getLogger(__name__)

WORD_ASIDE = 3  # so many words are no turn, before the user's end or after it: "Okay."
OVERLAP_SEC = 0.16  # an answer that begins so little before the end has waited for it
CARRIED_SLOTS = ("drink", "size", "milk")

Figures = dict[str, Any]


class Judge:
    """Holds a row's conversations and counts."""

    def __init__(self, session: Session, maker: Maker, sampling: dict[str, float], counts: dict[str, int]) -> None:
        self.session, self.maker, self.reader = session, maker, Transcriber(session)
        self._sampling, self._counts, self.shown = sampling, counts, list[str]()

    def _hold(self, talks: list[Talk]) -> list[Talk]:
        hold(self.session, talks, self._sampling, seed=0)
        for talk in talks:
            window, whole = talk.windows[0], Window("", 0, len(talk.tokens))
            self.shown.append(
                f"{talk.voice_name} | {window.user_voice} | {window.asked} -> {self.reader.text(talk, whole)}"
            )
        return talks

    def words(self) -> Figures:
        """Greetings, and answers to one of the kept voices, through the recogniser."""
        count = self._counts["words"]
        asked = self.maker.kokoro_questions(sorted(kept_out.KOKORO)[: -(-count // len(QUESTIONS))])
        talks = self._hold(self.maker.greetings("quiet", count) + asked[:count])
        whisper, rating = recognisers.Whisper(), recognisers.Dnsmos()
        by_voice: dict[str, list[tuple[str, str, float]]] = {}
        for talk in talks:
            window = Window("", 0, len(talk.tokens))
            sound = self.reader.sound(talk, window)
            if sound is not None:
                said = (self.reader.text(talk, window), whisper.hear(sound), rating.rate(sound))
                by_voice.setdefault(talk.voice_name, []).append(said)
        everything = [item for said in by_voice.values() for item in said]
        return {"all": _misheard(everything)} | {voice: _misheard(said) for voice, said in sorted(by_voice.items())}

    def questions(self) -> Figures:
        """By the text stream."""
        talks = self._hold(self.maker.kokoro_questions(sorted([*kokoro_speech.styles(), *kept_out.KOKORO])))
        outcome = [(talk, right(talk, talk.windows[0], self.reader.text(talk, talk.windows[0]))) for talk in talks]
        table: Figures = {}
        for name, kept in (("trained voices", False), ("kept voices", True)):
            own = [(talk, well) for talk, well in outcome if _is_kept(talk.windows[0].user_voice) == kept]
            table[name] = _share([well for _, well in own])
            for kind in dict.fromkeys(talk.windows[0].kind for talk, _ in own):
                table[f"{name}: {kind}"] = _share([well for talk, well in own if talk.windows[0].kind == kind])
        return {"all": _share([well for _, well in outcome])} | table

    def orders(self) -> Figures:
        """What the text stream repeats, begun before the order's end or after it."""
        talks = self._hold(self.maker.orders(self._counts["orders"]))
        carried: dict[str, list[bool]] = {"drink": [], "drink, size and milk": []}
        for talk in talks:
            wanted = orders.slots_in(talk.windows[0].asked)
            said = orders.slots_in(self.reader.text(talk, Window("", 0, len(talk.tokens))))
            carried["drink"].append(said.get("drink") == wanted["drink"])
            carried["drink, size and milk"].append(all(said.get(slot) == wanted.get(slot) for slot in CARRIED_SLOTS))
        return {name: _share(outcomes) for name, outcomes in carried.items()} | self._turns(talks)

    def pauses(self) -> Figures:
        """With a pause put in, and as they were recorded, after a silence in which the agent may begin to greet."""
        paused = self._turns(self._hold(self.maker.orders(self._counts["pauses"], paused=True)))
        recorded = self._turns(self._hold(self.maker.orders(self._counts["pauses"], as_recorded=True)))
        return paused | {f"as recorded: {name}": figure for name, figure in recorded.items()}

    def readings(self) -> Figures:
        return self._turns(self._hold(self.maker.readings(self._counts["readings"])))

    def told(self) -> Figures:
        """By the text stream."""
        given, older = [], []
        for talk in self._hold(self.maker.told(self._counts["told"])):
            assert talk.role_before is not None, "each of these is told something"
            asked, before = talk.windows[0], replace(talk, role=talk.role_before)
            text = self.reader.text(talk, asked)
            given.append(right(talk, asked, text))
            older.append(right(before, asked, text))
        return {"given as told": _share(given), "the older one given": _share(older)}

    def _turns(self, talks: list[Talk]) -> Figures:
        """Talked over before the end; the turn taken after it; how long that took."""
        over, waits_sec = [], []
        for talk in talks:
            end = talk.windows[0].start_frame - round(OVERLAP_SEC / FRAME_SEC)
            begin = talk.windows[1].start_frame if len(talk.windows) > 1 else 0
            before = self.reader.text(talk, Window("", begin, end)).split()
            over.append(len(before) > WORD_ASIDE)
            after = self.reader.spoken_frames(talk, Window("", end, len(talk.tokens)))
            words = self.reader.text(talk, Window("", end, len(talk.tokens))).split()
            if len(words) > WORD_ASIDE:
                waits_sec.append(max(0.0, (after[0] - talk.windows[0].start_frame) * FRAME_SEC))
        median_sec = round(float(np.median(waits_sec)), 2) if waits_sec else None
        taken = [True] * len(waits_sec) + [False] * (len(talks) - len(waits_sec))
        return {"talks over": _share(over), "takes its turn": _share(taken), "median wait, s": median_sec}

    def greetings(self) -> Figures:
        """Those of which nothing is left out."""
        table: Figures = {}
        for background in BACKGROUNDS:
            talks = self._hold(self.maker.greetings(background, self._counts["greetings"]))
            table[background] = _share([_greeted(talk, self.reader.text(talk, talk.windows[0])) for talk in talks])
        return table


def _greeted(talk: Talk, text: str) -> bool:
    """Whether the greeting was said to its end; a name or place that is another counts."""
    said = " ".join(sentences.spoken_words(text))
    offers = [" ".join(sentences.spoken_words(greeting.split(". ")[1])) for greeting in sentences.GREETINGS]
    return said.startswith(("hello this is", "hi this is")) and any(offer in said for offer in offers)


def _is_kept(voice: str) -> bool:
    return voice.removeprefix(KOKORO_PREFIX) in kept_out.KOKORO


def _misheard(said: list[tuple[str, str, float]]) -> Figures:
    wrong = recognisers.words_wrong([text for text, _, _ in said], [heard for _, heard, _ in said])
    words = sum(len(recognisers.normal_words(text).split()) for text, _, _ in said)
    return {"misheard": round(wrong, 4), "of words": words, "dnsmos": round(float(np.mean([r for *_, r in said])), 2)}


def _share(outcomes: list[bool]) -> str:
    return f"{sum(outcomes)} of {len(outcomes)}"


ROWS: tuple[str, ...] = ("words", "questions", "orders", "pauses", "readings", "told", "greetings")
USUAL_COUNTS = dict(words=24, orders=100, pauses=30, readings=25, told=100, greetings=24)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--format", default="auto")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--people", type=Path, help="recordings of people; without them no orders and readings")
    parser.add_argument("--voices", type=Path, default=Path("voices"), help="recordings that prompt the agent's voice")
    parser.add_argument("--names", nargs="+", help="of these; those of the catalogue if not given")
    parser.add_argument("--cache", type=Path, default=Path("build/nano/judge"), help="questions spoken before")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of conversations")
    parser.add_argument("--slots", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print what was said")
    parser.add_argument("--out", type=Path, help="a file for the figures, to which rows are added")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    session = Session(load_model(options.model, format=options.format, device="cpu"), slots=options.slots)
    names = options.names or [entry.name for entry in catalogue("nano")]
    maker = Maker(judge_talks.voice_prompts(options.voices, names), options.seed, options.people, options.cache)
    sampling = dict(
        temperature_text=SamplingOptions.temperature_text, temperature_audio=SamplingOptions.temperature_audio
    )
    counts = {name: max(1, round(options.share * count)) for name, count in USUAL_COUNTS.items()}
    judge = Judge(session, maker, sampling, counts)
    rows: dict[str, Callable[[], Figures]] = {name: getattr(judge, name) for name in options.rows}
    table = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    for name, row in rows.items():
        table[name] = row()
        log.info("%s: %s", name, json.dumps(table[name]))
        if options.out:
            options.out.write_text(json.dumps(table, indent=1) + "\n")
    if options.show:
        print("\n".join(judge.shown))
    print(json.dumps(table))


if __name__ == "__main__":
    main()
