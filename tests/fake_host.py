"""A host whose server plays what a test wrote down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from personaplex.config import ModelConfig
from personaplex.personas.voices import VoiceFinder
from personaplex.serving.host import ModelHost
from personaplex.serving.hosted import Hosted
from personaplex.settings import Settings
from personaplex.text.tokenizer import TextTokenizer

GOLDEN = Path(__file__).parent / "golden"
RATE_HZ = 24_000


class FakeServer:
    """Plays what a test wrote down to whoever opens a conversation."""

    def __init__(self) -> None:
        self.script, self.closed, self.asked = [], 0, None

    def open(self, request, listener):
        self.asked = request
        for call in self.script:
            call(listener)
        return self

    def close(self, message: str = "") -> None:
        self.closed += 1


def golden_hosted() -> Hosted:
    """The golden model as the page sees it, with a server that plays a script."""
    config = ModelConfig.from_json(GOLDEN / "config.json")
    config = replace(config, name="nano-1")
    return Hosted(
        reason="of a test", name="nano-1", format="float32", device="cpu",
        context_frames=40, max_prompt_tokens=200, sample_rate_hz=RATE_HZ, frame_sec=0.08, text_padding_id=3,
        tokenizer=TextTokenizer(GOLDEN / "tokenizer_spm_32k_3.model"),
        finder=VoiceFinder(config, Path("/nowhere"), GOLDEN, allow_files=False), server=FakeServer(),
    )  # fmt: skip


def ready_host(hosted: Hosted, settings: Settings | None = None) -> ModelHost:
    """A host whose model is loaded."""
    host = ModelHost(settings or Settings(model="nano"))
    host.hosted = replace(hosted, server=FakeServer())
    return host
