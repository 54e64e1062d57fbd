"""Full-Duplex-Bench's folders: items and their annotations.

v1.0 is ``TASK/ID/input.wav`` with ``pause.json``, ``turn_taking.json`` or ``interrupt.json`` beside it; v1.5
has ``clean_input.wav`` and ``metadata.json``. Layout: github.com/DanielLin94144/Full-Duplex-Bench,
``v1_v1.5/dataset/README.md``. A folder may hold several such roots: what lies above the task is the item's
condition (``noise/synthetic_turn_taking/7``). Besides, an item may name the role and the voice it is meant
for (``persona.json``) and how its agent hears itself (``echo.json``); ``role_questions`` and ``…_greeting`` are
tasks of our own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from benchmarks.duplex.echo import Echo
from personaplex.errors import InputError
from personaplex.text.transcript import Word

INPUT, CLEAN_INPUT = "input.wav", "clean_input.wav"
PERSONA, ROLE, METADATA, TRANSCRIPTION = "persona.json", "role.json", "metadata.json", "transcription.json"
ECHO = "echo.json"
DISTRIBUTION = "icc_gt_distribution.json"
LEAD_IN = "lead_in"  # the condition in which an agent may greet before the user begins


class Kind(str, Enum):
    """A task's kind, which decides what is measured."""

    PAUSE = "pause_handling"
    TURN = "turn_taking"
    BACKCHANNEL = "backchannel"
    INTERRUPTION = "user_interruption"
    OVERLAP = "overlap"  # v1.5: any of its four tasks
    ROLE = "role_questions"
    GREETING = "greeting"  # the user says nothing


V15_TASKS = ("user_interruption", "user_backchannel", "talking_to_other", "background_speech")
_ANNOTATION = {
    Kind.PAUSE: "pause.json",
    Kind.TURN: "turn_taking.json",
    Kind.INTERRUPTION: "interrupt.json",
    Kind.OVERLAP: METADATA,
    Kind.ROLE: ROLE,
}


def kind_of(task: str) -> Kind | None:
    """The kind of a task by its folder's name; None for any other folder."""
    if task in V15_TASKS:
        return Kind.OVERLAP
    return next((kind for kind in Kind if kind is not Kind.OVERLAP and task.endswith(kind.value)), None)


@dataclass(frozen=True)
class Item:
    """One conversation to be held."""

    folder: Path
    condition: str  # the folder above the task, "" for the given one itself
    task: str
    name: str
    kind: Kind

    @property
    def place(self) -> Path:
        """The item's path below the set's folder, and its answer's below the run's."""
        return Path(self.condition) / self.task / self.name

    @property
    def key(self) -> str:
        return self.place.as_posix()

    def files(self) -> list[Path]:
        """The item's files without answers: sounds, annotations and voice."""
        names = [INPUT, CLEAN_INPUT, PERSONA, ECHO, TRANSCRIPTION, _ANNOTATION.get(self.kind, "")]
        own = persona(self.folder)
        paths = [self.folder / name for name in names if name]
        return [path for path in [*paths, own.voice if own else None] if path is not None and path.is_file()]

    def inputs(self) -> dict[str, str]:
        """Files that are played to the model, each with the stem of its output: ``{"input.wav": "output"}``."""
        both = {INPUT: "output", CLEAN_INPUT: "clean_output"}
        return {given: stem for given, stem in both.items() if given == INPUT or (self.folder / given).is_file()}


def is_lead_in(condition: str) -> bool:
    return Path(condition).name == LEAD_IN


def find_items(root: Path) -> list[Item]:
    """Every item under a folder, ordered by condition, task and number.

    Raises InputError when there is none, or an item lacks its annotation.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; give one in Full-Duplex-Bench's layout: TASK/ID/{INPUT}")
    root = root.resolve()
    items = []
    for path in root.rglob(INPUT):
        folder, above = path.parent, path.parent.parent.parent
        kind = kind_of(folder.parent.name)
        if kind is not None:
            condition = above.relative_to(root).as_posix() if above.is_relative_to(root) and above != root else ""
            item = Item(folder, condition, folder.parent.name, folder.name, kind)
            _check(item)
            items.append(item)
    if not items:
        raise InputError(
            f"{root} holds no TASK/ID/{INPUT}; a task's name ends in {', '.join(k.value for k in Kind)} "
            f"or is one of {', '.join(V15_TASKS)}"
        )
    return sorted(items, key=lambda item: (item.condition, item.task, _number(item.name), item.name))


def _number(name: str) -> int:
    return int(name) if name.isdigit() else -1


def _check(item: Item) -> None:
    wanted = _ANNOTATION.get(item.kind)
    if wanted is not None and not (item.folder / wanted).is_file():
        raise InputError(f"{item.folder} has no {wanted}, which tells what to measure in a {item.kind.value} item")


def select(items: Sequence[Item], tasks: Sequence[str] = (), limit: int | None = None) -> list[Item]:
    """The items whose ``CONDITION/TASK`` contains one of ``tasks``, the first ``limit`` of each such folder."""
    chosen: list[Item] = []
    taken: dict[Path, int] = {}
    for item in items:
        above = item.place.parent
        if tasks and not any(wanted in above.as_posix() for wanted in tasks):
            continue
        taken[above] = taken.get(above, 0) + 1
        if limit is None or taken[above] <= limit:
            chosen.append(item)
    if not chosen:
        known = sorted({item.place.parent.as_posix() for item in items})
        raise InputError(f"no item is of {', '.join(tasks)}; there are {', '.join(known)}")
    return chosen


# ---------------------------------------------------------------------------------- annotations


@dataclass(frozen=True)
class Interruption:
    """The user's first words, their interruption, and when it came."""

    context: str
    text: str
    start_sec: float
    end_sec: float


@dataclass(frozen=True)
class Role:
    """A question of the role bench and what a right answer contains."""

    kind: str
    question: str
    expected: tuple[str, ...]  # any one of these, word for word
    seen: bool  # whether training may have shown these slot values


@dataclass(frozen=True)
class ItemPersona:
    """The role and the voice an item is meant for."""

    prompt: str
    voice: Path | None
    voice_name: str  # who speaks in the voice prompt, "" where nobody knows


def read_json(path: Path) -> Any:
    """Raises InputError when it is not there or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no {path}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error


def _first(path: Path, key: str) -> Any:
    """The first entry's value: the published scripts read no other."""
    entries = read_json(path)
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict) or key not in entries[0]:
        raise InputError(f'{path} must be a list whose first entry has a "{key}"')
    return entries[0][key]


def _span(given: Any, path: Path) -> tuple[float, float]:
    try:
        start, end = (float(number) for number in given)
    except (TypeError, ValueError):
        raise InputError(f"{path}: {given!r} is no [start, end] in seconds") from None
    return start, end


def turn_end_sec(folder: Path) -> float:
    """When the user's turn ends: the *start* of the annotated turn-taking gap."""
    path = folder / "turn_taking.json"
    return _span(_first(path, "timestamp"), path)[0]


def interruption(folder: Path) -> Interruption:
    path = folder / "interrupt.json"
    start_sec, end_sec = _span(_first(path, "timestamp"), path)
    return Interruption(str(_first(path, "context")), str(_first(path, "interrupt")), start_sec, end_sec)


def role(folder: Path) -> Role:
    given = read_json(folder / ROLE)
    return Role(given["kind"], given["question"], tuple(given["expected"]), bool(given["seen"]))


def persona(folder: Path) -> ItemPersona | None:
    """The role an item brings with it; None where the run's own is meant."""
    path = folder / PERSONA
    if not path.is_file():
        return None
    given = read_json(path)
    voice = given.get("voice")
    return ItemPersona(given["prompt"], folder / voice if voice else None, given.get("voice_name", ""))


def echo(folder: Path) -> Echo | None:
    """How the agent's own voice comes back to it; None where it does not."""
    path = folder / ECHO
    return Echo(**read_json(path)) if path.is_file() else None


def distribution_file(item: Item) -> Path:
    """Where people say "uh-huh": the published ``icc_gt_distribution.json``, beside the items or up to two above.

    It lies with the published scripts, not with the data. Raises InputError where it is missing.
    """
    above = item.folder.parent
    for folder in (above, above.parent, above.parent.parent):
        if (folder / DISTRIBUTION).is_file():
            return folder / DISTRIBUTION
    raise InputError(
        f"{above} has no {DISTRIBUTION}, which the backchannel distance needs; copy it there from "
        "Full-Duplex-Bench's v1_v1.5/evaluation"
    )


def distribution(item: Item) -> list[float]:
    """An item's share of people's backchannels per 200 ms."""
    path = distribution_file(item)
    shares = read_json(path)
    if item.name not in shares:
        raise InputError(f"{path} has nothing for the item {item.name}; it has {', '.join(sorted(shares)[:10])} …")
    return shares[item.name]


# ---------------------------------------------------------------------------------- words


def words_of(transcript: dict[str, Any]) -> list[Word]:
    """The words of an ``output.json``; an end that is null becomes the start, as the published scripts count it."""
    words = []
    for chunk in transcript["chunks"]:
        start_sec, end_sec = chunk["timestamp"]
        if start_sec is not None:
            words.append(Word(chunk["text"], start_sec, start_sec if end_sec is None else end_sec))
    return words


def transcript_of(words: Sequence[Word]) -> dict[str, Any]:
    """Words as an ``output.json``: ``{"text", "chunks": [{"text", "timestamp": [start, end]}]}``."""
    chunks = [{"text": word.text, "timestamp": [word.start_sec, word.end_sec]} for word in words]
    return {"text": " ".join(word.text for word in words), "chunks": chunks}


def user_words(folder: Path) -> list[Word]:
    """The user's words; none where the item does not tell them."""
    path = folder / TRANSCRIPTION
    return words_of(read_json(path)) if path.is_file() else []


def user_begins_sec(folder: Path) -> float:
    """When the user's first word begins."""
    words = words_of(read_json(folder / TRANSCRIPTION))
    return words[0].start_sec if words else 0.0


def words_after(words: Sequence[Word], second: float) -> list[Word]:
    """What is heard when listening from a moment on: a word that goes on then begins then.

    The published ``get_transcript/asr.py`` cuts the sound of a user_interruption item at the interruption's end
    before it recognises the words.
    """
    return [Word(w.text, max(w.start_sec, second), w.end_sec) for w in words if w.end_sec > second]
