"""The page with nano whose persona repeats what it hears: every step is computed, its sound is replaced.

What comes back can be recognised, so a visitor can measure the round trip; ``benchmarks.load --largest`` starts it.

    python -m benchmarks.echo_page --conversations 4
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from benchmarks.ports import free_port
from personaplex.cli.page import run_page
from personaplex.config import NANO
from personaplex.messages import FrameOutput
from personaplex.session.session import Conversation, Session
from personaplex.settings import Settings


def echo_sessions() -> None:
    """Let the sessions of this process answer with what they hear."""
    step_together = Session.step_together

    def repeat(self: Session, heard: Mapping[Conversation, np.ndarray]) -> dict[Conversation, FrameOutput]:
        outputs = step_together(self, heard)
        return {conversation: replace(output, pcm=heard[conversation]) for conversation, output in outputs.items()}

    setattr(Session, "step_together", repeat)  # noqa: B010 - a method is not to be assigned, says mypy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int)
    parser.add_argument("--conversations", type=int, default=1)
    given = parser.parse_args()
    echo_sessions()
    run_page(Settings(model=NANO, device="cpu", port=given.port or free_port(), conversations=given.conversations))


if __name__ == "__main__":
    main()
