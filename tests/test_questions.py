"""Recorded questions: their way to the server, their limits, what is refused; and whose voices are offered."""

from __future__ import annotations

import math
import os
import stat
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_host import golden_hosted, ready_host

from personaplex.errors import CapacityError, InputError, PersonaPlexError, UnknownNameError
from personaplex.messages import ConversationRequest, ConversationState, EndReason, Meter, Phase
from personaplex.personas.voices import VoiceFinder, save_voice
from personaplex.serving.answering import Answer, Line, QuestionJob
from personaplex.serving.host import ModelHost
from personaplex.serving.hosted import Hosted
from personaplex.settings import Settings
from personaplex.web.controls import Choices
from personaplex.web.file_tab import Questions
from personaplex.web.listeners import Listeners
from personaplex.web.page import build_page, launch_options
from personaplex.web.updates import state_line
from personaplex.web.visits import Visits

CHOICES = Choices("You are kind.", "nano-f", None, 1, 0.8, 250, 0.7, 25)


@pytest.fixture(scope="module")
def hosted() -> Hosted:
    return golden_hosted()


@pytest.fixture
def host(hosted) -> ModelHost:
    return ready_host(hosted)


def told(phase: Phase, **more):
    return lambda listener: listener.on_state(ConversationState(phase, **more))


def said(listener) -> None:
    frame = np.full(1920, 0.1, np.float32)
    listener.on_frame(SimpleNamespace(pcm=frame, text_token=3), -frame, Meter())


class AskedJob(QuestionJob):
    """A job that knows its question already."""

    def __init__(self, hosted: Hosted, request: ConversationRequest, **more: Any) -> None:
        super().__init__(**more)
        self.asked = (hosted, request)

    def answer(self, progress=lambda *_: None, **more: Any) -> Answer:
        return self.run(*self.asked, progress, **more)


def answering(host: ModelHost, *script, frames: int = 2, **more: Any) -> AskedJob:
    host.hosted.server.script = script
    return AskedJob(host.hosted, ConversationRequest(question=np.zeros(frames * 1920, np.float32)), **more)


def test_an_answer_comes_with_its_progress(host):
    seen = []
    finished = told(Phase.ENDED, reason=EndReason.FINISHED)
    script = (told(Phase.QUEUED, place=2), told(Phase.PREPARING, done=1, total=2), told(Phase.LISTENING), said, said)
    answer = answering(host, *script, finished).answer(lambda share, words: seen.append((round(share, 2), words)))
    assert answer.complete and len(answer.agent) == len(answer.user) == 2 * 1920
    assert answer.agent[0] == pytest.approx(0.1) and answer.user[0] == pytest.approx(-0.1)
    assert [share for share, _ in seen] == [0.0, 0.05, 0.1, 0.55, 1.0]
    assert "number 2 in the queue" in seen[0][1]
    assert host.hosted.server.closed


@pytest.mark.parametrize(("reason", "kind"), [("refused", CapacityError), ("failed", PersonaPlexError)])
def test_what_the_server_says_against_it_is_passed_on(host, reason, kind):
    ended = told(Phase.ENDED, reason=EndReason(reason), message="Please come back later.")
    with pytest.raises(kind, match="come back later"):
        answering(host, ended).answer(lambda *_: None)


def test_an_answer_can_be_cancelled_before_its_question_was_read(host, tmp_path, monkeypatch):
    """Reading a long recording takes seconds, in which Cancel found nothing to cancel."""
    questions = Questions(host, Visits(tmp_path / "visits"), Listeners())

    def read(path):
        questions.cancel("anna")
        return np.zeros(5 * 1920, np.float32)

    monkeypatch.setattr("personaplex.web.file_tab.read_question", read)
    host.hosted.server.script = (told(Phase.LISTENING), told(Phase.ENDED, reason=EndReason.STOPPED))
    choices = Choices("You are kind.", "nano-f", None, 1, 0.8, 250, 0.7, 25)
    answer, _, data, _ = questions.answer("question.wav", 0.0, choices, "anna", lambda *_, **__: None)
    assert answer is None and data["complete"] is False
    assert host.hosted.server.closed == 2  # when it was cancelled, and at its end


def test_a_cancelled_answer_keeps_what_was_said(host):
    question = answering(host, told(Phase.LISTENING), said, told(Phase.ENDED, reason=EndReason.STOPPED))
    question.cancel()
    answer = question.answer(lambda *_: None)
    assert not answer.complete and len(answer.agent) == 1920


def test_a_place_in_the_queue_may_stay_the_same_for_long(host, monkeypatch):
    """Nothing is said meanwhile, and that is no failure; elsewhere it is."""
    monkeypatch.setattr("personaplex.serving.answering.SILENCE_SEC", 0.05)
    question = answering(host, told(Phase.QUEUED, place=1), frames=1)

    def later():
        for call in (told(Phase.LISTENING), said, told(Phase.ENDED, reason=EndReason.FINISHED)):
            call(question)

    threading.Timer(0.4, later).start()
    assert question.answer(lambda *_: None).complete
    with pytest.raises(PersonaPlexError, match="did not answer in time"):
        answering(host, told(Phase.LISTENING)).answer(lambda *_: None)


def test_a_lent_gpu_is_waited_for_without_a_number(host):
    seen = []
    finished = told(Phase.ENDED, reason=EndReason.FINISHED)
    answering(host, told(Phase.QUEUED), finished).answer(lambda share, words: seen.append(words))
    assert seen == ["waiting for a GPU"]
    assert state_line(ConversationState(Phase.QUEUED)) == "Waiting for a GPU …"


def test_whoever_no_longer_listens_is_not_answered(host):
    """Nine abandoned calls closed the page for as long as their answers took."""
    question = answering(host, told(Phase.LISTENING), said, told(Phase.ENDED, reason=EndReason.STOPPED))
    answer = question.answer(is_wanted=lambda: False)
    assert question.is_cancelled and not answer.complete and host.hosted.server.closed


def test_an_answer_takes_no_longer_than_its_limit_from_its_start_on(host):
    now_sec = [0.0]
    question = answering(host, told(Phase.QUEUED, place=1), clock=lambda: now_sec[0])

    def play() -> None:
        for step in (told(Phase.LISTENING), said, said, told(Phase.ENDED, reason=EndReason.STOPPED)):
            time.sleep(0.1)
            now_sec[0] += 40.0
            step(question)

    thread = threading.Thread(target=play)
    now_sec[0] = 1000.0  # in the queue no time counts
    thread.start()
    answer = question.answer(limit_sec=60.0)
    thread.join()
    assert question.is_cancelled and not answer.complete and len(answer.agent) == 2 * 1920


def test_recorded_questions_wait_in_line_and_leave_when_nobody_waits_for_them():
    line, first, second, third = Line(places=lambda: 1, waiting=1), QuestionJob(), QuestionJob(), QuestionJob()
    seen: list[str] = []
    with line.place(first, lambda *_: None, lambda: True):
        with line.place(second, lambda *_: None, lambda: False), ExitStack() as full:
            assert second.is_cancelled
            with pytest.raises(CapacityError, match="recorded questions"):
                full.enter_context(line.place(third, lambda *_: None, lambda: True))
        entered = threading.Event()

        def wait() -> None:
            with line.place(third, lambda _, words: seen.append(words), lambda: True):
                entered.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(10)
    thread.join()
    assert not third.is_cancelled and seen[0] == "waiting for a free place: number 1 in the queue"


@pytest.mark.parametrize(("conversations", "at_once"), [(1, 1), (2, 1), (4, 3)])
def test_recorded_questions_leave_a_place_for_live_talk(hosted, tmp_path, conversations, at_once):
    host = ready_host(hosted, Settings(model="nano", conversations=conversations, waiting=0))
    line = Questions(host, Visits(tmp_path), Listeners())._line
    with ExitStack() as held:
        for _ in range(at_once):
            held.enter_context(line.place(QuestionJob(), lambda *_: None, lambda: True))
        with pytest.raises(CapacityError):
            held.enter_context(line.place(QuestionJob(), lambda *_: None, lambda: True))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("seed", "x", "seed is 'x'; a number is needed"), ("seed", math.nan, "seed is nan"),
        ("seed", 2**31, "2147483647 are allowed"), ("temperature_audio", None, "temperature_audio is None"),
        ("temperature_text", math.inf, "0.1 to 1.5"), ("top_k_audio", True, "top_k_audio is True"),
        ("top_k_text", [1] * 100, "…; a number"), ("prompt", {"a": 1}, "prompt is {'a': 1}; a text is needed"),
        ("voice", 7, "voice is 7; a text is needed"),
    ],
)  # fmt: skip
def test_values_of_a_wrong_kind_are_refused_with_a_sentence(hosted, name, value, says):
    """On the tab Talk they made a visitor wait ten seconds, for a sentence about something else."""
    with pytest.raises(InputError) as refused:
        replace(CHOICES, **{name: value}).request(hosted)
    assert says in str(refused.value)


def test_the_tab_talk_takes_them_as_they_came_and_refuses_them_itself(host, tmp_path):
    """Gradio's own checks failed before the conversation was told of its settings."""
    page = build_page(host, tmp_path).blocks
    samplers = ["temperature-audio", "top-k-audio", "temperature-text", "top-k-text"]
    named = ["voice", "seed", *samplers, "record", "wait-for-greeting", "clean", "write-words"]
    taken = [block for block in page.blocks.values() if getattr(block, "elem_id", None) in named]
    assert len(taken) == len(named)
    assert all(block.preprocess(value) is value for block in taken for value in ("x", None, [1]))


@pytest.mark.parametrize("tail_sec", [math.nan, -1, 1e9, None, "4"])
def test_so_is_a_tail_that_is_none(host, tmp_path, tail_sec):
    questions = Questions(host, Visits(tmp_path), Listeners())
    with pytest.raises(InputError, match="tail_sec is"):
        questions.answer("question.wav", tail_sec, CHOICES, "anna", lambda *_, **__: None)


# --- the operator's saved voices


@pytest.mark.parametrize("offered", [False, True])
def test_saved_voices_are_offered_only_if_the_operator_says_so(tmp_path, offered):
    settings = Settings(model="nano", home=tmp_path / "home", offer_saved_voices=offered)
    save_voice("me", Path("voices/nano-f.wav"), settings.home)
    host = ModelHost(settings)
    finder = VoiceFinder(golden_hosted().finder.config, host._saved_voices, allow_files=False)
    assert ("me" in [entry.name for entry in finder.entries()]) is offered
    page = build_page(host, tmp_path / "run")
    assert (str(settings.home / "voices") in launch_options(host, page)["allowed_paths"]) is offered
    if not offered:
        with pytest.raises(UnknownNameError):
            finder.find("me")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes of files")
def test_a_saved_voice_is_its_owners_alone(tmp_path):
    save_voice("me", Path("voices/nano-f.wav"), tmp_path / "home")
    (saved,) = (tmp_path / "home" / "voices").iterdir()
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600 and stat.S_IMODE(saved.parent.stat().st_mode) == 0o700
