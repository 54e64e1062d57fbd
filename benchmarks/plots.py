"""The plots of ``docs/performance.md``: small SVG files, the same bytes from the same figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

STAGES = {"encode": "#94a3b8", "language_model": "#4f46e5", "decode": "#64748b"}
NAMES = {"encode": "encode", "language_model": "language model", "decode": "decode"}
FLOOR_COLOUR, BUDGET_COLOUR, PEER_COLOUR = "#dc2626", "#16a34a", "#9ca3af"
MEASURED_MODEL = "7b-random"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "personaplex",
    "font.size": 9,
    "font.family": "sans-serif",
}


def draw_frames(lines: list[dict], path: Path) -> None:
    """Each 7B configuration's frame by stages, its floor, and the time a frame may take."""
    lines = [line for line in lines if line["model"] == MEASURED_MODEL]
    labels = [_label(line) for line in lines]
    with mpl.rc_context(STYLE):
        figure, axes = _figure(len(lines))
        left = [0.0] * len(lines)
        for stage, colour in STAGES.items():
            widths = [line[stage]["p50_ms"] for line in lines]
            axes.barh(labels, widths, left=left, color=colour, label=NAMES[stage])
            left = [start + width for start, width in zip(left, widths, strict=True)]
        floors = [line["frame"]["floor_ms"] for line in lines]
        axes.scatter(floors, labels, marker="|", s=220, color=FLOOR_COLOUR, label="floor: bytes / bandwidth", zorder=3)
        _budget(axes, lines)
        _save(figure, axes, path)


def draw_peer(lines: list[dict], path: Path) -> None:
    """The authors' code and ours, side by side."""
    labels, widths, colours = [], [], []
    for line in lines:
        peer, here = line["peer"], where(line)
        labels.append(f"moshi {peer['versions']['moshi']}, {peer['dtype']}, {here}")
        widths.append(peer["frame"]["p50_ms"])
        colours.append(PEER_COLOUR)
        for key, ours in line["ours"].items():
            labels.append(f"this engine, {key} cache, {here}")
            widths.append(ours["frame"])
            colours.append(STAGES["language_model"])
    with mpl.rc_context(STYLE):
        figure, axes = _figure(len(labels))
        bars = axes.barh(labels, widths, color=colours)
        axes.bar_label(bars, fmt="%.0f", padding=3)
        axes.margins(x=0.12)
        _budget(axes, lines)
        _save(figure, axes, path)


def where(line: dict) -> str:
    """The processor or GPU of a line, in a few words."""
    processor = re.sub(r"\(R\)|\bProcessor\b", "", line["processor"])
    threads = f"{line['threads']} thread{'s' * (line['threads'] > 1)}"
    return line["gpu"] or f"{' '.join(processor.split())}, {threads}"


def _label(line: dict) -> str:
    size = f"/{line['group_size']}" if line["group_size"] else ""
    slots = f", {line['slots']} slots" if line["slots"] > 1 else ""
    plain = ", PyTorch's operators" if line["predictor"] == "PlainPredictor" else ""
    return f"{line['dtype']}{size}, {line['filled']} frames{slots}, {where(line)}{plain}"


def _figure(rows: int) -> tuple[Figure, mpl.axes.Axes]:
    figure = Figure(figsize=(8, 1.1 + 0.3 * max(rows, 1)), layout="constrained")
    return figure, figure.add_subplot()


def _budget(axes: mpl.axes.Axes, lines: list[dict]) -> None:
    if lines:
        axes.axvline(lines[0].get("budget_ms", 80.0), color=BUDGET_COLOUR, linestyle="--", label="a frame lasts 80 ms")


def _save(figure: Figure, axes: mpl.axes.Axes, path: Path) -> None:
    axes.set_xlabel("ms a frame (median)")
    axes.invert_yaxis()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})
