"""``reply --tell SECONDS TEXT``, and ``answer`` that does the work."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli_outcome import refused
from conftest import GOLDEN_TEXT

from personaplex.messages import SamplingOptions
from personaplex.session.reply import answer
from personaplex.session.session import Session

pytest_plugins = ["cli_fixtures"]

POOL, DINNER = "The pool is closed today.", "Dinner is at 8."


def test_it_is_told_before_the_first_frame_that_begins_then(golden):
    session = Session(golden, window="published")
    snapshot = session.prepare(voice=None, text=GOLDEN_TEXT)
    question = np.random.default_rng(0).normal(0, 0.1, 20 * 1920).astype(np.float32)

    def tokens(*tells):
        return answer(session, snapshot, question, options=SamplingOptions(greedy=True), tells=tells).tokens

    def by_hand(*frames):
        found = []
        with session.start(snapshot, SamplingOptions(greedy=True)) as conversation:
            for number, frame in enumerate(question.reshape(-1, 1920)):
                for text in (text for at, text in frames if at == number):
                    conversation.tell(text)
                found.append(conversation.step(frame).tokens)
        return np.stack(found, axis=1)

    assert (tokens((0.8, POOL)) == by_hand((10, POOL))).all()
    assert (tokens((0.81, POOL), (0.3, DINNER)) == by_hand((4, DINNER), (11, POOL))).all()
    assert (tokens((0, POOL), (0, DINNER)) == by_hand((0, POOL), (0, DINNER))).all()
    assert (tokens((0.8, POOL)) != tokens()).any()


def test_the_command_tells_and_keeps_it_out_of_the_transcript(reply, question):
    told = ["--tell", "1.5", DINNER, "--tell", 0.3, POOL]
    runs = {}
    for name, given in {"plain": [], "told": told, "again": told}.items():
        code, _, err = reply(
            question, "--greedy", "--tail", 2, "--tokens", f"{name}.npy", "--transcript", f"{name}.json", *given
        )
        assert code == 0, err
        runs[name] = np.load(f"{name}.npy")
    assert runs["told"].shape == runs["plain"].shape and (runs["told"] == runs["again"]).all()
    first = round(0.32 / 0.08)
    assert (runs["told"][:, :first] == runs["plain"][:, :first]).all() and (runs["told"] != runs["plain"]).any()
    assert "system" not in json.loads(Path("told.json").read_text())["text"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--tell", "soon", POOL], ["a time in seconds", "'soon'"]),
        (["--tell", "nan", POOL], ["a time in seconds"]),
        (["--tell", "-1", POOL], ["told at -1.0 s", "0 to 0.48 s"]),
        (["--tell", "0.5", POOL], ["told at 0.5 s", "0 to 0.48 s"]),
        (["--tell", "0.1", " "], ["nothing to tell"]),
        (["--tell", "0.1", POOL * 10], ["tokens with its tags", "200 are allowed"]),
        (["--tell", "0.1", POOL, "--tell", "0.2", POOL * 9], ["and 37 were told before", "shorten it to 163"]),
        (["--tell", "0.1"], ["--tell", "2 arguments"]),
    ],
)
def test_what_cannot_be_told_is_refused_before_the_model_is_loaded(reply, question, monkeypatch, given, words):
    monkeypatch.setattr("personaplex.cli.commands.load_model", lambda *a, **k: pytest.fail("loaded for nothing"))
    refused(reply(question, *given), *words)
    assert not Path("answer.wav").exists()
