"""Text told to a conversation that is served: its turn, its refusal, and the microphone meanwhile."""

import threading

import numpy as np
import pytest
from duplex_turns import join, live, serve, turns
from fake_session import Clock, FakeSession, Notes, frame
from test_zerogpu import serve as serve_on_gpu
from test_zerogpu import wait_until

from personaplex.errors import InputError, PersonaPlexError, PromptError
from personaplex.messages import ConversationRequest, Limits
from personaplex.serving import zerogpu
from personaplex.serving.server import DuplexServer

POOL, DINNER = "The pool is closed today.", "Dinner is at 8."


def values(conversation):
    """What it heard, a number a frame."""
    return [round(float(pcm[0]), 3) for pcm in conversation.heard]


def test_it_is_told_between_two_frames_and_answers_how_much_is_left():
    session = FakeSession()
    server = serve(Clock(), session)
    handle, notes = live(server)
    handle.push(frame(0.1))
    turns(server)
    futures = [handle.tell(POOL), handle.tell(DINNER)]
    handle.push(frame(0.2))
    turns(server)
    conversation = session.conversations[0]
    assert [future.result(0) for future in futures] == [199, 198]
    assert conversation.told == [(POOL, 1), (DINNER, 2)], "one text a turn, so that frames go on between them"
    assert values(conversation) == [0.1, 0.2] and len(notes.frames) == 2


def test_what_is_told_before_it_is_live_waits_for_that():
    session = FakeSession(pieces=5)
    server = serve(Clock(), session)
    handle, notes = join(server)
    future = handle.tell(POOL)
    server.turn()
    assert not future.done() and not notes.last.is_live
    turns(server)
    assert future.result(0) == 199 and session.conversations[0].told == [(POOL, 0)]


def test_sound_that_comes_meanwhile_is_neither_lost_nor_reordered_for_anybody():
    """Two frames may wait otherwise; the third would cost the first."""
    session = FakeSession(slots=2)
    server = serve(Clock(), session)
    told, other = (live(server)[0] for _ in range(2))

    def talk_on(conversation, text):
        for value in (0.1, 0.2, 0.3, 0.4, 0.5):
            told.push(frame(value))
            other.push(frame(-value))

    session.on_tell = talk_on
    told.tell(POOL)
    server.turn()
    told.push(frame(0.6))
    turns(server)
    first, second = session.conversations
    assert values(first) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6] and values(second) == [-0.1, -0.2, -0.3, -0.4, -0.5]
    for value in (0.7, 0.8, 0.9):  # the backlog is gone: the limit is the old one
        told.push(frame(value))
    turns(server)
    assert values(first)[6:] == [0.8, 0.9]
    assert server.status().dropped_frames == 1


def test_a_refusal_is_the_callers_and_the_conversation_goes_on():
    session = FakeSession()
    server = serve(Clock(), session)
    handle, notes = live(server)

    def refuse(conversation, text):
        raise PromptError("214 tokens; 200 are allowed")

    session.on_tell = refuse
    future = handle.tell(POOL)
    turns(server)
    with pytest.raises(PromptError, match="214 tokens"):
        future.result(0)
    handle.push(frame(0.1))
    turns(server)
    assert len(notes.frames) == 1 and notes.last.is_live


def test_a_failure_of_the_model_ends_this_conversation_alone():
    session = FakeSession(slots=2)
    server = serve(Clock(), session)
    (handle, notes), (other, others_notes) = live(server), live(server)

    def fail(conversation, text):
        raise RuntimeError("CUDA error")

    session.on_tell = fail
    futures = [handle.tell(POOL), handle.tell(DINNER)]
    other.push(frame(0.1))
    turns(server)
    assert notes.last.reason.value == "failed" and session.conversations[0].abandoned
    assert isinstance(futures[0].exception(0), RuntimeError) and "is over" in str(futures[1].exception(0))
    assert len(others_notes.frames) == 1


@pytest.mark.parametrize("moment", ["queued", "live", "ended", "stopping"])
def test_no_caller_waits_for_ever(moment):
    session = FakeSession()
    server = serve(Clock(), session)
    handle, _ = live(server)
    if moment == "queued":
        handle, _ = join(server)
    future = handle.tell(POOL) if moment in ("queued", "live") else None
    handle.close()
    if moment == "stopping":
        server.close()
    turns(server)
    future = future or handle.tell(POOL)
    with pytest.raises(InputError, match="the conversation is over"):
        future.result(0)


def test_one_who_does_not_wait_for_the_answer_is_no_trouble():
    session = FakeSession()
    server = serve(Clock(), session)
    handle, _ = live(server)
    assert handle.tell(POOL).cancel()
    kept = handle.tell(DINNER)
    turns(server)
    assert kept.result(0) == 199 and session.conversations[0].told == [(DINNER, 0)]


def test_on_the_engines_own_thread():
    """The caller gets the answer from another thread, while sound goes on."""
    session = FakeSession()
    server = DuplexServer(session, Limits())
    try:
        notes = Notes()
        handle = server.open(ConversationRequest(), notes)
        asked = threading.current_thread()
        told_on = []
        session.on_tell = lambda conversation, text: told_on.append(threading.current_thread())
        assert handle.tell(POOL).result(5) == 199
        assert told_on != [asked]
        handle.push(frame(0.25))
        wait_until(lambda: notes.frames)
        assert np.allclose(notes.frames[0][1], 0.25)
    finally:
        server.close()


def test_on_a_borrowed_gpu(monkeypatch):
    monkeypatch.setattr(zerogpu, "_calm_threads", lambda: None)
    session = FakeSession()
    server, notes = serve_on_gpu(session), Notes()
    handle = server.open(ConversationRequest(), notes)
    first = handle.tell(POOL)  # before there is a worker
    wait_until(lambda: notes.states and notes.last.is_live)
    handle.push(frame(0.1))
    wait_until(lambda: notes.frames)
    assert handle.tell(DINNER).result(5) == 198 and first.result(5) == 199
    tagged = [f"<system> {text} <system>" for text in (POOL, DINNER)]
    assert session.conversations[0].told == [(tagged[0], 0), (tagged[1], 1)]
    for unfit, why in ((" ", "nothing to tell"), ("a\x00b", "control character"), ("x" * 200_000, "200000 characters")):
        with pytest.raises(PromptError, match=why):
            handle.tell(unfit).result(5)

    def refuse(conversation, text):
        raise PromptError("214 tokens; 200 are allowed")

    session.on_tell = refuse
    with pytest.raises(PersonaPlexError, match="214 tokens"):
        handle.tell(POOL).result(5)
    handle.push(frame(0.2))
    wait_until(lambda: len(notes.frames) == 2)
    handle.close()
    with pytest.raises(InputError, match="the conversation is over"):
        handle.tell(POOL).result(5)


def test_neither_many_texts_nor_long_ones_cost_the_engines_thread_time():
    session = FakeSession(pieces=50)
    server = serve(Clock(), session)
    handle, _ = join(server)
    waiting = [handle.tell(POOL) for _ in range(8)]
    with pytest.raises(InputError, match="8 texts wait to be told already"):
        handle.tell(POOL).result(0)
    with pytest.raises(PromptError, match="has 200000 characters; 200 tokens are allowed"):
        handle.tell("x" * 200_000).result(0)
    turns(server, 80)
    assert [future.result(0) for future in waiting] == list(range(199, 191, -1))
