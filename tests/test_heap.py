"""Memory that tensors give back serves the next ones."""

import platform
import subprocess
import sys

import pytest

from personaplex import heap
from personaplex.heap import ALL_BYTES, LITTLE_BYTES, keep_freed_memory

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library is not glibc")

BEGIN = """
import resource, sys, torch
from personaplex.config import ModelConfig
from personaplex.heap import ALL_BYTES, LITTLE_BYTES, keep_freed_memory
from personaplex.mimi import seanet_encoder

if sys.argv[1] != "as usual":
    assert keep_freed_memory({"little": LITTLE_BYTES, "all": ALL_BYTES}[sys.argv[1]])
"""
ENCODING = """
encoder = seanet_encoder(ModelConfig.personaplex_7b().mimi)
for entry in encoder.checkpoint_entries(""):
    setattr(*entry.parameter, torch.nn.Parameter(torch.zeros(entry.shape), requires_grad=False))
pcm = torch.zeros(1, 1, 25 * 1920)

def work():
    with torch.inference_mode():
        encoder(pcm, encoder.initial_state(1, "cpu"), torch.ones(1, dtype=torch.bool))
"""
STEPS = """
torch.set_num_threads(1)

def work():
    return [[torch.full((2_000_000,), float(number)) for number in range(12)] for _ in range(10)][-1]
"""
END = """
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

counts = [faults()]
for _ in range(8):
    work()
    counts.append(faults())
print(min(after - before for before, after in zip(counts, counts[1:])))
"""


def pages(work: str, kept: str) -> int:
    """How many pages the system clears for some work when it has been done before, at the least."""
    words = [sys.executable, "-c", BEGIN + work + END, kept]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


@needs_glibc
@pytest.mark.parametrize(("work", "kept"), [(ENCODING, "little"), (STEPS, "all")], ids=["encoding", "training"])
def test_work_that_was_done_before_needs_no_new_pages(work, kept):
    assert pages(work, kept) < 1000


@needs_glibc
def test_the_c_library_by_itself_gives_pages_back():
    assert pages(ENCODING, "as usual") > 5000


@needs_glibc
def test_who_wants_less_kept_changes_nothing(monkeypatch):
    told = []
    monkeypatch.setattr(heap, "_most_kept", 0)
    monkeypatch.setattr(
        heap.ctypes, "CDLL", lambda _: type("C", (), {"mallopt": lambda *words: told.append(words[-1]) or 1})()
    )
    for most in (LITTLE_BYTES, ALL_BYTES, LITTLE_BYTES):
        assert keep_freed_memory(most)
    assert told[1::2] == [LITTLE_BYTES, ALL_BYTES, ALL_BYTES]


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: object())
    assert not keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(heap.ctypes, "CDLL", None)
    assert not keep_freed_memory()
