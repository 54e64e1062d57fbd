"""Figures of a tree of Python: how long its files and functions are, how much of it is annotated and documented.

    python docs/tree_figures.py                  # this repository's three folders
    python docs/tree_figures.py PATH [PATH …]    # other trees, by the same rules

Rules. A file is a `.py` file. A function is any `def`, nested ones included, from its `def` line to its last.
Annotated: every parameter but `self` and `cls`, and the result (of `__init__` the parameters alone). Public: named
without an underscore, in a module or in a class that is so named. A tensor function is a public one with a Tensor or
an ndarray among its parameters or as its result; it states shapes if its docstring, or a comment beside its
parameters, holds brackets with a size in them, as `[B, T]`.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
FOLDERS = ("personaplex", "training", "benchmarks")
LONG_FUNCTION_LINES = 50
COLUMNS = (
    "tree", "files / longest", "functions", "median, p95, longest", f"over {LONG_FUNCTION_LINES} lines", "annotated",
    "public functions with a docstring", "tensor functions with shapes",
)  # fmt: skip
_ARRAY = re.compile(r"\b(Tensor|ndarray)\b")
_SHAPE = re.compile(r"\[[^\]\n]*\b([A-Z]\w?|\d+|[a-z_]+)\b[^\]\n]*\]")


@dataclass(frozen=True)
class Function:
    """One `def` and what is known of it."""

    node: ast.FunctionDef | ast.AsyncFunctionDef
    source: str
    is_public: bool

    @property
    def num_lines(self) -> int:
        return (self.node.end_lineno or self.node.lineno) - self.node.lineno + 1

    @property
    def parameters(self) -> list[ast.arg]:
        args = self.node.args
        found = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
        return [arg for arg in found if arg is not None and arg.arg not in ("self", "cls")]

    @property
    def is_annotated(self) -> bool:
        result = self.node.returns is not None or self.node.name == "__init__"
        return result and all(arg.annotation is not None for arg in self.parameters)

    @property
    def has_tensors(self) -> bool:
        hints = [arg.annotation for arg in self.parameters] + [self.node.returns]
        return any(_ARRAY.search(ast.unparse(hint)) for hint in hints if hint is not None)

    @property
    def states_shapes(self) -> bool:
        first = self.node.body[0].lineno - self.node.lineno
        beside = " ".join(re.findall(r"#(.*)", "\n".join(self.source.splitlines()[:first])))
        return bool(_SHAPE.search((ast.get_docstring(self.node) or "") + beside))


def functions(source: str) -> Iterator[Function]:
    """Every function of a module, nested ones included."""

    def walk(node: ast.AST, is_public: bool) -> Iterator[Function]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_source_segment(source, child) or ""
                yield Function(child, text, is_public and not child.name.startswith("_"))
                yield from walk(child, False)
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, is_public and not child.name.startswith("_"))
            else:
                yield from walk(child, is_public)

    yield from walk(ast.parse(source), True)


def figures(folder: Path, name: str) -> tuple[str, ...]:
    """One row of the table, in the order of `COLUMNS`."""
    sources = [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))]
    found = [function for source in sources for function in functions(source)]
    if not found:
        raise SystemExit(f"{folder} holds no Python with functions; give a folder that does")
    lengths = sorted(function.num_lines for function in found)
    public = [function for function in found if function.is_public]
    tensors = [function for function in public if function.has_tensors]
    p95 = statistics.quantiles(lengths, n=20, method="inclusive")[-1] if len(lengths) > 1 else lengths[0]
    return (
        name,
        f"{len(sources)} / {max(source.count(chr(10)) for source in sources)}",
        str(len(found)),
        f"{statistics.median(lengths):.0f}, {p95:.0f}, {lengths[-1]}",
        f"{100 * sum(length > LONG_FUNCTION_LINES for length in lengths) / len(lengths):.1f} %",
        _share(sum(function.is_annotated for function in found), len(found)),
        _share(sum(ast.get_docstring(function.node) is not None for function in public), len(public)),
        _share(sum(function.states_shapes for function in tensors), len(tensors)),
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "none"


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows as Markdown below `COLUMNS`."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def own_rows() -> list[tuple[str, ...]]:
    return [figures(REPOSITORY / folder, f"**{folder}/**") for folder in FOLDERS]


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    print(table([figures(path, path.name) for path in given] if given else own_rows()))
