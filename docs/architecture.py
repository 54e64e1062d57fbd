"""The picture and the tables of `docs/architecture.md`, made from the source so that they cannot differ from it.

    python docs/architecture.py              # rewrites docs/architecture.svg and the table of rooms
    python docs/architecture.py --figures    # and the table of figures: before a release, they change with every line

Rooms are the packages in `personaplex/` and the modules beside them; an arrow means that a module of one room imports
one of the other, inside functions and for the type checker alone included. A room stands one floor above the highest
one that it imports. `tests/test_architecture.py` fails when the picture or the table of rooms is out of date.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from functools import cached_property
from html import escape
from pathlib import Path

import tree_figures

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "personaplex"
PICTURE, PAGE = HERE / "architecture.svg", HERE / "architecture.md"
FACTS = "facts"
"""The modules beside the packages that know no package: one box."""

BOX_WIDTH, BOX_HEIGHT, LANE_WIDTH, GAP = 250, 56, 28, 24
FLOOR_HEIGHT, MARGIN, LEFT = 88, 24, 56
SWEEPS = 24

Node = tuple[str, ...]
"""(room,), or (room, imported room, floor) where an arrow passes a floor."""


def module_imports(path: Path) -> set[Path]:
    """The package's modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = {PACKAGE.parent / (name.replace(".", "/") + ".py") for name in names}
    return {file for file in files if file.is_relative_to(PACKAGE) and file.is_file()}


class Rooms:
    """The rooms of the package, what they import, and their floors."""

    def __init__(self) -> None:
        graph = {path: module_imports(path) for path in sorted(PACKAGE.rglob("*.py"))}
        beside = {path for path in graph if path.parent == PACKAGE}
        facts = {path for path in beside if path.stem != "__init__"}
        while knowing := {path for path in facts if not graph[path] <= facts}:
            facts -= knowing
        self.facts = sorted(path.stem for path in facts)
        self.about: dict[str, str] = {FACTS: "known to all: " + ", ".join(self.facts)}
        self.imports: dict[str, set[str]] = {FACTS: set()}
        for path, others in graph.items():
            room = self._room(path, facts)
            self.imports.setdefault(room, set())
            self.imports[room] |= {self._room(other, facts) for other in others} - {room}
            if path.name == "__init__.py" and path.parent.parent == PACKAGE or path in beside - facts:
                self.about[room] = first_sentence(path)
        self.about[PACKAGE.name] = "The public API: `from personaplex import …`, imported when used"
        self.imports = {room: found for room, found in self.imports.items() if room == FACTS or found}

    @staticmethod
    def _room(path: Path, facts: set[Path]) -> str:
        if path in facts:
            return FACTS
        name = path.relative_to(PACKAGE).parts[0]
        return PACKAGE.name if name == "__init__.py" else name.removesuffix(".py")

    @cached_property
    def floors(self) -> dict[str, int]:
        """Room → floor, 0 at the bottom; raises ValueError where rooms import each other in a circle."""
        floors: dict[str, int] = {}
        while len(floors) < len(self.imports):
            ready = [room for room, found in self.imports.items() if room not in floors and found <= floors.keys()]
            if not ready:
                raise ValueError(f"these rooms import each other: {sorted(self.imports.keys() - floors.keys())}")
            for room in ready:
                floors[room] = 1 + max((floors[other] for other in self.imports[room]), default=-1)
        return floors

    def below(self, room: str) -> set[str]:
        """All that a room imports, directly or not."""
        return self.imports[room].union(*(self.below(other) for other in self.imports[room]))

    @property
    def arrows(self) -> list[tuple[str, str]]:
        """The imports that do not follow from others."""
        return sorted(
            (room, other)
            for room, found in self.imports.items()
            for other in found
            if not any(other in self.below(between) for between in found)
        )

    def table(self) -> str:
        lines = ["| floor | room | what it is | imports |", "| --- | --- | --- | --- |"]
        for room in sorted(self.imports, key=lambda room: (-self.floors[room], room)):
            names = [f"`{name}.py`" for name in self.facts] if room == FACTS else [self.link(room)]
            found = ", ".join(sorted(self.imports[room], key=lambda other: (-self.floors[other], other)))
            about = "What everything may know" if room == FACTS else self.about[room]
            lines.append(f"| {self.floors[room]} | {', '.join(names)} | {about} | {found or '–'} |")
        return "\n".join(lines)

    @staticmethod
    def link(room: str) -> str:
        path = "__init__.py" if room == PACKAGE.name else room if (PACKAGE / room).is_dir() else f"{room}.py"
        return f"[`{path}`](../personaplex/{path})"


def first_sentence(path: Path) -> str:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[^.])\.(?:\s|$)", " ".join(said.split()))[0].replace("``", "")


class Layout:
    """Where boxes and arrows lie: floors from the top down, in each as few crossings as sorting by neighbours gives."""

    def __init__(self, rooms: Rooms) -> None:
        self.rooms, floors = rooms, rooms.floors
        self.top = max(floors.values())
        self.layers: list[list[Node]] = [[] for _ in range(self.top + 1)]
        self.up: dict[Node, list[Node]] = {}
        self.down: dict[Node, list[Node]] = {}
        for room in sorted(floors):
            self._add((room,), floors[room])
        self.chains: list[list[Node]] = []
        for room, other in rooms.arrows:
            passed: list[Node] = [(room, other, str(floor)) for floor in range(floors[room] - 1, floors[other], -1)]
            for node in passed:
                self._add(node, int(node[2]))
            chain: list[Node] = [(room,), *passed, (other,)]
            self.chains.append(chain)
            for above, below in zip(chain[:-1], chain[1:], strict=True):
                self.down[above].append(below)
                self.up[below].append(above)
        self.x: dict[Node, float] = {}
        self._place()

    def _add(self, node: Node, floor: int) -> None:
        self.layers[floor].append(node)
        self.up[node], self.down[node] = [], []

    @staticmethod
    def width(node: Node) -> float:
        return BOX_WIDTH if len(node) == 1 else LANE_WIDTH

    def _place(self) -> None:
        for layer in self.layers:
            for index, node in enumerate(layer):
                self.x[node] = (index - (len(layer) - 1) / 2) * BOX_WIDTH
        for sweep in range(SWEEPS):
            neighbours = self.up if sweep % 2 else self.down
            for layer in self.layers if sweep % 2 == 0 else self.layers[::-1]:
                wanted = {node: self._mean(neighbours[node] or self.up[node] or self.down[node]) for node in layer}
                layer.sort(key=lambda node: (wanted[node], node))  # noqa: B023 - used at once
                self._spread(layer, wanted)
        left = min(x - self.width(node) / 2 for node, x in self.x.items())
        for node in self.x:
            self.x[node] += LEFT - left

    def _mean(self, nodes: list[Node]) -> float:
        return sum(self.x[node] for node in nodes) / len(nodes) if nodes else 0.0

    def _spread(self, layer: list[Node], wanted: dict[Node, float]) -> None:
        """Put a floor's nodes near where they want to be, in order and apart."""
        at = [wanted[node] for node in layer]
        for index in range(1, len(layer)):
            apart = (self.width(layer[index - 1]) + self.width(layer[index])) / 2 + GAP
            at[index] = max(at[index], at[index - 1] + apart)
        shift = sum(wanted[node] - x for node, x in zip(layer, at, strict=True)) / len(layer)
        self.x.update({node: x + shift for node, x in zip(layer, at, strict=True)})

    def y(self, node: Node) -> float:
        """Middle of a node's floor."""
        floor = int(node[2]) if len(node) == 3 else self.rooms.floors[node[0]]
        return MARGIN + BOX_HEIGHT / 2 + (self.top - floor) * FLOOR_HEIGHT

    def port(self, chain: list[Node], end: int) -> float:
        """Where an arrow leaves its room (end 0) or meets it (end −1): those of one box lie side by side."""
        mine = [c for c in self.chains if c[end] == chain[end]]
        mine.sort(key=lambda c: (self.x[c[1 if end == 0 else -2]], c[0], c[-1]))
        return self.x[chain[end]] + (mine.index(chain) - (len(mine) - 1) / 2) * LANE_WIDTH

    def path(self, chain: list[Node]) -> str:
        points = [(self.port(chain, 0), self.y(chain[0]) + BOX_HEIGHT / 2)]
        for node in chain[1:-1]:
            points += [(self.x[node], self.y(node) - BOX_HEIGHT / 2), (self.x[node], self.y(node) + BOX_HEIGHT / 2)]
        points.append((self.port(chain, -1), self.y(chain[-1]) - BOX_HEIGHT / 2 - 5))
        drawn = f"M{points[0][0]:.0f} {points[0][1]:.0f}"
        for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True):
            middle = (y0 + y1) / 2
            drawn += f" C{x0:.0f} {middle:.0f} {x1:.0f} {middle:.0f} {x1:.0f} {y1:.0f}"
        return drawn


STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#334155}.name{font-size:15px;font-weight:600;fill:#0f172a}"
    ".floor{fill:#94a3b8}.box{fill:#f8fafc;stroke:#0f766e;stroke-width:1.2}"
    ".arrow{fill:none;stroke:#64748b;stroke-width:1.4;marker-end:url(#head)}"
)


def picture(rooms: Rooms) -> str:
    """The rooms on their floors, as SVG."""
    layout = Layout(rooms)
    width = max(x + layout.width(node) / 2 for node, x in layout.x.items()) + MARGIN
    height = 2 * MARGIN + layout.top * FLOOR_HEIGHT + BOX_HEIGHT
    said = "The rooms of personaplex/ on their floors; every arrow is an import and points down."
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img" aria-label="{said}">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#64748b"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for floor in range(layout.top + 1):
        y = MARGIN + BOX_HEIGHT / 2 + (layout.top - floor) * FLOOR_HEIGHT + 4
        lines.append(f'<text class="floor" x="{MARGIN}" y="{y:.0f}">{floor}</text>')
    lines += [f'<path class="arrow" d="{layout.path(chain)}"/>' for chain in layout.chains]
    for node in sorted(layout.x):
        if len(node) == 1:
            lines += box(node[0], rooms.about[node[0]], layout.x[node], layout.y(node))
    return "\n".join([*lines, "</svg>"]) + "\n"


def box(room: str, about: str, x: float, y: float) -> list[str]:
    left, top = x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2
    said = textwrap.wrap(about.replace("`", ""), 37, max_lines=2, placeholder=" …")
    lines = [
        f'<rect class="box" x="{left:.0f}" y="{top:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7"/>',
        f'<text class="name" x="{left + 9:.0f}" y="{top + 18:.0f}">{room}</text>',
    ]
    for number, line in enumerate(said):
        lines.append(f'<text x="{left + 9:.0f}" y="{top + 34 + 14 * number:.0f}">{escape(line)}</text>')
    return lines


def between_marks(page: str, name: str, content: str) -> str:
    """The page with what stands between `<!-- name -->` and `<!-- end -->` replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", flags=re.DOTALL)
    assert pattern.search(page), f"{PAGE.name} has no <!-- {name} --> … <!-- end -->"
    return pattern.sub(lambda found: f"{found[1]}\n{content}\n{found[2]}", page)


def main(with_figures: bool) -> None:
    rooms = Rooms()
    PICTURE.write_text(picture(rooms), encoding="utf-8")
    page = between_marks(PAGE.read_text(encoding="utf-8"), "rooms", rooms.table())
    if with_figures:
        page = between_marks(page, "figures", tree_figures.table(tree_figures.own_rows()))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(with_figures="--figures" in sys.argv[1:])
