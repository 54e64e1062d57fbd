"""The parts of the GPU's benchmark that need no GPU: what it fills, times and keeps."""

import json
import math
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported, here first of all
pytest.importorskip("triton", reason="Triton is not installed (Linux: pip install -r requirements-dev.txt)")

# ruff: noqa: E402
from benchmarks import gpu
from benchmarks.gpu import arguments, fill, frame_times_ms
from benchmarks.kernel_tiles import Tile, _keep, candidates, products, read_tiles
from benchmarks.measuring import percentiles_ms
from personaplex.config import LMConfig
from personaplex.engine.backends.triton_predictor import KernelOptions
from personaplex.engine.engine import Engine
from personaplex.models.language_model import LanguageModel
from personaplex.nn.linear import Linear


def test_every_slot_is_filled(golden):
    engine = Engine(golden.config, golden.lm, golden.mimi, slots=2)
    fill(engine, 30)
    assert engine.state.temporal.position.tolist() == [30, 30]
    assert engine.state.decoder.transformer.position.tolist() == [60, 60]
    assert all(layer.keys.std() > 0.5 for layer in engine.state.temporal.layers)


def test_frames_are_timed(golden, monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    engine = Engine(golden.config, golden.lm, golden.mimi)
    times = frame_times_ms(engine, 5, 3, warm_up=1)
    assert len(times) == 3 and min(times) > 0
    assert engine.state.temporal.position.item() == 5 + 4


def test_percentiles():
    found = percentiles_ms([float(value) for value in range(1001)])
    assert (found["p50_ms"], found["p99_ms"], found["p999_ms"], found["max_ms"]) == (500, 990, 999, 1000)


def test_tiles_are_kept_and_read(tmp_path):
    file = tmp_path / "tiles.json"
    _keep(file, ("int8", 8, 4, True), Tile(1, 2, 3, 4))
    _keep(file, ("int4", 8, 4, False), Tile(5, 6, 7, 8))
    assert read_tiles(file) == {("int8", 8, 4, True): Tile(1, 2, 3, 4), ("int4", 8, 4, False): Tile(5, 6, 7, 8)}


def test_every_product_of_a_frame_is_tuned():
    shapes = {(rows, columns) for rows, columns, _ in products(LMConfig()).values()}
    lm = LanguageModel(LMConfig())
    assert {(m.out_features, m.in_features) for m in lm.modules() if isinstance(m, Linear)} == shapes
    for one_slot in (True, False):
        assert len(set(candidates(one_slot))) > 8


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        arguments(["frame"])
    assert "frames" in capsys.readouterr().err


def test_one_way_that_fails_leaves_the_others_their_figures(golden, tmp_path, monkeypatch):
    """And its options are not those of the next."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    run = gpu.Run(tmp_path, math.inf, KernelOptions(), bandwidth_gb_s=100.0)
    monkeypatch.setattr(run, "model", lambda format: golden)

    def engine(model, *, kernels, graphs):
        if kernels:
            raise RuntimeError("misaligned address")
        return Engine(model.config, model.lm, model.mimi)

    monkeypatch.setattr(run, "engine", engine)
    monkeypatch.setattr(gpu, "FORMATS", gpu.FORMATS[:1])
    monkeypatch.setattr(gpu, "FILLED_FRAMES", (0, 5, 9))
    monkeypatch.setattr(gpu, "FRAMES", 3)
    gpu.frames(run)
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert [line["how"] for line in lines] == ["kernels, graphs", "plain, graphs", "plain, eager"]
    assert "misaligned" in lines[0]["error"] and lines[1]["recorded"] is False and lines[2]["p50_ms"] > 0
