"""Published figures of other systems, for comparison."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.duplex.layout import Kind


@dataclass(frozen=True)
class Published:
    """A table of figures: measure → system → value."""

    source: str
    systems: tuple[str, ...]
    figures: dict[str, tuple[float | None, ...]]  # in the order of the systems


BENCH = Published(
    "Full-Duplex-Bench's own README, v1.0 table, as of 2026-04-15",
    ("PersonaPlex", "Moshi", "dGSLM", "Freeze-Omni", "Gemini Live 2.0", "GPT-Realtime"),
    {
        "pause takeover (synthetic)": (0.584, 0.985, 0.934, 0.642, 0.255, 0.010),
        "pause takeover (Candor)": (0.662, 0.980, 0.935, 0.481, 0.310, 0.120),
        "backchannel takeover": (0.327, 1.000, 0.691, 0.636, 0.091, 0.000),
        "backchannels a second": (0.025, 0.001, 0.015, 0.001, 0.012, 0.007),
        "backchannel distance": (0.649, 0.957, 0.934, 0.997, 0.896, 0.980),
        "turn takeover": (0.992, 0.941, 0.975, 0.336, 0.655, 1.000),
        "turn latency, s": (0.070, 0.265, 0.352, 0.953, 1.301, 1.470),
        "interruption takeover": (1.000, 1.000, 0.917, 0.867, 0.891, 0.970),
        "interruption judge": (4.210, 0.765, 0.201, 3.615, 3.376, 3.850),
        "interruption latency, s": (0.400, 0.257, 2.531, 1.409, 1.183, 1.500),
    },
)

MODEL_CARD = Published(
    "PersonaPlex's model card (shares in %)",
    ("PersonaPlex", "Moshi", "Gemini Live", "Qwen 2.5 Omni"),
    {
        "smooth turn taking": (90.8, 1.8, 43.9, None),
        "… latency, s": (0.170, 0.953, None, None),
        "user interruption": (95.0, 65.3, 54.7, None),
        "… latency, s (agent silent)": (0.240, 1.409, None, None),
        "pause handling": (60.6, 33.6, 65.5, None),
    },
)
MODEL_CARD_NOTE = (
    "The card's latencies for Moshi, 0.953 and 1.409 s, are those that the benchmark's own table gives for "
    "Freeze-Omni; both tables are quoted as they are."
)

ASSISTANT_PROMPT = (
    "You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way."
)
CASUAL_PROMPT = "You enjoy having a good conversation."


def prompt_for(kind: Kind) -> str:
    """The role that PersonaPlex's authors give it on the public set (their README's prompting guide).

    v1.5 is not named there; its overlaps are with answers to questions, so it gets what interruptions get.
    """
    return ASSISTANT_PROMPT if kind in (Kind.INTERRUPTION, Kind.OVERLAP) else CASUAL_PROMPT
