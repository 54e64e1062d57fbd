"""The cluster's model of capacity."""

from __future__ import annotations

import pytest

from benchmarks.cluster_model import Plan, Simulation, line_mbit_s


def test_the_model_of_capacity_agrees_with_queueing_theory():
    """Places that do not follow the load, visitors who never leave: Erlang C says who waits."""
    plan = Plan(
        talks=8, slots=1, start_sec=1e9, spread=1.0, longest_sec=1e9, patience_sec=1e9, waiting=10**6, surge=1.0,
        hours=40.0, fixed=10,
    )  # fmt: skip
    outcome, places, load = Simulation(plan).run(), plan.fixed, 8.0
    erlang_b = 1.0
    for count in range(1, places + 1):
        erlang_b = load * erlang_b / (count + load * erlang_b)
    waits = erlang_b / (1 - load / places * (1 - erlang_b))
    assert abs(float((outcome.waits_sec > 0).mean()) - waits) < 0.08
    assert outcome.refused == outcome.left == 0 and abs(outcome.used_share - load / places) < 0.05


def test_a_surge_is_waited_for_as_long_as_a_replica_takes_to_start():
    quick, slow = (
        Simulation(Plan(talks=40, slots=4, start_sec=start_sec, hours=0.5, surge=3.0, surge_sec=10)).run()
        for start_sec in (5.0, 120.0)
    )
    assert quick.short_sec < slow.short_sec and (slow.waits_sec > 1).mean() > (quick.waits_sec > 1).mean()
    assert quick.visitors == slow.visitors >= len(slow.waits_sec) + slow.refused + slow.left


def test_what_a_talk_needs_of_the_network_is_what_the_line_sends():
    up, down = line_mbit_s()
    assert up == pytest.approx(8 * 7685 * 12.5 / 1e6, abs=0.01) and down == pytest.approx(2 * up, rel=0.02)
