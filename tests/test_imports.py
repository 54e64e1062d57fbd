"""Imports make no circle, and what must start quickly imports no PyTorch.

Which room may import which stands in pyproject.toml (import-linter).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "personaplex"

TORCH_FREE = ("messages.py", "web/page.py", "web/handler.py", "personas/own_voice.py", "serving/host.py")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


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


def test_the_command_lines_help_needs_no_pytorch():
    code = "import sys; import personaplex.cli.main; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=False).returncode == 0
