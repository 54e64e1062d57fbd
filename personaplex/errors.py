"""Errors that reach a user.

All of them are ``ValueError`` or ``RuntimeError`` by kind, and all carry one sentence (or a
short list) that says what was given, what is allowed and what to do next. The command line
prints that sentence and ends with exit code 2; the page shows it.
"""

from __future__ import annotations


class PersonaPlexError(Exception):
    """Base of everything this package raises on purpose."""


class InputError(PersonaPlexError, ValueError):
    """The caller gave something that cannot be used."""


class ConfigError(InputError):
    """A configuration has an unknown key, a wrong type or an impossible value."""


class AudioError(InputError):
    """A sound file or buffer cannot be used as speech."""


class PromptError(InputError):
    """The text or the voice of a persona cannot be used."""


class UnknownNameError(InputError):
    """A persona, voice or model name that is not in its catalogue."""


class OutputError(InputError):
    """An output path cannot be written."""


class WeightsError(PersonaPlexError, ValueError):
    """A checkpoint is damaged, incomplete or of another architecture."""


class DownloadError(PersonaPlexError, RuntimeError):
    """Model files could not be fetched: network, access or disk."""


class CapacityError(PersonaPlexError, RuntimeError):
    """No slot, no memory or no device is left for what was asked."""


def first_line(said: str) -> str:
    """The first line of a program's or a library's error message; the rest is seldom for users."""
    lines = said.strip().splitlines()
    return lines[0] if lines else "no message"
