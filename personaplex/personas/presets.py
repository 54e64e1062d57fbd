"""Personas: ready-made roles, each with the voice that suits it."""

from __future__ import annotations

from dataclasses import dataclass

from personaplex.config import NANO
from personaplex.errors import UnknownNameError
from personaplex.files import shipped_folder
from personaplex.strict import nearest_names, read_entries

DEFAULT_PERSONA = "teacher"


@dataclass(frozen=True)
class Persona:
    """A preset role. A model outside ``nano`` takes ``prompt``; nano knows a small world only."""

    name: str
    title: str
    prompt: str
    voice: str  # suggested, of the 7B's voices
    nano_prompt: str = ""  # empty: outside nano's small world
    nano_voice: str = ""

    @property
    def known_to_nano(self) -> bool:
        return bool(self.nano_prompt)

    def prompt_for(self, family: str) -> str:
        """The role's text for a family of models (see ``voices.model_family``)."""
        return self.nano_prompt if family == NANO and self.nano_prompt else self.prompt

    def voice_for(self, family: str) -> str | None:
        """The suggested voice; None where the family has none."""
        return {"7b": self.voice, NANO: self.nano_voice}.get(family) or None


def personas() -> tuple[Persona, ...]:
    path = shipped_folder("examples", "personas.json") / "personas.json"
    return read_entries(path, "personas", Persona)


def persona(name: str) -> Persona:
    """The persona of this name, in upper or lower case; raises UnknownNameError with the nearest names."""
    presets = personas()
    for preset in presets:
        if preset.name == name.strip().lower():
            return preset
    raise UnknownNameError(f"there is no persona {name!r}{nearest_names(name, [p.name for p in presets])}")
