"""People's recordings as users of the language model: `python -m training.people_speech --out DIR --people FOLDER`.

Two parts beside those of `training.speech`, and encoded like them:

* `people`: reading people, whose words are listened for and never answered;
* `user-cafe`: orders of coffee, which the agent repeats (`training.orders`).

Whisper times the words, once, kept in `words.json`; where a set has its texts, a word counts only where both agree.
What is kept for tests is refused (`training.kept_out`). Without recordings the model trains all the same.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from training import orders, people, recognisers, sentences, surroundings, users
from training.recital import SAMPLE_RATE_HZ, STREAM_SEC, Clip, Row
from training.speech import heard, write_shard

log = logging.getLogger(__name__)

LISTENED_SETS = ("speechocean", "arctic", "librispeech")
CAFE = "cafe"
LISTEN = "listen"  # the kind of what is not answered
WORDS_FILE = "words.json"
ROWS = 20  # a shard
LEVEL = 0.08  # root mean square of what sounds, of full scale, before a microphone's own gain
WINDOW_SEC, GAP_SEC = 27.0, 0.6  # several recordings of a speaker are recognised at once
TAIL_SEC = 1.6
ONE_SIDED_SEC = (0.05, 0.4)  # between the recordings of a speaker
CAFE_LEAD_SEC, CAFE_AT_ONCE_SHARE = (2.0, 4.0), 0.5
CAFE_ROOM_SEC = 4.0  # of what follows an order, at least

TimedWord = tuple[str, float, float]
Hear = Callable[[np.ndarray], list[TimedWord]]


def windows(found: Sequence[people.Recording]) -> Iterator[list[tuple[people.Recording, np.ndarray]]]:
    """Recordings of one speaker each, as many as one call of the recogniser takes: with their sound, trimmed."""
    window: list[tuple[people.Recording, np.ndarray]] = []
    for recording in found:
        pcm = people.trimmed(recording.pcm())
        sec = sum(len(other) / SAMPLE_RATE_HZ + GAP_SEC for _, other in window) + len(pcm) / SAMPLE_RATE_HZ
        if window and (sec > WINDOW_SEC or recording.speaker != window[0][0].speaker or not recording.speaker):
            yield window
            window = []
        window.append((recording, pcm))
    if window:
        yield window


def words_of(window: list[tuple[people.Recording, np.ndarray]], hear: Hear) -> dict[str, list[TimedWord]]:
    """Recording's path -> its words, timed from the beginning of its trimmed sound."""
    gap = np.zeros(int(GAP_SEC * SAMPLE_RATE_HZ), np.float32)
    words = as_said(hear(np.concatenate([part for _, pcm in window for part in (pcm, gap)])))
    found: dict[str, list[TimedWord]] = {}
    at_sec = 0.0
    for recording, pcm in window:
        end_sec = at_sec + len(pcm) / SAMPLE_RATE_HZ
        own = [(w, a - at_sec, min(b, end_sec) - at_sec) for w, a, b in words if at_sec <= (a + b) / 2 < end_sec]
        found[str(recording.path)] = agreed(own, recording.text)
        at_sec = end_sec + GAP_SEC
    return found


def as_said(heard_words: list[TimedWord]) -> list[TimedWord]:
    """Numbers as words, and what is written together apart, each with its share of the time: "12-ounce"."""
    said: list[TimedWord] = []
    for word, start_sec, end_sec in heard_words:
        parts = recognisers.normal_words(word).split()
        step_sec = (end_sec - start_sec) / max(1, len(parts))
        said += [(part, start_sec + i * step_sec, start_sec + (i + 1) * step_sec) for i, part in enumerate(parts)]
    return said


def agreed(heard_words: list[TimedWord], text: str | None) -> list[TimedWord]:
    """Those that the text has, too, in its order; all where there is no text."""
    if text is None:
        return heard_words
    said = recognisers.normal_words(text).split()
    got = [recognisers.normal_words(word) for word, _, _ in heard_words]
    return [heard_words[place] for place in recognisers.same_words(said, got).values()]


def timed(found: Sequence[people.Recording], folder: Path, hear: Hear) -> dict[str, list[TimedWord]]:
    """Every recording's words, those that were recognised before from the file, where they are all kept."""
    path = folder / WORDS_FILE
    known: dict[str, list[TimedWord]] = json.loads(path.read_text()) if path.exists() else {}
    missing = [recording for recording in found if str(recording.path) not in known]
    for count, window in enumerate(windows(missing), 1):
        known |= words_of(window, hear)
        if count % 20 == 0:
            log.info("%d of %d recordings recognised", len(known), len(found))
            path.write_text(json.dumps(known))
    path.write_text(json.dumps(known))
    return known


class Reader:
    """Makes streams of recordings."""

    def __init__(self, rng: random.Random, words: dict[str, list[TimedWord]], babbles: list[np.ndarray]) -> None:
        self._rng, self._words, self._babbles = rng, words, babbles
        self._noise = np.random.default_rng(rng.getrandbits(32))

    def listened(self, found: Sequence[people.Recording]) -> Row:
        """One speaker's recordings back to back, as many as fit, through some microphone."""
        row = Row("people", found[0].group)
        row.at_sec = self._rng.uniform(0.0, 0.3)
        for recording in found:
            self._add(row, recording, LISTEN, {}, people.trimmed(recording.pcm()))
            row.at_sec += self._rng.uniform(*ONE_SIDED_SEC)
        return self._through_microphone(row)

    def order(self, recording: people.Recording, slots: orders.Slots) -> Row:
        """One order, by somebody who speaks at once or is silent first."""
        row = Row("people", CAFE)
        row.at_sec = 0.0 if self._rng.random() < CAFE_AT_ONCE_SHARE else self._rng.uniform(*CAFE_LEAD_SEC)
        self._add(row, recording, orders.ORDER, slots, people.trimmed(recording.pcm()), CAFE_ROOM_SEC)
        return self._through_microphone(row)

    def _add(
        self, row: Row, recording: people.Recording, kind: str, slots: orders.Slots, pcm: np.ndarray,
        tail_sec: float = TAIL_SEC,
    ) -> None:  # fmt: skip
        words = self._words[str(recording.path)]
        begin, end_sec = int(row.at_sec * SAMPLE_RATE_HZ), row.at_sec + len(pcm) / SAMPLE_RATE_HZ
        if not words or end_sec + tail_sec > len(row.pcm) / SAMPLE_RATE_HZ:
            return
        level = people.sounding_level(pcm)
        row.pcm[begin : begin + len(pcm)] = (pcm * LEVEL / max(level, 1e-4)).clip(-1.0, 1.0)
        placed = [(word, row.at_sec + start_sec) for word, start_sec, _ in words if sentences.spoken_words(word)]
        said = " ".join(word for word, _, _ in words)
        ended_sec = min(end_sec, row.at_sec + words[-1][2] + 0.2) if kind == orders.ORDER else end_sec
        row.stream.clips.append(Clip(kind, said, row.at_sec, ended_sec, placed, dict(slots)))
        row.at_sec = row.stream.end_sec = end_sec

    def _through_microphone(self, row: Row) -> Row:
        user = users.random_user(self._rng, "slt")  # the microphone alone: the voice is the recording's
        row.pcm = heard(self._rng, row.pcm, user, self._noise, self._babbles)
        return row


def listened_groups(rng: random.Random, found: list[people.Recording]) -> list[list[people.Recording]]:
    """Recordings of one speaker each, enough for a stream, in random order."""
    by_speaker: dict[tuple[str, str], list[people.Recording]] = {}
    for recording in rng.sample(found, len(found)):
        by_speaker.setdefault((recording.group, recording.speaker), []).append(recording)
    groups = []
    for own in by_speaker.values():
        filled, sec = [], 0.0
        for recording in own:
            filled.append(recording)
            sec += len(people.trimmed(recording.pcm())) / SAMPLE_RATE_HZ + ONE_SIDED_SEC[1]
            if sec > STREAM_SEC["people"] - TAIL_SEC:
                groups.append(filled)
                filled, sec = [], 0.0
        if filled:
            groups.append(filled)
    rng.shuffle(groups)
    return groups


def write_rows(folder: Path, part: str, rows: Iterator[Row]) -> int:
    """Writes shards of these streams; one that is there is left as it is. Returns how many streams there are."""
    count, index, held = 0, 0, []
    for row in rows:
        if row.stream.clips:
            held.append(row)
            count += 1
        if len(held) == ROWS:
            write_shard(folder / f"{part}_{index:04d}.npy", held)
            index, held = index + 1, []
    if held:
        write_shard(folder / f"{part}_{index:04d}.npy", held)
    return count


def speak(options: argparse.Namespace) -> None:
    """Recognises what was not yet, and writes both parts, each recording `times` over in other surroundings."""
    options.out.mkdir(parents=True, exist_ok=True)
    read = people.recordings(options.people, kept=False, sets=LISTENED_SETS)
    ordered = people.recordings(options.people, kept=False, sets=(CAFE,))
    people.refuse_kept([*read, *ordered])
    whisper: list[recognisers.Whisper] = []

    def hear(pcm: np.ndarray) -> list[TimedWord]:
        if not whisper:  # made when something is to be recognised
            whisper.append(recognisers.Whisper())
        return whisper[0].timed_words(pcm)

    words = timed([*ordered, *sorted(read, key=lambda r: (r.group, r.speaker))], options.out, hear)
    rng = random.Random(options.seed)
    reader = Reader(rng, words, [surroundings.babble(rng)])
    if ordered and not list(options.out.glob("user-cafe_*.npy")):
        labels = people.cafe_slots(options.people / CAFE)
        slots = {r.path.name: orders.of_label(labels[r.path.name]) for r in ordered if r.path.name in labels}
        known = [recording for recording in ordered if recording.path.name in slots]
        rows = (
            reader.order(r, slots[r.path.name]) for _ in range(options.times) for r in rng.sample(known, len(known))
        )
        log.info("%d streams of orders", write_rows(options.out, "user-cafe", rows))
    if read and not list(options.out.glob("people_*.npy")):
        groups = listened_groups(rng, read)
        log.info("%d streams of reading", write_rows(options.out, "people", (reader.listened(own) for own in groups)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/nano/speech"))
    parser.add_argument(
        "--people", type=Path, required=True, help="recordings of people, as training.people reads them"
    )
    parser.add_argument("--times", type=int, default=3, help="that each order is used, in other surroundings")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("faster_whisper").setLevel(logging.WARNING)  # it tells of every recording
    speak(options)


if __name__ == "__main__":
    main()
