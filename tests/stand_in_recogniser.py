"""A recogniser that needs no package: a word for each stretch of loud sound, by its length in tenths of a second."""

from __future__ import annotations

import numpy as np

from personaplex.text.transcript import Word
from personaplex.words import process
from personaplex.words.recogniser import RATE_HZ, Utterance
from personaplex.words.turns import TurnFinder


class StandIn:
    def listen(self):
        return StandInEar()

    def words(self, pcm):
        return " ".join(word.text for turn in StandInEar().turns.push(pcm) for word in said(turn))


def said(turn):
    loud = np.flatnonzero(np.abs(turn.pcm) > 0.01) / RATE_HZ
    start_sec, end_sec = turn.start_sec + loud[0], turn.start_sec + loud[-1]
    return (Word(f"{10 * (end_sec - start_sec):.0f}", round(start_sec, 3), round(end_sec, 3)),)


class StandInEar:
    def __init__(self):
        self.turns, self.found = TurnFinder(RATE_HZ), []

    def hear(self, pcm):
        self.found += self.turns.push(pcm)

    def news(self):
        if not self.found:
            return []
        return [self._utterance(self.found.pop(0))]

    def finish(self):
        self.found += self.turns.flush()
        return [self._utterance(turn) for turn in self.found]

    def _utterance(self, turn):
        self.number = getattr(self, "number", -1) + 1
        return Utterance(self.number, said(turn), is_final=True)


if __name__ == "__main__":
    process.load = lambda kind: StandIn()
    process.main()
