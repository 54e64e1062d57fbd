"""Imports point down the layers only, and the edges' real-time part stays free of PyTorch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "personaplex"

LAYERS = (
    # 0: facts
    {"__init__", "config", "errors", "files", "settings", "catalogue", "audio", "text", "messages"},
    # 1: tensors
    {
        "heap", "state", "precision", "layers", "attention", "conv", "packing", "native", "linear", "layer_stream",
        "sampling",
    },
    # 2: models and their files
    {
        "mimi", "quantizer", "temporal", "depth", "language_model", "checkpoint", "download", "hub_errors", "hub",
        "voice_files", "weight_loading", "model_files", "packed_copy", "weights",
    },
    # 3: runtime
    {
        "frames", "prompts", "voices", "personas", "prediction", "trial", "native_predictor", "native_codec",
        "triton_kernels", "triton_predictor", "cuda_graphs", "acceleration", "engine", "snapshots", "session", "reply",
        "timeline", "metrics", "talk", "duplex", "machine", "doctor", "plan",
    },
    # 4: edges
    {
        "rtc", "realtime", "zerogpu", "recording", "own_voice", "host", "answering", "address", "gradio_import",
        "gradio_memory", "ui", "ui_talk", "ui_file", "ui_about", "ui_controls", "ui_html", "commands", "cli",
        "__main__",
    },
)  # fmt: skip
LAYER_OF = {module: number for number, modules in enumerate(LAYERS) for module in modules}

TORCH_FREE = LAYERS[0] | {"personas", "voices", "messages", "realtime"}
KNOWS_NO_FILES_TEXT_OR_ASYNCIO = {"engine": {"pathlib", "os", "asyncio", "sentencepiece", "soundfile"}}


def modules() -> list[Path]:
    return sorted(PACKAGE.glob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module a file imports when it runs, also inside functions: absolute dotted names."""
    found = set()
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively; write personaplex.{node.module}"
            found.add(node.module)
            if node.module == "personaplex":
                found |= {f"personaplex.{alias.name}" for alias in node.names}
    return found


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker sees."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from _nodes(child)


def own_imports(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imported(path) if name.startswith("personaplex.")}
    return names & {module.stem for module in modules()}


def test_every_module_has_its_layer():
    assert {path.stem for path in modules()} == set().union(*LAYERS)
    assert sum(map(len, LAYERS)) == len(LAYER_OF)


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_imports_point_down(path):
    above = {name for name in own_imports(path) if LAYER_OF[name] > LAYER_OF[path.stem]}
    assert not above, f"{path.name} (layer {LAYER_OF[path.stem]}) imports {above} of a layer above"


def test_imports_make_no_circle():
    graph = {path.stem: own_imports(path) for path in modules()}
    open_modules = set(graph)
    while open_modules:
        free = {module for module in open_modules if not graph[module] & open_modules - {module}}
        assert free, f"these import each other: {sorted(open_modules)}"
        open_modules -= free


@pytest.mark.parametrize("name", sorted(TORCH_FREE))
def test_modules_that_stay_free_of_pytorch(name):
    seen, waiting = set(), {name}
    while waiting:
        module = waiting.pop()
        path = PACKAGE / f"{module}.py"
        assert "torch" not in {found.split(".")[0] for found in imported(path)}, f"{name} reaches torch in {module}"
        seen.add(module)
        waiting |= own_imports(path) - seen


@pytest.mark.parametrize(("name", "forbidden"), KNOWS_NO_FILES_TEXT_OR_ASYNCIO.items())
def test_the_engine_knows_tensors_only(name, forbidden):
    assert not imported(PACKAGE / f"{name}.py") & forbidden


def test_the_package_does_not_import_the_training_recipe():
    for path in modules():
        assert not {found.split(".")[0] for found in imported(path)} & {"training", "tests", "benchmarks"}, path


def test_the_command_lines_help_needs_no_pytorch():
    code = "import sys; import personaplex.cli; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=False).returncode == 0
