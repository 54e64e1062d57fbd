"""Conversations on a GPU that the stand-in lends, in a process of their own; prints one JSON line.

The decorator is the real one: it forks a worker.
"""

import sys

sys.modules["torch"] = None  # spaces refuses builds without CUDA, but does without PyTorch altogether
import spaces  # noqa: E402

del sys.modules["torch"]

import contextvars  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from types import SimpleNamespace  # noqa: E402

from fake_session import FakeSession, Notes, frame, said  # noqa: E402
from gradio.context import LocalContext  # noqa: E402

from personaplex.messages import ConversationRequest, Limits  # noqa: E402
from personaplex.serving.zerogpu import ZeroGpuServer, conversation_on_gpu, seconds_asked  # noqa: E402

LIMITS = Limits(conversation_sec=60)


class Pids(FakeSession):
    """Answers with its own process number as the text."""

    def step_together(self, heard):
        loudest = max(float(pcm.max()) for pcm in heard.values())
        if loudest > 0.85:
            os._exit(9)
        if loudest > 0.75:
            raise RuntimeError("CUDA error: misaligned address")
        return {conversation: said(pcm / 2, os.getpid()) for conversation, pcm in heard.items()}


def wait_until(condition, timeout_sec=20.0):
    deadline = time.monotonic() + timeout_sec
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def talk(server, values, token=None):
    """Push a value a frame and wait for each answer; returns the listener and the handle."""
    notes = Notes()
    visitor = contextvars.copy_context()
    if token is not None:
        visitor.run(LocalContext.request.set, SimpleNamespace(headers=Headers({"x-ip-token": token})))
    handle = visitor.run(server.open, ConversationRequest(text="a pirate"), notes)
    wait_until(lambda: notes.states and (notes.last.is_live or notes.last.phase.value == "ended"))
    for count, value in enumerate(values, start=1):
        handle.push(frame(value))
        wait_until(lambda count=count: len(notes.frames) >= count or notes.last.phase.value == "ended")
    return notes, handle


class Headers(dict):
    """spaces wants an object with attributes."""


def threads_left(timeout_sec=5.0):
    """Names of the calls' threads that do not end: a call is forgotten a moment before its threads are over."""
    deadline = time.monotonic() + timeout_sec
    left = [thread for thread in threading.enumerate() if thread.name.startswith(("remote", "exchange"))]
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [thread.name for thread in left if thread.is_alive()]


def main():
    session = Pids()
    hold = spaces.GPU(duration=seconds_asked(LIMITS))(conversation_on_gpu(lambda: session, LIMITS))
    server = ZeroGpuServer(hold, LIMITS)
    report = {"parent": os.getpid()}

    started = time.monotonic()
    notes, handle = talk(server, [0.1, 0.2, 0.3, 0.4], token="visitor-token")
    report["phases"] = notes.phases
    report["answers"] = [round(float(output.pcm[0]), 3) for output, _, _ in notes.frames]
    report["heard"] = [round(float(heard[0]), 3) for _, heard, _ in notes.frames]
    report["worker"] = notes.frames[0][0].text_token
    report["first_sec"] = time.monotonic() - started
    waits = []
    for _ in range(30):
        count, pushed_at = len(notes.frames), time.perf_counter()
        handle.push(frame(0.1))
        while len(notes.frames) == count:
            time.sleep(0.0002)
        waits.append((time.perf_counter() - pushed_at) * 1000)
    report["round_trip_ms"] = sorted(waits)[len(waits) // 2]
    started = time.monotonic()
    handle.close()
    wait_until(lambda: server.status().running + server.status().waiting == 0)
    report["hang_up_sec"] = time.monotonic() - started
    report["end"] = notes.last.reason.value

    notes, handle = talk(server, [0.1])
    report["second_worker"] = notes.frames[0][0].text_token
    handle.push(frame(0.8))
    wait_until(lambda: notes.last.phase.value == "ended")
    report["failure"] = [notes.last.reason.value, notes.last.message]
    wait_until(lambda: server.status().running + server.status().waiting == 0)

    notes, handle = talk(server, [0.1])
    handle.push(frame(0.9))
    wait_until(lambda: notes.last.phase.value == "ended")
    report["killed"] = [notes.last.reason.value, notes.last.message]
    wait_until(lambda: server.status().running + server.status().waiting == 0)

    notes, _ = talk(server, [0.1])
    report["after_kill"] = notes.last.is_live
    started = time.monotonic()
    server.close()
    wait_until(lambda: server.status().running + server.status().waiting == 0)
    report["close_sec"] = time.monotonic() - started
    report["shutdown"] = notes.last.reason.value
    report["threads"] = threads_left()
    print(json.dumps(report), flush=True)


main()
