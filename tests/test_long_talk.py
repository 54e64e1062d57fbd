"""The benchmark of long talks: what it keeps in the cache, asks and counts."""

import json

import numpy as np
import pytest

from benchmarks import long_talk
from benchmarks.long_talk import ASKED, Asked
from personaplex.errors import InputError
from training import speech, tts


@pytest.fixture
def hum(monkeypatch):
    """Speech without a synthesiser, of 4 frames; answers may take 6."""
    noise = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    monkeypatch.setattr(speech, "voice_prompt", lambda rng, voice: noise)
    monkeypatch.setattr(tts, "speak", lambda text, voice: text)
    monkeypatch.setattr(tts, "trimmed", lambda text: (noise[:7000], []))
    monkeypatch.setattr(long_talk, "ANSWER_FRAMES", 6)
    monkeypatch.setattr(long_talk, "CHATTER_FRAMES", 10)


@pytest.mark.usefixtures("hum")
def test_every_window_holds_the_same_talk_beyond_its_end(monkeypatch):
    kept, heard = [], []
    hold, step = long_talk._hold, long_talk.Session.step_together

    def noting(session, talks, given, course):
        hold(session, talks, given, course)
        kept.append(session.engine.state.temporal.kept.tolist())
        assert (session.engine.state.temporal.position > session.engine.context).all()
        assert all(len(long.talk.tokens) == long.num_frames for long in talks)
        assert all(long.sound.keys() == long_talk._frames_of(long) for long in talks)

    def listening(session, frames):
        heard.append([frame.sum() for frame in frames.values()])
        return step(session, frames)

    monkeypatch.setattr(long_talk, "_hold", noting)
    monkeypatch.setattr(long_talk.Session, "step_together", listening)
    words = ["--minutes", "0.02", "0.08", "--personas", "2", "--at-once", "1", "--context", "130"]
    line = json.loads(json.dumps(long_talk.measure(long_talk.arguments(words)), allow_nan=False))
    assert [row[1:] for row in kept] == [[4, 0], [4, 0]]
    assert kept[1][0] == line["prompt_frames"][-1] > 50
    assert all(len(set(sums)) == 1 for sums in heard)
    for window in ("persona", "sinks", "published"):
        table = line["windows"][window]
        assert list(table) == ["0.02", "0.08"]
        assert all(row["of"] == 2 and row["share_with_chatter"] is not None for row in table.values())


def test_shares_are_of_answers_and_voices_of_those_that_spoke():
    def one(minute, chatter, right, similarity):
        return Asked("persona", chatter, minute, dict(zip(ASKED, right, strict=True)), similarity)

    table = long_talk._figures(
        [one("1", False, (1, 1, 1, 0), 0.5), one("1", True, (1, 0, 0, 0), None), one("3", True, (0, 0, 0, 0), None)]
    )
    assert table["1"] == {
        "of": 2, "name": 2, "place": 1, "hours": 1, "price": 0, "share": 0.5, "share_with_chatter": 0.25,
        "share_without": 0.75, "voice": 0.5,
    }  # fmt: skip
    assert table["3"]["share_without"] is None and table["3"]["voice"] is None


@pytest.mark.parametrize("words", [["--personas", "0"], ["--minutes", "0", "1"], ["--at-once", "0"]])
def test_a_talk_of_nothing_is_refused(words):
    with pytest.raises(InputError, match="above 0"):
        long_talk.measure(long_talk.arguments(words))
