"""What a page must know of the model that its replicas run, sent once, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from personaplex.config import ModelConfig
from personaplex.errors import ConfigError
from personaplex.messages import ConversationServer, Voice
from personaplex.personas.voices import EMBEDDINGS_SUFFIX, VoiceFinder, default_voice_name
from personaplex.serving.hosted import Hosted, ModelFacts
from personaplex.strict import strict_dataclass
from personaplex.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Facts(ModelFacts):
    """A replica's model."""

    window: str
    slots: int
    conversation_sec: float
    voices: tuple[str, ...]
    """Voices that lie beside the model: named by the page, found by the replica."""

    @classmethod
    def of(cls, hosted: Hosted, slots: int, conversation_sec: float, window: str) -> Facts:
        return cls(
            **_of_the_model(hosted), window=window, slots=slots, conversation_sec=conversation_sec,
            voices=voices_of_model(hosted.finder),
        )  # fmt: skip


def _of_the_model(facts: ModelFacts) -> dict[str, Any]:
    return {field.name: getattr(facts, field.name) for field in fields(ModelFacts)}


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
        **_of_the_model(facts),
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
