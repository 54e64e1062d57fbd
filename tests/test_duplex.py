"""The engine's thread: queue, prompts, drops, limits. Turns are made by hand, on a clock of ours."""

import threading
import time

import numpy as np
import pytest
from duplex_turns import join, live, serve, turns
from fake_session import WORD, Clock, FakeSession, frame, said

from personaplex.errors import ConfigError
from personaplex.messages import EndReason, Limits, Phase
from personaplex.serving.metrics import Metrics
from personaplex.serving.server import DuplexServer


@pytest.fixture
def clock():
    return Clock()


# ---------------------------------------------------------------------------------- a conversation


def test_a_conversation_from_start_to_stop(clock):
    session = FakeSession()
    server = serve(clock, session)
    options = object()
    handle, notes = live(server, text="You are a pirate.", sampling=options)
    assert notes.phases == ["preparing"] * 4 + ["listening"]
    assert [(state.done, state.total) for state in notes.states[:4]] == [(0, 0), (1, 3), (2, 3), (3, 3)]
    assert session.conversations[0].snapshot[2] == "You are a pirate." and session.conversations[0].options is options
    handle.push(frame(0.5))
    turns(server, 1)
    output, heard, meter = notes.frames[0]
    assert (output.pcm == 0.25).all() and (heard == 0.5).all() and meter.frames == 1
    handle.close()
    turns(server, 1)
    assert (notes.last.phase, notes.last.reason) == (Phase.ENDED, EndReason.STOPPED) and notes.last.message
    assert session.free == [0] and not session.conversations[0].abandoned


def test_sound_from_before_the_prompt_is_done_is_thrown_away(clock):
    session = FakeSession()
    server = serve(clock, session)
    handle, notes = join(server)
    for _ in range(3):
        handle.push(frame(0.9))
        turns(server, 1)
    turns(server)
    handle.push(frame(0.1))
    turns(server, 1)
    assert [heard[0] for heard in session.conversations[0].heard] == [np.float32(0.1)]
    assert notes.frames[0][2].dropped_frames == 0


def test_the_oldest_frame_is_dropped_and_counted_and_nothing_is_caught_up(clock):
    session = FakeSession()
    server = serve(clock, session)
    handle, notes = live(server)
    for value in range(5):
        handle.push(frame(value))
    turns(server)
    assert [int(pcm[0]) for pcm in session.conversations[0].heard] == [3, 4]
    assert notes.frames[-1][2].dropped_frames == 3 and server.status().dropped_frames == 3


def test_talking_and_listening_follow_the_agents_voice(clock):
    session = FakeSession()
    server = serve(clock, session)
    handle, notes = live(server)
    for value in [0, 0.5, 0.5, 0, 0, 0, 0, 0, 0, 0]:
        handle.push(frame(value))
        turns(server, 1)
    assert notes.phases[-3:] == ["listening", "talking", "listening"]
    assert len(notes.frames) == 10


def test_step_and_answer_times_reach_the_meter(clock):
    session = FakeSession()
    server = serve(clock, session)
    handle, notes = live(server)
    session.on_step = lambda conversation, pcm: clock.pass_sec(0.030)
    for _ in range(3):
        handle.push(frame())
        clock.pass_sec(0.012)
        turns(server, 1)
    meter = notes.frames[-1][2]
    assert meter.step_ms == pytest.approx(30) and meter.answer_ms == pytest.approx(42)
    assert server.status().step_p50_ms == pytest.approx(30)


# ---------------------------------------------------------------------------------- several at once


def test_all_who_have_a_frame_share_one_step(clock):
    session = FakeSession(slots=3)
    server = serve(clock, session)
    handles = [live(server)[0] for _ in range(3)]
    for handle in handles[:2]:
        handle.push(frame())
    turns(server, 1)
    assert session.batches == [[0, 1]]


def test_conversations_hear_only_their_own(clock):
    session = FakeSession(slots=2)
    server = serve(clock, session)
    (first, first_notes), (second, second_notes) = live(server, text="a"), live(server, text="b")
    for _ in range(4):
        first.push(frame(0.2))
        second.push(frame(0.4))
        turns(server, 1)
    assert [float(out.pcm[0]) for out, _, _ in first_notes.frames] == pytest.approx([0.1] * 4)
    assert [float(out.pcm[0]) for out, _, _ in second_notes.frames] == pytest.approx([0.2] * 4)


def test_a_queue_shows_places_and_lets_in_the_first(clock):
    server = serve(clock, FakeSession())
    running, _ = live(server)
    (_, second), (third_handle, third), (_, fourth) = join(server), join(server), join(server)
    turns(server)
    assert [notes.last.place for notes in (second, third, fourth)] == [1, 2, 3]
    third_handle.close()
    turns(server, 1)
    assert third.last.reason is EndReason.STOPPED and fourth.last.place == 2
    running.close()
    turns(server)
    assert second.last.is_live and fourth.last.place == 1
    assert server.status().waiting == 1


def test_a_full_queue_refuses_in_a_sentence(clock):
    server = serve(clock, FakeSession(), waiting=1)
    live(server)
    join(server)
    _, notes = join(server)
    turns(server)
    assert notes.last.reason is EndReason.REFUSED and "1 visitors wait" in notes.last.message


def test_several_who_come_at_once_fill_the_slots_before_the_queue(clock):
    server = serve(clock, FakeSession(slots=2), waiting=0)
    everybody = [join(server)[1] for _ in range(3)]
    turns(server)
    assert [notes.last.is_live for notes in everybody] == [True, True, False]


def test_a_long_prompt_leaves_the_others_their_turns(clock):
    session = FakeSession(slots=2, pieces=50)
    server = serve(clock, session)
    handle, notes = live_after(server, 60)
    session.on_prepare = lambda text, piece: clock.pass_sec(0.1)
    _, second = join(server)
    for _ in range(60):
        handle.push(frame())
        server.turn()
        clock.pass_sec(0.01)
    assert len(notes.frames) == 60, "a turn with a frame must step it"
    assert 0 < second.last.done < 50, "and the prompt must go on meanwhile"


@pytest.mark.parametrize(("step_sec", "goes_on"), [(0.04, True), (0.06, False)])
def test_a_piece_of_a_prompt_follows_a_step_where_both_fit_into_a_frame(clock, step_sec, goes_on):
    """Everybody talks without a pause: it waited 0.4 s for each piece, and took 64 frames of prompt at once."""
    session = FakeSession(slots=2, pieces=50)
    server = serve(clock, session)
    handle, notes = live_after(server, 60)
    session.on_prepare = lambda text, piece: clock.pass_sec(0.02)
    session.on_step = lambda conversation, pcm: clock.pass_sec(step_sec)
    _, second = join(server)
    for _ in range(20):
        handle.push(frame())
        before = clock.now
        server.turn()
        clock.pass_sec(max(0.0, 0.08 - (clock.now - before)))
    assert len(notes.frames) == 20 and notes.frames[-1][2].dropped_frames == 0
    assert (second.last.done > 15) == goes_on


def live_after(server, count):
    handle, notes = join(server)
    turns(server, count)
    assert notes.last.is_live
    return handle, notes


# ---------------------------------------------------------------------------------- limits


def test_the_end_is_announced_and_comes(clock):
    session = FakeSession()
    server = serve(clock, session, conversation_sec=120, notice_sec=30, idle_sec=1000)
    _, notes = live(server)
    clock.pass_sec(89)
    turns(server)
    assert notes.last.left_sec is None
    clock.pass_sec(2)
    turns(server)
    assert notes.last.left_sec == pytest.approx(29) and notes.last.is_live
    clock.pass_sec(29)
    turns(server)
    assert notes.last.reason is EndReason.TIME_LIMIT and "2 minutes" in notes.last.message
    assert session.free == [0]


def test_time_in_the_queue_and_for_the_prompt_does_not_count(clock):
    server = serve(clock, FakeSession(), conversation_sec=10, notice_sec=0)
    first, _ = live(server)
    _, second = join(server)
    turns(server)
    clock.pass_sec(9)
    first.close()
    turns(server)
    clock.pass_sec(9)
    turns(server)
    assert second.last.is_live


def test_a_conversation_without_sound_ends(clock):
    server = serve(clock, FakeSession(), idle_sec=15)
    handle, notes = live(server)
    for _ in range(4):
        clock.pass_sec(10)
        handle.push(frame())
        turns(server)
    assert notes.last.is_live
    clock.pass_sec(15)
    turns(server)
    assert notes.last.reason is EndReason.IDLE and "microphone" in notes.last.message


@pytest.mark.parametrize(
    "wrong", [{"slots": 0}, {"waiting": -1}, {"conversation_sec": 0}, {"notice_sec": -1}, {"max_waiting_frames": 0}]
)
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Limits(**wrong)


# ---------------------------------------------------------------------------------- the greeting


def heard_while_greeting(clock, answers):
    session = FakeSession()
    server = serve(clock, session)
    handle, _ = live(server, wait_for_greeting=True)
    script = iter(answers)
    session.on_step = lambda conversation, pcm: next(script)
    for _ in answers:
        handle.push(frame(0.3))
        turns(server, 1)
    return [bool(pcm.any()) for pcm in session.conversations[0].heard]


def test_the_model_hears_silence_until_its_greeting_is_over(clock):
    greeting = [said(frame())] * 3 + [said(frame(0.5), WORD)] + [said(frame(0.5))] * 4 + [said(frame())] * 12
    opened = heard_while_greeting(clock, greeting)
    # 3 + 1 + 4 frames of greeting, then 0.6 s of quiet: eight frames of 80 ms
    assert opened == [False] * 16 + [True] * 4


def test_the_wait_for_a_greeting_lasts_8_seconds_at_most(clock):
    assert heard_while_greeting(clock, [said(frame(0.5), WORD)] * 102) == [False] * 100 + [True] * 2
    assert heard_while_greeting(clock, [said(frame())] * 102) == [False] * 100 + [True] * 2


# ---------------------------------------------------------------------------------- a recorded question


def test_a_recording_is_answered_whole_without_waiting_or_dropping(clock):
    session = FakeSession()
    server = serve(clock, session, conversation_sec=1, idle_sec=1)
    question = np.linspace(-0.5, 0.5, 1920 * 5 + 7).astype(np.float32)
    _, notes = join(server, question=question, wait_for_greeting=True)
    clock.pass_sec(100)
    turns(server, 20)
    assert notes.last.reason is EndReason.FINISHED and len(notes.frames) == 6
    heard = np.concatenate([heard for _, heard, _ in notes.frames])
    assert (heard[: len(question)] == question).all() and not heard[len(question) :].any()


# ---------------------------------------------------------------------------------- with the thread


def wait_until(condition, timeout_sec=5.0):
    deadline = time.monotonic() + timeout_sec
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def test_the_thread_serves_and_tells_everybody_when_it_is_stopped():
    server = DuplexServer(FakeSession(slots=2), Limits(slots=2))
    told_from = set()
    conversations = [join(server) for _ in range(3)]
    wait_until(lambda: [notes.states and notes.last.phase.value for _, notes in conversations][2] == "queued")
    handle, notes = conversations[0]
    wait_until(lambda: notes.last.is_live)
    on_frame = notes.on_frame
    notes.on_frame = lambda *what: (told_from.add(threading.current_thread().name), on_frame(*what))
    for count in range(1, 20):
        handle.push(frame(0.1))
        wait_until(lambda count=count: len(notes.frames) == count)
    assert told_from == {"duplex"}
    started = time.monotonic()
    server.close()
    assert time.monotonic() - started < 5 and not server._thread.is_alive()
    assert [notes.last.reason for _, notes in conversations] == [EndReason.SHUTDOWN] * 3
    assert join(server)[1].last.reason is EndReason.SHUTDOWN and not server.status().healthy


def test_a_frame_is_answered_at_once():
    server = DuplexServer(FakeSession(), Limits())
    handle, notes = join(server)
    wait_until(lambda: notes.states and notes.last.is_live)
    waits = []
    for count in range(1, 30):
        time.sleep(0.005)
        started = time.perf_counter()
        handle.push(frame())
        while len(notes.frames) < count:
            time.sleep(0.0002)
        waits.append(time.perf_counter() - started)
    server.close()
    assert np.median(waits) < 0.02, "the thread must be woken, not polled"


# ---------------------------------------------------------------------------------- figures


def test_metrics_count_what_happens(clock):
    session, metrics = FakeSession(), Metrics()
    assert metrics.health()[0] == 503 and "loading" in metrics.health()[1]["message"]
    server = DuplexServer(session, Limits(), metrics, clock=clock, start=False)
    handle, _ = live(server, text="a secret")
    join(server)
    for _ in range(4):
        handle.push(frame())
    turns(server)
    session.on_step = lambda conversation, pcm: 1 / 0
    handle.push(frame())
    turns(server)
    text = metrics.exposition().decode()
    for line in (
        "personaplex_conversations 1.0",
        "personaplex_queue 0.0",
        "personaplex_dropped_frames_total 2.0",
        'personaplex_errors_total{kind="ZeroDivisionError"} 1.0',
        'personaplex_conversations_ended_total{reason="failed"} 1.0',
        "personaplex_step_seconds_count 3.0",
        "personaplex_healthy 1.0",
    ):
        assert line in text.splitlines()
    assert "secret" not in text and metrics.health()[0] == 200


def test_nothing_said_or_asked_for_reaches_the_log(clock, caplog):
    caplog.set_level("DEBUG")
    session = FakeSession()
    server = serve(clock, session)
    handle, _ = live(server, text="my secret persona")
    handle.push(frame())
    turns(server)
    handle.close()
    turns(server)
    assert "ended: stopped" in caplog.text and "secret" not in caplog.text
