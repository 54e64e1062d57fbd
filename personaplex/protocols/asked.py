"""A client's wishes as a ConversationRequest: persona, voice, seed and sampling."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from personaplex.audio.cleaning import can_clean
from personaplex.errors import InputError, UnknownNameError
from personaplex.messages import (
    MAX_SEED,
    MAX_TOP_K,
    NEW_SEED,
    ConversationRequest,
    ConversationServer,
    SamplingOptions,
    Voice,
)
from personaplex.personas.presets import DEFAULT_PERSONA, persona
from personaplex.personas.voices import EMBEDDINGS_SUFFIX, VoiceFinder
from personaplex.settings import NO, YES
from personaplex.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)


class Model(Protocol):
    """What a protocol needs of the model that runs here, such as `serving.hosted.Hosted`."""

    @property
    def name(self) -> str: ...

    @property
    def server(self) -> ConversationServer: ...

    @property
    def finder(self) -> VoiceFinder: ...

    @property
    def tokenizer(self) -> TextTokenizer: ...

    @property
    def text_padding_id(self) -> int: ...


@dataclass(frozen=True)
class Wishes:
    """What a client asked for; None where it said nothing."""

    persona: str | None = None
    text: str | None = None  # "" for no role at all
    voice: str | None = None
    sampling: SamplingOptions = SamplingOptions()
    clean: bool = False  # take the persona's echo out of the microphone, where that can be done here
    wait_for_greeting: bool = False


@dataclass(frozen=True)
class Granted:
    """The request that follows, and the voice that speaks, which may be another than was wished for."""

    request: ConversationRequest
    voice: str  # its name; "" where the model has none by name


async def grant(model: Model, wishes: Wishes) -> Granted:
    """Find persona and voice, in a thread, as files are read; raises PersonaPlexError with a sentence."""
    return await asyncio.to_thread(_grant, model, wishes)


def _grant(model: Model, wishes: Wishes) -> Granted:
    preset = persona(wishes.persona or DEFAULT_PERSONA)
    family = model.finder.family
    text = preset.prompt_for(family) if wishes.text is None else wishes.text
    voice = _find_voice(model.finder, wishes.voice, preset.voice_for(family))
    # A client made for another model may send a longer role than this one takes: its beginning is better than none.
    request = ConversationRequest(
        voice=voice, text=text, sampling=wishes.sampling, wait_for_greeting=wishes.wait_for_greeting,
        clean_microphone=wishes.clean and can_clean(), truncate_text=True,
    )  # fmt: skip
    return Granted(request, voice.name if voice is not None else "")


def _find_voice(finder: VoiceFinder, wanted: str | None, suggested: str | None) -> Voice | None:
    """The voice of this name, or else the suggested one or the default.

    Clients name the 7B's voices whatever runs here, by file as in `NATF2.pt`.
    """
    known = {entry.name for entry in finder.entries()}
    instead = suggested if suggested in known else None
    name = (wanted or "").removesuffix(EMBEDDINGS_SUFFIX)
    if name and name != "default":
        try:
            return finder.find(name)
        except UnknownNameError:
            log.info("a client asked for a voice that is not here; it gets the default")
    return finder.find(instead)


def sampling_of(query: Mapping[str, str]) -> SamplingOptions:
    """Seed and sampling from a query of strings, by Moshi's names; raises InputError for a value that cannot be used.

    One seed draws both streams here, so `text_seed` and `audio_seed` count where `seed` is not given. Top-k above
    what the samplers take is all that they take.
    """
    published = SamplingOptions()
    seed = next((_whole(query, name) for name in ("seed", "text_seed", "audio_seed") if query.get(name)), NEW_SEED)
    if not NEW_SEED <= seed <= MAX_SEED:
        raise InputError(f"seed is {seed}; {NEW_SEED} to {MAX_SEED} is allowed ({NEW_SEED} takes a new one)")
    return SamplingOptions(
        temperature_audio=_number(query, "audio_temperature", published.temperature_audio),
        top_k_audio=min(MAX_TOP_K, _whole(query, "audio_topk", published.top_k_audio)),
        temperature_text=_number(query, "text_temperature", published.temperature_text),
        top_k_text=min(MAX_TOP_K, _whole(query, "text_topk", published.top_k_text)),
        seed=secrets.randbelow(MAX_SEED) if seed == NEW_SEED else seed,
    )


def switch_of(query: Mapping[str, str], name: str, default: bool = False) -> bool:
    """A yes or no from a query of strings; raises InputError for anything else."""
    given = query.get(name) or ""
    if given and given.lower() not in YES + NO:
        raise InputError(f"{name} is {given[:40]!r}; {', '.join(YES + NO)} are allowed")
    return given.lower() in YES if given else default


def _number(query: Mapping[str, str], name: str, default: float) -> float:
    given = query.get(name) or ""
    try:
        return float(given) if given else default
    except ValueError:
        raise InputError(f"{name} is {given[:40]!r}; a number is needed") from None


def _whole(query: Mapping[str, str], name: str, default: int = 0) -> int:
    number = _number(query, name, default)
    if not math.isfinite(number) or number != int(number):
        raise InputError(f"{name} is {number}; a whole number is needed")
    return int(number)
