"""Cost of a model: bytes read in a frame, memory, conversations at once."""

from __future__ import annotations

from personaplex.config import (
    AUTO_CACHE,
    NUM_AGENT_CODEBOOKS,
    LMConfig,
    ModelConfig,
    bytes_per_weight,
    cache_frame_bytes,
)
from personaplex.machine.inspect import GB

BUDGET_MS = 1000 * ModelConfig().mimi.frame_sec
"""A frame must be ready in the time it lasts."""

REAL_TIME_SHARE = 0.8  # of the budget; the rest is the codec and the unexpected
_OVERHEAD_BYTES = 10**9  # the interpreter, PyTorch, buffers


def weights_per_frame(config: LMConfig) -> int:
    """Weights that one frame reads: all of the temporal transformer, the 8 depth steps that matter."""
    temporal = config.num_layers * (4 * config.dim**2 + 3 * config.feedforward_dim * config.dim)
    depth_layer = 4 * config.depformer_dim**2 + 3 * config.depth_feedforward_dim * config.depformer_dim
    depth_step = config.depformer_num_layers * depth_layer + config.depformer_dim * (config.dim + config.card)
    return temporal + config.dim * config.text_card + NUM_AGENT_CODEBOOKS * depth_step


def embedding_weights(config: LMConfig) -> int:
    """Weights that are looked up, not multiplied with; they stay in bfloat16."""
    text, audio = config.text_card + 1, config.card + 1
    temporal = config.dim * (text + config.n_q * audio)
    return temporal + config.depformer_dim * (text + (config.dep_q - 1) * audio)


def cache_bytes(config: LMConfig, context_frames: int | None = None, kv_cache: str = AUTO_CACHE) -> int:
    """Keys and values of a full cache."""
    frames = config.context if context_frames is None else context_frames
    return frames * cache_frame_bytes(config, kv_cache)


def frame_bytes(config: LMConfig, format: str, context_frames: int | None = None, kv_cache: str = AUTO_CACHE) -> float:
    """Memory one frame reads, with the cache half full."""
    return weights_per_frame(config) * bytes_per_weight(format) + cache_bytes(config, context_frames, kv_cache) / 2


def memory_needed_bytes(
    config: ModelConfig, format: str, context_frames: int | None = None, kv_cache: str = AUTO_CACHE
) -> float:
    """Weights, embeddings, a full cache, the codec and the program itself."""
    matrices = weights_per_frame(config.lm) * bytes_per_weight(format)
    cache = cache_bytes(config.lm, context_frames, kv_cache)
    return matrices + 2 * embedding_weights(config.lm) + cache + _OVERHEAD_BYTES


def conversations_that_fit(
    config: ModelConfig, format: str, free_bytes: float, context_frames: int | None = None, kv_cache: str = AUTO_CACHE
) -> int:
    """How many full caches the memory holds beside the weights."""
    cache = cache_bytes(config.lm, context_frames, kv_cache)
    room = free_bytes - (memory_needed_bytes(config, format, context_frames, kv_cache) - cache)
    return max(0, int(room // cache))


def conversations_at_once(
    config: ModelConfig, format: str, free_bytes: float, bandwidth_gb_s: float, context_frames: int | None = None,
    kv_cache: str = AUTO_CACHE,
) -> int:  # fmt: skip
    """How many fit into the memory and, with weights read once for all and every cache full, into a frame's time."""
    readable = REAL_TIME_SHARE * BUDGET_MS / 1000 * bandwidth_gb_s * GB
    readable -= weights_per_frame(config.lm) * bytes_per_weight(format)
    in_time = max(0, int(readable // cache_bytes(config.lm, context_frames, kv_cache)))
    return min(in_time, conversations_that_fit(config, format, free_bytes, context_frames, kv_cache))
