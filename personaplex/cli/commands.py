"""The commands that run a model: the order of the work, and the progress shown meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from personaplex.audio.cleaning import check_cleaning
from personaplex.audio.files import Recording, read_recording
from personaplex.audio.frames import SAMPLE_RATE_HZ
from personaplex.config import NANO, PERSONA_WINDOW, ModelConfig, checked_window
from personaplex.engine.engine import MIN_CONTEXT_FRAMES, checked_context
from personaplex.errors import InputError
from personaplex.files import check_folder
from personaplex.machine.choose import Choice
from personaplex.machine.inspect import usable_cores
from personaplex.machine.load import OtherPrograms, crowded
from personaplex.messages import SamplingOptions, Voice
from personaplex.personas.presets import Persona
from personaplex.personas.presets import persona as find_persona
from personaplex.personas.voices import VoiceFinder, check_voice_name, model_family
from personaplex.session.prompt_frames import PromptBuilder
from personaplex.session.reply import MAX_TAIL_SEC, Outputs, Reply, answer, check_times, told_tokens
from personaplex.session.session import Session
from personaplex.settings import AUTO, MOST_AT_ONCE, Settings
from personaplex.text.prompt import clean_prompt, prepare_prompt
from personaplex.text.tokenizer import TextTokenizer
from personaplex.text.transcript import Word
from personaplex.weights.folder import ModelFiles, wanted_format
from personaplex.weights.hub import resolve_model
from personaplex.weights.load import LoadedModel, load_model, read_voice_pt, save_quantized, usable_device
from personaplex.weights.voice_files import unpack_voices
from personaplex.words.hearing import Recognition
from personaplex.words.recogniser import HOW_TO_GET, chosen

WORDS_WITHIN_SEC = 60.0

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class ReplyJob:
    """Everything ``reply`` was asked for."""

    question: Path
    outputs: Outputs
    persona: str | None
    prompt: str | None
    truncate: bool
    voice: str | None
    tail_sec: float
    clean: bool
    loudspeaker: Path | None
    recogniser: str | None  # that writes the question down
    tells: tuple[tuple[float, str], ...]  # (seconds from the question's beginning, text)
    model: str
    revision: str | None
    dtype: str
    device: str
    context_frames: int | None
    window: str
    kv_cache: str
    snapshots: Path | None
    home: Path
    sampling: SamplingOptions


def run_reply(job: ReplyJob) -> bool:
    """Answer a question; False if it was stopped before its end.

    Whatever can be refused without the model is refused before it is fetched, and the voice, the role and
    the cache's length before it is loaded.
    """
    others = OtherPrograms()
    preset = find_persona(job.persona) if job.persona is not None else None
    question = _check_before_the_work(job)
    recogniser = _recogniser(job)
    loudspeaker = read_recording(job.loudspeaker).pcm if job.loudspeaker is not None else None
    job = _settled(job)
    files = ModelFiles.open(resolve_model(job.model, job.revision).folder)
    context = checked_context(job.context_frames, files.config.lm)
    voice, voice_frames = _voice(job, files.config, files.folder, preset)
    role = _role(job, files.config, files.folder, preset)
    prompt_frames = voice_frames + len(PromptBuilder(files.config).role(role.tokens))
    PromptBuilder(files.config).check_fits(prompt_frames, context, job.window)
    _check_tells(job, files, prompt_frames, context)
    notes = [*question.notes, *(voice.notes if voice else ()), *_forgetting(job, files.config, question, prompt_frames)]
    _note(notes)
    with _progress() as show:
        loaded = load_model(
            files, format=job.dtype, device=job.device, progress=show("loading the model"), context=job.context_frames,
            kv_cache=job.kv_cache,
        )  # fmt: skip
        _note([sentence for sentence in [crowded(others.busy_cores(), usable_cores())] if sentence])
        session = Session(loaded, slots=1, context=job.context_frames, window=job.window, snapshot_folder=job.snapshots)
        snapshot = session.prepare(
            voice=voice, text=role.given, truncate_text=job.truncate, progress=show("preparing the persona")
        )
        reply = answer(
            session,
            snapshot,
            question.pcm,
            options=job.sampling,
            tail_sec=job.tail_sec,
            clean=job.clean,
            loudspeaker=loudspeaker,
            tells=job.tells,
            progress=show("answering", loaded.config.mimi.frame_sec),
        )
    if recogniser is not None:
        reply = replace(reply, user_words=_words_of(reply.heard, recogniser))
    if reply.num_frames:
        reply.write(job.outputs, loaded.config.mimi.sample_rate)
    _summarize(job, reply, loaded, voice)
    return reply.complete


def _check_before_the_work(job: ReplyJob) -> Recording:
    if not 0 <= job.tail_sec <= MAX_TAIL_SEC:
        raise InputError(f"--tail is {job.tail_sec} s; 0 to {MAX_TAIL_SEC:.0f} s are allowed")
    if job.clean:
        check_cleaning()
    elif job.loudspeaker is not None:
        raise InputError("--loudspeaker was given without --clean, which takes its echo out")
    if job.context_frames is not None and job.context_frames < MIN_CONTEXT_FRAMES:
        raise InputError(f"--context is {job.context_frames} frames; at least {MIN_CONTEXT_FRAMES} are needed")
    checked_window(job.window)
    wanted_format(job.dtype)
    usable_device(job.device)
    clean_prompt(job.prompt or "")
    given_files = (job.question, job.voice, job.loudspeaker)
    recordings = [Path(given) for given in given_files if given is not None and Path(given).is_file()]
    job.outputs.check(tuple(recordings))
    if job.snapshots is not None:
        check_folder(job.snapshots)
    check_voice_name(job.voice, job.home, job.model)
    question = read_recording(job.question)
    check_times(job.tells, len(question.pcm) / SAMPLE_RATE_HZ + job.tail_sec)
    return question


def _check_tells(job: ReplyJob, files: ModelFiles, prompt_frames: int, context: int) -> None:
    """Raise PromptError for more than may be told, or more than fits beside the prompt."""
    tokenizer = TextTokenizer(files.folder / files.config.files.tokenizer)
    told = told_tokens(job.tells, tokenizer)
    if job.window == PERSONA_WINDOW:
        PromptBuilder(files.config).check_told_fits(prompt_frames - 1, told, context)


def _recogniser(job: ReplyJob) -> str | None:
    """The recogniser that was asked for; raises InputError where none is installed."""
    if job.recogniser is None:
        return None
    kind = chosen(job.recogniser)
    if kind is None:
        raise InputError(f"--user-words needs a recogniser, which is not installed or switched off: {HOW_TO_GET}")
    return kind


def _words_of(heard: np.ndarray, kind: str) -> tuple[Word, ...]:
    recognition = Recognition(kind)
    try:
        return recognition.words_of(heard, WORDS_WITHIN_SEC + len(heard) / SAMPLE_RATE_HZ)
    finally:
        recognition.close()


def _settled(job: ReplyJob) -> ReplyJob:
    """``job`` with the model that ``auto`` takes here."""
    if job.model != AUTO:
        return job
    from personaplex.machine.choose import choose, inspect_here
    from personaplex.machine.report import choice_line

    taken = choose(inspect_here(job.device), Settings(model=AUTO, device=job.device, dtype=job.dtype))
    _note([f"auto takes {choice_line(taken)}"])
    return replace(job, model=taken.model, device=taken.device, dtype=taken.format)


def _voice(job: ReplyJob, config: ModelConfig, folder: Path, preset: Persona | None) -> tuple[Voice | None, int]:
    """The voice, and how many frames of the prompt it takes as far as its file says."""

    def unpack(member: str) -> Path:
        return unpack_voices(folder / config.files.voices, job.home / "unpacked") / member

    finder = VoiceFinder(config, job.home, folder, unpack)
    suggested = preset.voice_for(finder.family) if preset else None
    voice = finder.find(job.voice or suggested)
    if voice is not None and voice.embeddings_path is not None:
        # Damaged or of another model: the weights need not be waited for.
        return voice, len(read_voice_pt(voice.embeddings_path, config).embeddings)
    return voice, PromptBuilder(config).voice_frames(voice)


@dataclass(frozen=True)
class _Role:
    """The role's text as given, and its tokens as the model reads them."""

    given: str
    tokens: tuple[int, ...]


def _role(job: ReplyJob, config: ModelConfig, folder: Path, preset: Persona | None) -> _Role:
    family = model_family(config)
    if preset is not None and family == NANO and not preset.known_to_nano:
        _note([f"nano was not made for the persona {preset.name}: expect little of it"])
    text = preset.prompt_for(family) if preset is not None else job.prompt or ""
    tokenizer = TextTokenizer(folder / config.files.tokenizer)
    prepared = prepare_prompt(text, tokenizer, config.prompt.max_text_tokens, job.truncate)
    if prepared.truncated:
        _note([f"the prompt was cut to {len(prepared.tokens)} tokens: {prepared.text}"])
    if prepared.unreadable:
        _note([f"{config.name} cannot read {prepared.unreadable}"])
    return _Role(text, prepared.tokens)


def _forgetting(job: ReplyJob, config: ModelConfig, question: Recording, prompt_frames: int) -> list[str]:
    """A note where the conversation is longer than a shortened context keeps of the persona."""
    if job.context_frames is None or job.window == PERSONA_WINDOW:
        return []
    asked_frames = round((question.duration_sec + job.tail_sec) * config.mimi.frame_rate)
    if prompt_frames + asked_frames <= job.context_frames:
        return []
    kept_sec = (job.context_frames - prompt_frames) * config.mimi.frame_sec
    needed = min(prompt_frames + asked_frames, config.lm.context)
    keeps = f"--context {needed} or --window persona"
    return [f"after {kept_sec:.0f} s the model begins to forget its voice and role: {keeps} keeps them"]


def _note(notes: list[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _summarize(job: ReplyJob, reply: Reply, loaded: LoadedModel, voice: Voice | None) -> None:
    spoken_sec = reply.num_frames * reply.frame_sec
    if not reply.complete:
        saved = f"what was said so far is in {job.outputs.answer}" if reply.num_frames else "nothing was said yet"
        print(f"stopped after {spoken_sec:.1f} s; {saved}", file=sys.stderr)
    if not reply.num_frames:
        return
    how = "greedy" if job.sampling.greedy else f"seed {job.sampling.seed}"
    whose = f"voice {voice.name}" if voice else "a voice of its own"
    if reply.user_words is not None:
        print(f"heard: {' '.join(word.text for word in reply.user_words) or '(nothing)'}")
    print(f"said: {reply.transcript.text or '(nothing)'}")
    print(f"files: {', '.join(map(str, job.outputs.paths().values()))}")
    print(
        f"{loaded.config.name} as {loaded.format.value} on {loaded.device}, {whose}, {how}: "
        f"{spoken_sec:.1f} s in {reply.wall_sec:.1f} s, real-time factor {reply.real_time_factor:.2f}"
    )


def conversations_here(choice: Choice, settings: Settings) -> str:
    """How many the page would let talk at once, and why; measured where the model is nano, which loads in a second."""
    from personaplex.serving.capacity import capacity_of
    from personaplex.web.edge_cost import edge_ms

    if settings.conversations is not None:
        return f"{settings.conversations}: asked for"
    if choice.model != NANO:
        return f"measured when the page starts, {MOST_AT_ONCE} at most"
    loaded = load_model(choice.model, format=choice.format, device=choice.device, kv_cache=settings.kv_cache)
    return capacity_of(choice, loaded, settings.context, edge_ms).reason


def run_quantize(model: str, folder: Path, dtype: str, group_size: int, revision: str | None) -> None:
    """Save a packed copy of a model."""
    with _progress() as show:
        save_quantized(
            model, folder, dtype, group_size=group_size, revision=revision, progress=show("packing the weights")
        )
    print(f"saved to {folder}: use it with --model {folder}")


@contextmanager
def _progress() -> Iterator[Callable[..., Report]]:
    """``show(title)`` starts a progress bar on standard error and returns the function that moves it.

    Silent unless standard error is a terminal.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[factor]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def show(title: str, frame_sec: float | None = None) -> Report:
            task = bars.add_task(title, total=None, factor="")

            def report(done: int, total: int) -> None:
                factor = ""
                elapsed_sec = bars.tasks[task].elapsed
                if frame_sec is not None and elapsed_sec and done:
                    factor = f"real-time factor {elapsed_sec / (done * frame_sec):.2f}"
                bars.update(task, completed=done, total=total, factor=factor)

            return report

        yield show
