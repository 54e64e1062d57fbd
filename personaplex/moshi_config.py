"""The flat ``config.json`` of a Moshi language model, as Kyutai publishes it: ``dim``, ``num_layers``, ``dep_q`` …

PersonaPlex has Moshi's architecture, so such a file describes a PersonaPlex model if it agrees with what is fixed
here. A null, or a key that is not there, means the published 7B's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from personaplex.errors import ConfigError

FIXED: Mapping[str, object] = {
    "causal": True, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope", "layer_scale": None,
    "cross_attention": False, "demux_second_stream": False,
    "depformer_gating": "silu", "depformer_pos_emb": "none", "depformer_multi_linear": True,
    "depformer_weights_per_step": True, "depformer_layer_scale": None, "depformer_causal": True,
}  # fmt: skip
"""Keys of the architecture for which one value is supported."""

FILE_KEYS = {"moshi_name": "lm", "mimi_name": "mimi", "tokenizer_name": "tokenizer"}
"""Keys that name the model's files → ours."""


def is_flat(data: Mapping[str, Any], lm_defaults: Mapping[str, Any]) -> bool:
    """Whether a parsed ``config.json`` without sections describes a Moshi language model."""
    return bool((lm_defaults.keys() | FIXED.keys() | FILE_KEYS.keys()) & data.keys())


def in_sections(data: Mapping[str, Any], lm_defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The same values in the sections of our own ``config.json``; other keys are left out.

    ``lm_defaults``: the section ``lm`` of the 7B. Raises ConfigError for an architecture that is not supported.
    """
    given = {key: value for key, value in data.items() if value is not None}
    for key, needed in FIXED.items():
        if key in given and given[key] != needed:
            raise ConfigError(f"{key} is {given[key]!r}; only {needed!r} is supported, as in the published 7B")
    lm = {key: given[key] for key in lm_defaults if key in given}
    scale, width = (lm.get(key, lm_defaults[key]) for key in ("hidden_scale", "depformer_dim"))
    if "depformer_dim_feedforward" not in lm and isinstance(scale, (int, float)) and isinstance(width, int):
        lm["depformer_dim_feedforward"] = int(scale * width)
    return {"lm": lm, "files": {ours: given[key] for key, ours in FILE_KEYS.items() if key in given}}
