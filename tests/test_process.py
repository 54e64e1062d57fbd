"""What a process is set up with: memory that tensors give back serves the next ones, small models run on one thread."""

import platform
import subprocess
import sys

import pytest
import torch

from personaplex.native import process
from personaplex.native.process import KEPT_FOR_FRAMES, KEPT_FOR_TRAINING, keep_freed_memory
from personaplex.weights.load import load_model

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library is not glibc")

BEGIN = """
import ctypes, resource, sys, torch
from personaplex.config import ModelConfig
from personaplex.engine.engine import ENCODE_PIECE_FRAMES_ALONE
from personaplex.native.process import keep_freed_memory
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
        taken = option != process._M_MMAP_THRESHOLD or value <= self.largest
        if taken:
            self.set[option] = value
        return int(taken)


@pytest.fixture
def library(monkeypatch):
    def use(found):
        monkeypatch.setattr(process, "_most_kept", 0)
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(process.ctypes, "CDLL", lambda _: found)
        return found

    return use


def test_who_wants_less_kept_changes_nothing(library):
    glibc = library(OtherLibrary(largest=1 << 40))
    asked = [KEPT_FOR_FRAMES, KEPT_FOR_TRAINING, KEPT_FOR_FRAMES]
    for most, kept in zip(asked, [KEPT_FOR_FRAMES, KEPT_FOR_TRAINING, KEPT_FOR_TRAINING], strict=True):
        assert keep_freed_memory(most)
        assert glibc.set == {process._M_TRIM_THRESHOLD: kept, process._M_MMAP_THRESHOLD: 64 << 20}


def test_an_older_glibc_takes_what_it_can(library):
    glibc = library(OtherLibrary(largest=32 << 20))
    assert keep_freed_memory()
    assert glibc.set == {process._M_TRIM_THRESHOLD: KEPT_FOR_FRAMES, process._M_MMAP_THRESHOLD: 32 << 20}


def test_another_c_library_is_left_alone(library, monkeypatch):
    library(object())
    assert not keep_freed_memory()
    library(None)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()


# --- threads


@pytest.fixture
def threads(monkeypatch):
    """Seven threads, and nobody who asked for another number; the list of those that were set."""
    used = [7]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(process, "_threads_before", None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: used[-1])
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    return used


def test_a_small_model_runs_on_one_thread_and_a_large_one_gets_them_back(threads):
    for width, count in ((4096, 7), (384, 1), (1024, 1), (4096, 7), (4096, 7)):
        process.prepare_for_cpu(width)
        assert threads[-1] == count, width


def test_training_takes_the_threads_back(threads):
    process.prepare_for_cpu(384)
    process.use_all_threads()
    assert threads[-1] == 7
    process.use_all_threads()
    assert threads == [7, 1, 7]


def test_who_sets_the_number_of_threads_keeps_it(threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    process.prepare_for_cpu(384)
    assert threads == [7]


def test_a_model_is_loaded_with_its_threads(threads, golden):
    """So the page, `reply`, the benchmarks and Python all run it alike."""
    load_model(golden.folder, device="cpu")
    assert threads[-1] == 1
