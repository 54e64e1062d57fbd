"""Start the page: ``python app.py`` on this machine, or a Hugging Face Space; ``personaplex page`` is the same."""

import os
import sys

if os.environ.get("SPACES_ZERO_GPU"):
    import spaces  # noqa: F401 - on ZeroGPU it must be imported before PyTorch; elsewhere it only costs time

from personaplex.cli.main import page_app, run

if __name__ == "__main__":
    sys.exit(run(page_app, sys.argv[1:], "python app.py"))
