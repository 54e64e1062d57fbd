"""Gradio 5.50.0: a quicker import.

Bug: importing it writes the ``.pyi`` stubs of all components anew each time, half of the time the import takes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from personaplex.web.workarounds.patch import replace

_MODULE = "gradio.component_meta"


class _LeavesStubsAlone(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == _MODULE else None
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_patch(module: Any) -> None:
            execute(module)
            replace(module, create_or_modify_pyi=lambda *_: None)

        loader.exec_module = execute_and_patch
        return spec


def leave_stubs_alone() -> None:
    """Keep Gradio from rewriting its type stubs at every import.

    Editors read these files, programs do not. Without effect once Gradio is imported.
    """
    if not any(isinstance(finder, _LeavesStubsAlone) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LeavesStubsAlone())
