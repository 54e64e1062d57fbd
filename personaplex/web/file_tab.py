"""The tab "From a file": answers a recorded question; its event is the page's API."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from personaplex.audio.files import read_recording
from personaplex.errors import AudioError, InputError, PersonaPlexError
from personaplex.files import shipped_folder
from personaplex.messages import NEW_SEED, SamplingOptions
from personaplex.personas.own_voice import RECORDING_NAME, as_sentence
from personaplex.serving.answering import Answer, Line, QuestionJob
from personaplex.serving.hosted import Host, Hosted
from personaplex.text.dialogue import Dialogue
from personaplex.text.transcript import Word
from personaplex.web.controls import Choices, Controls, build_controls, number, wire_controls
from personaplex.web.exports import export
from personaplex.web.html import TRANSCRIPT_HEAD, transcript_html
from personaplex.web.listeners import Listeners
from personaplex.web.visits import Visits
from personaplex.web.workarounds.gradio_components import accept_any_value

log = logging.getLogger(__name__)

API_NAME = "answer"
TAB = "file"  # its name in a visit
MAX_QUESTION_SEC = 600.0
WORDS_WITHIN_SEC = 60.0
DEFAULT_TAIL_SEC, MAX_TAIL_SEC = 4.0, 60.0
NO_ANSWER = "The persona's words will be here."


class Questions:
    """The recorded questions that are being answered, by visitor: one each, which its visitor may cancel."""

    def __init__(self, host: Host, visits: Visits, listeners: Listeners) -> None:
        self._host, self._visits, self._listeners = host, visits, listeners
        self._running: dict[str, QuestionJob] = {}
        self._lock = threading.Lock()
        limits = host.limits
        self._answer_sec = host.settings.answer_sec or limits.conversation_sec
        # One slot stays free for live talk wherever there are two.
        self._line = Line(places=lambda: max(1, host.limits.slots - 1), waiting=limits.waiting)

    def answer(
        self, question: str | None, tail_sec: Any, choices: Choices, visitor: str, progress: gr.Progress
    ) -> tuple[str | None, str | None, dict[str, Any], list[str]]:
        """The answer, both voices, the transcript and files to keep; raises PersonaPlexError for the visitor."""
        hosted = self._host.hosted
        if hosted is None:
            raise InputError(f"{self._host.loading.sentence}. Please try again in a moment.")
        for upload in filter(None, (question, choices.own_voice)):
            self._visits.own_upload(visitor, upload)
        asked_at = self._listeners.now()

        def tell(share: float, words: str) -> None:
            progress(share, desc=words)

        def is_wanted() -> bool:
            return self._listeners.is_listening(visitor, asked_at)

        with self._one_at_a_time(visitor) as job:
            tail_sec = number("tail_sec", tail_sec, 0, MAX_TAIL_SEC)
            request = choices.request(hosted)
            with self._line.place(job, tell, is_wanted):
                silence = np.zeros(round(tail_sec * hosted.sample_rate_hz), np.float32)
                asked = replace(request, question=np.concatenate([read_question(question), silence]))
                said = job.run(hosted, asked, tell, is_wanted, self._answer_sec)
        assert request.sampling is not None, "the page always sends sampling options"
        user_words = self._user_words(said)
        told = Dialogue(said.transcript, user_words).to_dict()
        data = {**told, "complete": said.complete, "seed": request.sampling.seed}
        return self._keep(visitor, hosted, said, user_words, data)

    def _user_words(self, said: Answer) -> tuple[Word, ...] | None:
        """The question in words; None where nothing here can write them down."""
        recognition = self._host.recognition
        return None if recognition is None else recognition.words_of(said.user, WORDS_WITHIN_SEC)

    @contextmanager
    def _one_at_a_time(self, visitor: str) -> Iterator[QuestionJob]:
        job = QuestionJob()
        with self._lock:
            if visitor in self._running:
                raise InputError("A question of yours is being answered already; wait for it or cancel it.")
            self._running[visitor] = job
        try:
            yield job
        finally:
            self._running.pop(visitor, None)

    def _keep(
        self, visitor: str, hosted: Hosted, said: Answer, user_words: tuple[Word, ...] | None, data: dict[str, Any]
    ) -> tuple[str | None, str | None, dict[str, Any], list[str]]:
        folder = self._visits.new_folder(visitor, TAB)
        files = export(
            folder, "answer", said.transcript, said.agent, said.user, user_words, sample_rate_hz=hosted.sample_rate_hz
        )
        words = transcript_html(said.transcript.words, user_words, empty="The persona said nothing.")
        self._visits.keep(visitor, TAB, (words, files.picture_html))
        answer, stereo = (None if path is None else str(path) for path in (files.answer, files.stereo))
        return answer, stereo, data, files.downloads

    def shown(self, visitor: str) -> tuple[str, str]:
        """Transcript and picture of the newest answer as HTML; ("", "") when asked again."""
        return self._visits.take(visitor, TAB) or ("", "")

    def cancel(self, visitor: str) -> None:
        job = self._running.get(visitor)
        if job is not None:
            job.cancel()


def read_question(path: str | None) -> np.ndarray:
    """A question's sound, [N] float32 at 24 kHz; raises InputError or AudioError with a sentence for the visitor."""
    if not path:
        raise InputError("There is no question yet: upload a recording, record one, or take an example.")
    try:
        return read_recording(path, max_sec=MAX_QUESTION_SEC, name=RECORDING_NAME).pcm
    except AudioError as error:
        raise AudioError(as_sentence(error)) from error


def example_questions() -> list[Path]:
    """The spoken example questions that ship with the program."""
    return sorted(shipped_folder("examples", "personas.json").rglob("*.wav"))


@dataclass(frozen=True)
class _Components:
    """The components of the tab that are not settings."""

    question: gr.Audio
    tail: gr.Slider
    run: gr.Button
    cancel: gr.Button
    answer: gr.Audio
    both: gr.Audio
    data: gr.JSON
    files: gr.Files
    transcript: gr.HTML
    picture: gr.HTML


def build_file_tab(host: Host, visits: Visits, listeners: Listeners) -> tuple[Controls, Questions]:
    """Lay the tab out and wire it."""
    questions = Questions(host, visits, listeners)
    with gr.Row(equal_height=False, elem_classes="columns"):
        with gr.Column(scale=4, min_width=300, elem_classes="settings"):
            controls, _ = build_controls("file-")
        with gr.Column(scale=6, min_width=300):
            question, tail, run, cancel = _question_side()
            answer, both, data, files, transcript, picture = _answer_side()
    parts = _Components(question, tail, run, cancel, answer, both, data, files, transcript, picture)
    wire_controls(controls, host, visits)
    _wire(questions, visits, controls, parts)
    return controls, questions


def _question_side() -> tuple[gr.Audio, gr.Slider, gr.Button, gr.Button]:
    gr.Markdown(
        f"Ask in a recording of at most {MAX_QUESTION_SEC / 60:.0f} minutes. The persona hears it from start to end "
        "and speaks in step with it, so leave pauses in which it may answer.",
        elem_classes="help",
    )
    question = gr.Audio(
        label="Your question", sources=["upload", "microphone"], type="filepath", elem_id="file-question",
    )  # fmt: skip
    examples = example_questions()
    if examples:
        gr.Examples(
            [[str(path)] for path in examples], [question], label="Examples: press one, then Answer",
            example_labels=[path.stem.replace("_", " ").replace("-", " ").capitalize() for path in examples],
        )  # fmt: skip
    tail = gr.Slider(
        0, MAX_TAIL_SEC, DEFAULT_TAIL_SEC, step=1, label="Time to finish (seconds)", elem_id="file-tail",
        info="Silence after the question, in which the persona may end its answer.",
    )  # fmt: skip
    accept_any_value(tail)
    with gr.Row():
        run = gr.Button("Answer", variant="primary", elem_id="file-run")
        cancel = gr.Button("Cancel", elem_id="file-cancel", interactive=False)
    return question, tail, run, cancel


def _answer_side() -> tuple[gr.Audio, gr.Audio, gr.JSON, gr.Files, gr.HTML, gr.HTML]:
    answer = gr.Audio(label="The answer", interactive=False, elem_id="file-answer", show_download_button=True)
    with gr.Column(elem_classes="card", min_width=280):
        gr.HTML(TRANSCRIPT_HEAD.format(id="file-transcript"), padding=False)
        transcript = gr.HTML(
            transcript_html((), empty=NO_ANSWER), elem_id="file-transcript", elem_classes="scroller", padding=False
        )
    picture = gr.HTML("", elem_id="file-picture", padding=False)
    both = gr.Audio(
        label="Both voices: persona left, question right", interactive=False, elem_id="file-both", visible=False,
        show_download_button=True,
    )  # fmt: skip
    data = gr.JSON(visible=False, label="Transcript")
    files = gr.Files(label="Files to keep", elem_id="file-downloads", visible=False, interactive=False)
    return answer, both, data, files, transcript, picture


def _visitor(request: gr.Request | None) -> str:
    return (request and request.session_hash) or ""


def _wire(questions: Questions, visits: Visits, controls: Controls, parts: _Components) -> None:
    def answer(
        question: str | None, prompt: str, voice: str | None = None, own_voice: str | None = None,
        seed: float = NEW_SEED, temperature_audio: float = SamplingOptions.temperature_audio,
        top_k_audio: float = SamplingOptions.top_k_audio, temperature_text: float = SamplingOptions.temperature_text,
        top_k_text: float = SamplingOptions.top_k_text, tail_sec: float = DEFAULT_TAIL_SEC,
        request: gr.Request | None = None, progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[str | None, str | None, dict[str, Any], list[str]]:  # fmt: skip
        """Answer a recorded question in the role and voice asked for."""
        choices = Choices(
            prompt, voice, own_voice, seed, temperature_audio, top_k_audio, temperature_text, top_k_text
        )  # fmt: skip
        try:
            return questions.answer(question, tail_sec, choices, _visitor(request), progress)
        except PersonaPlexError as error:
            log.info("a question was not answered: %s", type(error).__name__)
            raise gr.Error(str(error), duration=None, title="No answer", print_exception=False) from error

    def show(request: gr.Request) -> tuple[Any, ...]:
        words, picture = questions.shown(request.session_hash or "")
        return words, picture, gr.update(visible=bool(picture)), gr.update(visible=bool(words))

    def cancel_mine(request: gr.Request) -> None:
        questions.cancel(request.session_hash or "")

    def own(question: str | None, request: gr.Request) -> None:
        if question and request.session_hash:
            visits.own_upload(request.session_hash, question)

    private: dict[str, Any] = dict(show_progress="hidden")
    parts.question.change(own, parts.question, None, concurrency_limit=None, **private)
    buttons = [parts.run, parts.cancel]
    started = parts.run.click(
        lambda: (gr.update(interactive=False), gr.update(interactive=True)), None, buttons, **private
    )
    answered = started.then(
        answer, [parts.question, *controls.inputs, parts.tail], [parts.answer, parts.both, parts.data, parts.files],
        api_name=API_NAME, concurrency_limit=None, show_progress_on=[parts.answer],
    )  # fmt: skip
    answered.success(show, None, [parts.transcript, parts.picture, parts.both, parts.files], **private)
    answered.then(lambda: (gr.update(interactive=True), gr.update(interactive=False)), None, buttons, **private)
    parts.cancel.click(cancel_mine, None, None, concurrency_limit=None, **private)
