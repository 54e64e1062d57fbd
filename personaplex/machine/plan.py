"""Which model is to run on this machine, how, and why: what ``auto`` means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from personaplex.config import NANO, PUBLISHED, ModelConfig
from personaplex.settings import AUTO, Settings

if TYPE_CHECKING:
    from personaplex.machine.inspect import Machine


@dataclass(frozen=True)
class Plan:
    """Which model is to run, how, and why."""

    model: str
    device: str
    format: str
    reason: str


def plan(settings: Settings, inspect: Callable[[], Machine]) -> Plan:
    """What ``model=auto`` means on this machine; any other name is taken as it is."""
    if settings.model != AUTO:
        return Plan(settings.model, settings.device, settings.dtype, "it was asked for")
    from personaplex.machine.choose import choose

    machine = inspect()
    if settings.device == "cpu":
        machine = replace(machine, gpu=None)
    choice = choose(machine)
    format = choice.format if settings.dtype == AUTO else settings.dtype
    device = settings.device if choice.device == "cuda" and settings.device.startswith("cuda") else choice.device
    return Plan(choice.model, device, format, choice.reason)


def plan_on_zerogpu(settings: Settings) -> Plan:
    """The same where a GPU is lent for each conversation: it cannot be measured beforehand."""
    if settings.model != AUTO:
        # nano needs no GPU, and so none of its visitors' quota.
        device = "cpu" if settings.model == NANO and settings.device == AUTO else settings.device
        return Plan(settings.model, device, settings.dtype, "it was asked for")
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(PUBLISHED, ModelConfig().files.lm)
    if isinstance(cached, str) or huggingface_hub.get_token() is not None:
        return Plan(PUBLISHED, "cuda", "bfloat16", "a large GPU is lent for each conversation")
    return Plan(NANO, "cpu", AUTO, "the 7B would run here, but its weights are not at hand: set HF_TOKEN")
