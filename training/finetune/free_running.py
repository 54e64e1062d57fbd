"""Validation by free running: the model answers recorded users, and the expected words are looked for.

    python -m training.finetune.free_running --model nano --data build/ferry/validation.jsonl

A model that is never wrong when its own past is given to it may still be mute when it is not. So the
engine itself plays each recording's user to the model, and the text stream (and, with `--hear`, an ASR on
the sound) is searched for the `expect` of the recording. Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from personaplex.audio.frames import split_frames
from personaplex.config import END_OF_PADDING_ID, ModelConfig
from personaplex.engine.engine import Engine
from personaplex.engine.prediction import PlainPredictor
from personaplex.errors import PersonaPlexError
from personaplex.messages import SamplingOptions
from personaplex.models.language_model import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.text.tokenizer import TextTokenizer
from personaplex.weights.load import load_model
from training.finetune.codes import CodeBook
from training.finetune.config import LossOptions
from training.finetune.lessons import LessonMaker
from training.finetune.recordings import Expected, Recording, read_manifest

SOUND_LAG_SEC = 0.8  # the sound of a word may end this much after its text

Ear = Callable[[np.ndarray], str]
"""From sound [N] float32 to the words heard in it."""


@dataclass(frozen=True)
class Talk:
    """A model's answer to one recording's user: one text token per frame, and the sound [N] float32."""

    recording: Recording
    tokens: list[int]
    pcm: np.ndarray


@dataclass(frozen=True)
class Answer:
    """The answer in a stretch with an expectation."""

    expected: Expected
    text: str
    heard: str | None

    @property
    def right(self) -> bool:
        return says_all(self.text, self.expected.say)

    @property
    def heard_right(self) -> bool:
        return self.heard is not None and says_all(self.heard, self.expected.say)


def says_all(text: str, runs: Sequence[str]) -> bool:
    """Whether a text holds every run of words, whatever their case and punctuation."""
    said = f" {_words(text)} "
    return all(f" {_words(run)} " in said for run in runs)


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


class FreeRunner:
    """Holds conversations with a language model as it stands, adapters and all."""

    def __init__(
        self, config: ModelConfig, lm: LanguageModel, mimi: Mimi, maker: LessonMaker, tokenizer: TextTokenizer,
        *, slots: int, device: str, ear: Ear | None = None,
    ) -> None:  # fmt: skip
        self.config, self._maker, self._tokenizer, self._ear = config, maker, tokenizer, ear
        self._lm, self._mimi, self._slots, self._device = lm, mimi, slots, device
        self._silent = (config.lm.existing_text_padding_id, END_OF_PADDING_ID)

    def answers(self, recordings: Sequence[Recording], options: SamplingOptions) -> list[Answer]:
        """One for each thing that is expected in the recordings."""
        # Compiled predictors read plain weights; an adapter is not one.
        engine = Engine(
            self.config, self._lm, self._mimi, slots=self._slots, device=self._device,
            predictor=PlainPredictor(self._lm),
        )  # fmt: skip
        talks = []
        for at in range(0, len(recordings), self._slots):
            talks += self._hold(engine, recordings[at : at + self._slots], replace(options, seed=options.seed + at))
        return [self._answer(talk, expected) for talk in talks for expected in talk.recording.expected]

    def _hold(self, engine: Engine, group: Sequence[Recording], options: SamplingOptions) -> list[Talk]:
        mimi = self.config.mimi
        heard = [split_frames(recording.read(mimi.sample_rate)[1], mimi.frame_samples) for recording in group]
        for row, recording in enumerate(group):
            engine.reset(row)
            engine.prefill_frames(row, self._maker.prompt(recording))
            engine.reset_codec(row)
            engine.set_sampling(row, replace(options, seed=options.seed + row))
        tokens: list[list[int]] = [[] for _ in group]
        said: list[list[np.ndarray]] = [[] for _ in group]
        for frame in range(max(map(len, heard))):
            active = torch.tensor([row < len(group) and frame < len(heard[row]) for row in range(self._slots)])
            pcm = torch.zeros(self._slots, mimi.frame_samples)
            for row, frames in enumerate(heard):
                if frame < len(frames):
                    pcm[row] = torch.from_numpy(frames[frame])
            out = engine.step(pcm, active)
            assert out.pcm is not None
            text, sound = out.text.tolist(), out.pcm.cpu().numpy()
            for row in range(len(group)):
                if active[row]:
                    tokens[row].append(text[row])
                    said[row].append(sound[row])
        return [Talk(r, t, np.concatenate(s)) for r, t, s in zip(group, tokens, said, strict=True)]

    def _answer(self, talk: Talk, expected: Expected) -> Answer:
        mimi = self.config.mimi
        first, last = (int(sec * mimi.frame_rate) for sec in (expected.from_sec, expected.to_sec))
        text = self._tokenizer.decode([t for t in talk.tokens[first:last] if t not in self._silent])
        if self._ear is None:
            return Answer(expected, text, None)
        last += int(SOUND_LAG_SEC * mimi.frame_rate)
        return Answer(expected, text, self._ear(talk.pcm[first * mimi.frame_samples : last * mimi.frame_samples]))


def right_shares(answers: Sequence[Answer]) -> dict[str, tuple[int, int]]:
    """Kind, and "all", → (right, total); `sound: …` for what an ASR recognised."""
    counts: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        for kind in (answer.expected.kind, "all"):
            counts[kind].append(answer.right)
            if answer.heard is not None:
                counts[f"sound: {kind}"].append(answer.heard_right)
    return {kind: (sum(right), len(right)) for kind, right in sorted(counts.items())}


def vocabulary_ear(recordings: Sequence[Recording], sample_rate_hz: int) -> Ear:
    """A recogniser (pocketsphinx) that knows the words the recordings' agents say, in any order."""
    import pocketsphinx
    import soxr

    from training.listen import RECOGNISER_HZ, hear

    decoder = pocketsphinx.Decoder(samprate=RECOGNISER_HZ, loglevel="FATAL", lm=None)
    words = {word for recording in recordings for said in recording.words for word in _words(said.text).split()}
    known = sorted(word for word in words if decoder.lookup_word(word) is not None)
    decoder.add_jsgf_string("said", f"#JSGF V1.0; grammar said; public <said> = ({' | '.join(known)})+;\n")
    decoder.activate_search("said")

    def words_in(pcm: np.ndarray) -> str:
        sound = soxr.resample(pcm.astype(np.float32), sample_rate_hz, RECOGNISER_HZ)
        return decoder.hyp().hypstr if hear(decoder, sound) else ""

    return words_in


def main() -> None:
    from training.listen import Share, report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--data", required=True, help="a manifest whose recordings say what is expected")
    parser.add_argument("--conversations", type=int, default=16)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hear", action="store_true", help="an ASR listens, too")
    parser.add_argument("--show", action="store_true", help="print every answer")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        recordings = read_manifest(options.data)[: options.conversations]
        loaded = load_model(options.model, device="cpu")
    except PersonaPlexError as error:
        parser.exit(2, f"{error}\n")
    tokenizer = TextTokenizer(loaded.tokenizer_path)
    maker = LessonMaker(loaded.config, tokenizer, CodeBook(loaded.config, loaded.mimi), LossOptions(), max_sec=100)
    ear = vocabulary_ear(recordings, loaded.config.mimi.sample_rate) if options.hear else None
    runner = FreeRunner(
        loaded.config, loaded.lm, loaded.mimi, maker, tokenizer, slots=options.slots, device="cpu", ear=ear
    )
    answers = runner.answers(recordings, SamplingOptions(seed=options.seed))
    if options.show:
        for answer in answers:
            mark = "ok " if answer.right else "BAD"
            print(f"{mark} {answer.expected.kind}: {' / '.join(answer.expected.say)} <- {answer.text} | {answer.heard}")
    print(report({kind: Share(*counts) for kind, counts in right_shares(answers).items()}))


if __name__ == "__main__":
    main()
