"""Makes the synthetic set: five tasks and the role bench, spoken by synthesisers, under several conditions.

``SET/CONDITION/TASK/ID`` in Full-Duplex-Bench's layout. Users, wordings, slot values and voice recordings are
held out from nano's training. All random choices follow from the seed, except those inside the synthesisers.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.duplex import layout, roles
from benchmarks.duplex.conditions import CONDITIONS, conditions_of
from benchmarks.duplex.layout import Kind
from benchmarks.duplex.people import CONDITION, people_scenes
from benchmarks.duplex.scenes import TASKS, Scene, asking_scene, nod_distribution, write_scene
from benchmarks.duplex.speakers import Speak, random_speaker, voice_prompt
from personaplex.audio.files import write_wav
from personaplex.errors import InputError
from personaplex.files import write_text
from training import agents, domain, tts

ITEMS, VARIANT_ITEMS = 100, 30
ROLE_TASK = "role_questions"
SET_FILE = "set.json"


def make_set(
    folder: Path, *, items: int = ITEMS, variant_items: int = VARIANT_ITEMS, role_count: int = roles.ROLES,
    seed: int = 0, speak: Speak = tts.speak, progress: bool = True, recorded: Path | None = None,
    cast: str = agents.FLITE,
) -> None:  # fmt: skip
    """Write the set; ``variant_items`` of each task are also given under every condition but the clean one.

    ``recorded``: a folder of people's recordings, of which ``items`` become a condition of their own. ``cast``: the
    agent's voices (``training.agents``).
    Raises InputError for a folder that holds something else or another set. A set that is whole is left as it is;
    an unfinished one is made anew.
    """
    told: dict[str, int | str] = {"items": items, "variant_items": variant_items, "roles": role_count, "seed": seed}
    if recorded is not None:
        told["people"] = items
    if cast != agents.FLITE:
        told["cast"] = cast
    if _is_whole(folder, told):
        return
    maker = _Maker(folder, seed, speak, tuple(agents.CASTS[cast]))
    with tqdm(total=len(TASKS) * items + role_count * len(roles.KINDS), desc="speaking", disable=not progress) as bar:
        for task in TASKS:
            for number in range(items):
                maker.item(task, number, variants=number < variant_items)
                bar.update()
            maker.write_distributions(task)
        for asked in roles.role_questions(random.Random(f"{seed}/roles"), role_count):
            maker.role(asked)
            bar.update()
        if recorded is not None:
            maker.people(recorded, items)
    _note(folder, told, whole=True)


def _is_whole(folder: Path, told: dict) -> bool:
    """Whether the set is there already; an empty folder or an unfinished set is claimed."""
    path = folder / SET_FILE
    if path.is_file():
        before = layout.read_json(path)
        whole = before.pop("whole", False)
        if before != told:
            raise InputError(f"{folder} holds a set made with {before}, not {told}; choose another folder")
        return whole
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no {SET_FILE}; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    _note(folder, told, whole=False)
    return False


def _note(folder: Path, told: dict, *, whole: bool) -> None:
    write_text(folder / SET_FILE, json.dumps({**told, "whole": whole}, indent=1) + "\n")


class _Maker:
    """Writes items; each has its own randomness, so that none depends on another."""

    def __init__(self, folder: Path, seed: int, speak: Speak, voices: tuple[str, ...]):
        self._folder, self._seed, self._speak, self._voices = folder, seed, speak, voices
        self._personas = domain.held_out_personas()
        self._nods: dict[Path, dict[str, list[float]]] = {}

    def item(self, task: str, number: int, *, variants: bool) -> None:
        rng = random.Random(f"{self._seed}/{task}/{number}")
        scene = TASKS[task](rng, random_speaker(rng, self._speak))
        name, place = rng.choice(self._personas)
        prompt = domain.PROMPTS[0].format(name=name, place=place)
        voice, sound = self._voice(rng, number)
        for condition in conditions_of(task) if variants else ("clean",):
            # Of its own, so that a condition added later changes no other.
            own = random.Random(f"{self._seed}/{task}/{number}/{condition}")
            changed = CONDITIONS[condition](scene, own, self._speak)
            self._write(changed, self._folder / condition / task / str(number), prompt, voice, sound)

    def people(self, recorded: Path, count: int) -> None:
        numbers: dict[str, int] = {}
        for task, scene in people_scenes(recorded, count, self._seed):
            number = numbers[task] = numbers.get(task, -1) + 1
            rng = random.Random(f"{self._seed}/{task}/{number}")
            name, place = rng.choice(self._personas)
            prompt = domain.PROMPTS[0].format(name=name, place=place)
            self._write(scene, self._folder / CONDITION / task / str(number), prompt, *self._voice(rng, number))

    def role(self, asked: roles.RoleQuestion) -> None:
        number = asked.number * len(roles.KINDS) + roles.KINDS.index(asked.kind)
        rng = random.Random(f"{self._seed}/{ROLE_TASK}/{number}")
        folder = self._folder / "clean" / ROLE_TASK / str(number)
        scene = asking_scene(rng, random_speaker(rng, self._speak), asked.question)
        voice, sound = self._voice(rng, asked.number // 2)  # seen and unseen roles speak with all of them
        self._write(scene, folder, asked.prompt, voice, sound)
        write_text(folder / layout.ROLE, json.dumps(asked.to_dict(), indent=1) + "\n")

    def _voice(self, rng: random.Random, number: int) -> tuple[str, np.ndarray]:
        voice = self._voices[number % len(self._voices)]
        return voice, voice_prompt(rng, voice, self._speak)

    def _write(self, scene: Scene, folder: Path, prompt: str, voice: str, sound: np.ndarray) -> None:
        kind = layout.kind_of(folder.parent.name)
        assert kind is not None, "every task has a kind"
        write_scene(scene, folder, kind)
        write_wav(folder / "voice.wav", sound)
        told = {"prompt": prompt, "voice": "voice.wav", "voice_name": voice}
        write_text(folder / layout.PERSONA, json.dumps(told, indent=1) + "\n")
        if kind is Kind.BACKCHANNEL:
            self._nods.setdefault(folder.parent, {})[folder.name] = nod_distribution(scene)

    def write_distributions(self, task: str) -> None:
        for folder, shares in self._nods.items():
            if folder.name == task:
                write_text(folder / layout.DISTRIBUTION, json.dumps(shares) + "\n")
