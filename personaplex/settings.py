"""Settings from environment variables (``PERSONAPLEX_MODEL``) and the page's flags (``--port``), read in one place."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from personaplex.config import AUTO_CACHE, NANO, PERSONA_WINDOW, checked_kv_cache, checked_window
from personaplex.errors import ConfigError
from personaplex.strict import check_range, nearest_names

PREFIX = "PERSONAPLEX_"
AUTO = "auto"
LOCAL = "local"
USER_WORDS = (AUTO, "moonshine", "whisper", "off")
"""What may write the user's words down (``words/recogniser.py``)."""
DTYPES = (AUTO, "float32", "bfloat16", "int8", "int4")
"""Formats of the weights, by name."""
MOST_AT_ONCE = 16
"""Conversations of one process, at most, where their number is measured."""
YES, NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def on_zerogpu() -> bool:
    """Whether this is a Space that lends a GPU for each conversation."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def default_home(environ: Mapping[str, str] | None = None) -> Path:
    """Folder of the user's saved voices: the platform's usual place for application data."""
    environ = os.environ if environ is None else environ
    if sys.platform == "win32" and environ.get("LOCALAPPDATA"):
        return Path(environ["LOCALAPPDATA"]) / "personaplex"
    try:
        home = Path.home()
    except RuntimeError:  # a user without one, as in some containers
        home = Path(tempfile.gettempdir())
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "personaplex"
    base = environ.get("XDG_DATA_HOME")
    return (Path(base) if base else home / ".local" / "share") / "personaplex"


def _setting(default: Any, about: str, *, is_secret: bool = False) -> Any:
    """A field and the line that ``--help`` says about it; a secret is left out of what is printed of the settings."""
    return field(default=default, metadata={"help": about}, repr=not is_secret)


@dataclass(frozen=True)
class Settings:
    """Defaults that a user may set once instead of with every command; the page takes all of them."""

    model: str = _setting(NANO, "auto, nano, a hub id such as nvidia/personaplex-7b-v1, or a folder")
    device: str = _setting(AUTO, "auto, cpu or cuda")
    dtype: str = _setting(AUTO, "auto, float32, bfloat16, int8 or int4")
    home: Path = field(default_factory=default_home, metadata={"help": "folder of your saved voices"})
    context: int | None = _setting(None, "frames the model remembers (12.5 a second); its own if not given")
    kv_cache: str = _setting(AUTO_CACHE, "type of the model's memory: auto, as its activations, or int8, half of that")
    window: str = _setting(PERSONA_WINDOW, "persona: a full memory never forgets the prompt; published: it does")
    host: str | None = _setting(None, "address to listen on; 127.0.0.1 if not given, 0.0.0.0 lets others in")
    port: int | None = _setting(None, "port to listen on; the first free one from 7860 if not given")
    conversations: int | None = _setting(
        None, f"conversations at once; auto, the default, measures what this machine holds, {MOST_AT_ONCE} at most"
    )
    waiting: int = _setting(8, "visitors who may queue for one")
    conversation_sec: float | None = _setting(
        None, "seconds a conversation may last; 600 if not given, 60 on a GPU that is lent by the minute"
    )
    user_words: str = _setting(
        AUTO, "what writes visitors' words down: auto, moonshine (while they speak), whisper (once a turn) or off"
    )
    record: bool = _setting(True, "let visitors keep a recording of their conversation")
    keep_sec: float = _setting(600.0, "seconds after which what a visitor left is deleted, once their page is silent")
    answer_sec: float | None = _setting(
        None, "seconds the answer to a recorded question may take; as long as a conversation if not given"
    )
    offer_saved_voices: bool = _setting(False, "offer your saved voices, and their recordings, to every visitor")
    allowed_hosts: str = _setting(
        "", "names, with commas, under which the page may be opened besides localhost, this machine's and IP addresses"
    )
    clients: bool = _setting(True, "let other programs talk: /api/chat, /v1/realtime and /twilio/media")
    moshi_port: int | None = _setting(None, "a port for /api/chat besides the page's; Moshi's clients expect 8998")
    api_key: str = _setting(
        "", "key that programs must send; better as a variable: others can read a command line", is_secret=True
    )
    allowed_origins: str = _setting(
        "", "origins, with commas, of web pages elsewhere that may talk, such as https://app.example"
    )
    share: bool = _setting(False, "make a public https address through gradio.live")
    ice_servers: str | None = _setting(
        None, "STUN and TURN servers of your own, as a JSON list of {urls, username, credential}"
    )
    ray: str | None = _setting(
        None, "place conversations on a Ray cluster: its head's HOST:PORT, or local to start one on this machine"
    )
    ray_line: str | None = _setting(
        None, "HOST:PORT at which the cluster's replicas reach this page; its own address and any port if not given"
    )
    ssl_cert: Path | None = _setting(None, "certificate, for https away from localhost; with --ssl-key")
    ssl_key: Path | None = _setting(None, "the certificate's key")

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}; {', '.join(DTYPES)} are allowed")
        if self.user_words not in USER_WORDS:
            raise ConfigError(f"user_words is {self.user_words!r}; {', '.join(USER_WORDS)} are allowed")
        checked_window(self.window)
        checked_kv_cache(self.kv_cache)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device is {self.device!r}; auto, cpu and cuda are allowed (cuda:1 for a second GPU)")
        for name, least, most in (
            ("port", 1, 65_535), ("moshi_port", 1, 65_535), ("conversations", 1, 64), ("waiting", 0, 1000),
            ("conversation_sec", 5, 86_400), ("context", 4, 100_000), ("keep_sec", 10, 86_400),
            ("answer_sec", 5, 86_400),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None:
                check_range(name, value, least, most)
        if not re.fullmatch(r"[!-~]*", self.api_key):
            raise ConfigError(
                "api_key holds a blank, or a character that HTTP cannot carry; use ASCII letters, digits, signs"
            )
        for name in ("ray", "ray_line"):
            value = getattr(self, name)
            if value is not None and not (name == "ray" and value == LOCAL) and not re.fullmatch(r".+:\d{1,5}", value):
                allowed = f"HOST:PORT and {LOCAL} are allowed" if name == "ray" else "HOST:PORT is needed"
                raise ConfigError(f"{name} is {value!r}; {allowed}")
        if (self.ssl_cert is None) != (self.ssl_key is None):
            raise ConfigError("ssl_cert and ssl_key belong together; give both or none")

    @property
    def most_at_once(self) -> int:
        """A bound on the conversations at once, known before any is measured."""
        return self.conversations or MOST_AT_ONCE

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, base: Settings | None = None) -> Settings:
        """``base`` with the changes of ``PERSONAPLEX_*`` variables; ConfigError for an unknown one or a bad value."""
        environ = os.environ if environ is None else environ
        known = {PREFIX + f.name.upper(): f.name for f in fields(cls)}
        values: dict[str, Any] = {}
        for variable, value in environ.items():
            if not variable.startswith(PREFIX):
                continue
            if variable not in known:
                raise ConfigError(f"the environment variable {variable} is not known{nearest_names(variable, known)}")
            if value:
                values[known[variable]] = _parse(known[variable], value, variable)
        return replace(base or cls(), **values)

    @classmethod
    def for_page(cls, flags: Mapping[str, str | bool], environ: Mapping[str, str] | None = None) -> Settings:
        """The page's settings: flags (name → value as typed) before variables before defaults, with the model ``auto``.

        Raises ConfigError for an invalid value.
        """
        values: dict[str, Any] = {
            name: value if isinstance(value, bool) else _parse(name, value, flag_of(name))
            for name, value in flags.items()
        }
        return replace(cls.from_environment(environ, cls(model=AUTO)), **values)


def flag_of(name: str) -> str:
    """ssl_cert → --ssl-cert."""
    return "--" + name.replace("_", "-")


def setting_kind(name: str) -> type:
    """str, int, float, bool or Path, whether or not None is allowed too."""
    hint = typing.get_type_hints(Settings)[name]
    return next((kind for kind in typing.get_args(hint) if kind is not type(None)), hint)


def _parse(name: str, value: str, given_as: str) -> Any:
    kind = setting_kind(name)
    if name == "conversations" and value.lower() == AUTO:
        return None
    if kind is bool:
        if value.lower() not in YES + NO:
            raise ConfigError(f"{given_as} is {value!r}; {', '.join(YES + NO)} are allowed")
        return value.lower() in YES
    if kind is Path:
        try:
            return Path(value).expanduser()
        except RuntimeError:
            raise ConfigError(f"{given_as} is {value!r}; there is no such user's home folder") from None
    try:
        return kind(value)
    except ValueError:
        article = "whole number" if kind is int else "number"
        raise ConfigError(f"{given_as} is {value!r}; a {article} is needed") from None
