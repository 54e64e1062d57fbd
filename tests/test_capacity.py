"""How many conversations a process holds, measured at its start."""

from __future__ import annotations

import pytest
import torch

from personaplex.engine.engine import Engine
from personaplex.machine.choose import Choice
from personaplex.machine.inspect import GB
from personaplex.serving import capacity
from personaplex.serving.capacity import Talk, Trial, bounded, capacity_of, largest
from personaplex.serving.host import ModelHost
from personaplex.settings import MOST_AT_ONCE, Settings
from personaplex.web.edge_cost import edge_ms

HERE = Choice("golden", "cpu", "float32", "of a test")
FREE = 100 * GB


@pytest.fixture
def step_ms(monkeypatch):
    """Steps take what the test says: slots that move → milliseconds."""

    def take(times):
        monkeypatch.setattr(Trial, "_step_ms", lambda self, count: times(count))
        monkeypatch.setattr(capacity, "usable_cores", lambda: 2)
        monkeypatch.setattr(capacity, "free_memory_bytes", lambda: FREE)

    return take


def test_memory_edges_and_the_process_bound_the_number():
    assert bounded(Talk(0.0, GB), None, 2).conversations == MOST_AT_ONCE
    by_memory = bounded(Talk(0.0, GB), 10 * GB, 2)
    assert by_memory.conversations == 8 and "1.00 GB of memory, 10.0 GB are free" in by_memory.reason
    assert bounded(Talk(0.0, GB), GB // 2, 2).conversations == 1, "loading showed that one fits"
    by_edges = bounded(Talk(10.0, GB), FREE, 2)
    assert by_edges.conversations == 8 and "WebRTC takes 10.0 ms of a core" in by_edges.reason
    assert bounded(Talk(10.0, GB), FREE, 64).conversations == 8, "Python keeps one core busy at most"
    assert bounded(Talk(10.0, GB), FREE, 1).conversations == 6


@pytest.mark.parametrize("holding", range(17))
@pytest.mark.parametrize("most", [1, 5, 16])
def test_the_search_finds_a_number_that_holds(holding, most):
    asked = []

    def holds(count):
        assert 1 <= count <= most
        asked.append(count)
        return count <= holding

    found = largest(holds, most, lambda: True)
    assert found <= max(1, holding) and min(holding, most) - found <= found // 4 and len(asked) <= 8
    assert len(set(asked)) == len(asked)
    assert largest(holds, most, lambda: False) <= max(1, holding)


def test_steps_bound_the_number(golden, step_ms):
    step_ms(lambda count: 4.0 * count)
    found = capacity_of(HERE, golden, None, None)
    assert found.conversations == 12
    assert found.reason.startswith("12: a frame of 12 takes 48 ms, of 14 56 (at most 50 is allowed")


def test_steps_and_edges_share_the_cores(golden, step_ms, monkeypatch):
    step_ms(lambda count: 40.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert capacity_of(HERE, golden, None, lambda: 6.0).conversations == 8  # 2 · 40 + 8 · 6 = 128 ms, 80 % of 160
    assert capacity_of(HERE, golden, None, lambda: 60.0).conversations == 1


def test_a_hiccup_is_not_the_machine(golden, step_ms):
    calls = []

    def once_slow(count):
        calls.append(count)
        return 300.0 if len(calls) in (5, 8) else 1.0

    step_ms(once_slow)
    assert capacity_of(HERE, golden, None, None).conversations == MOST_AT_ONCE


def test_a_model_that_is_too_slow_for_one_is_not_measured(golden, monkeypatch):
    monkeypatch.setattr(capacity, "Engine", None)
    slow = Choice("7b", "cpu", "int4", "of a test", expected_ms=141.0)
    assert capacity_of(slow, golden, None, None).reason == "1: a frame takes at least 141 ms"


def test_whatever_fails_one_conversation_starts(golden, monkeypatch, caplog):
    def no_room(*_, **__):
        raise MemoryError

    monkeypatch.setattr(capacity, "Engine", no_room)
    found = capacity_of(HERE, golden, None, None)
    assert found.conversations == 1 and "MemoryError" in found.reason and "--conversations N" in found.reason
    assert "could not be measured" in caplog.text


def test_the_trial_steps_full_caches_of_as_many_as_it_says(golden):
    engine = Engine(golden.config, golden.lm, golden.mimi, slots=3, device="cpu")
    trial = Trial(engine)
    assert trial.slowest_ms(2) > 0
    moved = engine.state.temporal.position - engine.context
    assert moved[0] == moved[1] >= 3 and moved[2] == -engine.context
    keys = engine.state.temporal.layers[0].keys
    assert keys[:2].all() and not keys[2].any(), "an untouched page costs no memory traffic"


def test_an_edge_costs_something():
    assert 0.1 < edge_ms() < 1000


# --- the page


def test_the_page_measures_unless_it_is_told_a_number(golden, step_ms, monkeypatch):
    step_ms(lambda count: 20.0 * count)
    host = ModelHost(Settings(model="nano"))
    assert (host.settings.conversations, host.limits.slots, host.settings.most_at_once) == (None, 1, MOST_AT_ONCE)
    host._count_conversations(HERE, golden)
    assert host.limits.slots == 2
    assert dict(host.findings)["conversations"].startswith("2: a frame of 2 takes 40 ms, of 3 60")
    given = ModelHost(Settings(model="nano", conversations=5))
    given._count_conversations(HERE, golden)
    assert given.limits.slots == 5 and dict(given.findings)["conversations"] == "5: asked for"


def test_auto_is_what_may_be_written():
    assert Settings.for_page({"conversations": "auto"}, {}).conversations is None
    assert Settings.for_page({"conversations": "AUTO"}, {"PERSONAPLEX_CONVERSATIONS": "3"}).conversations is None
    assert Settings.for_page({}, {"PERSONAPLEX_CONVERSATIONS": "auto"}).conversations is None
