"""A conversation's request as bytes, for a replica on another machine: no path of this one is in it.

Layout: the size of a JSON head (uint32, little endian), the head, then the sound or file of the voice and the recorded
question, whose sizes the head names.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from personaplex.errors import PromptError
from personaplex.files import size_text
from personaplex.messages import ConversationRequest, SamplingOptions, Voice

MAX_VOICE_BYTES = 64 * 2**20
"""A minute of sound takes 6 MB, the 7B's state after a voice less than 60."""

FLAGS = ("wait_for_greeting", "clean_microphone", "truncate_text")
"""Fields that are true or false; ``record`` and ``write_user_words`` are the page's own affair."""

_SIZE = struct.Struct("<I")
_SOUND, _EMBEDDINGS, _SNAPSHOT, _OF_MODEL = "sound", "embeddings", "snapshot", "of_model"


def encode_request(request: ConversationRequest) -> bytes:
    """Raises PromptError for a voice's file that cannot be read or is too large to travel."""
    kind, voice = _voice_bytes(request.voice)
    question = b"" if request.question is None else np.asarray(request.question, "<f4").tobytes()
    head = {
        "text": request.text,
        "sampling": None if request.sampling is None else asdict(request.sampling),
        **{name: getattr(request, name) for name in FLAGS},
        "voice": None if request.voice is None else {"name": request.voice.name, "kind": kind, "size": len(voice)},
        "question": None if request.question is None else len(question),
    }
    text = json.dumps(head).encode()
    return b"".join((_SIZE.pack(len(text)), text, voice, question))


def decode_request(data: bytes, folder: Path) -> ConversationRequest:
    """``folder``: a file of a voice is written there. Raises ValueError for what is not a request."""
    (size,) = _SIZE.unpack_from(data) if len(data) >= _SIZE.size else (-1,)
    if size < 0:
        raise ValueError("a request has a head")
    head: dict[str, Any] = json.loads(data[_SIZE.size : _SIZE.size + size])
    rest = data[_SIZE.size + size :]
    described = head["voice"]
    voice_size = described["size"] if described else 0
    question = rest[voice_size:]
    if len(question) != (head["question"] or 0):
        raise ValueError(f"a request's voice and question have {voice_size + (head['question'] or 0)} bytes")
    return ConversationRequest(
        voice=_voice(described, rest[:voice_size], folder) if described else None,
        text=head["text"],
        sampling=None if head["sampling"] is None else SamplingOptions(**head["sampling"]),
        **{name: head[name] for name in FLAGS},
        question=None if head["question"] is None else np.frombuffer(question, "<f4"),
    )


def _voice_bytes(voice: Voice | None) -> tuple[str, bytes]:
    if voice is None or voice.of_model:
        return _OF_MODEL, b""
    if voice.pcm is not None:
        return _SOUND, np.asarray(voice.pcm, "<f4").tobytes()
    kind, path = _EMBEDDINGS, voice.embeddings_path
    if path is None:
        kind, path = _SNAPSHOT, voice.snapshot_path
    assert path is not None, "a voice has one source"
    try:
        size = path.stat().st_size
        if size > MAX_VOICE_BYTES:
            raise PromptError(
                f"the voice {voice.name} is a file of {size_text(size)}; {size_text(MAX_VOICE_BYTES)} can be sent to "
                "the cluster: keep it in the model's folder there"
            )
        return kind, path.read_bytes()
    except OSError as error:
        raise PromptError(f"the voice {voice.name} cannot be read: {error.strerror}") from error


def _voice(described: dict[str, Any], data: bytes, folder: Path) -> Voice:
    name, kind = described["name"], described["kind"]
    if kind == _OF_MODEL:
        return Voice(name, of_model=True)
    if kind == _SOUND:
        return Voice(name, pcm=np.frombuffer(data, "<f4"))
    if kind not in (_EMBEDDINGS, _SNAPSHOT):
        raise ValueError(f"there is no kind of voice {kind!r}")
    path = folder / ("voice.pt" if kind == _EMBEDDINGS else "voice.safetensors")
    path.write_bytes(data)
    return Voice(name, embeddings_path=path) if kind == _EMBEDDINGS else Voice(name, snapshot_path=path)
