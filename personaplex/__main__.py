"""``python -m personaplex``."""

import sys

from personaplex.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
