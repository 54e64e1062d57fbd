"""Memory that tensors give back serves the next ones."""

import platform
import subprocess
import sys

import pytest

from personaplex.engine import freed_memory as heap
from personaplex.engine.freed_memory import KEPT_FOR_FRAMES, KEPT_FOR_TRAINING, keep_freed_memory

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library is not glibc")

BEGIN = """
import ctypes, resource, sys, torch
from personaplex.config import ModelConfig
from personaplex.engine.engine import ENCODE_PIECE_FRAMES_ALONE
from personaplex.engine.freed_memory import keep_freed_memory
from personaplex.models.mimi import seanet_encoder

PR_SET_THP_DISABLE = 41
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # with huge pages there is little to count
kept = int(sys.argv[1])
assert not kept or keep_freed_memory(kept)
"""
ENCODING = """
config = ModelConfig.personaplex_7b().mimi
encoder = seanet_encoder(config)
for entry in encoder.checkpoint_entries(""):
    setattr(*entry.parameter, torch.nn.Parameter(torch.zeros(entry.shape), requires_grad=False))
pcm = torch.zeros(1, 1, ENCODE_PIECE_FRAMES_ALONE * config.frame_samples)

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
print(resource.getpagesize() * min(after - before for before, after in zip(counts, counts[1:])))
"""


def fresh_bytes(work: str, kept: int) -> int:
    """How much memory the system clears for some work when it has been done before, at the least."""
    words = [sys.executable, "-c", BEGIN + work + END, str(kept)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


@needs_glibc
@pytest.mark.parametrize(
    ("work", "kept"), [(ENCODING, KEPT_FOR_FRAMES), (STEPS, KEPT_FOR_TRAINING)], ids=["encoding", "training"]
)
def test_work_that_was_done_before_needs_no_fresh_memory(work, kept):
    assert fresh_bytes(work, kept) < 5_000_000


@needs_glibc
def test_the_c_library_by_itself_gives_memory_back():
    assert fresh_bytes(ENCODING, 0) > 20_000_000


class OtherLibrary:
    """glibc's ``mallopt`` with a limit of its own; remembers what was set."""

    def __init__(self, largest: int):
        self.largest, self.set = largest, {}

    def mallopt(self, option: int, value: int) -> int:
        taken = option != heap._M_MMAP_THRESHOLD or value <= self.largest
        if taken:
            self.set[option] = value
        return int(taken)


@pytest.fixture
def library(monkeypatch):
    def use(found):
        monkeypatch.setattr(heap, "_most_kept", 0)
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: found)
        return found

    return use


def test_who_wants_less_kept_changes_nothing(library):
    glibc = library(OtherLibrary(largest=1 << 40))
    asked = [KEPT_FOR_FRAMES, KEPT_FOR_TRAINING, KEPT_FOR_FRAMES]
    for most, kept in zip(asked, [KEPT_FOR_FRAMES, KEPT_FOR_TRAINING, KEPT_FOR_TRAINING], strict=True):
        assert keep_freed_memory(most)
        assert glibc.set == {heap._M_TRIM_THRESHOLD: kept, heap._M_MMAP_THRESHOLD: 64 << 20}


def test_an_older_glibc_takes_what_it_can(library):
    glibc = library(OtherLibrary(largest=32 << 20))
    assert keep_freed_memory()
    assert glibc.set == {heap._M_TRIM_THRESHOLD: KEPT_FOR_FRAMES, heap._M_MMAP_THRESHOLD: 32 << 20}


def test_another_c_library_is_left_alone(library, monkeypatch):
    library(object())
    assert not keep_freed_memory()
    library(None)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
