"""The fastest tile for each matrix product of the 7B on this GPU; used by ``python -m benchmarks.gpu tune``.

Weights rotate through several copies, so that none is in the GPU's cache, and launches are replayed
from a CUDA graph, as in a frame.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from personaplex.config import LMConfig, ModelConfig
from personaplex.engine.backends.triton_predictor import KernelOptions, Tile, TritonPredictor, default_tile
from personaplex.machine.inspect import GB
from personaplex.models.language_model import LanguageModel
from personaplex.nn.linear import Linear
from personaplex.nn.packing import PackedWeight, WeightFormat, int4_shapes

DEVICE = "cuda"
ROTATED_BYTES = 300_000_000
"""Several times a GPU's cache."""
GROUP_SIZE = 32
MANY_SLOTS = 16
REPLAYS = 5

Key = tuple[str, int, int, bool]


def products(c: LMConfig) -> dict[str, tuple[int, int, bool]]:
    """Name → rows of the weight, columns, gated; each shape once."""
    dim, hidden, depth, narrow = c.dim, c.feedforward_dim, c.depformer_dim, c.depth_feedforward_dim
    return {
        "in_proj": (3 * dim, dim, False), "out_proj": (dim, dim, False), "linear_in": (2 * hidden, dim, True),
        "linear_out": (dim, hidden, False), "text_linear": (c.text_card, dim, False),
        "depth inputs": (depth, dim, False), "depth in_proj": (3 * depth, depth, False),
        "depth out_proj": (depth, depth, False), "depth linear_in": (2 * narrow, depth, True),
        "depth linear_out": (depth, narrow, False), "depth linears": (c.card, depth, False),
    }  # fmt: skip


def candidates(one_slot: bool) -> list[Tile]:
    if one_slot:
        return [
            Tile(rows, columns, warps, stages)
            for rows, columns, warps in (
                (1, 1024, 4),
                (2, 1024, 4),
                (4, 512, 4),
                (4, 1024, 4),
                (8, 512, 4),
                (8, 1024, 8),
            )
            for stages in (1, 3)
        ]
    return [
        Tile(rows, columns, 4, stages) for rows in (16, 32, 64) for columns in (128, 256) for stages in (3, 5)
    ]  # fmt: skip


class _Fixed(KernelOptions):
    """One tile for everything."""

    _tile: Tile

    def __init__(self, tile: Tile):
        super().__init__()
        object.__setattr__(self, "_tile", tile)

    def tile(self, weight: Linear, gated: bool, one_slot: bool) -> Tile:
        return self._tile


def random_weight(rows: int, columns: int, format: WeightFormat) -> Linear:
    linear = Linear(columns, rows)
    if format is WeightFormat.INT8:
        data = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, device=DEVICE)
        linear.load_packed_(PackedWeight(format, data, torch.full((rows,), 1e-3, device=DEVICE)), DEVICE)
    elif format is WeightFormat.INT4:
        shape, scales = int4_shapes(rows, columns, GROUP_SIZE)
        data = torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE)
        scale = torch.full(scales, 1e-3, dtype=torch.bfloat16, device=DEVICE)
        linear.load_packed_(PackedWeight(format, data, scale, GROUP_SIZE), DEVICE)
    else:
        linear.load_(torch.randn(rows, columns, device=DEVICE) / math.sqrt(columns), format, DEVICE)
    return linear


@torch.inference_mode()
def microseconds(run: TritonPredictor, weights: list[Linear], gated: bool, slots: int) -> float:
    """Time of one product, from graphs of one launch for each copy of the weight."""
    x = torch.randn(slots, weights[0].in_features, dtype=torch.bfloat16, device=DEVICE)

    def work() -> None:
        for weight in weights:
            run.linear(x, weight, gated=gated)

    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(REPLAYS):
        graph.replay()
    end.record()
    end.synchronize()
    return 1000 * start.elapsed_time(end) / REPLAYS / len(weights)


def tune(format: WeightFormat, file: Path, until: float) -> Iterator[dict]:
    """Measure every product's tiles; yields the best of each and keeps them in ``file``."""
    hollow = LanguageModel(ModelConfig.personaplex_7b().lm)
    for table in hollow.temporal.emb:
        table.weight = torch.nn.Parameter(torch.empty(1, device=DEVICE), requires_grad=False)
    for name, (rows, columns, gated) in products(hollow.config).items():
        first = random_weight(rows, columns, format)
        copies = min(max(2, ROTATED_BYTES // first.nbytes), 512)
        weights = [first, *(random_weight(rows, columns, format) for _ in range(copies - 1))]
        for one_slot in (True, False):
            slots, found = 1 if one_slot else MANY_SLOTS, {}
            usual = default_tile(first, gated, one_slot)
            for tile in [usual, *candidates(one_slot)]:
                if time.monotonic() > until:
                    return
                run = TritonPredictor(hollow, slots=slots, context=4, device=DEVICE, options=_Fixed(tile))
                try:
                    found[tile] = microseconds(run, weights, gated, slots)
                except Exception as error:  # a tile too large for the GPU is only no candidate
                    found[tile] = math.inf
                    last = f"{type(error).__name__}: {error}"
            best = min(found, key=found.__getitem__)
            if not math.isfinite(found[best]):
                raise RuntimeError(f"no tile works for {name} as {format.value}: {last}")
            _keep(file, (format.value, rows, columns, one_slot), best)
            yield {
                "product": name, "dtype": format.value, "slots": slots, "rows": rows, "columns": columns,
                "tile": [best.rows, best.columns, best.warps, best.stages], "us": round(found[best], 2),
                "usual_us": round(found[usual], 2), "gb_s": round(first.nbytes / GB / (found[best] / 1e6), 1),
            }  # fmt: skip
        del weights


def _keep(file: Path, key: Key, tile: Tile) -> None:
    tiles = {**(read_tiles(file) if file.exists() else {}), key: tile}
    lines = [[*k, t.rows, t.columns, t.warps, t.stages] for k, t in tiles.items()]
    file.write_text(json.dumps(lines, indent=0) + "\n", encoding="utf-8")


def read_tiles(file: Path) -> dict[Key, Tile]:
    """The tiles that ``tune`` wrote."""
    return {
        (format, rows, columns, one_slot): Tile(*tile)
        for format, rows, columns, one_slot, *tile in json.loads(file.read_text(encoding="utf-8"))
    }
