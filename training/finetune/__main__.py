"""One run: `python -m training.finetune CONFIG.toml`. Started again, it goes on from where it was stopped."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from personaplex.errors import PersonaPlexError
from personaplex.native.process import KEPT_FOR_TRAINING, keep_freed_memory
from training.finetune.config import read_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--until", type=int, metavar="STEP", help="stop after this step; a later start goes on")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        config = read_config(options.config)
        from training.finetune.trainer import Trainer  # PyTorch takes seconds; a typo is told at once

        keep_freed_memory(KEPT_FOR_TRAINING)
        Trainer(config).run(options.until)
    except PersonaPlexError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
