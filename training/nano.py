"""nano from scratch, by one command: `python -m training.nano --minutes 240`.

Runs the recipe's steps one after the other (docs/training.md): speech and codec, the dialogues' speech and its
codes, language model, the published folder, and what it can do. Started again, it goes on where it was stopped:
a step that is done is left out, and one that is not goes on from what it has.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training import agents, neural_voices

log = logging.getLogger(__name__)

CODEC_SHARE, LM_SHARE = 0.42, 0.5  # of the minutes; the rest is speaking, encoding and judging
CODEC_GOING_ON = "--learning-rate 3e-4"
LM_GOING_ON = "--learning-rate 1.2e-3 --listening-minutes 5 --drill-minutes 4"
HIBARI_SHARE = 0.3  # of the codec's hours, where people are the rest
TAIL_LINES = 15


@dataclass(frozen=True)
class Recipe:
    """A run's options. `start_from`: a published folder to go on from, or None.

    `people`: a folder of recordings, as `training.people` reads them, or None; with it the codec learns from people and
    neural voices, and is judged by them. `kokoro_minutes`: of Kokoro's speech beside them. `cast`: who speaks as the
    agent (`training.agents`); `agent_minutes`: of that which Kokoro says for the language model, agent and users.
    """

    out: Path
    minutes: float
    device: str
    processes: int
    codec_hours: float
    speech_hours: float
    personas: int
    start_from: Path | None
    people: Path | None = None
    kokoro_minutes: float = 0.0
    cast: str = agents.FLITE
    agent_minutes: float = 0.0


@dataclass(frozen=True)
class Step:
    """One program of the recipe: its module and its options."""

    name: str
    words: tuple[str, ...]

    def command(self) -> list[str]:
        return [sys.executable, "-m", *self.words]


def steps(recipe: Recipe) -> list[Step]:
    """The programs in order, with their options."""

    def at(name: str) -> str:
        return shlex.quote(str(recipe.out / name))

    speech, codec, export, processes = at("speech"), at("codec"), at("export"), f"--processes {recipe.processes}"
    codec_training = f"--minutes {recipe.minutes * CODEC_SHARE:.1f} --device {recipe.device}"
    lm_training = f"--minutes {recipe.minutes * LM_SHARE:.1f} --device {recipe.device}"
    if recipe.start_from:
        begun = f" --start-from {shlex.quote(str(recipe.start_from))} "
        codec_training += begun + CODEC_GOING_ON
        lm_training += begun + LM_GOING_ON
    first, judge = _of_people(recipe, at) if recipe.people else ({}, None)
    if recipe.people:
        recogniser = shlex.quote(str(neural_voices.folder() / neural_voices.WHISPER_TINY))
        codec_training += f" --recogniser {recogniser} --listener-steps 0 --critic"
    programs = first | {
        "codec-speech": f"training.codec.speech --out {at('codec-speech')} --hours {recipe.codec_hours:g} {processes}",
        "codec": f"training.codec.train --speech {at('codec-speech')} --out {codec} {codec_training}",
        "codec-export": f"training.codec.export {codec}/final.pt {export}",
        "codec-judge": f"training.codec.evaluate {export} {processes}",
        "speech": f"training.speech --out {speech} --hours {recipe.speech_hours:g} {processes}{_cast(recipe)}",
        **_of_listening(recipe, speech),
        "encode": f"training.lm.encode --codec {export} --speech {speech} {processes}",
        "lm": f"training.lm.train --speech {speech} --out {at('lm')} {lm_training}",
        "lm-export": f"training.lm.export --lm {at('lm')} --codec {export} --speech {speech} --out {at('float')} "
        f"--packed {at('packed')}",
        "judge": f"training.evaluate --model {at('packed')} --personas {recipe.personas} {processes} "
        f"--cast {recipe.cast}",
    }
    if judge:
        programs |= {"codec-speech": first["codec-speech"], "codec-judge": judge} | _judged_by_people(recipe, at)
    return [Step(name, tuple(shlex.split(words))) for name, words in programs.items()]


def _of_people(recipe: Recipe, at: Callable[[str], str]) -> tuple[dict[str, str], str]:
    """The programs that make the codec's material of people and neural voices, and the one that judges by them."""
    people, spoken = shlex.quote(str(recipe.people)), at("kokoro")
    kokoro = f" --kokoro {spoken}" if recipe.kokoro_minutes else ""
    hibari = f"--hibari-minutes {recipe.codec_hours * 60 * HIBARI_SHARE:.0f}"
    first = {"codec-speech": f"training.codec.material --out {at('codec-speech')} --people {people}{kokoro} {hibari}"}
    if kokoro:
        first = {"kokoro": f"training.kokoro_speech --out {spoken} --minutes {recipe.kokoro_minutes:g}"} | first
    return first, f"training.codec.judge {at('export')} --people {people} --cache {at('judge')}"


def _cast(recipe: Recipe) -> str:
    slow = f" --kokoro-minutes {recipe.agent_minutes:g}" if recipe.agent_minutes else ""
    users = f" --user-hours {recipe.speech_hours:g}" if recipe.cast == agents.NEURAL else ""
    return f" --cast {recipe.cast}{users}{slow}"


def _of_listening(recipe: Recipe, speech: str) -> dict[str, str]:
    """The program that makes users of people's recordings, where there are some."""
    if not recipe.people:
        return {}
    return {"people-speech": f"training.people_speech --out {speech} --people {shlex.quote(str(recipe.people))}"}


def _judged_by_people(recipe: Recipe, at: Callable[[str], str]) -> dict[str, str]:
    """The programs that record the agent's voices, and judge by people and by recognisers without a grammar."""
    names = " ".join(voice.catalogue for voice in agents.CASTS[recipe.cast].values())
    voices = f"training.examples --questions {at('questions')} --voices {at('voices')} --cast {recipe.cast}"
    judged = f"training.judge --model {at('packed')} --people {shlex.quote(str(recipe.people))} --cache {at('judge')}"
    return {"voices": voices, "people-judge": f"{judged} --voices {at('voices')} --names {names}"}


def run_step(step: Step, logs: Path) -> int:
    """Runs one program with its output in a file; returns its exit code."""
    with open(logs / f"{step.name}.log", "a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(step.command())}\n")
        file.flush()
        return subprocess.run(step.command(), stdout=file, stderr=subprocess.STDOUT, check=False).returncode


def run(recipe: Recipe, run_one: Callable[[Step, Path], int] = run_step) -> None:
    """Runs what is not done yet; raises SystemExit with the end of a step's log when it fails."""
    logs = recipe.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for step in steps(recipe):
        done = logs / f"{step.name}.done"
        if done.exists():
            log.info("%s: done before", step.name)
            continue
        log.info("%s: %s", step.name, shlex.join(step.command()))
        began = time.monotonic()
        if code := run_one(step, logs):
            path = logs / f"{step.name}.log"
            said = path.read_text(encoding="utf-8").splitlines()[-TAIL_LINES:] if path.exists() else []
            sys.exit("\n".join([*said, f"{step.name} ended with exit code {code}; all it said is in {path}"]))
        done.touch()
        log.info("%s: %.1f minutes", step.name, (time.monotonic() - began) / 60)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/nano"))
    parser.add_argument("--minutes", type=float, default=240.0, help="for both trainings; speech comes on top")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--processes", type=int, default=2, help="that speak, encode and listen")
    parser.add_argument("--codec-hours", type=float, default=6.0, help="of speech for the codec")
    parser.add_argument("--speech-hours", type=float, default=20.0, help="of speech for the language model")
    parser.add_argument("--personas", type=int, default=100, help="that are judged at the end")
    parser.add_argument("--start-from", type=Path, help="a published folder to go on from, as personaplex/nano")
    parser.add_argument("--people", type=Path, help="recordings of people, as training.people reads them")
    parser.add_argument("--kokoro-minutes", type=float, default=0.0, help="of Kokoro's speech beside people's")
    parser.add_argument("--cast", choices=sorted(agents.CASTS), default=agents.FLITE, help="the agent's voices")
    parser.add_argument("--agent-minutes", type=float, default=0.0, help="of Kokoro's speech for the language model")
    parser.add_argument("--dry-run", action="store_true", help="only say what would run")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = Recipe(
        given.out, given.minutes, given.device, given.processes, given.codec_hours, given.speech_hours, given.personas,
        given.start_from, given.people, given.kokoro_minutes, given.cast, given.agent_minutes,
    )  # fmt: skip
    if given.dry_run:
        print("\n".join(shlex.join(step.command()) for step in steps(recipe)))
        return
    run(recipe)
    log.info("the model to ship is in %s; its figures are in %s", given.out / "packed", given.out / "logs/judge.log")


if __name__ == "__main__":
    main()
