"""The commands: make-set, run, report, all."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.duplex import asr, layout, roles, synthetic
from benchmarks.duplex.judge import Judge
from benchmarks.duplex.layout import Item
from benchmarks.duplex.published import prompt_for
from benchmarks.duplex.report import Results, write_report
from benchmarks.duplex.runner import RUN_FILE, Take, run, settle_run, takes_of
from benchmarks.duplex.scoring import compare_voices, listen, score
from benchmarks.duplex.voice import GE2E, find_encoder
from personaplex.audio.files import read_recording
from personaplex.config import PERSONA_WINDOW, WINDOWS
from personaplex.engine.engine import Snapshot
from personaplex.errors import InputError, PersonaPlexError
from personaplex.files import write_text
from personaplex.messages import SamplingOptions, Voice
from personaplex.personas.voices import VoiceFinder, voice_from_file
from personaplex.session.session import Session
from personaplex.settings import default_home
from personaplex.weights.hub import resolve_model
from personaplex.weights.load import load_model
from personaplex.weights.voice_files import unpack_voices
from training import agents

COST_FILE, RESULTS_FILE = "cost.json", "results.json"

_EXAMPLES = """examples:
  # everything, from nothing: make the synthetic set, talk, listen, report
  python -m benchmarks.duplex all build/duplex --model nano --asr nano
  # the same in a few minutes: 5 items a task
  python -m benchmarks.duplex all build/small --items 5 --variant-items 0 --roles 2
  # the public set, once its folder is here (v1.0 or v1.5, one task or all)
  python -m benchmarks.duplex run v1_0 build/7b --model nvidia/personaplex-7b-v1 --slots 8 --asr pocketsphinx
  # score again, with a judge, without running the model
  OPENAI_API_KEY=… python -m benchmarks.duplex report build/7b --judge-url https://…/v1 --judge-model NAME

A run that was stopped goes on where it was when the same command is given again.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a mistake in what was given is one line and exit code 2."""
    given = _parser().parse_args(arguments)
    try:
        given.command(given)
    except PersonaPlexError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


# ---------------------------------------------------------------------------------- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.duplex",
        description="How a full-duplex model behaves, by Full-Duplex-Bench's layout and definitions.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, does, about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=about, description=about, epilog=_EXAMPLES, formatter_class=parser.formatter_class
        )
        made.set_defaults(command=does)
        made.add_argument("--quiet", action="store_true", help="no progress bars")
        return made

    everything = command("all", _all, "make the synthetic set in FOLDER/set and run on it into FOLDER/run")
    everything.add_argument("folder", type=Path)
    making = command("make-set", _make_set, "make the synthetic set")
    making.add_argument("set", type=Path)
    running = command("run", _run, "run a model over a folder in the benchmark's layout, score it and report")
    running.add_argument("set", type=Path, help="TASK/ID/input.wav lie below it")
    running.add_argument("out", type=Path, help="answers, results.json, report.md and report.html go here")
    reporting = command("report", _report, "score a run that is there and report, without the model")
    reporting.add_argument("out", type=Path)
    for parser_ in (everything, making):
        _set_arguments(parser_)
    for parser_ in (everything, running):
        _run_arguments(parser_)
    for parser_ in (everything, running, reporting):
        _scoring_arguments(parser_)
    return parser


def _set_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the synthetic set")
    group.add_argument("--items", type=_count, default=synthetic.ITEMS, help="of each task (default %(default)s)")
    group.add_argument(
        "--variant-items", type=_count, default=synthetic.VARIANT_ITEMS,
        help="of each task that are also given with noise, a second talker, … (default %(default)s)",
    )  # fmt: skip
    group.add_argument("--roles", type=_count, default=roles.ROLES, help="of 7 questions each (default %(default)s)")
    group.add_argument("--set-seed", type=int, default=0)
    group.add_argument("--cast", choices=sorted(agents.CASTS), default=agents.FLITE, help="the agent's voices")
    group.add_argument("--people", type=Path, help="recordings of people, as training.people reads them")


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model")
    group.add_argument("--model", default="nano", help="nano, a hub id or a folder (default %(default)s)")
    group.add_argument("--dtype", default="auto", help="float32, bfloat16, int8, int4 or auto")
    group.add_argument("--device", default="auto", help="cpu, cuda or auto")
    group.add_argument("--slots", type=_count, default=8, help="conversations at once (default %(default)s)")
    group.add_argument("--context", type=int, help="frames the model remembers, 12.5 a second; its own if not given")
    group.add_argument(
        "--window", choices=WINDOWS, default=PERSONA_WINDOW, help="whether a full memory keeps the prompt"
    )
    group.add_argument(
        "--clean",
        action="store_true",
        help="echo and rumble are taken out of what the model hears, as `reply --clean` does",
    )
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--greedy", action="store_true", help="the likeliest token always")
    group.add_argument("--text-temperature", type=float, default=SamplingOptions.temperature_text)
    group.add_argument("--audio-temperature", type=float, default=SamplingOptions.temperature_audio)
    group = parser.add_argument_group("which items, and as whom (an item's own persona.json goes first)")
    group.add_argument("--tasks", nargs="+", default=[], metavar="NAME", help="only folders whose path contains one")
    group.add_argument("--limit", type=_count, help="items of each task folder")
    group.add_argument("--prompt", help="a role; if not given, the one that PersonaPlex's authors use for the task")
    group.add_argument("--voice", help="a voice by name or a recording; the model's usual one if not given")


def _scoring_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scoring")
    group.add_argument(
        "--asr", choices=asr.NAMES,
        help="recognise the words in the sound: pocketsphinx's English, or a grammar of nano's world; if not given, "
        "words that were recognised before are taken, or those of the text stream alone",
    )  # fmt: skip
    group.add_argument("--judge-url", help="an OpenAI-compatible endpoint that rates answers to interruptions")
    group.add_argument("--judge-model", help="the model to ask there")
    group.add_argument(
        "--voice-encoder", default=GE2E, help="ge2e (Resemblyzer's weights), or WavLM x-vector weights' folder or name"
    )
    group.add_argument("--report", type=Path, help="folder of the report; the run's own if not given")


def _count(given: str) -> int:
    number = int(given)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{given} is not a count; 0 or more is allowed")
    return number


# ---------------------------------------------------------------------------------- commands


def _all(given: argparse.Namespace) -> None:
    given.set, given.out = given.folder / "set", given.folder / "run"
    _make_set(given)
    _run(given)


def _make_set(given: argparse.Namespace) -> None:
    synthetic.make_set(
        given.set, items=given.items, variant_items=min(given.variant_items, given.items), role_count=given.roles,
        seed=given.set_seed, progress=not given.quiet, recorded=given.people, cast=given.cast,
    )  # fmt: skip


def _run(given: argparse.Namespace) -> None:
    _check_scoring(given)
    if not given.slots:
        raise InputError("--slots is 0; at least one conversation is needed")
    items = layout.select(layout.find_items(given.set), given.tasks, given.limit)
    sampling = SamplingOptions(
        temperature_audio=given.audio_temperature, temperature_text=given.text_temperature, greedy=given.greedy,
        seed=given.seed,
    )  # fmt: skip
    if any(take.text.is_file() is False for take in takes_of(items, given.out)):
        _talk(given, items, sampling)
    _report(given)


def _talk(given: argparse.Namespace, items: list[Item], sampling: SamplingOptions) -> None:
    settle_run(given.out, _settings(given, sampling))
    folder = resolve_model(given.model, None).folder
    session = Session(
        load_model(folder, format=given.dtype, device=given.device), slots=given.slots, context=given.context,
        window=given.window,
    )  # fmt: skip
    started = time.perf_counter()
    try:
        run(
            session, items, given.out, _Prompts(session, given, folder), slots=given.slots, options=sampling,
            clean=given.clean, progress=not given.quiet,
        )  # fmt: skip
    finally:
        _add_cost(given.out, talking_min=(time.perf_counter() - started) / 60)


def _settings(given: argparse.Namespace, sampling: SamplingOptions) -> dict:
    """The settings that must stay the same when a run is resumed; the report shows them."""
    return {
        "set": given.set.resolve().name,
        "synthetic": any((folder / synthetic.SET_FILE).is_file() for folder in (given.set, given.set.parent)),
        "model": given.model,
        "dtype": given.dtype,
        "context": given.context,
        "window": given.window,
        "clean": given.clean or None,  # as runs have it that were made before there was a choice
        "prompt": given.prompt,
        "voice": given.voice,
        **asdict(sampling),
    }


class _Prompts:
    """The state that an item's conversation starts from: its own role and voice, else the run's."""

    def __init__(self, session: Session, given: argparse.Namespace, folder: Path):
        config = session.loaded.config

        def unpack(member: str) -> Path:
            return unpack_voices(folder / config.files.voices, default_home() / "unpacked") / member

        finder = VoiceFinder(config, default_home(), folder, unpack)
        self._session, self._prompt = session, given.prompt
        self._voice = finder.find(given.voice)

    def __call__(self, item: Item) -> Snapshot:
        own = layout.persona(item.folder)
        voice: Voice | None = self._voice
        if own is not None and own.voice is not None:
            voice = voice_from_file(own.voice, config=self._session.loaded.config)
        prompt = prompt_for(item.kind) if self._prompt is None else self._prompt
        return self._session.prepare(voice=voice, text=prompt if own is None else own.prompt)


def _check_scoring(given: argparse.Namespace) -> None:
    if (given.judge_url is None) != (given.judge_model is None):
        raise InputError("--judge-url and --judge-model belong together; give both or none")


def _report(given: argparse.Namespace) -> None:
    _check_scoring(given)
    settings = layout.read_json(given.out / RUN_FILE)
    takes = [take for take in takes_of(layout.find_items(given.out), given.out) if take.text.is_file()]
    if not takes:
        raise InputError(f"{given.out} holds no answers; give the folder that `run` wrote to")
    started = time.perf_counter()
    listen(takes, asr.recogniser(given.asr) if given.asr else None, progress=not given.quiet)
    judge = Judge(given.judge_url, given.judge_model) if given.judge_url else None
    records = [score(take, judge) for take in takes if take.stem == "output"]
    encode = find_encoder(given.voice_encoder)
    voices = compare_voices(takes, encode) if encode is not None else None
    _add_cost(given.out, listening_min=(time.perf_counter() - started) / 60, sound_min=_sound_min(takes))
    notes = _notes(given, heard=any(take.asr.is_file() for take in takes), voices=encode is not None)
    results = Results(settings, records, voices, notes, layout.read_json(given.out / COST_FILE))
    told = {"settings": settings, "items": [record.to_dict() for record in records]}
    told["voices"] = asdict(voices) if voices is not None else None
    write_text(given.out / RESULTS_FILE, json.dumps(told, indent=1) + "\n")
    print(f"report: {write_report(results, takes, given.report or given.out)}")


def _sound_min(takes: Sequence[Take]) -> float:
    return sum(read_recording(take.sound).duration_sec for take in takes) / 60


def _add_cost(out: Path, *, talking_min: float = 0.0, **others: float) -> None:
    """Talking adds up over the parts of a run; the rest is of the latest report."""
    path = out / COST_FILE
    cost = layout.read_json(path) if path.is_file() else {"talking_min": 0.0}
    cost["talking_min"] += talking_min
    write_text(path, json.dumps(cost | others) + "\n")


def _notes(given: argparse.Namespace, *, heard: bool, voices: bool) -> list[str]:
    notes = []
    if not given.judge_url:
        notes.append("The judge's score of interruptions: no endpoint was given (--judge-url, --judge-model).")
    if not heard:
        notes.append("Words heard in the sound: no recogniser was asked for (--asr). All words are the text stream's.")
    if not voices:
        notes.append("Voice similarity: its weights are not installed (pip install --no-deps Resemblyzer==0.1.4).")
    notes.append("v1.5's categories of behaviour and its speech quality scores, which need GPT-4o and UTMOS.")
    return notes
