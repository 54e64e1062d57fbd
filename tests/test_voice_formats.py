"""A voice of one's own with every number format: nano speaks with recordings of 1, 3 and 60 s."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import soxr

from personaplex.audio.activity import speech_spans
from personaplex.audio.files import read_recording
from personaplex.audio.frames import SAMPLE_RATE_HZ
from personaplex.files import shipped_folder
from personaplex.messages import SamplingOptions
from personaplex.personas.presets import persona
from personaplex.personas.voices import voice_from_file
from personaplex.session.reply import answer
from personaplex.session.session import Session
from personaplex.weights.load import load_model, save_quantized
from personaplex.weights.names import nano_folder

QUICK = {(3, "int8"), (1, "int4")}


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """format → nano in it; "folder": a copy that was packed to int4."""
    made: dict[str, Session] = {}

    def session(format: str) -> Session:
        if format not in made:
            source, dtype = "nano", format
            if format == "folder":
                source, dtype = str(tmp_path_factory.mktemp("packed") / "nano-int4"), "auto"
                save_quantized(str(nano_folder()), source, "int4")
            made[format] = Session(load_model(source, format=dtype, device="cpu"))
        return made[format]

    return session


def own_recording(path, seconds: float):
    """Someone speaking, as a phone records it: 44.1 kHz, stereo."""
    spoken = read_recording(shipped_folder("voices", "catalogue.json") / "nano-m.wav").pcm
    loud = spoken[round(speech_spans(spoken)[0].start_sec * SAMPLE_RATE_HZ) :]
    repeated = np.tile(loud, -(-int(seconds * SAMPLE_RATE_HZ) // len(loud)))[: round(seconds * SAMPLE_RATE_HZ)]
    at_44_khz = soxr.resample(repeated, SAMPLE_RATE_HZ, 44_100)
    soundfile.write(path, np.stack([at_44_khz, 0.8 * at_44_khz], axis=1).clip(-1, 1), 44_100)
    return path


@pytest.mark.parametrize(
    ("seconds", "format"),
    [
        pytest.param(seconds, format, marks=() if (seconds, format) in QUICK else pytest.mark.slow)
        for seconds in (1, 3, 60)
        for format in ("float32", "int8", "int4", "folder")
    ],
)
def test_nano_speaks_with_a_voice_of_ones_own(sessions, tmp_path, seconds, format):
    voice = voice_from_file(own_recording(tmp_path / "me.wav", seconds))
    session = sessions(format)
    snapshot = session.prepare(voice=voice, text=persona("bank").prompt_for("nano"))
    reply = answer(session, snapshot, np.zeros(6 * SAMPLE_RATE_HZ, np.float32), options=SamplingOptions(seed=1))
    assert np.isfinite(reply.pcm).all()
    assert reply.transcript.text, "its greeting"
    assert sum(span.duration_sec for span in speech_spans(reply.pcm)) > 0.5
