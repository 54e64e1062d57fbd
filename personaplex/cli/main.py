"""The command line: ``python -m personaplex reply question.wav -o answer.wav``, and the rest.

Everything that takes long to import (PyTorch, SciPy) is imported inside the commands, so that
``--help`` and the catalogues answer at once.
"""

from __future__ import annotations

import functools
import inspect
import io
import json
import logging
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from personaplex.cli import options as opt
from personaplex.cli.telling import TellCommand, Tells, read_tells
from personaplex.config import NANO
from personaplex.errors import InputError, PersonaPlexError
from personaplex.messages import SamplingOptions
from personaplex.personas.presets import DEFAULT_PERSONA
from personaplex.settings import AUTO, Settings, flag_of, setting_kind
from personaplex.strict import nearest_names

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Talk with a persona: its role from text, its voice from a recording, both sides speaking at once.",
)
voice_app = typer.Typer(no_args_is_help=True, help="Your own voices.")
app.add_typer(voice_app, name="voice")


page_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
"""The page alone, for ``python app.py``."""

_UsageError = cast(type[Exception], typer.BadParameter.__base__)  # of Click, which newer typers carry inside themselves


def main() -> int:
    """Entry point of ``python -m personaplex`` and of the installed command; returns the exit code."""
    return run(app, sys.argv[1:], "personaplex" if Path(sys.argv[0]).stem == "personaplex" else "python -m personaplex")


def run(commands: typer.Typer, arguments: list[str], name: str) -> int:
    """Run a command line; returns the exit code. A slip in it is one line on standard error, as every other error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a name that the terminal cannot show must not cost the answer
    try:
        return commands(arguments, prog_name=name, standalone_mode=False) or 0
    except _UsageError as error:
        if not arguments or type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
        else:
            say(f"error: {_slip(error, name)}")
        return EXIT_BAD_INPUT


def _slip(error: Any, name: str) -> str:
    """A usage error of Click's in the words of the other errors."""
    given = str(getattr(error, "option_name", ""))
    if type(error).__name__ == "NoSuchOption" and error.ctx is not None:
        known = [name for parameter in error.ctx.command.params for name in parameter.opts if name.startswith("--")]
        return f"{given} is not known{nearest_names(given, known)}"
    said = error.format_message().strip().rstrip(".")
    command = error.ctx.command_path if error.ctx is not None else name
    return f"{said[:1].lower()}{said[1:]}" + ("" if said.endswith("?") else f"; see {command} --help")


def say(message: str) -> None:
    """A line for the user that is not the result itself."""
    print(message, file=sys.stderr)


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """An error a user can meet becomes one line and exit code 2; Ctrl-C becomes exit code 130."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        logging.basicConfig(level=logging.WARNING, format="note: %(message)s", stream=sys.stderr)
        try:
            command(*args, **kwargs)
        except PersonaPlexError as error:
            say(f"error: {error}")
            raise typer.Exit(EXIT_BAD_INPUT) from None
        except KeyboardInterrupt:
            say("stopped; nothing was written")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            raise
        except OSError as error:  # a path that may not be looked at, or is too long
            where = f"{str(error.filename)[:200]}: " if error.filename else ""
            say(f"error: {where}{error.strerror or error}")
            raise typer.Exit(EXIT_BAD_INPUT) from None
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            say("error: the memory is not enough: try --dtype int4, a shorter --context, or --model nano")
            raise typer.Exit(EXIT_BAD_INPUT) from None

    return run


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(
        sign in str(error) for sign in ("out of memory", "not enough memory", "can't allocate memory")
    )


# ---------------------------------------------------------------------------------- reply

_REPLY_EXAMPLES = """
[bold]Examples[/bold]

python -m personaplex reply examples/questions/bank.wav -o answer.wav --persona bank --tail 5

python -m personaplex reply question.mp3 -o answer.wav --voice me.wav --prompt "You work for City Sanitation
and your name is Walter." --transcript words.json --stereo both.wav

python -m personaplex reply question.wav -o answer.wav --model nvidia/personaplex-7b-v1 --dtype int4 --voice NATM1
"""


def _only_one(first: str, one: object, second: str, other: object, why: str = "") -> None:
    """Refuse two options that exclude each other; None is one that was not given."""
    if one is not None and other is not None:
        raise InputError(f"{first} and {second} were both given{why}; choose one")


@app.command(epilog=_REPLY_EXAMPLES, cls=TellCommand)
@_guarded
def reply(
    question: opt.Question,
    output: opt.AnswerFile,
    persona: opt.PersonaName = None,
    prompt: opt.Prompt = None,
    truncate: opt.Truncate = False,
    voice: opt.VoiceName = None,
    tail: opt.Tail = 0.0,
    tell: Tells = [],  # noqa: B006, typer copies it
    clean: opt.Clean = False,
    loudspeaker: opt.Loudspeaker = None,
    user_words: opt.UserWords = False,
    model: opt.Model = None,
    revision: opt.Revision = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    context: opt.Context = None,
    window: opt.Window = None,
    kv_cache: opt.KvCache = None,
    snapshots: opt.Snapshots = None,
    seed: opt.Seed = None,
    greedy: opt.Greedy = False,
    temperature_audio: opt.TemperatureAudio = SamplingOptions.temperature_audio,
    top_k_audio: opt.TopKAudio = SamplingOptions.top_k_audio,
    temperature_text: opt.TemperatureText = SamplingOptions.temperature_text,
    top_k_text: opt.TopKText = SamplingOptions.top_k_text,
    transcript: opt.TranscriptFile = None,
    stereo: opt.StereoFile = None,
    tokens: opt.TokensFile = None,
) -> None:
    """Answer a recorded question: a WAV of the persona's side, as long as the question."""
    _only_one("--persona", persona, "--prompt", prompt)
    _only_one("--greedy", greedy or None, "--seed", seed, " (greedy draws nothing)")
    from personaplex.cli.commands import ReplyJob, run_reply
    from personaplex.session.reply import Outputs

    settings = Settings.from_environment()
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    job = ReplyJob(
        question=question, outputs=Outputs(output, stereo, transcript, tokens),
        persona=persona if prompt is not None else persona or DEFAULT_PERSONA, prompt=prompt, truncate=truncate,
        voice=voice, tail_sec=tail, clean=clean, loudspeaker=loudspeaker,
        recogniser=settings.user_words if user_words else None, tells=read_tells(tell),
        model=model or settings.model, revision=revision, dtype=dtype or settings.dtype,
        device=device or settings.device, context_frames=settings.context if context is None else context,
        window=settings.window if window is None else window,
        kv_cache=settings.kv_cache if kv_cache is None else kv_cache, snapshots=snapshots, home=settings.home,
        sampling=SamplingOptions(temperature_audio, top_k_audio, temperature_text, top_k_text, greedy, seed),
    )  # fmt: skip
    if not run_reply(job):
        raise typer.Exit(EXIT_INTERRUPTED)


# ---------------------------------------------------------------------------------- the page


def _page_flags() -> list[inspect.Parameter]:
    """A flag for each setting, ``None`` if not given."""
    flags = []
    for item in fields(Settings):
        kind, flag = setting_kind(item.name), flag_of(item.name)
        is_switch = kind is bool
        shown = "" if item.default in (None, NANO) or item.name == "home" else f" (default {_shown(item.default)})"
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}" if is_switch else flag,
            metavar=None if is_switch else kind.__name__.upper(),
            help=item.metadata["help"] + shown,
            show_default=False,
        )
        annotation = Annotated[bool | None if is_switch else str | None, option]  # type: ignore[valid-type]
        flags.append(inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return flags


def _shown(default: object) -> object:
    return {True: "on", False: "off"}[default] if isinstance(default, bool) else default


@_guarded
def page(**flags: str | bool | None) -> None:
    """Open the page on which one talks with a persona, live or by file."""
    from personaplex.cli.page import run_page

    run_page(Settings.for_page({name: value for name, value in flags.items() if value is not None}))


page.__signature__ = inspect.Signature(_page_flags())  # type: ignore[attr-defined]
_PAGE_EPILOG = "Every flag is a variable too: --conversation-sec 300 is PERSONAPLEX_CONVERSATION_SEC=300."
for _group in (app, page_app):
    _group.command("page", epilog=_PAGE_EPILOG)(page)


# ---------------------------------------------------------------------------------- catalogues


@app.command()
@_guarded
def voices(
    model: Annotated[str | None, typer.Option(help="Only those of one family: 7b or nano.")] = None,
    as_json: opt.AsJson = False,
) -> None:
    """List the voices: the published ones, nano's, and your own."""
    from personaplex.personas.voices import catalogue, saved_voices

    families = sorted({entry.family for entry in catalogue()})
    if model is not None and model not in families:
        raise InputError(f"there are no voices of {model!r}; the catalogue knows those of {' and '.join(families)}")
    entries = [*catalogue(model), *saved_voices(Settings.from_environment().home)]
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries], indent=1))
        return
    rows = [(e.name + (" *" if e.default else ""), e.family, e.kind, e.gender, e.description) for e in entries]
    _print_table(("voice", "model", "kind", "gender", "description"), rows)
    print("* taken if no other is asked for. Any recording of 1 to 60 s is a voice too: --voice me.wav")


@app.command()
@_guarded
def personas(
    name: Annotated[str | None, typer.Argument(help="Show this one's prompts in full.")] = None,
    as_json: opt.AsJson = False,
) -> None:
    """List the ready-made roles."""
    from personaplex.personas.presets import persona as find
    from personaplex.personas.presets import personas as all_presets

    presets = all_presets() if name is None else (find(name),)
    if as_json:
        print(json.dumps([asdict(preset) for preset in presets], indent=1))
    elif name is not None:
        print(f"{presets[0].title}\n\n{presets[0].prompt}\n\nnano: {presets[0].nano_prompt or 'not in its world'}")
    else:
        rows = [(p.name, p.title, p.voice, "yes" if p.known_to_nano else "no") for p in presets]
        _print_table(("persona", "title", "voice (7B)", "known to nano"), rows)


@voice_app.command("save")
@_guarded
def voice_save(
    name: Annotated[str, typer.Argument(help="Letters, digits, - and _.")],
    recording: Annotated[Path, typer.Argument(help="1 to 60 s of one person speaking; any usual sound file.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a saved voice of that name.")] = False,
) -> None:
    """Keep a recording as a voice: then `--voice NAME` finds it."""
    from personaplex.personas.voices import save_voice

    entry = save_voice(name, recording, Settings.from_environment().home, replace=force)
    print(f"saved as {entry.name}: {entry.file}")


# ---------------------------------------------------------------------------------- machine and models


@app.command()
@_guarded
def doctor(
    model: opt.Model = None, device: opt.Device = None, dtype: opt.Dtype = None, as_json: opt.AsJson = False
) -> None:
    """Say what would run on this machine, why, and what is missing."""
    from personaplex.cli.commands import conversations_here
    from personaplex.machine.choose import choose, inspect_here
    from personaplex.machine.report import report

    given = Settings.from_environment(base=Settings(model=AUTO))
    settings = replace(given, model=model or given.model, device=device or given.device, dtype=dtype or given.dtype)
    machine = inspect_here(settings.device)
    choice = choose(machine, settings)
    conversations = conversations_here(choice, settings)
    if as_json:
        found = {"machine": asdict(machine), "choice": asdict(choice), "conversations": conversations}
        print(json.dumps(found, indent=1))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, finding in [*report(machine, choice), ("conversations", conversations)]:
        table.add_row(what, finding)
    Console().print(table)


_QUANTIZE_EXAMPLE = """
[bold]Example[/bold]

python -m personaplex quantize nvidia/personaplex-7b-v1 personaplex-int4 --dtype int4
"""


@app.command(epilog=_QUANTIZE_EXAMPLE)
@_guarded
def quantize(
    model: Annotated[str, typer.Argument(help="A hub id or a folder.")],
    folder: Annotated[Path, typer.Argument(help="The folder to make; `--model FOLDER` then opens it in seconds.")],
    dtype: Annotated[str, typer.Option(help="int8 or int4.")] = "int4",
    group_size: Annotated[int, typer.Option(help="Weights that share a scale at int4: 32, 64 or 128.")] = 32,
    revision: Annotated[str | None, typer.Option(help="A hub model's commit or tag.")] = None,
) -> None:
    """Save a model with its weights packed: smaller, and opened by memory map."""
    from personaplex.cli.commands import run_quantize

    run_quantize(model, folder, dtype, group_size, revision)


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in header:
        table.add_column(title, overflow="fold", no_wrap=title in ("voice", "persona"))
    for row in rows:
        table.add_row(*row)
    Console().print(table)
