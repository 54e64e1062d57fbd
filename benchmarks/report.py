"""Puts the newest figures into ``docs/performance.md`` and draws its plots.

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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.measuring import ROOT
from benchmarks.plots import draw_frames, draw_peer, where

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

WHAT_WAS_MEASURED = (
    "benchmark", "model", "dtype", "group_size", "predictor", "slots", "context", "filled", "prompt_frames", "opened",
    "layers", "processor", "gpu", "device", "threads",
)  # fmt: skip
"""Lines that agree in these measured the same."""

OTHERS = "cores kept busy by others"
"""Meanwhile: above a tenth or so, times are in doubt where all cores were used."""

FORMAT_ORDER = ("float32", "bfloat16", "int8", "int4")


def newest(lines: Iterable[dict]) -> list[dict]:
    """The last line of each thing that was measured, in an order for reading."""
    found = {(*(line.get(key) for key in WHAT_WAS_MEASURED), *line.get("ours", ())): line for line in lines}
    return sorted(found.values(), key=_reading_order)


def _reading_order(line: dict) -> tuple:
    dtype = line.get("dtype")
    return (
        str(line["gpu"] or ""),
        str(line.get("processor", "")),
        line["model"],
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


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


def _format(line: dict) -> str:
    size = line.get("group_size")
    return f"{line['dtype']}, groups of {size}" if size else line["dtype"]


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def frame_table(lines: list[dict]) -> str:
    head = (
        "model", "format", "on", "slots", "cache filled", "frame p50 / p99 / max, ms", "encode", "language model",
        "decode", "read a frame, GB", "floor, ms", "share of the floor: language model, frame",
        "peak memory, GB", OTHERS,
    )  # fmt: skip

    def row(line: dict) -> list:
        whole, lm = line["frame"], line["language_model"]
        return [
            line["model"],
            _format(line),
            where(line),
            line["slots"],
            f"{line['filled']} of {line['context']}",
            " / ".join(_ms(whole[key]) for key in ("p50_ms", "p99_ms", "max_ms")),
            *(_ms(line[stage]["p50_ms"]) for stage in ("encode", "language_model", "decode")),
            f"{whole['bytes'] / 1e9:.2f}",
            f"{_ms(whole['floor_ms'])} at {line['bandwidth_gb_s']:.1f} GB/s",
            f"{lm['share_of_floor']:.0%}, {whole['share_of_floor']:.0%}",
            line.get("peak_cuda_gb", line["peak_rss_gb"]),
            line["other_cores"],
        ]

    return table(head, map(row, lines))


def prompt_table(lines: list[dict]) -> str:
    head = (
        "model", "format", "on", "frames of prompt", "cold, s", "of which the prompt, s", "from a snapshot, ms",
        "then the first frame, ms",
    )  # fmt: skip
    return table(
        head,
        (
            [
                line["model"], _format(line), where(line), line["prompt_frames"],
                f"{line['cold']['p50_ms'] / 1000:.2f}", f"{line['prepare']['p50_ms'] / 1000:.2f}",
                _ms(line["snapshot"]["p50_ms"]), _ms(line["first_frame"]["p50_ms"]),
            ]
            for line in lines
        ),
    )  # fmt: skip


def peer_table(lines: list[dict]) -> str:
    head = (
        "machine", "who", "cache", "encode", "language model", "decode", "frame, ms", "times as fast", "memory, GB",
        OTHERS,
    )  # fmt: skip
    rows = []
    for line in lines:
        peer, here = line["peer"], where(line)
        stages = [_ms(peer[stage]["p50_ms"]) for stage in ("encode", "lm", "decode", "frame")]
        authors = f"moshi {peer['versions']['moshi']}, {peer['dtype']}"
        rows.append([here, authors, "any", *stages, 1, peer["peak_rss_gb"], line["other_cores"]])
        for key, ours in line["ours"].items():
            dtype, filled = key.split()
            stages = [_ms(ours[stage]) for stage in ("encode", "language_model", "decode", "frame")]
            compared = (line["ratio"][key], ours["peak_rss_gb"], line["other_cores"])
            rows.append([here, f"this engine, {dtype}", filled, *stages, *compared])
    return table(head, rows)


def quality_table(lines: list[dict]) -> str:
    head = (
        "model", "format", "on", "text logits: largest, mean difference", "text KL, mean", "same text token",
        "audio logits", "audio KL, mean", "same audio token", "against itself",
    )  # fmt: skip

    def drift(found: dict) -> list[str]:
        return [
            f"{found['max']:.3g}, {found['mean']:.2g}",
            f"{found['kl_mean']:.1g}",
            f"{found['greedy_agreement']:.1%}",
        ]

    return table(
        head,
        (
            [f"{line['model']} ({line['frames']} frames)", _format(row), where(line)]
            + [*drift(row["text"]), *drift(row["audio"]), f"{row['against_itself_max']:g}"]
            for line in lines
            for row in line["formats"]
        ),
    )


def footprint_table(lines: list[dict]) -> str:
    head = (
        "format", "on", "opened from", "cache, frames", "peak memory, GB", "ms a frame", "opening and prompt, s",
        "packing, s (peak GB)", "copy, GB", "opens in, s",
    )  # fmt: skip

    def row(line: dict) -> list:
        packing = f"{line['packing_sec']} ({line['packing_peak_rss_gb']})" if "packing_sec" in line else ""
        return [
            line["dtype"], where(line), line["opened"], line["context"], line["peak_rss_gb"], line["frame_ms"],
            line["before_answer_sec"], packing, line.get("packed_gb", ""), line.get("open_sec", ""),
        ]  # fmt: skip

    return table(head, map(row, lines))


def machines_table(lines: list[dict]) -> str:
    """Where and with what the figures of the page were measured."""
    keys = ("processor", "gpu", "cores", "python", "torch")
    seen: dict[tuple, list[dict]] = {}
    for line in lines:
        seen.setdefault(tuple(line[key] for key in keys), []).append(line)
    return table(
        (*keys, "commits", "dates"),
        (
            [*(value or "none" for value in machine), _span(found, "commit"), _span(found, "date")]
            for machine, found in seen.items()
        ),
    )


def _span(lines: list[dict], key: str) -> str:
    return ", ".join(sorted({str(line[key]) for line in lines}))


TABLES: dict[str, Callable[[list[dict]], str]] = {
    "frame": frame_table,
    "prompt": prompt_table,
    "peer": peer_table,
    "quality": quality_table,
    "footprint": footprint_table,
}


# ---------------------------------------------------------------------------------- page


def filled_page(text: str, results: dict[str, list[dict]]) -> str:
    """The page with every block's table made anew."""

    def block(match: re.Match) -> str:
        name = match.group(2)
        if name == "machines":
            made = machines_table([line for lines in results.values() for line in lines])
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
