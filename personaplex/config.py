"""Configuration of a model: frozen, strict dataclasses of the codec, the language model and the prompt.

The defaults are the published 7B model's values, so an empty ``config.json`` describes it.
Unknown keys and wrong types fail with the nearest allowed name.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from personaplex.errors import ConfigError
from personaplex.moshi_config import in_sections, is_flat
from personaplex.strict import check_range, strict_dataclass

NANO = "nano"
"""Name of the small model that ships with the program, and of its family of voices and personas."""

PUBLISHED = "nvidia/personaplex-7b-v1"
"""Hub id of the published model."""

PERSONA_WINDOW, PUBLISHED_WINDOW = WINDOWS = ("persona", "published")
"""Frames that a full cache drops: the conversation's oldest but never the prompt, or the oldest of all."""


def checked_window(window: str) -> str:
    """``window`` itself; raises ConfigError if it is not one of ``WINDOWS``."""
    if window not in WINDOWS:
        raise ConfigError(f"window is {window!r}; {' and '.join(WINDOWS)} are allowed")
    return window


AUTO_CACHE, INT8_CACHE = KV_CACHES = ("auto", "int8")
"""Types of the language model's keys and values: that of its activations, or int8 with a scale a head and frame."""


def checked_kv_cache(kv_cache: str) -> str:
    """``kv_cache`` itself; raises ConfigError if it is not one of ``KV_CACHES``."""
    if kv_cache not in KV_CACHES:
        raise ConfigError(f"kv_cache is {kv_cache!r}; {' and '.join(KV_CACHES)} are allowed")
    return kv_cache


MOST_TOLD_TOKENS = 200
"""Text tokens that a conversation can be told while it lasts, tags included: each takes a frame of its memory."""

NUM_AGENT_CODEBOOKS = 8
"""Codebooks of one speaker's frame in the token columns (Mimi codes 0..7)."""

TEXT = slice(0, 1)
AGENT = slice(1, 9)
USER = slice(9, 17)
"""Rows of a 17-token column, by stream."""

END_OF_PADDING_ID = 0
"""Text token that announces: the next frame begins a word."""


@dataclass(frozen=True)
class CodecTransformerConfig:
    """The causal transformers beside the codec's convolutions (25 Hz)."""

    d_model: int = 512
    num_heads: int = 8
    num_layers: int = 8
    dim_feedforward: int = 2048
    context: int = 250
    max_period: int = 10_000

    def __post_init__(self) -> None:
        _check_sizes("mimi.transformer", self)


MOST_LAYERS, MOST_CONTEXT, LARGEST_SIZE = 256, 100_000, 1 << 22


def _check_sizes(where: str, config: Any) -> None:
    """Check every integer field but token ids, which have checks of their own, against the largest that is allowed."""
    most = {"num_layers": MOST_LAYERS, "depformer_num_layers": MOST_LAYERS, "context": MOST_CONTEXT}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if type(value) is int and not entry.name.endswith("_id"):
            check_range(f"{where}.{entry.name}", value, 1, most.get(entry.name, LARGEST_SIZE))


def _check_heads(name: str, heads: int, width: int, *, rotated: bool = True) -> None:
    """``rotated``: positions turn pairs of a head's numbers."""
    if heads < 1 or width % heads or (rotated and (width // heads) % 2):
        raise ConfigError(f"{name} is {heads}; it must divide {width} into heads{' of even size' if rotated else ''}")


@dataclass(frozen=True)
class MimiConfig:
    """The Mimi codec (SEANet + transformers + split residual quantiser)."""

    sample_rate: int = 24_000
    frame_rate: float = 12.5
    num_codebooks: int = 8  # used
    num_codebooks_stored: int = 32
    codebook_size: int = 2048
    codebook_dim: int = 256
    dimension: int = 512
    n_filters: int = 64
    ratios: tuple[int, ...] = (8, 6, 5, 4)  # of the decoder; the encoder runs them backwards
    kernel_size: int = 7
    residual_kernel_size: int = 3
    last_kernel_size: int = 3
    compress: int = 2
    transformer: CodecTransformerConfig = field(default_factory=CodecTransformerConfig)

    def __post_init__(self) -> None:
        _check_sizes("mimi", self)
        check_range("mimi.frame_rate", self.frame_rate, 0.1, 1000)
        for ratio in self.ratios:
            check_range("mimi.ratios", ratio, 1, 1000)
        frame = Fraction(self.sample_rate) / Fraction(self.frame_rate)
        hop = self.resample_stride
        for ratio in self.ratios:
            hop *= ratio
        if frame.denominator != 1 or frame != hop:
            raise ConfigError(
                f"mimi.ratios {list(self.ratios)} times {self.resample_stride} give {hop} samples a frame, "
                f"but sample_rate / frame_rate is {frame}; they must be equal"
            )
        if not 1 <= self.num_codebooks <= self.num_codebooks_stored:
            raise ConfigError("mimi.num_codebooks must be between 1 and mimi.num_codebooks_stored")
        if self.transformer.d_model != self.dimension:
            raise ConfigError("mimi.transformer.d_model must equal mimi.dimension")
        _check_heads("mimi.transformer.num_heads", self.transformer.num_heads, self.transformer.d_model)

    @property
    def resample_stride(self) -> int:
        """Steps of the codec's transformers in one frame."""
        return 2

    @property
    def frame_samples(self) -> int:
        """Samples of one frame of speech."""
        return int(Fraction(self.sample_rate) / Fraction(self.frame_rate))

    @property
    def frame_sec(self) -> float:
        return 1 / self.frame_rate


@dataclass(frozen=True)
class LMConfig:
    """The language model: temporal transformer over frames, depth transformer within one."""

    dim: int = 4096
    num_heads: int = 32
    num_layers: int = 32
    hidden_scale: float = 4.125
    context: int = 3000
    max_period: int = 10_000
    text_card: int = 32_000
    existing_text_padding_id: int = 3
    card: int = 2048
    n_q: int = 16
    dep_q: int = 16
    delays: tuple[int, ...] = (0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1)
    depformer_dim: int = 1024
    depformer_num_heads: int = 16
    depformer_num_layers: int = 6
    depformer_dim_feedforward: int = int(4.125 * 1024)

    def __post_init__(self) -> None:
        _check_sizes("lm", self)
        check_range("lm.hidden_scale", self.hidden_scale, 0.01, 100)
        check_range("lm.existing_text_padding_id", self.existing_text_padding_id, 0, self.text_card - 1)
        if self.n_q != 2 * NUM_AGENT_CODEBOOKS:
            raise ConfigError(f"lm.n_q is {self.n_q}; only 16 audio streams (8 agent, 8 user) are supported")
        if self.dep_q not in (NUM_AGENT_CODEBOOKS, self.n_q):
            raise ConfigError(f"lm.dep_q is {self.dep_q}; allowed: {NUM_AGENT_CODEBOOKS} or {self.n_q}")
        if len(self.delays) != self.n_q + 1:
            raise ConfigError(f"lm.delays has {len(self.delays)} entries; {self.n_q + 1} are needed, one a stream")
        if any(d not in (0, 1) for d in self.delays) or self.delays[0] != 0:
            raise ConfigError("lm.delays must be 0 or 1 frames, 0 for the text stream")
        _check_heads("lm.num_heads", self.num_heads, self.dim)
        _check_heads("lm.depformer_num_heads", self.depformer_num_heads, self.depformer_dim, rotated=False)
        if self.context < 4:
            raise ConfigError(f"lm.context is {self.context} frames; at least 4 are needed")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def feedforward_dim(self) -> int:
        """Width of the temporal gated feed-forward: 2/3 of ``hidden_scale · dim``."""
        return 2 * int(self.hidden_scale * self.dim) // 3

    @property
    def depth_feedforward_dim(self) -> int:
        return 2 * self.depformer_dim_feedforward // 3

    @property
    def num_streams(self) -> int:
        """Rows of a token column: text, 8 agent codes, 8 user codes."""
        return self.n_q + 1

    @property
    def initial_text_id(self) -> int:
        return self.text_card

    @property
    def initial_audio_id(self) -> int:
        return self.card

    @property
    def max_delay(self) -> int:
        return max(self.delays)

    @property
    def ring_columns(self) -> int:
        """Token columns that a conversation keeps, as the published voice files hold them."""
        return self.max_delay + 3


@dataclass(frozen=True)
class PromptConfig:
    """Constants of the hybrid prompt."""

    silence_codes: tuple[int, ...] = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
    sine_codes: tuple[int, ...] = (430, 1268, 381, 1611, 1095, 1495, 56, 472)
    silence_sec: float = 0.5
    voice_lufs: float = -24.0
    max_voice_sec: float = 60.0  # of a recording that the model listens to, from its beginning
    max_text_tokens: int = 200

    def __post_init__(self) -> None:
        for name in ("silence_codes", "sine_codes"):
            if len(getattr(self, name)) != NUM_AGENT_CODEBOOKS:
                raise ConfigError(f"prompt.{name} must list {NUM_AGENT_CODEBOOKS} codes")
        check_range("prompt.silence_sec", self.silence_sec, 0, 60)
        check_range("prompt.voice_lufs", self.voice_lufs, -70, 0)
        check_range("prompt.max_voice_sec", self.max_voice_sec, 1, 60)
        check_range("prompt.max_text_tokens", self.max_text_tokens, 0, MOST_CONTEXT)


@dataclass(frozen=True)
class FilesConfig:
    """File names inside a model's folder."""

    lm: str = "model.safetensors"
    mimi: str = "tokenizer-e351c8d8-checkpoint125.safetensors"
    tokenizer: str = "tokenizer_spm_32k_3.model"
    voices: str = "voices.tgz"

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            name = getattr(self, entry.name)
            if not is_file_name(name):
                raise ConfigError(f"files.{entry.name} is {name!r}; the name of a file in the model's folder is needed")


def is_file_name(name: str) -> bool:
    """Whether ``name`` is that of a file in a folder, on any system: not a path, not a pattern."""
    return bool(name) and name not in (".", "..") and not set(name) & set('/\\:*?[]<>|"\0')


@dataclass(frozen=True)
class QuantizationConfig:
    """Storage format of the language model's linear weights in the file, if not plain floats."""

    format: str
    group_size: int = 0

    def __post_init__(self) -> None:
        if self.format not in ("int8", "int4"):
            raise ConfigError(f"quantization.format is {self.format!r}; allowed: int8, int4")


def bytes_per_weight(format: str, group_size: int = 32) -> float:
    """Bytes of one number of a weight matrix; int4 keeps a scale and an offset in bfloat16 for each group."""
    return {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5 + 4 / group_size}[format]


CACHE_SCALE_BYTES = 4
"""Of the scale behind each int8 key and value: a float32."""


def cache_frame_bytes(config: LMConfig, kv_cache: str = AUTO_CACHE, float_bytes: int = 2) -> int:
    """Bytes of a frame's keys and values; ``float_bytes``: of a number of the activations."""
    row = config.head_dim + CACHE_SCALE_BYTES if kv_cache == INT8_CACHE else config.head_dim * float_bytes
    return 2 * config.num_layers * config.num_heads * row


@dataclass(frozen=True)
class ModelConfig:
    """A whole model."""

    model_type: str = "personaplex"
    name: str = "personaplex-7b-v1"
    lm: LMConfig = field(default_factory=LMConfig)
    mimi: MimiConfig = field(default_factory=MimiConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    files: FilesConfig = field(default_factory=FilesConfig)
    quantization: QuantizationConfig | None = None

    def __post_init__(self) -> None:
        if self.lm.card != self.mimi.codebook_size:
            raise ConfigError(f"lm.card {self.lm.card} must equal mimi.codebook_size {self.mimi.codebook_size}")
        if self.mimi.num_codebooks != NUM_AGENT_CODEBOOKS:
            raise ConfigError(f"mimi.num_codebooks must be {NUM_AGENT_CODEBOOKS}")

    def check_prompt(self) -> None:
        """Raises ConfigError if a prompt's code is outside the codec's range; a codec alone has no such codes."""
        for name in ("silence_codes", "sine_codes"):
            for code in getattr(self.prompt, name):
                check_range(f"prompt.{name}", code, 0, self.lm.card - 1)

    @classmethod
    def personaplex_7b(cls) -> ModelConfig:
        """The published ``nvidia/personaplex-7b-v1``."""
        return cls()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """Build from a parsed ``config.json``; raises ConfigError on anything unknown.

        A file without our sections is a Moshi language model's flat one (``moshi_config.py``), or describes no
        architecture at all: then it is the 7B.
        """
        sections = {f.name for f in dataclasses.fields(cls)} - {"model_type", "name"}
        if sections & data.keys():
            return strict_dataclass(cls, data)
        defaults = {f.name: f.default for f in dataclasses.fields(LMConfig)}
        return strict_dataclass(cls, in_sections(data, defaults)) if is_flat(data, defaults) else cls.personaplex_7b()

    @classmethod
    def from_json(cls, path: str | Path) -> ModelConfig:
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read as a model's config.json: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path} holds a {type(data).__name__}; a JSON object is needed")
        return cls.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """The dictionary ``from_dict`` reads back, without absent sections."""
        data = dataclasses.asdict(self)
        return {key: value for key, value in data.items() if value is not None}
