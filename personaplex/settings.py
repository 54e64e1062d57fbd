"""What the environment says, read in one place: ``PERSONAPLEX_MODEL``, ``PERSONAPLEX_HOME`` and so on."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from personaplex.errors import ConfigError

PREFIX = "PERSONAPLEX_"


def default_home(environ: Mapping[str, str] | None = None) -> Path:
    """Where a user's own voices are kept: the platform's usual place."""
    environ = os.environ if environ is None else environ
    if sys.platform == "win32" and environ.get("LOCALAPPDATA"):
        return Path(environ["LOCALAPPDATA"]) / "personaplex"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "personaplex"
    base = environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "personaplex"


@dataclass(frozen=True)
class Settings:
    """Defaults that a user may set once instead of with every command."""

    model: str = "nano"  # nano, a hub id or a folder
    device: str = "auto"  # auto, cpu or cuda
    dtype: str = "auto"  # auto, float32, bfloat16, int8 or int4
    home: Path = field(default_factory=default_home)  # the user's saved voices

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Raises ConfigError for a ``PERSONAPLEX_*`` variable that means nothing here."""
        environ = os.environ if environ is None else environ
        known = {PREFIX + f.name.upper(): f.name for f in fields(cls)}
        values = {}
        for variable, value in environ.items():
            if not variable.startswith(PREFIX):
                continue
            if variable not in known:
                near = difflib.get_close_matches(variable, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                raise ConfigError(f"the environment variable {variable} is not known; {hint}")
            if value:
                values[known[variable]] = value
        if "home" in values:
            values["home"] = Path(values["home"]).expanduser()
        return cls(**values)
