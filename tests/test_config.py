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
