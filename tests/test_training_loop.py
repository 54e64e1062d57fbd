"""The skeleton of the trainers: rates, checkpoints that are whole, time that all processes share."""

import json
import logging

import pytest
import torch

from training import loop
from training.loop import CHECKPOINT, FINAL, TimedTrainer, cosine, flat_gradients, warm_up, write_checkpoint


class Counter(TimedTrainer):
    """One weight; a step takes a second of a clock that is turned by hand."""

    def __init__(self, folder, clock):
        self.weight = torch.nn.Parameter(torch.zeros(3))
        super().__init__(folder, [self.weight])
        self.clock, self.saved = clock, []

    def one_step(self):
        self.clock.now += 1.0
        self.average_gradients()
        self.step += 1

    def figures(self):
        return {"weight": float(self.weight.detach().sum())}

    def state(self):
        return {"step": self.step, "elapsed_sec": self.elapsed_sec, "weight": self.weight.detach()}

    def restore(self, state):
        self.step, self.elapsed_sec = state["step"], state["elapsed_sec"]
        self.weight.data.copy_(state["weight"])

    def save(self, name=CHECKPOINT):
        self.saved.append((name, self.step))
        super().save(name)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def counter(tmp_path):
    return Counter(tmp_path, Clock())


def test_a_rate_warms_up_and_falls_along_a_cosine():
    assert [warm_up(step, 4) for step in (0, 1, 3, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert cosine(1.0, 0.2, 0.0) == 1.0
    assert cosine(1.0, 0.2, 0.5) == pytest.approx(0.6)
    assert cosine(1.0, 0.2, 1.0) == pytest.approx(0.2) == cosine(1.0, 0.2, 7.0)


def test_a_run_lasts_for_its_time_and_reports_and_saves_on_the_way(counter, caplog):
    with caplog.at_level(logging.INFO):
        counter.train_for(0.2, counter.one_step, log_steps=5, checkpoint_sec=4.5, clock=counter.clock)
        counter.finish()
    assert (counter.step, counter.elapsed_sec) == (12, 12.0)
    assert counter.saved == [(CHECKPOINT, 5), (CHECKPOINT, 10), (CHECKPOINT, 12), (FINAL, 12)]
    lines = [json.loads(line) for line in (counter.folder / loop.LOG).read_text().splitlines()]
    assert lines == [{"step": step, "elapsed_sec": step, "weight": 0.0} for step in (5, 10)]
    assert [json.loads(message) for message in caplog.messages] == lines


def test_a_run_goes_on_from_its_checkpoint_with_a_longer_time(counter, tmp_path):
    counter.train_for(0.1, counter.one_step, log_steps=100, checkpoint_sec=100.0, clock=counter.clock)
    with torch.no_grad():
        counter.weight.add_(2.0)
    counter.finish()
    other = Counter(tmp_path, counter.clock)
    other.resume(tmp_path / CHECKPOINT)
    assert (other.step, other.elapsed_sec) == (6, 6.0) and torch.equal(other.weight, counter.weight)
    other.train_for(0.2, other.one_step, log_steps=100, checkpoint_sec=100.0, clock=other.clock)
    assert (other.step, other.elapsed_sec) == (12, 12.0)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    path = tmp_path / "run" / CHECKPOINT
    write_checkpoint({"step": 1}, path)

    def fail(state, file):
        file.write_bytes(b"half of a checkp")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        write_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_gradients_lie_in_one_row_before_the_clock():
    weights = [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(4))]
    row = flat_gradients(weights)
    (2 * weights[0].sum() + weights[1].sum()).backward()
    assert row.tolist() == [2.0] * 6 + [1.0] * 4 + [0.0]


def test_processes_agree_on_the_first_ones_time(counter, monkeypatch):
    """The second of two processes, whose own clock is ahead: with its own it would end a step before the first."""
    first = torch.tensor([4.0, 4.0, 4.0, 2 * 7.0])  # gradients, and the clock that only the first process adds
    monkeypatch.setattr(loop.parallel, "world", lambda: 2)
    monkeypatch.setattr(loop.parallel, "rank", lambda: 1)
    monkeypatch.setattr(loop.parallel, "sum_", lambda row: row.add_(first))
    counter.elapsed_sec = 9.0
    counter.gradients[:-1] = 2.0
    counter.average_gradients()
    assert counter.weight.grad.tolist() == [3.0] * 3
    assert counter.elapsed_sec == 7.0
    counter.save()
    assert not (counter.folder / CHECKPOINT).exists(), "only the first process writes"
