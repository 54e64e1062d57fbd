"""A page in Markdown that grows, and the same as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from markdown_it import MarkdownIt

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1500px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border: 1px solid #8886; padding: .3rem .6rem; text-align: left; white-space: nowrap; }
img { max-width: 100%; background: white; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd; } a { color: #7dd3fc; } }
"""


class Page:
    """Markdown that grows."""

    def __init__(self) -> None:
        self._blocks: list[str] = []

    @property
    def markdown(self) -> str:
        return "\n\n".join(self._blocks) + "\n"

    def add(self, *blocks: str) -> None:
        self._blocks += blocks

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        lines = [head, ["---"] * len(head), *rows]
        self.add("\n".join("| " + " | ".join(cells) + " |" for cells in lines))


def as_html(markdown: str, title: str) -> str:
    """The same page; links to sounds become players."""
    renderer = MarkdownIt("commonmark").enable("table")
    body = renderer.render(markdown)
    for part in set(_sounds(markdown)):
        body = body.replace(f'<a href="{part}">{part}</a>', f'<audio controls preload="none" src="{part}"></audio>')
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Behaviour of {escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n{body}</html>\n"
    )


def _sounds(markdown: str) -> list[str]:
    return [line[1 : line.index("]")] for line in markdown.splitlines() if line.startswith("[") and ".mp3](" in line]
