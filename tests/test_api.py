"""The public API: what ``import personaplex`` offers, frozen."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import personaplex

ROOT = Path(__file__).parents[1]

PUBLIC = [
    "Conversation", "FrameOutput", "LoadedModel", "PersonaPlexError", "Recording", "Reply", "SamplingOptions",
    "Session", "Transcript", "Voice", "Word", "__version__", "answer", "load_model", "read_recording", "shipped_file",
    "voice_from_file", "write_stereo_wav", "write_wav",
]  # fmt: skip

SIGNATURES = {
    "Session": "(loaded, *, slots=1, context=None, window='persona', snapshot_folder=None)",
    "Session.prepare": "(self, *, voice, text, truncate_text=False, progress=None)",
    "Session.start": "(self, snapshot, options=None)",
    "Session.step_together": "(self, heard)",
    "Conversation.step": "(self, pcm)",
    "Conversation.tell": "(self, text)",
    "SamplingOptions": "(temperature_audio=0.8, top_k_audio=250, temperature_text=0.7, top_k_text=25, greedy=False, "
    "seed=0)",
    "Voice": "(name, pcm=None, embeddings_path=None, snapshot_path=None, notes=(), of_model=False)",
    "answer": "(session, snapshot, question, *, options=None, tail_sec=0.0, clean=False, loudspeaker=None, "
    "progress=None, stop=None, tells=())",
    "load_model": "(source, *, format='auto', device='auto', group_size=None, revision=None, progress=None, "
    "layers_on_gpu=None, slots=1, context=None, kv_cache='auto')",
    "read_recording": "(path, *, sample_rate_hz=24000, max_sec=3600.0, name=None)",
    "shipped_file": "(path)",
    "voice_from_file": "(path, name=None, config=None)",
    "write_stereo_wav": "(path, left, right, sample_rate_hz=24000)",
    "write_wav": "(path, pcm, sample_rate_hz=24000)",
}


def test_the_public_names_are_frozen():
    assert personaplex.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(personaplex))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(personaplex, name)
    assert name == "__version__" or inspect.getdoc(value)


@pytest.mark.parametrize(("name", "expected"), SIGNATURES.items())
def test_signatures_stay(name, expected):
    value = personaplex
    for part in name.split("."):
        value = getattr(value, part)
    signature = inspect.signature(value)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    assert str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)) == expected


def test_an_unknown_name_says_what_is_there():
    with pytest.raises(AttributeError, match="public are .*load_model"):
        _ = personaplex.load_models


def test_importing_the_package_imports_no_pytorch():
    code = "import sys, personaplex; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_package_is_typed():
    assert (ROOT / "personaplex" / "py.typed").is_file()


def test_files_that_come_with_the_program():
    assert personaplex.shipped_file("voices/nano-f.wav").is_file()
    assert personaplex.shipped_file("examples/questions/bank.wav").is_file()
    for missing in ("voices/nobody.wav", "personaplex/config.py", "voices", ""):
        with pytest.raises(personaplex.PersonaPlexError, match="comes with the program"):
            personaplex.shipped_file(missing)
