"""`python -m moshi.client` without the rest of its package, which imports PyTorch; the client as it is published."""

import importlib.machinery
import runpy
import sys
import types

spec = importlib.machinery.PathFinder.find_spec("moshi")
assert spec is not None, "pip install -r requirements-clients.txt"
package = types.ModuleType("moshi")
package.__path__ = list(spec.submodule_search_locations or ())
sys.modules["moshi"] = package
runpy.run_module("moshi.client", run_name="__main__", alter_sys=True)
