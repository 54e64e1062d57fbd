"""The catalogues of voices and personas, and what a user's words for a voice turn into."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import soundfile

from personaplex.audio.frames import SAMPLE_RATE_HZ
from personaplex.config import LMConfig, ModelConfig
from personaplex.errors import AudioError, ConfigError, OutputError, PromptError, UnknownNameError
from personaplex.files import shipped_folder
from personaplex.personas import voices
from personaplex.personas.presets import Persona, persona, personas
from personaplex.personas.voices import (
    VoiceEntry,
    VoiceFinder,
    catalogue,
    default_voice_name,
    model_family,
    save_voice,
    saved_voices,
    voice_from_file,
)
from personaplex.settings import Settings
from personaplex.strict import read_entries

GOLDEN = Path(__file__).parent / "golden"
PUBLISHED = [f"{kind}{i}" for kind, count in (("NATF", 4), ("NATM", 4), ("VARF", 5), ("VARM", 5)) for i in range(count)]
NANO = ModelConfig(name="nano-1", lm=LMConfig(dim=64, num_heads=4, num_layers=2))


@pytest.fixture
def finder(tmp_path) -> VoiceFinder:
    return VoiceFinder(NANO, home=tmp_path / "home")


def write_speech(path: Path, duration_sec: float = 2.0, rate_hz: int = SAMPLE_RATE_HZ, gain: float = 0.1) -> Path:
    noise = np.random.default_rng(0).standard_normal(int(duration_sec * rate_hz)) * gain
    soundfile.write(path, noise.clip(-1, 1), rate_hz)
    return path


# --- the catalogue


def test_the_published_voices_and_nanos_are_there():
    assert [entry.name for entry in catalogue("7b")] == PUBLISHED
    assert [entry.name for entry in catalogue("nano")] == ["nano-f", "nano-m", "nano-scot", "nano-old"]
    for entry in catalogue():
        assert entry.kind in ("natural", "variety", "synthetic")
        assert entry.gender in ("female", "male")
        assert entry.description.endswith(".")
        assert bool(entry.file) != bool(entry.member)
    assert default_voice_name("7b") in PUBLISHED
    assert default_voice_name("nano") == "nano-f"
    assert default_voice_name("golden-1") is None


@pytest.mark.parametrize("name", ["nano-f", "nano-m", "nano-scot", "nano-old"])
def test_nanos_voices_are_recordings_that_can_be_prompted_with(name, finder):
    voice = finder.find(name)
    assert 1 <= voice.duration_sec <= 60
    assert not voice.notes
    recording, rate_hz = soundfile.read(shipped_folder("voices", "catalogue.json") / f"{name}.wav", dtype="int16")
    assert rate_hz == SAMPLE_RATE_HZ
    assert recording.ndim == 1


def test_a_recording_longer_than_the_model_listens_says_so(tmp_path):
    brief = replace(NANO, prompt=replace(NANO.prompt, max_voice_sec=2.0))
    path = write_speech(tmp_path / "me.wav", 3.0)
    assert voice_from_file(path, config=brief).notes == ("nano-1 listens to the first 2 s of me",)
    assert not voice_from_file(path, config=NANO).notes


def test_families():
    assert model_family(ModelConfig.personaplex_7b()) == "7b"
    assert model_family(ModelConfig(name="personaplex-rl-seamless")) == "7b"
    assert model_family(NANO) == "nano"
    assert model_family(ModelConfig.from_json(GOLDEN / "config.json")) == "golden-1"


def test_personas_suggest_voices_that_exist():
    presets = personas()
    wanted = {"teacher", "bank", "medical", "restaurant", "waste", "drone", "astronaut", "casual"}
    assert wanted <= {preset.name for preset in presets}
    nano_voices = {entry.name for entry in catalogue("nano")}
    for preset in presets:
        assert preset.voice_for("7b") in PUBLISHED
        assert preset.voice_for("nano") in nano_voices
        assert preset.voice_for("golden-1") is None
        assert preset.prompt_for("7b") == preset.prompt


def test_a_persona_by_name():
    assert persona(" Bank ").name == "bank"
    with pytest.raises(UnknownNameError, match="did you mean teacher"):
        persona("techer")
    with pytest.raises(UnknownNameError, match=r"there are teacher, bank, .*casual"):
        persona("xyzzy")


def test_nano_is_given_its_own_words():
    small = Persona("a", "A", "A long prompt.", "NATF0", nano_prompt="You work for A and your name is B.")
    assert small.known_to_nano
    assert small.prompt_for("nano") == small.nano_prompt
    large = Persona("a", "A", "A long prompt.", "NATF0")
    assert not large.known_to_nano
    assert large.prompt_for("nano") == large.prompt


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be read"),
        ('{"voices": [{"name": "a"}]}', r"voices\[0\] has no family and no kind"),
        (
            '{"voices": [{"name": "a", "family": "b", "kind": "c", "gender": "d", "description": "e", "x": 1}]}',
            r"unknown key voices\[0\]\.x; there are",
        ),
        (
            '{"voices": [{"name": "a", "family": "b", "kind": "c", "gender": "d", "description": 5}]}',
            "description is 5; str is needed",
        ),
        ('{"voices": [5]}', "an object with named values"),
        ('{"voices": []', "cannot be read"),
    ],
)
def test_a_catalogue_is_read_strictly(tmp_path, text, problem):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_entries(tmp_path / "c.json", "voices", VoiceEntry)


# --- finding


def test_names_in_any_case_files_and_the_default(finder, tmp_path):
    assert finder.find("NANO-M").name == "nano-m"
    assert finder.find(None).name == "nano-f"
    path = write_speech(tmp_path / "me.wav", 1.5, 44_100)
    voice = finder.find(str(path))
    assert voice.name == "me"
    assert abs(voice.duration_sec - 1.5) < 0.01
    assert abs(pyloudnorm.Meter(SAMPLE_RATE_HZ).integrated_loudness(voice.pcm) + 24) < 0.05


def test_a_voice_opens_under_the_name_that_it_took_over(finder, monkeypatch):
    """Scripts and saved requests name voices of earlier versions; one's own name goes before another's former one."""
    entries = catalogue("nano")
    renamed = [replace(entries[1], formerly=("nano-deep", "nano-f")), entries[0]]
    monkeypatch.setattr(voices, "catalogue", lambda family=None: tuple(renamed))
    assert finder.find("Nano-Deep").name == "nano-m"
    assert finder.find("nano-f").name == "nano-f"


def test_an_unknown_voice_names_the_nearest(finder):
    with pytest.raises(UnknownNameError, match="'nano-x'; did you mean nano-m or nano-f|nano-f or nano-m"):
        finder.find("nano-x")
    with pytest.raises(UnknownNameError, match="belongs to the 7b model; nano-1 knows nano-f, nano-m"):
        finder.find("natf2")
    with pytest.raises(AudioError, match="does not exist"):
        finder.find("../nano-f")


def test_a_visitor_cannot_name_files(tmp_path):
    path = write_speech(tmp_path / "me.wav")
    closed = VoiceFinder(NANO, home=tmp_path, model_folder=tmp_path, allow_files=False)
    for given in (str(path), "../me", "voices/../../me", "me.wav"):
        with pytest.raises(UnknownNameError):
            closed.find(given)


def test_published_voices_come_from_the_models_folder_or_are_unpacked(tmp_path):
    seven = ModelConfig.personaplex_7b()
    asked = []

    def unpack(member: str) -> Path:
        asked.append(member)
        return GOLDEN / "voices" / "VOICE.pt"

    voice = VoiceFinder(seven, home=tmp_path, unpack=unpack).find("NATF1")
    assert (voice.name, voice.embeddings_path.name, asked) == ("NATF1", "VOICE.pt", ["voices/NATF1.pt"])
    (tmp_path / "voices").mkdir()
    (tmp_path / "voices" / "NATF1.pt").write_bytes(b"x")
    voice = VoiceFinder(seven, home=tmp_path, model_folder=tmp_path).find("NATF1")
    assert voice.embeddings_path == tmp_path / "voices" / "NATF1.pt"
    with pytest.raises(PromptError, match=r"voices\.tgz"):
        VoiceFinder(seven, home=tmp_path).find("NATF2")


def test_a_models_own_folder_of_voices(tmp_path):
    golden = ModelConfig.from_json(GOLDEN / "config.json")
    assert VoiceFinder(golden, home=tmp_path, model_folder=GOLDEN).find("VOICE").embeddings_path is not None
    assert VoiceFinder(golden, home=tmp_path).find(None) is None


# --- bad recordings


def test_too_short_too_long_silent_not_audio(tmp_path):
    with pytest.raises(PromptError, match=r"0\.20 s long; 1 to 60 s"):
        voice_from_file(write_speech(tmp_path / "short.wav", 0.2))
    with pytest.raises(AudioError, match=r"at most 60\.0 s"):
        voice_from_file(write_speech(tmp_path / "long.wav", 61, 8_000))
    with pytest.raises(PromptError, match="silent"):
        voice_from_file(write_speech(tmp_path / "silent.wav", gain=0))
    (tmp_path / "text.wav").write_text("hello")
    with pytest.raises(AudioError, match="not a sound file"):
        voice_from_file(tmp_path / "text.wav")
    with pytest.raises(PromptError, match="no voice file"):
        voice_from_file(tmp_path / "no.pt")


def test_a_clipped_voice_is_taken_with_a_note(tmp_path):
    assert "clipped" in voice_from_file(write_speech(tmp_path / "loud.wav", gain=3)).notes[0]


# --- saving


def test_a_saved_voice_is_found_again(finder, tmp_path):
    entry = save_voice("My_voice-1", write_speech(tmp_path / "me.wav", 1.5, 48_000), finder.home)
    assert saved_voices(finder.home) == (entry,)
    assert abs(finder.find("my_VOICE-1").duration_sec - 1.5) < 0.01
    with pytest.raises(PromptError, match="saved already"):
        save_voice("my_voice-1", tmp_path / "me.wav", finder.home)
    save_voice("my_voice-1", write_speech(tmp_path / "me.wav", 3.0), finder.home, replace=True)
    assert len(saved_voices(finder.home)) == 1
    assert finder.find("my_voice-1").duration_sec == 3.0


@pytest.mark.parametrize(
    "name", ["../me", "a/b", "a\\b", "", ".hidden", "-x", "x" * 41, "a b", "a\0", "naïve", "..", "a.wav"]
)
def test_a_name_that_could_leave_the_folder_is_refused(name, tmp_path):
    path = write_speech(tmp_path / "me.wav")
    with pytest.raises(PromptError, match="cannot name a voice"):
        save_voice(name, path, tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_other_things_that_cannot_be_saved(tmp_path):
    path = write_speech(tmp_path / "me.wav")
    with pytest.raises(PromptError, match="voice of the catalogue"):
        save_voice("natf2", path, tmp_path)
    with pytest.raises(PromptError, match="is not a recording"):
        save_voice("me", GOLDEN / "voices" / "VOICE.pt", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="PERSONAPLEX_HOME"):
        save_voice("me", path, tmp_path / "file")


# --- settings


def test_settings_read_the_environment_strictly(tmp_path):
    settings = Settings.from_environment({"PERSONAPLEX_MODEL": "x/y", "PERSONAPLEX_HOME": str(tmp_path), "OTHER": "1"})
    assert (settings.model, settings.home, settings.device) == ("x/y", tmp_path, "auto")
    with pytest.raises(ConfigError, match="did you mean PERSONAPLEX_MODEL"):
        Settings.from_environment({"PERSONAPLEX_MODLE": "nano"})
    assert Settings.from_environment({"PERSONAPLEX_DTYPE": ""}).dtype == "auto"
