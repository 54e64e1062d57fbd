"""A conversation inside one GPU call: once in this process, once with the decorator really forking."""

import contextvars
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_session import WORD, FakeSession, Notes, frame, said
from gradio.exceptions import Error as GradioError
from zerogpu_api import DeviceApi

from personaplex.messages import ConversationRequest, EndReason, Limits, Phase
from personaplex.serving import remote, zerogpu
from personaplex.serving.line import dial
from personaplex.serving.zerogpu import ZeroGpuServer, conversation_on_gpu, seconds_asked

SCENE = Path(__file__).parent / "zerogpu_scene.py"


@pytest.fixture(autouse=True)
def own_threads(monkeypatch):
    """Nothing is forked here, so PyTorch's threads may stay."""
    monkeypatch.setattr(zerogpu, "_calm_threads", lambda: None)


def wait_until(condition, timeout_sec=10.0):
    deadline = time.monotonic() + timeout_sec
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def has_ended(notes):
    """Whether the visitor was told; the place may be free a moment earlier."""
    return bool(notes.states) and notes.last.phase is Phase.ENDED


def serve(session=None, limits=None, hold=None):
    limits = limits or Limits()
    return ZeroGpuServer(hold or conversation_on_gpu(lambda: session, limits), limits)


def join(server, **request):
    notes = Notes()
    return server.open(ConversationRequest(**request), notes), notes


def is_empty(server):
    return server.status().running + server.status().waiting == 0


# ---------------------------------------------------------------------------------- in this process


def test_sound_goes_there_and_back_over_the_line():
    session = FakeSession()
    session.on_step = lambda conversation, pcm: said(pcm / 2, WORD)
    server = serve(session)
    handle, notes = join(server, text="a pirate")
    wait_until(lambda: notes.states and notes.last.is_live)
    assert session.prepared == ["a pirate"] and server.status().running == 1
    for count in range(1, 6):
        handle.push(frame(0.1 * count))
        wait_until(lambda count=count: len(notes.frames) == count)
    output, heard, meter = notes.frames[-1]
    assert np.allclose(output.pcm, 0.25) and np.allclose(heard, 0.5) and output.text_token == WORD and meter.frames == 5
    handle.close()
    wait_until(lambda: is_empty(server))
    assert notes.last.reason is EndReason.STOPPED and session.free == [0]


def test_the_lines_folder_is_private_and_gone_afterwards(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server = serve(FakeSession())
    _, notes = join(server)
    wait_until(lambda: notes.states and notes.last.is_live)
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o077 == 0, "nobody else may listen"
    server.close()
    wait_until(lambda: is_empty(server) and not list(tmp_path.iterdir()))
    assert notes.last.reason is EndReason.SHUTDOWN


def test_a_worker_that_is_slow_to_listen_gets_the_newest_frames():
    gate = []

    def slow(conversation, pcm):
        while not gate:
            time.sleep(0.005)

    session = FakeSession()
    session.on_step = slow
    server = serve(session)
    handle, notes = join(server)
    wait_until(lambda: notes.states and notes.last.is_live)
    for value in range(20):
        handle.push(frame(value / 100))
        time.sleep(0.005)
    gate.append(True)
    wait_until(lambda: len(notes.frames) >= 3)
    time.sleep(0.1)
    heard = [round(float(heard[0]) * 100) for _, heard, _ in notes.frames]
    assert len(heard) <= 5 and heard[-1] == 19, "two frames may wait, not twenty"
    assert notes.frames[-1][2].dropped_frames == 20 - len(heard) == server.status().dropped_frames
    handle.close()


def test_the_end_on_the_workers_side_keeps_its_reason():
    server = serve(FakeSession(), Limits(conversation_sec=0.3, notice_sec=0.1))
    _, notes = join(server)
    wait_until(lambda: has_ended(notes))
    assert notes.last.reason is EndReason.TIME_LIMIT
    wait_until(lambda: is_empty(server))


def test_a_quota_that_is_spent_is_told_in_the_words_of_spaces():
    def hold(address, ticket, request):
        raise GradioError("You have exceeded your free ZeroGPU quota (75s requested vs. 12s left).")
        yield

    server = serve(hold=hold)
    _, notes = join(server)
    wait_until(lambda: has_ended(notes))
    assert notes.last.reason is EndReason.REFUSED and "12s left" in notes.last.message
    wait_until(lambda: is_empty(server))
    assert server.status().errors == 0


def test_a_call_that_breaks_is_told_without_details(caplog):
    def hold(address, ticket, request):
        raise RuntimeError("a secret of ours")
        yield

    server = serve(hold=hold)
    _, notes = join(server)
    wait_until(lambda: has_ended(notes))
    assert notes.last.reason is EndReason.FAILED and "secret" not in notes.last.message
    assert server.status().errors == 1 and "secret" in caplog.text


def test_a_model_that_keeps_failing_on_the_lent_gpu_is_reported_until_one_conversation_goes_well():
    session = FakeSession()
    server = serve(session)
    session.on_step = lambda conversation, pcm: said(pcm * np.nan)
    for _ in range(3):
        handle, notes = join(server)
        wait_until(lambda notes=notes: notes.states and notes.last.is_live)
        handle.push(frame())
        wait_until(lambda notes=notes: has_ended(notes) and is_empty(server))
    assert not server.status().healthy and server.status().errors == 3
    session.on_step = lambda conversation, pcm: None
    handle, notes = join(server)
    wait_until(lambda: notes.states and notes.last.is_live)
    handle.push(frame())
    wait_until(lambda: notes.frames)
    handle.close()
    wait_until(lambda: is_empty(server))
    assert server.status().healthy


def test_a_worker_that_never_calls_leaves_nobody_waiting():
    def hold(address, ticket, request):
        yield "up"

    server = serve(hold=hold)
    _, notes = join(server)
    wait_until(lambda: is_empty(server) and has_ended(notes))
    assert notes.last.reason is EndReason.FAILED and "taken away" in notes.last.message


def test_a_worker_that_does_not_hang_up_is_closed(monkeypatch):
    monkeypatch.setattr(remote, "CLOSE_WITHIN_SEC", 0.2)
    closed = []

    def hold(address, ticket, request):
        try:
            while True:
                time.sleep(0.02)
                yield "beat"
        finally:
            closed.append(True)

    server = serve(hold=hold)
    handle, _ = join(server)
    handle.close()
    wait_until(lambda: closed and is_empty(server))


def test_more_visitors_than_places_are_refused():
    server = serve(FakeSession(), Limits(slots=1, waiting=0))
    handle, notes = join(server)
    wait_until(lambda: notes.states and notes.last.is_live)
    _, second = join(server)
    assert second.last.reason is EndReason.REFUSED
    handle.close()
    wait_until(lambda: is_empty(server))


def test_the_call_runs_in_the_context_of_whoever_opens_it():
    visitor = contextvars.ContextVar("visitor", default="nobody")
    seen = []

    def hold(address, ticket, request):
        seen.append(visitor.get())
        yield "up"

    server = serve(hold=hold)
    context = contextvars.copy_context()
    context.run(visitor.set, "Ada")
    context.run(join, server)
    wait_until(lambda: seen)
    assert seen == ["Ada"]


def test_what_is_asked_of_the_quota():
    assert seconds_asked(Limits(conversation_sec=60))("address", b"ticket", ConversationRequest()) == 75


# ---------------------------------------------------------------------------------- with a worker of its own


def test_with_the_decorator_forking():
    """Two processes, the real decorator, a stand-in for the machine that lends GPUs."""
    with DeviceApi() as api:
        paths = f"{SCENE.parents[1]}{os.pathsep}{SCENE.parent}"
        done = subprocess.run(
            [sys.executable, SCENE], env={**os.environ, **api.environ, "PYTHONPATH": paths}, capture_output=True,
            text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        report = json.loads(done.stdout.splitlines()[-1])
    assert report["worker"] != report["parent"], "the model must run in a process of its own"
    assert report["phases"][0] == "queued" and "preparing" in report["phases"] and "talking" in report["phases"]
    assert report["answers"] == [0.05, 0.1, 0.15, 0.2] and report["heard"] == [0.1, 0.2, 0.3, 0.4]
    assert report["round_trip_ms"] < 40, "the line may cost little of the frame's 80 ms"
    assert report["end"] == "stopped" and report["hang_up_sec"] < 2
    assert report["second_worker"] == report["worker"], "an idle worker is used again"
    assert report["failure"][0] == "failed" and "Start" in report["failure"][1]
    assert report["killed"][0] == "failed" and report["after_kill"]
    assert report["shutdown"] == "shutdown" and report["close_sec"] < 5 and not report["threads"]
    schedules = [query for what, query in api.asked if what == "schedule"]
    assert schedules[0]["token"] == "visitor-token", "the visitor's own quota pays"
    assert float(schedules[0]["durationSeconds"]) >= 75 * 0.5 and "token" not in schedules[1]
    assert [what for what, _ in api.asked].count("release") == 4


def test_a_recorded_question_asks_for_its_own_length():
    asked = seconds_asked(Limits(conversation_sec=60))
    assert asked("address", b"ticket", ConversationRequest(question=np.zeros(5 * 24_000, np.float32))) == 20
    assert asked("address", b"ticket", ConversationRequest(question=np.zeros(500 * 24_000, np.float32))) == 75


def test_a_worker_whose_model_failed_is_not_used_again():
    """It would serve the next visitor with the same broken GPU: the call ends with an error, not with its work done."""
    broken = []
    hold = conversation_on_gpu(lambda: session, Limits())

    def watched(address, ticket, request):
        try:
            yield from hold(address, ticket, request)
        except RuntimeError as error:
            broken.append(str(error))
            raise

    def fall_over(conversation, pcm):
        raise RuntimeError("CUDA error: misaligned address")

    session = FakeSession()
    session.on_step = fall_over
    server = serve(hold=watched)
    handle, notes = join(server)
    wait_until(lambda: notes.states and notes.last.is_live)
    handle.push(frame(0.1))
    wait_until(lambda: is_empty(server))
    assert notes.last.reason is EndReason.FAILED and broken == ["the model failed in this worker"]


def test_a_call_ends_even_if_its_line_never_closes(monkeypatch):
    """A worker that called and then stands still must not keep its visitor's place for ever."""
    monkeypatch.setattr(remote, "CLOSE_WITHIN_SEC", 0.2)
    lines = []

    def hold(address, ticket, request):
        lines.append(dial(address, ticket))
        yield "up"

    server = serve(hold=hold)
    _, notes = join(server)
    wait_until(lambda: is_empty(server) and has_ended(notes))
    assert notes.last.reason is EndReason.FAILED
    lines[0].close()
