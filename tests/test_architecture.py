"""The page about the architecture: its picture and table are the source's, and every place that it names is there."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PACKAGE = REPOSITORY / "personaplex"
OTHER_FOLDERS = ("training", "benchmarks", "tests", "docs", "voices", "examples")

sys.path.insert(0, str(DOCS))
import architecture  # noqa: E402
import tree_figures  # noqa: E402

PLACE = re.compile(r"`([\w./]+\.(?:py|h|cpp|js|css|toml|json))(?::([\w.]+))?`")
"""`path.py` or `path.py:Class.method`."""
OF_A_MODEL = "config.json"  # in a model's folder, not in this repository


def places() -> list[tuple[str, str, str]]:
    pages = [DOCS / "architecture.md", REPOSITORY / "CONTRIBUTING.md"]
    found = [
        (page.name, *place) for page in pages if page.is_file() for place in PLACE.findall(page.read_text("utf-8"))
    ]
    return [place for place in found if place[1] != OF_A_MODEL]


def file_of(path: str) -> Path:
    """Paths are below the package unless they begin with another folder, or lie at the top."""
    at_top = path.split("/")[0] in OTHER_FOLDERS or (REPOSITORY / path).is_file()
    return (REPOSITORY if at_top else PACKAGE) / path


def names_in(path: Path) -> set[str]:
    """Functions, classes, their methods and annotated fields, and constants of a module: "Class", "Class.method"."""

    def walk(body: list[ast.stmt], prefix: str) -> set[str]:
        found = set()
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    found |= walk(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if hasattr(node, "target") else []
            found |= {prefix + target.id for target in targets if isinstance(target, ast.Name)}
        return found

    return walk(ast.parse(path.read_text(encoding="utf-8")).body, "")


def test_the_picture_and_the_table_are_the_sources():
    rooms = architecture.Rooms()
    stale = "run `python docs/architecture.py` and commit what it writes"
    assert architecture.PICTURE.read_text(encoding="utf-8") == architecture.picture(rooms), stale
    assert rooms.table() in architecture.PAGE.read_text(encoding="utf-8"), stale


def test_every_arrow_points_down():
    rooms = architecture.Rooms()
    for room, other in rooms.arrows:
        assert rooms.floors[room] > rooms.floors[other]
    assert {"web", "serving", "session", "engine", "models", "nn", "facts"} <= rooms.floors.keys()
    implied = {(room, other) for room, found in rooms.imports.items() for other in found} - set(rooms.arrows)
    for room, other in implied:
        assert any(other in rooms.below(between) for between in rooms.imports[room]), (room, other)


@pytest.mark.parametrize(("page", "path", "name"), places(), ids=lambda part: part)
def test_every_place_that_is_named_is_there(page, path, name):
    file = file_of(path)
    assert file.is_file(), f"{page} names {path}"
    if name:
        assert name in names_in(file), f"{page} names {path}:{name}"


def test_figures_of_a_small_tree(tmp_path):
    (tmp_path / "one.py").write_text(
        "class Box:\n"
        "    def __init__(self, size: int):\n        self.size = size\n\n"
        "    def area(self, x: Tensor, y) -> Tensor:\n        '''x [B, T].'''\n        return x\n\n"
        "def _hidden(a):\n    return a\n\n"
        "def long(x: Tensor) -> None:\n" + 60 * "    x\n",
        encoding="utf-8",
    )
    row = dict(zip(tree_figures.COLUMNS, tree_figures.figures(tmp_path, "tree"), strict=True))
    assert row["files / longest"] == "1 / 72"
    assert row["functions"] == "4"
    assert row["median, p95, longest"].endswith(", 61")
    assert row["over 50 lines"] == "25.0 %"
    assert row["annotated"] == "50 %", "__init__ and long; area lacks one of y"
    assert row["public functions with a docstring"] == "50 %", "area of area and long"
    assert row["tensor functions with shapes"] == "50 %"
