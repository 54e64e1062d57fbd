"""``python app.py`` as it starts on ZeroGPU, on a machine whose PyTorch has no CUDA: spaces refuses that build,
but does without PyTorch altogether, so it is shown none while it is imported."""

import sys
from pathlib import Path

sys.modules["torch"] = None
import spaces  # noqa: E402, F401

del sys.modules["torch"]
sys.path.insert(0, str(Path(__file__).parents[1]))

from personaplex.cli.main import page_app, run  # noqa: E402

if __name__ == "__main__":
    sys.exit(run(page_app, sys.argv[1:], "python app.py"))
