"""Imports point down the floors only, and the edges' real-time part stays free of PyTorch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "personaplex"

FLOORS = (
    {"errors", "config", "settings", "files", "strict", "__init__"},
    {"native"},
    {"text"},
    {"audio"},
    {"messages"},
    {"nn", "personas"},
    {"models"},
    {"weights"},
    {"machine"},
    {"engine"},
    {"session"},
    {"serving"},
    {"web", "cli"},
    {"__main__"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

TORCH_FREE = ("messages.py", "web/page.py", "web/handler.py", "personas/own_voice.py", "serving/host.py")
KNOWS_NO_FILES_TEXT_OR_ASYNCIO = {"engine/engine.py": {"pathlib", "os", "asyncio", "sentencepiece", "soundfile"}}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module a file imports, also inside functions and for the type checker alone: absolute dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively; write personaplex.{node.module}"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(path: Path) -> set[Path]:
    """The modules of the package that a file imports."""
    files = {PACKAGE.parent / (name.replace(".", "/") + ".py") for name in imported(path)}
    return {file for file in files if file.is_relative_to(PACKAGE) and file.is_file()}


def test_every_room_has_its_floor():
    assert {room_of(path) for path in modules()} == FLOOR_OF.keys()


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_down(path):
    mine = FLOOR_OF[room_of(path)]
    rooms = {room_of(other) for other in own_imports(path)} - {room_of(path)}
    beside_or_above = {room for room in rooms if FLOOR_OF[room] >= mine > 0}
    assert not beside_or_above, f"{name_of(path)} (floor {mine}) imports {beside_or_above} of its own floor or above"


def test_imports_make_no_circle():
    graph = {path: own_imports(path) for path in modules()}
    left = set(graph)
    while left:
        free = {path for path in left if not graph[path] & left - {path}}
        assert free, f"these import each other: {sorted(map(name_of, left))}"
        left -= free


@pytest.mark.parametrize("name", TORCH_FREE)
def test_modules_that_are_imported_without_pytorch(name):
    module = "personaplex." + name.removesuffix(".py").replace("/", ".")
    code = f"import sys; import {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=False).returncode == 0


@pytest.mark.parametrize(("name", "forbidden"), KNOWS_NO_FILES_TEXT_OR_ASYNCIO.items())
def test_the_engine_knows_tensors_only(name, forbidden):
    assert not imported(PACKAGE / name) & forbidden


def test_the_package_does_not_import_the_training_recipe():
    for path in modules():
        assert not {found.split(".")[0] for found in imported(path)} & {"training", "tests", "benchmarks"}, path


def test_the_command_lines_help_needs_no_pytorch():
    code = "import sys; import personaplex.cli.main; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=False).returncode == 0
