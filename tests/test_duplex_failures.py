"""The engine's thread when something fails: who ends, who goes on, what is reported."""

import numpy as np
import pytest
from duplex_turns import join, live, serve, turns
from fake_session import Clock, FakeSession, frame, said

from personaplex.errors import InputError, PromptError
from personaplex.messages import EndReason, Phase


@pytest.fixture
def clock():
    return Clock()


def three_who_talk(clock):
    session = FakeSession(slots=3)
    server = serve(clock, session)
    return session, server, [live(server) for _ in range(3)]


def test_a_failed_step_ends_everybody_in_it_and_nobody_else(clock):
    """Who was stepped again after a step that broke off heard a frame twice, in a state that had moved already."""
    session, server, everybody = three_who_talk(clock)

    def fail(conversation, pcm):
        if conversation.row == 1:
            raise RuntimeError("CUDA out of memory")

    session.on_step = fail
    for handle, _ in everybody[:2]:
        handle.push(frame(0.1))
    turns(server)
    assert [len(conversation.heard) for conversation in session.conversations] == [1, 1, 0]
    assert [notes.last.phase is Phase.ENDED for _, notes in everybody] == [True, True, False]
    for _, notes in everybody[:2]:
        assert "memory" in notes.last.message and notes.last.reason is EndReason.FAILED and not notes.frames
    assert [c.abandoned for c in session.conversations] == [True, True, False] and session.free == [0, 1]
    status = server.status()
    assert status.errors == 1 and status.running == 1 and status.healthy
    everybody[2][0].push(frame(0.1))
    turns(server)
    assert len(everybody[2][1].frames) == 1


def test_a_frame_that_is_refused_ends_its_conversation_alone(clock):
    """It is refused before the step, so that nobody has moved yet."""
    session, server, everybody = three_who_talk(clock)

    def refuse(conversation, pcm):
        if conversation.row == 1:
            raise InputError("a frame is 1920 float32 samples; float64 [7] was given")

    session.on_check = refuse
    for handle, _ in everybody:
        handle.push(frame(0.1))
    turns(server)
    assert [notes.last.phase is Phase.ENDED for _, notes in everybody] == [False, True, False]
    assert session.conversations[1].abandoned and session.free == [1]
    assert [len(notes.frames) for _, notes in everybody] == [1, 0, 1]
    assert [len(conversation.heard) for conversation in session.conversations] == [1, 0, 1]


def test_sound_that_is_not_finite_ends_its_conversation(clock):
    session = FakeSession()
    server = serve(clock, session)
    handle, notes = live(server)
    session.on_step = lambda conversation, pcm: said(frame(np.nan))
    handle.push(frame())
    turns(server)
    assert notes.last.reason is EndReason.FAILED and not notes.frames and session.conversations[0].abandoned


def test_a_freed_slot_serves_the_next_after_a_failure(clock):
    session = FakeSession()
    server = serve(clock, session)
    handle, _ = live(server)
    _, waiting = join(server)
    session.on_step = lambda conversation, pcm: 1 / 0
    handle.push(frame())
    turns(server)
    assert waiting.last.is_live


def fail_three_times(server, session, broken):
    session.on_step = broken
    for _ in range(3):
        handle, notes = live(server)
        handle.push(frame())
        turns(server)
        assert notes.last.reason is EndReason.FAILED
    assert not server.status().healthy and "3 times" in server.status().message
    session.on_step = lambda conversation, pcm: None


BROKEN = [lambda conversation, pcm: 1 / 0, lambda conversation, pcm: said(pcm * np.nan)]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_model_that_keeps_failing_is_reported_until_a_conversation_goes_well(clock, broken):
    """Lost numbers counted as success: /health said 200 while every conversation failed."""
    session = FakeSession()
    server = serve(clock, session)
    fail_three_times(server, session, broken)
    handle, notes = live(server)
    handle.push(frame())
    turns(server)
    assert notes.frames and not server.status().healthy, "the first frame proves little"
    handle.close()
    turns(server)
    assert server.status().healthy and server.status().message == ""


def test_a_conversation_that_goes_on_shows_that_the_model_works_again(clock):
    session = FakeSession()
    server = serve(clock, session)
    fail_three_times(server, session, BROKEN[0])
    handle, _ = live(server)
    for _ in range(125):
        assert not server.status().healthy
        handle.push(frame())
        turns(server)
    assert server.status().healthy, "after ten seconds"


def test_conversations_that_fail_after_some_good_frames_count_too(clock):
    session = FakeSession()
    server = serve(clock, session)
    for _ in range(3):
        session.on_step = lambda conversation, pcm: said(pcm * (np.nan if len(conversation.heard) > 20 else 1))
        handle, notes = live(server)
        for _ in range(21):
            handle.push(frame())
            turns(server)
        assert len(notes.frames) == 20 and notes.last.reason is EndReason.FAILED
    assert not server.status().healthy


def test_an_unusable_persona_is_refused_with_its_sentence(clock):
    session = FakeSession()
    server = serve(clock, session)

    def refuse(text, piece):
        raise PromptError("the prompt has 612 tokens; this model takes at most 200")

    session.on_prepare = refuse
    _, notes = join(server)
    turns(server)
    assert notes.last.reason is EndReason.REFUSED and "612 tokens" in notes.last.message
    assert session.free == [0] and server.status().errors == 0


def test_leaving_during_the_prompt_frees_the_slot(clock):
    session = FakeSession(pieces=30)
    server = serve(clock, session)
    handle, notes = join(server)
    turns(server, 3)
    handle.close()
    turns(server, 1)
    assert notes.last.reason is EndReason.STOPPED and session.free == [0]


@pytest.mark.parametrize("sound", [np.zeros(100, np.float32), np.full(1920, np.nan, np.float32)])
def test_sound_that_is_none_ends_the_conversation(clock, sound):
    server = serve(clock, FakeSession())
    handle, notes = live(server)
    handle.push(sound)
    turns(server)
    assert notes.last.reason is EndReason.FAILED


def test_a_listener_that_fails_ends_its_own_conversation_only(clock):
    server = serve(clock, FakeSession(slots=2))
    (bad, bad_notes), (good, good_notes) = live(server), live(server)
    bad_notes.on_frame = None
    for _ in range(2):
        bad.push(frame())
        good.push(frame())
        turns(server)
    assert bad_notes.last.reason is EndReason.FAILED and len(good_notes.frames) == 2
