"""A model's config.json, which comes from outside: whatever is impossible is said so before anything is built."""

import copy
import json
from pathlib import Path

import pytest

from personaplex.config import ModelConfig, is_file_name
from personaplex.errors import ConfigError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "config.json").read_text())


def changed(path: str, value: object) -> dict:
    data = copy.deepcopy(GOLDEN)
    *parents, last = path.split(".")
    inner = data
    for name in parents:
        inner = inner.setdefault(name, {})
    inner[last] = value
    return data


def test_the_golden_one_is_possible():
    assert ModelConfig.from_dict(GOLDEN).lm.card == GOLDEN["lm"]["card"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("mimi.transformer.context", 0), ("mimi.transformer.num_layers", 10**7), ("lm.num_layers", 10**7),
        ("lm.num_layers", 0), ("lm.context", 10**9), ("mimi.frame_rate", 0), ("mimi.frame_rate", float("nan")),
        ("mimi.frame_rate", float("inf")), ("lm.hidden_scale", float("nan")), ("lm.hidden_scale", 1e308),
        ("mimi.compress", 0), ("lm.max_period", 0), ("lm.text_card", -5), ("mimi.ratios", [0, 6, 5, 4]),
        ("prompt.silence_codes", [10**6] * 8), ("prompt.sine_codes", [-1] * 8), ("prompt.silence_sec", -1),
        ("prompt.silence_sec", float("nan")), ("prompt.silence_sec", 1e300), ("lm.existing_text_padding_id", 10**6),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be(path, value):
    with pytest.raises(ConfigError, match=path.split(".")[-1]) as caught:
        ModelConfig.from_dict(changed(path, value)).check_prompt()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", ".", "..", "/etc/passwd", "../model.safetensors", "a\\b", "C:x", "*", "a\0b"])
def test_files_lie_in_the_models_folder(name):
    assert not is_file_name(name)
    with pytest.raises(ConfigError, match="the name of a file in the model's folder"):
        ModelConfig.from_dict(changed("files.lm", name))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"lm": {"dim": ' + "1" * 5000 + "}}", "{", "\udcff", "[]"])
def test_no_config_at_all(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ConfigError, match=r"config\.json"):
        ModelConfig.from_json(path)


# --- a flat config.json, as Kyutai publishes it

FLAT = {
    "dim": 4096, "text_card": 32000, "existing_text_padding_id": 3, "n_q": 16, "dep_q": 16, "card": 2048,
    "num_heads": 32, "num_layers": 32, "hidden_scale": 4.125, "causal": True, "layer_scale": None, "context": 3000,
    "max_period": 10000, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope",
    "depformer_dim": 1024, "depformer_dim_feedforward": None, "depformer_num_heads": 16, "depformer_num_layers": 6,
    "depformer_layer_scale": None, "depformer_multi_linear": True, "depformer_context": 8,
    "depformer_gating": "silu", "depformer_pos_emb": "none", "depformer_weights_per_step": True,
    "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1], "conditioners": {}, "model_id": {"sig": "ab12"},
    "mimi_name": "tokenizer-e351c8d8-checkpoint125.safetensors", "moshi_name": None,
}  # fmt: skip


def test_a_flat_config_of_the_7b_is_the_7b():
    assert ModelConfig.from_dict(FLAT) == ModelConfig.personaplex_7b()
    nothing_said = dict.fromkeys(FLAT)
    assert ModelConfig.from_dict(nothing_said) == ModelConfig.personaplex_7b()


def test_a_flat_config_may_describe_another_size():
    small = ModelConfig.from_dict(
        FLAT | {"dim": 512, "num_heads": 8, "dep_q": 8, "hidden_scale": 4, "moshi_name": "x.safetensors"}
    )
    assert (small.lm.dim, small.lm.head_dim, small.lm.dep_q, small.lm.depformer_dim_feedforward) == (512, 64, 8, 4096)
    assert small.files.lm == "x.safetensors"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("causal", False, "causal is False; only True"), ("norm", "layer_norm", "norm is 'layer_norm'; only 'rms"),
        ("layer_scale", 0.01, "layer_scale is 0.01; only None"), ("depformer_pos_emb", "sin", "only 'none'"),
        ("n_q", 8, "n_q is 8; only 16"), ("dim", "4096", "lm.dim is '4096'; int"), ("num_heads", 33, "must divide"),
        ("hidden_scale", "big", "lm.hidden_scale is 'big'; float"), ("delays", 1, "a list is needed"),
        ("moshi_name", "hf://a/b", "the name of a file"), ("text_card", 0, "lm.text_card is 0"),
    ],
)  # fmt: skip
def test_a_flat_config_that_is_not_supported_says_why(key, value, said):
    with pytest.raises(ConfigError, match=said) as caught:
        ModelConfig.from_dict(FLAT | {key: value})
    assert "\n" not in str(caught.value)
