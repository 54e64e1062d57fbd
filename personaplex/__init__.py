"""PersonaPlex: an open full-duplex speech-to-speech engine in PyTorch.

The names below are the public API. They are imported when first used, so that ``import personaplex`` needs no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from personaplex.version import __version__

if TYPE_CHECKING:
    from personaplex.audio.files import Recording, read_recording, write_stereo_wav, write_wav
    from personaplex.errors import PersonaPlexError
    from personaplex.files import shipped_file
    from personaplex.messages import FrameOutput, SamplingOptions, Voice
    from personaplex.personas.voices import voice_from_file
    from personaplex.session.reply import Reply, answer
    from personaplex.session.session import Conversation, Session
    from personaplex.text.transcript import Transcript, Word
    from personaplex.weights.load import LoadedModel, load_model

_HOME_OF = {
    "Conversation": "session.session",
    "FrameOutput": "messages",
    "LoadedModel": "weights.load",
    "PersonaPlexError": "errors",
    "Recording": "audio.files",
    "Reply": "session.reply",
    "SamplingOptions": "messages",
    "Session": "session.session",
    "Transcript": "text.transcript",
    "Voice": "messages",
    "Word": "text.transcript",
    "answer": "session.reply",
    "load_model": "weights.load",
    "read_recording": "audio.files",
    "shipped_file": "files",
    "voice_from_file": "personas.voices",
    "write_stereo_wav": "audio.files",
    "write_wav": "audio.files",
}

__all__ = [
    "Conversation",
    "FrameOutput",
    "LoadedModel",
    "PersonaPlexError",
    "Recording",
    "Reply",
    "SamplingOptions",
    "Session",
    "Transcript",
    "Voice",
    "Word",
    "__version__",
    "answer",
    "load_model",
    "read_recording",
    "shipped_file",
    "voice_from_file",
    "write_stereo_wav",
    "write_wav",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use; raises AttributeError for any other."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public are {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
