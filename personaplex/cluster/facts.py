"""What a page must know of the model that its replicas run, sent once, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personaplex.config import ModelConfig
from personaplex.errors import ConfigError
from personaplex.messages import ConversationServer, Voice
from personaplex.personas.voices import EMBEDDINGS_SUFFIX, VoiceFinder, default_voice_name
from personaplex.serving.hosted import Hosted
from personaplex.strict import strict_dataclass
from personaplex.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Facts:
    """A replica's model."""

    name: str
    reason: str
    format: str
    device: str
    context_frames: int
    max_prompt_tokens: int
    sample_rate_hz: int
    frame_sec: float
    text_padding_id: int
    window: str
    slots: int
    conversation_sec: float
    voices: tuple[str, ...]
    """Voices that lie beside the model: named by the page, found by the replica."""

    @classmethod
    def of(cls, hosted: Hosted, slots: int, conversation_sec: float, window: str) -> Facts:
        return cls(
            hosted.name, hosted.reason, hosted.format, hosted.device, hosted.context_frames, hosted.max_prompt_tokens,
            hosted.sample_rate_hz, hosted.frame_sec, hosted.text_padding_id, window, slots, conversation_sec,
            voices_of_model(hosted.finder),
        )  # fmt: skip


def described(facts: Facts, config: ModelConfig, tokenizer: TextTokenizer) -> dict[str, Any]:
    """Plain values, which every version of the program can unpack."""
    return {
        "facts": {**vars(facts), "voices": list(facts.voices)},
        "config": config.to_dict(),
        "tokenizer": bytes(tokenizer),
    }


def facts_from(given: dict[str, Any]) -> Facts:
    """Raises ConfigError where a replica's version knows other facts."""
    try:
        return strict_dataclass(Facts, given["facts"], "facts.")
    except ConfigError as error:
        raise ConfigError(
            f"the cluster runs another version of the program ({error}); start this page with it"
        ) from error


def hosted_from(given: dict[str, Any], server: ConversationServer, home: Path | None) -> Hosted:
    """The model as the page sees it; ``home``: the folder of the page's own saved voices, None offers none."""
    facts, config = facts_from(given), ModelConfig.from_dict(given["config"])
    return Hosted(
        reason=facts.reason,
        name=facts.name,
        format=facts.format,
        device=facts.device,
        context_frames=facts.context_frames,
        max_prompt_tokens=facts.max_prompt_tokens,
        sample_rate_hz=facts.sample_rate_hz,
        frame_sec=facts.frame_sec,
        text_padding_id=facts.text_padding_id,
        tokenizer=TextTokenizer.from_bytes(given["tokenizer"]),
        finder=ClusterVoices(config, home, allow_files=False, elsewhere=facts.voices),
        server=server,
    )


@dataclass(frozen=True)
class ClusterVoices(VoiceFinder):
    """Finds voices for a model that lies on other machines: its own are named, all others travel as sound."""

    elsewhere: tuple[str, ...] = ()

    def find(self, given: str | None = None) -> Voice | None:
        wanted = (given or default_voice_name(self.family) or "").lower()
        found = next((name for name in self.elsewhere if name.lower() == wanted), None)
        return super().find(given) if found is None else Voice(found, of_model=True)


def voices_of_model(finder: VoiceFinder) -> tuple[str, ...]:
    """Names that a model's own folder, or the archive of voices it came with, resolves."""
    named = {entry.name for entry in finder.entries() if entry.member}
    folder = finder.model_folder / "voices" if finder.model_folder is not None else None
    if folder is not None and folder.is_dir():
        named |= {path.stem for path in folder.iterdir() if path.suffix in (EMBEDDINGS_SUFFIX, ".wav")}
    return tuple(sorted(named))
