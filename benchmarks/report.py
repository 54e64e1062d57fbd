"""Writes the newest figures into ``docs/performance.md`` and draws its plots.

    python -m benchmarks.report
    python -m benchmarks.report --check    # fails if the tables are not those of the figures

The figures are the JSON lines in ``benchmarks/results/*.jsonl``, each as a benchmark printed it
(``python -m benchmarks.frame … >> benchmarks/results/frame.jsonl``); of lines that measured the same, the last counts.
Tables stand in the page between ``<!-- NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path

from benchmarks.measuring import ROOT
from benchmarks.plots import draw_frames, draw_peer, where
from personaplex.config import AUTO_CACHE, KV_CACHES, ModelConfig
from personaplex.machine.cost import cache_bytes, conversations_that_fit

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

WHAT_WAS_MEASURED = (
    "benchmark", "model", "dtype", "group_size", "kv_cache", "predictor", "slots", "context", "filled", "prompt_frames",
    "opened", "layers", "processor", "gpu", "device", "threads",
)  # fmt: skip
"""Lines that agree in these measured the same."""

FORMAT_ORDER = ("float32", "bfloat16", "int8", "int4")


def newest(lines: Iterable[dict]) -> list[dict]:
    """The last line of each thing that was measured, in an order for reading."""
    lines = [{"kv_cache": AUTO_CACHE, **line} for line in lines]  # those that were measured before there was another
    found = {(*(str(line.get(key)) for key in WHAT_WAS_MEASURED), *line.get("ours", ())): line for line in lines}
    return sorted(found.values(), key=_reading_order)


def _reading_order(line: dict) -> tuple:
    dtype = line.get("dtype")
    return (
        str(line["gpu"] or ""),
        str(line.get("processor", "")),
        line.get("model", ""),  # of recognisers there is none
        line.get("slots", 1),
        FORMAT_ORDER.index(dtype) if dtype in FORMAT_ORDER else 0,
        line.get("group_size") or 0,
        line.get("filled", 0),
        line.get("opened", ""),
    )


def read_results(folder: Path = RESULTS) -> dict[str, list[dict]]:
    """Benchmark → its newest lines."""
    lines = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    names = {line["benchmark"] for line in lines}
    return {name: newest(line for line in lines if line["benchmark"] == name) for name in sorted(names)}


# ---------------------------------------------------------------------------------- tables


Columns = Mapping[str, Callable[[dict], object]]
"""Heading → a line's cell."""


def table(columns: Columns, lines: Iterable[dict]) -> str:
    """A Markdown table with a row for each line."""
    rows = ([cell(line) for cell in columns.values()] for line in lines)
    made = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join(made + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


def _format(line: dict) -> str:
    size, kv_cache = line.get("group_size"), line.get("kv_cache", AUTO_CACHE)
    cache = "" if kv_cache == AUTO_CACHE else f", cache {kv_cache}"
    return (f"{line['dtype']}, groups of {size}" if size else line["dtype"]) + cache


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _p50(stage: str) -> Callable[[dict], str]:
    return lambda line: _ms(line[stage]["p50_ms"])


def _p50_sec(stage: str) -> Callable[[dict], str]:
    return lambda line: f"{line[stage]['p50_ms'] / 1000:.2f}"


ON: Columns = {"on": where}
WHAT: Columns = {"model": itemgetter("model"), "format": _format, **ON}
STAGES: Columns = {"encode": _p50("encode"), "language model": _p50("language_model"), "decode": _p50("decode")}
OTHERS: Columns = {"cores kept busy by others": itemgetter("other_cores")}
"""Meanwhile: above a tenth or so, times are in doubt where all cores were used."""

FRAME: Columns = {
    **WHAT,
    "slots": itemgetter("slots"),
    "cache filled": lambda line: f"{line['filled']} of {line['context']}",
    "frame p50 / p99 / max, ms": lambda line: " / ".join(
        map(_ms, itemgetter("p50_ms", "p99_ms", "max_ms")(line["frame"]))
    ),
    **STAGES,
    "read a frame, GB": lambda line: f"{line['frame']['bytes'] / 1e9:.2f}",
    "floor, ms": lambda line: f"{_ms(line['frame']['floor_ms'])} at {line['bandwidth_gb_s']:.1f} GB/s",
    "share of the floor: language model, frame": lambda line: ", ".join(
        f"{line[stage]['share_of_floor']:.0%}" for stage in ("language_model", "frame")
    ),
    "peak memory, GB": lambda line: line.get("peak_cuda_gb", line["peak_rss_gb"]),
    **OTHERS,
}

PROMPT: Columns = {
    **WHAT,
    "frames of prompt": itemgetter("prompt_frames"),
    "cold, s": _p50_sec("cold"),
    "of which the prompt, s": _p50_sec("prepare"),
    "from a snapshot, ms": _p50("snapshot"),
    "then the first frame, ms": _p50("first_frame"),
}

PEER: Columns = {
    "machine": where,
    "who": itemgetter("who"),
    "cache": itemgetter("cache"),
    **STAGES,
    "frame, ms": _p50("frame"),
    "times as fast": itemgetter("ratio"),
    "memory, GB": itemgetter("peak_rss_gb"),
    **OTHERS,
}


def _peer_rows(line: dict) -> Iterator[dict]:
    """One row for the authors' code, then one for each of our formats and cache fills."""
    peer = line["peer"]
    who = f"moshi {peer['versions']['moshi']}, {peer['dtype']}"
    yield {**line, **peer, "language_model": peer["lm"], "who": who, "cache": "any", "ratio": 1}
    for key, ours in line["ours"].items():
        dtype, filled = key.split()
        stages = {stage: {"p50_ms": ours[stage]} for stage in ("encode", "language_model", "decode", "frame")}
        about = {"who": f"this engine, {dtype}", "cache": filled, "ratio": line["ratio"][key]}
        yield {**line, **stages, **about, "peak_rss_gb": ours["peak_rss_gb"]}


def _drift(stream: str, cell: Callable[[dict], str]) -> Callable[[dict], str]:
    return lambda line: cell(line[stream])


def _difference(found: dict) -> str:
    return f"{found['max']:.3g}, {found['mean']:.2g}"


def _kl(found: dict) -> str:
    return f"{found['kl_mean']:.1g}"


def _agreement(found: dict) -> str:
    return f"{found['greedy_agreement']:.1%}"


QUALITY: Columns = {
    **WHAT,
    "text logits: largest, mean difference": _drift("text", _difference),
    "text KL, mean": _drift("text", _kl),
    "same text token": _drift("text", _agreement),
    "audio logits": _drift("audio", _difference),
    "audio KL, mean": _drift("audio", _kl),
    "same audio token": _drift("audio", _agreement),
    "against itself": lambda line: f"{line['against_itself_max']:g}",
}


def _quality_rows(line: dict) -> Iterator[dict]:
    """A row for each format."""
    for row in line["formats"]:
        yield {**line, **row, "model": f"{line['model']} ({line['frames']} frames)"}


def _packing(line: dict) -> str:
    return f"{line['packing_sec']} ({line['packing_peak_rss_gb']})" if "packing_sec" in line else ""


FOOTPRINT: Columns = {
    "format": itemgetter("dtype"),
    **ON,
    "opened from": itemgetter("opened"),
    "cache, frames": itemgetter("context"),
    "peak memory, GB": itemgetter("peak_rss_gb"),
    "ms a frame": itemgetter("frame_ms"),
    "opening and prompt, s": itemgetter("before_answer_sec"),
    "packing, s (peak GB)": _packing,
    "copy, GB": lambda line: line.get("packed_gb", ""),
    "opens in, s": lambda line: line.get("open_sec", ""),
}


def machines_table(lines: list[dict]) -> str:
    """Machine and software that the figures of the page were measured with."""
    keys = ("processor", "gpu", "cores", "python", "torch")
    seen: dict[tuple, list[dict]] = {}
    for line in lines:
        seen.setdefault(tuple(line[key] for key in keys), []).append(line)
    rows = [
        {**{key: value or "none" for key, value in zip(keys, machine, strict=True)},
         "commits": _span(found, "commit"), "dates": _span(found, "date")}
        for machine, found in seen.items()
    ]  # fmt: skip
    return table({name: itemgetter(name) for name in (*keys, "commits", "dates")}, rows)


def _span(lines: list[dict], key: str) -> str:
    return ", ".join(sorted({str(line[key]) for line in lines}))


ROOM_GB = (24, 48, 80, 141)
"""Free memory of a GPU, as of an RTX 4090, an L40S, an H100, an H200."""


def room_table() -> str:
    """Conversations with full caches that fit beside the 7B's weights, by the bound that refuses more."""
    config = ModelConfig.personaplex_7b()

    def room(size: int) -> Callable[[dict], object]:
        return lambda row: conversations_that_fit(config, row["weights"], size * 1e9, kv_cache=row["cache"]) or "–"

    rows = [{"weights": weights, "cache": cache} for weights in FORMAT_ORDER[1:] for cache in KV_CACHES]
    names = {AUTO_CACHE: "bfloat16"}
    return table(
        {
            "weights": itemgetter("weights"),
            "cache": lambda row: names.get(row["cache"], row["cache"]),
            "a full cache, GB": lambda row: f"{cache_bytes(config.lm, kv_cache=row['cache']) / 1e9:.2f}",
            **{f"{size} GB": room(size) for size in ROOM_GB},
        },
        rows,
    )


TABLES: dict[str, Callable[[list[dict]], str]] = {
    "frame": lambda lines: table(FRAME, lines),
    "prompt": lambda lines: table(PROMPT, lines),
    "peer": lambda lines: table(PEER, (row for line in lines for row in _peer_rows(line))),
    "quality": lambda lines: table(QUALITY, (row for line in lines for row in _quality_rows(line))),
    "footprint": lambda lines: table(FOOTPRINT, lines),
}


# ---------------------------------------------------------------------------------- page


def filled_page(text: str, results: dict[str, list[dict]]) -> str:
    """The page with every block's table made anew."""

    def block(match: re.Match) -> str:
        name = match.group(2)
        if name == "machines":
            made = machines_table([line for lines in results.values() for line in lines])
        elif name == "room":
            made = room_table()
        else:
            made = TABLES[name](results.get(name, []))
        return f"{match.group(1)}\n{made}\n{match.group(3)}"

    return BLOCK.sub(block, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the tables are not up to date")
    given = parser.parse_args()
    results = read_results()
    text = PAGE.read_text(encoding="utf-8")
    page = filled_page(text, results)
    if given.check:
        sys.exit("docs/performance.md is not up to date: run python -m benchmarks.report" if page != text else 0)
    PAGE.write_text(page, encoding="utf-8")
    draw_frames(results["frame"], PAGE.parent / "performance-frame.svg")
    draw_peer(results["peer"], PAGE.parent / "performance-peer.svg")


if __name__ == "__main__":
    main()
