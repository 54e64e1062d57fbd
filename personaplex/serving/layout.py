"""Binary layout of the messages on a conversation's line, little endian, nothing but numbers and UTF-8.

A message is a kind, a length and a payload. Whoever receives a kind that it does not know skips it, so that a newer
side may send more to an older one; a known kind keeps its payload's layout for good.

| kind | direction | payload |
| --- | --- | --- |
| SOUND | page → worker | one frame of the microphone, float32 |
| HANG_UP | page → worker | – |
| BEAT | both | –; a sign of life |
| STATE | worker → page | ``_STATE``, then the sentence |
| FRAME | worker → page | ``_FRAME``, then tokens (int32), the agent's sound and the sound heard (float32) |
| TELL | page → worker | text to be told to the conversation |
| TOLD | worker → page | ``_TOLD``, then why it was refused; one for each TELL, in their order |
"""

from __future__ import annotations

import math
import struct
from enum import IntEnum

import numpy as np

from personaplex.messages import ConversationState, EndReason, FrameOutput, Meter, Phase


class Kind(IntEnum):
    """Kinds of messages; a number is never used again for another kind."""

    SOUND = 1
    HANG_UP = 2
    BEAT = 3
    STATE = 4
    FRAME = 5
    TELL = 6
    TOLD = 7


HEADER = struct.Struct("<BI")
"""Kind and bytes of the payload."""
MAX_PAYLOAD_BYTES = 2**20
"""A frame takes 16 kB; what claims to be more than this is no message."""

_STATE = struct.Struct("<BBIIId")  # phase, reason, place, done, total, left_sec
_FRAME = struct.Struct("<ddIIiHII")  # step_ms, answer_ms, frames, dropped, text_token; sizes: tokens, pcm, heard
_TOLD = struct.Struct("<I")  # tokens that may be told still
_PHASES = (
    Phase.LOADING, Phase.QUEUED, Phase.PREPARING, Phase.LISTENING, Phase.TALKING, Phase.ENDED,
)  # fmt: skip
_REASONS = (
    None, EndReason.STOPPED, EndReason.FINISHED, EndReason.TIME_LIMIT, EndReason.IDLE, EndReason.REFUSED,
    EndReason.FAILED, EndReason.SHUTDOWN,
)  # fmt: skip


def encode_sound(pcm: np.ndarray) -> bytes:
    """``pcm``: [N] float32."""
    return np.asarray(pcm, "<f4").tobytes()


def decode_sound(payload: bytes) -> np.ndarray:
    """[N] float32; raises ValueError for a payload that is not whole samples."""
    return np.frombuffer(payload, "<f4")


def encode_state(state: ConversationState) -> bytes:
    left_sec = math.nan if state.left_sec is None else state.left_sec
    phase, reason = _PHASES.index(state.phase), _REASONS.index(state.reason)
    return _STATE.pack(phase, reason, state.place, state.done, state.total, left_sec) + state.message.encode()


def decode_state(payload: bytes) -> ConversationState:
    """Raises ValueError for a payload that is not a state."""
    if len(payload) < _STATE.size:
        raise ValueError(f"a state has {_STATE.size} bytes or more, not {len(payload)}")
    phase, reason, place, done, total, left_sec = _STATE.unpack_from(payload)
    if phase >= len(_PHASES) or reason >= len(_REASONS):
        raise ValueError(f"there is no phase {phase} with reason {reason}")
    left = None if math.isnan(left_sec) else left_sec
    message = payload[_STATE.size :].decode()
    return ConversationState(_PHASES[phase], place, done, total, left, _REASONS[reason], message)


def encode_told(left: int, problem: str = "") -> bytes:
    """``left``: tokens that may be told still; ``problem``: why a text was refused, "" if it was told."""
    return _TOLD.pack(left) + problem.encode()


def decode_told(payload: bytes) -> tuple[int, str]:
    """Raises ValueError for a payload that is not the answer to a text."""
    if len(payload) < _TOLD.size:
        raise ValueError(f"an answer to a text has {_TOLD.size} bytes or more, not {len(payload)}")
    return _TOLD.unpack_from(payload)[0], payload[_TOLD.size :].decode()


def encode_frame(output: FrameOutput, heard: np.ndarray, meter: Meter) -> bytes:
    """One frame: the model's output, the sound it heard ([N] float32) and the conversation's timing."""
    tokens, pcm = np.asarray(output.tokens, "<i4"), encode_sound(output.pcm)
    head = _FRAME.pack(
        meter.step_ms, meter.answer_ms, meter.frames, meter.dropped_frames, output.text_token,
        len(tokens), len(output.pcm), len(heard),
    )  # fmt: skip
    return b"".join((head, tokens.tobytes(), pcm, encode_sound(heard)))


def decode_frame(payload: bytes) -> tuple[FrameOutput, np.ndarray, Meter]:
    """The model's output, the sound it heard and the timing; raises ValueError for a payload that is not a frame."""
    if len(payload) < _FRAME.size:
        raise ValueError(f"a frame has {_FRAME.size} bytes or more, not {len(payload)}")
    step_ms, answer_ms, frames, dropped, text_token, *sizes = _FRAME.unpack_from(payload)
    if len(payload) != _FRAME.size + 4 * sum(sizes):
        raise ValueError(f"a frame of {sizes} numbers has {_FRAME.size + 4 * sum(sizes)} bytes, not {len(payload)}")
    tokens_at, pcm_at, heard_at = (_FRAME.size + 4 * sum(sizes[:count]) for count in range(3))
    tokens = np.frombuffer(payload, "<i4", sizes[0], tokens_at).astype(np.int64)
    pcm = np.frombuffer(payload, "<f4", sizes[1], pcm_at)
    heard = np.frombuffer(payload, "<f4", sizes[2], heard_at)
    return FrameOutput(pcm, text_token, tokens), heard, Meter(step_ms, answer_ms, frames, dropped)
