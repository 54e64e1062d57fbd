"""Voices: the catalogue, the user's saved ones, and finding one by name or file."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from personaplex.audio.files import Recording, read_recording, write_wav
from personaplex.audio.loudness import normalize_loudness
from personaplex.config import NANO, ModelConfig, PromptConfig
from personaplex.errors import OutputError, PromptError, UnknownNameError
from personaplex.files import shipped_folder
from personaplex.messages import Voice
from personaplex.strict import nearest_names, read_entries

log = logging.getLogger(__name__)

MIN_VOICE_SEC, MAX_VOICE_SEC = 1.0, 60.0
EMBEDDINGS_SUFFIX = ".pt"
SNAPSHOT_SUFFIX = ".safetensors"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


@dataclass(frozen=True)
class VoiceEntry:
    """An entry of the catalogue."""

    name: str
    family: str  # the models that know it: "7b", "nano"; "any" for a recording of the user's own
    kind: str  # natural or variety (published), synthetic (nano), own
    gender: str
    description: str
    file: str = ""  # a recording, relative to the catalogue
    member: str = ""  # a place in the model's voices.tgz
    default: bool = False
    formerly: tuple[str, ...] = ()  # names that earlier versions had for a voice whose place this one takes

    def is_called(self, name: str) -> bool:
        """Whether this is its name or was one, in upper or lower case."""
        return name.lower() in (known.lower() for known in (self.name, *self.formerly))


def model_family(config: ModelConfig) -> str:
    """Which voices of the catalogue a model knows: "nano", "7b", or its own name for any other."""
    if config.name.split("-")[0] == NANO:
        return NANO
    return "7b" if config.lm == ModelConfig.personaplex_7b().lm else config.name


def catalogue(family: str | None = None) -> tuple[VoiceEntry, ...]:
    """The voices that come with the program; of one family, or all."""
    path = shipped_folder("voices", "catalogue.json") / "catalogue.json"
    return tuple(e for e in read_entries(path, "voices", VoiceEntry) if family in (None, e.family))


def saved_voices(home: Path) -> tuple[VoiceEntry, ...]:
    """The user's own recordings."""
    paths = sorted((home / "voices").glob("*.wav"))
    return tuple(_own_entry(path.stem, path) for path in paths if _NAME.fullmatch(path.stem))


def _own_entry(name: str, path: Path) -> VoiceEntry:
    return VoiceEntry(name, "any", "own", "", "A voice that was saved on this machine.", file=str(path))


def default_voice_name(family: str) -> str | None:
    """The voice a model takes when none is asked for; None where the catalogue has none for it."""
    return next((entry.name for entry in catalogue(family) if entry.default), None)


# ---------------------------------------------------------------------------------- making a Voice


def voice_from_recording(
    recording: Recording, name: str, config: ModelConfig | None = None, lufs: float = PromptConfig.voice_lufs
) -> Voice:
    """Check a recording and set its loudness; raises PromptError when it cannot be a voice prompt."""
    lufs = config.prompt.voice_lufs if config else lufs
    if recording.duration_sec < MIN_VOICE_SEC:
        raise PromptError(
            f"the voice {name} is {recording.duration_sec:.2f} s long; {MIN_VOICE_SEC:.0f} to {MAX_VOICE_SEC:.0f} s "
            "of one person speaking are needed"
        )
    if recording.is_silent:
        raise PromptError(f"the voice {name} is silent; record someone speaking")
    pcm = normalize_loudness(recording.pcm, lufs, recording.sample_rate_hz)
    notes = recording.notes
    if config and recording.duration_sec > config.prompt.max_voice_sec:
        notes += (f"{config.name} listens to the first {config.prompt.max_voice_sec:g} s of {name}",)
    if np.abs(pcm).max() >= 1.0:
        notes += (f"{name} is quiet but for a few loud moments: it stays quieter than a voice should be",)
    return Voice(name, pcm=pcm, notes=notes)


def voice_from_file(path: str | Path, name: str | None = None, config: ModelConfig | None = None) -> Voice:
    """A recording (any sound file of 1 to 60 s), a published ``.pt`` or a saved snapshot."""
    path = Path(path)
    name = name or path.stem
    if path.suffix.lower() in (EMBEDDINGS_SUFFIX, SNAPSHOT_SUFFIX) and not path.is_file():
        raise PromptError(f"there is no voice file {path}")
    if path.suffix.lower() == EMBEDDINGS_SUFFIX:
        return Voice(name, embeddings_path=path)
    if path.suffix.lower() == SNAPSHOT_SUFFIX:
        return Voice(name, snapshot_path=path)
    return voice_from_recording(read_recording(path, max_sec=MAX_VOICE_SEC), name, config)


@dataclass(frozen=True)
class VoiceFinder:
    """Turns what a user gave for a voice into a Voice, for one model."""

    config: ModelConfig
    home: Path | None  # the folder of saved voices; None offers none
    model_folder: Path | None = None
    unpack: Callable[[str], Path] | None = None  # member of voices.tgz → the file, fetched if need be
    allow_files: bool = True  # a page's visitor may not name files of the machine

    @property
    def family(self) -> str:
        return model_family(self.config)

    def entries(self) -> tuple[VoiceEntry, ...]:
        """All that can be named with this model."""
        return catalogue(self.family) + (() if self.home is None else saved_voices(self.home))

    def find(self, given: str | None = None) -> Voice | None:
        """``given``: a name of the catalogue, a saved one, or a file.

        None takes the model's default; a model that the catalogue has no voice for speaks with the
        voice it happens to choose, which is None.

        Raises UnknownNameError (with the nearest names), PromptError or AudioError.
        """
        given = given or default_voice_name(self.family)
        if not given:
            return None
        if self.allow_files and _looks_like_a_path(given):
            return voice_from_file(given, config=self.config)
        named = [entry for entry in self.entries() if entry.is_called(given)]
        if named:  # a voice's own name goes before what another was called
            return self._from_entry(min(named, key=lambda entry: entry.name.lower() != given.lower()))
        own = self._beside_the_model(given)
        if own is None:
            raise self._unknown(given)
        return voice_from_file(own, config=self.config)

    def _from_entry(self, entry: VoiceEntry) -> Voice:
        if entry.member:
            file = self._beside_the_model(entry.name)
            if file is None:
                if self.unpack is None:
                    raise PromptError(f"the voice {entry.name} is not in the model's folder: fetch its voices.tgz")
                file = self.unpack(entry.member)
            return voice_from_file(file, entry.name, self.config)
        folder = shipped_folder("voices", "catalogue.json")
        return voice_from_file(folder / entry.file, entry.name, self.config)

    def _beside_the_model(self, name: str) -> Path | None:
        """``voices/NAME`` in the model's folder, in whichever form it is there."""
        if self.model_folder is None or not _NAME.fullmatch(name):
            return None
        files = (self.model_folder / "voices" / f"{name}{suffix}" for suffix in (EMBEDDINGS_SUFFIX, ".wav"))
        return next((path for path in files if path.is_file()), None)

    def _unknown(self, given: str) -> UnknownNameError:
        other = next((entry for entry in catalogue() if entry.name.lower() == given.lower()), None)
        names = [entry.name for entry in self.entries()]
        if other is not None:
            return UnknownNameError(
                f"the voice {other.name} belongs to the {other.family} model; "
                f"{self.config.name} knows {', '.join(names) or 'none by name: give a recording'}"
            )
        return UnknownNameError(f"there is no voice {given!r}{nearest_names(given, names)}; a sound file works too")


def check_voice_name(given: str | None, home: Path, model: str) -> None:
    """Refuse, before a model is loaded, a name that no model could know.

    A folder may hold voices of its own, so its names are left to ``VoiceFinder``.
    """
    if given is None or Path(model).is_dir():
        return
    if _looks_like_a_path(given):
        if not Path(given).exists():
            raise PromptError(f"there is no voice file {given}")
        return
    names = [entry.name for entry in (*catalogue(), *saved_voices(home))]
    if given.lower() not in (name.lower() for name in names):
        raise UnknownNameError(f"there is no voice {given!r}{nearest_names(given, names)}; a sound file works too")


def _looks_like_a_path(given: str) -> bool:
    return "/" in given or "\\" in given or Path(given).suffix != "" or Path(given).is_file()


# ---------------------------------------------------------------------------------- saving


def save_voice(name: str, recording_path: str | Path, home: Path, replace: bool = False) -> VoiceEntry:
    """Keep a recording as a voice of that name; raises before anything is written."""
    if not _NAME.fullmatch(name):
        raise PromptError(
            f"{name!r} cannot name a voice: letters, digits, - and _ are allowed, a letter or digit first, 40 at most"
        )
    if any(entry.name.lower() == name.lower() for entry in catalogue()):
        raise PromptError(f"{name} is a voice of the catalogue; choose another name")
    existing = next((entry for entry in saved_voices(home) if entry.name.lower() == name.lower()), None)
    if existing is not None and not replace:
        raise PromptError(f"a voice {existing.name} is saved already; choose another name or replace it with --force")
    voice = voice_from_file(recording_path, name)
    if voice.pcm is None:
        raise PromptError(f"{recording_path} is not a recording; only sound files can be saved as voices")
    path = Path(existing.file) if existing is not None else home / "voices" / f"{name}.wav"
    _make_folder(path.parent)
    write_wav(path, voice.pcm)
    path.chmod(0o600)  # a person's voice is nobody else's
    for note in voice.notes:
        log.warning("%s", note)
    return _own_entry(name, path)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be made ({error.strerror}); set PERSONAPLEX_HOME to a folder of yours"
        ) from error
