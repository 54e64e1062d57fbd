"""Keys and values as int8: what a row keeps, and that everything that handles a cache handles them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import GOLDEN_FOLDER, GOLDEN_TEXT

from personaplex.config import KV_CACHES, LMConfig, ModelConfig
from personaplex.engine.engine import Engine
from personaplex.errors import ConfigError, InputError
from personaplex.machine.cost import cache_bytes, conversations_that_fit, memory_needed_bytes
from personaplex.messages import SamplingOptions
from personaplex.nn.attention import TransformerState, attend_chunk, attend_step
from personaplex.nn.cache_rows import loaded, row_width, stored
from personaplex.session.session import Session
from personaplex.settings import Settings
from personaplex.weights.load import load_model

HEADS, WIDTH, CAPACITY = 2, 4, 6
INT8 = torch.int8


@pytest.fixture(scope="module")
def small(golden):
    """The golden model with a cache of int8."""
    return replace(golden, kv_cache="int8")


# --- rows


def test_a_row_is_as_near_as_127_steps_of_its_largest_number_allow():
    x = torch.randn(3, 2, 5, 64, generator=torch.Generator().manual_seed(1)) * torch.logspace(-20, 20, 5)[:, None]
    rows = stored(x, INT8)
    assert rows.shape == (3, 2, 5, row_width(64, INT8)) == (3, 2, 5, 68)
    step = x.abs().amax(-1, keepdim=True) / 127
    assert ((loaded(rows, torch.float32) - x).abs() <= 0.501 * step).all()
    assert torch.equal(stored(loaded(rows, torch.float32), INT8)[..., :64], rows[..., :64])


def test_nothing_stays_nothing_and_a_lost_number_is_lost():
    x = torch.zeros(3, 8)
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    back = loaded(stored(x, INT8), torch.bfloat16)
    assert back.dtype is torch.bfloat16 and not back[0].any() and back[1:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floats_are_rows_as_they_are(dtype):
    x = torch.randn(4, 8)
    assert torch.equal(stored(x, dtype), x.to(dtype)) and row_width(8, dtype) == 8
    assert torch.equal(loaded(x.to(dtype), torch.float32), x.to(dtype).float())


# --- attention


@pytest.mark.parametrize("chunks", [(6, 6, 4), (2, 4, 6, 4)])
def test_chunks_equal_steps_in_answer_and_in_cache(chunks):
    """A step of a chunk must meet the others as they are kept, not as they came."""
    qkv = torch.randn(3, 1, HEADS, sum(chunks), WIDTH, generator=torch.Generator().manual_seed(2))
    stepped, chunked = (TransformerState.empty(1, 1, HEADS, CAPACITY, WIDTH, INT8, "cpu") for _ in range(2))
    on, found, wanted, start = torch.ones(1, dtype=torch.bool), [], [], 0
    for size in chunks:
        part = qkv[..., start : start + size, :]
        found.append(attend_chunk(*part, chunked.layers[0], chunked.position, on, 1))
        chunked.advance(size, on)
        start += size
    for at in range(start):
        part = qkv[..., at : at + 1, :]
        wanted.append(attend_step(*part, stepped.layers[0], stepped.position, on, CAPACITY))
        stepped.advance(1, on)
    torch.testing.assert_close(torch.cat(found, 2), torch.cat(wanted, 2))
    assert torch.equal(stepped.layers[0].keys, chunked.layers[0].keys)


# --- conversations


def heard(seed, frames=12):
    return (np.random.default_rng(seed).normal(size=(frames, 1920)) * 0.2).astype(np.float32)


def test_the_state_of_an_engine_is_smaller_and_so_is_a_snapshot(golden, small):
    plain, packed = (
        Engine(model.config, model.lm, model.mimi, cache_dtype=model.cache_dtype) for model in (golden, small)
    )
    head = golden.config.lm.head_dim
    for left, right in zip(plain.state.temporal.layers, packed.state.temporal.layers, strict=True):
        assert right.keys.nbytes / left.keys.nbytes == (head + 4) / (4 * head)
    with pytest.raises(InputError, match="temporal.layers.0.keys is torch.float32.*this engine holds torch.int8"):
        packed.load(0, plain.export(0))


def test_a_snapshot_goes_on_bit_identically_and_belongs_to_its_cache(golden, small, tmp_path):
    session = Session(small, slots=2, window="published", snapshot_folder=tmp_path)
    prompt = session.prepare(voice=None, text=GOLDEN_TEXT)
    assert prompt.tensors["temporal.layers.0.keys"].dtype is INT8
    first, second = (session.start(prompt, SamplingOptions(seed=3)) for _ in range(2))
    for frame in heard(1):
        left, right = first.step(frame), second.step(frame)
        assert np.array_equal(left.tokens, right.tokens) and np.array_equal(left.pcm, right.pcm)
    again = Session(small, window="published", snapshot_folder=tmp_path)
    assert again.model_key == session.model_key != Session(golden, window="published").model_key
    kept = again.prepare(voice=None, text=GOLDEN_TEXT)
    assert all(torch.equal(kept.tensors[name], prompt.tensors[name]) for name in prompt.tensors)


# --- the choice, and what it costs


def test_the_type_of_the_cache_is_chosen_where_a_model_is_loaded():
    assert load_model(GOLDEN_FOLDER, device="cpu", kv_cache="int8").cache_dtype is INT8
    assert load_model(GOLDEN_FOLDER, device="cpu", format="bfloat16").cache_dtype is torch.bfloat16
    with pytest.raises(ConfigError, match="kv_cache is 'int4'; auto and int8 are allowed"):
        load_model(GOLDEN_FOLDER, device="cpu", kv_cache="int4")
    with pytest.raises(ConfigError, match="auto and int8"):
        Settings(kv_cache="fp8")
    assert Settings.for_page({"kv-cache".replace("-", "_"): "int8"}, {}).kv_cache == "int8"


def test_an_h200_holds_128_conversations_of_full_length():
    config = ModelConfig.personaplex_7b()
    assert cache_bytes(config.lm, 1, "int8") == 2 * 32 * 32 * (128 + 4)
    assert cache_bytes(config.lm, kv_cache="int8") / cache_bytes(LMConfig()) == pytest.approx(0.516, abs=0.001)
    fits = {kv_cache: conversations_that_fit(config, "bfloat16", 141e9, kv_cache=kv_cache) for kv_cache in KV_CACHES}
    assert fits["auto"] < 128 <= fits["int8"]
    for kv_cache, count in fits.items():
        needed = memory_needed_bytes(config, "bfloat16", kv_cache=kv_cache)
        cache = cache_bytes(config.lm, kv_cache=kv_cache)
        assert needed + (count - 1) * cache <= 141e9 < needed + count * cache
