"""Memory that tensors give back serves the next ones."""

import platform
import subprocess
import sys

import pytest

from personaplex.heap import keep_freed_memory

ENCODING = """
import resource, sys, torch
from personaplex.config import ModelConfig
from personaplex.heap import keep_freed_memory
from personaplex.mimi import seanet_encoder

def encode():
    with torch.inference_mode():
        encoder(pcm, encoder.initial_state(1, "cpu"), torch.ones(1, dtype=torch.bool))

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "kept":
    assert keep_freed_memory()
encoder = seanet_encoder(ModelConfig.personaplex_7b().mimi)
for entry in encoder.checkpoint_entries(""):
    setattr(*entry.parameter, torch.nn.Parameter(torch.zeros(entry.shape), requires_grad=False))
pcm = torch.zeros(1, 1, 25 * 1920)
for _ in range(3):
    encode()
before = faults()
encode()
print(faults() - before)
"""
GLIBC = platform.libc_ver()[0] == "glibc"


def pages(how: str) -> int:
    """How many pages the system clears for two seconds of the codec's convolutions, once they have been used."""
    done = subprocess.run([sys.executable, "-c", ENCODING, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not GLIBC, reason="this C library is not glibc")
def test_encoding_needs_no_new_pages():
    assert pages("kept") < 1000 < pages("usual")


def test_another_c_library_is_left_alone(monkeypatch):
    keep_freed_memory.cache_clear()
    monkeypatch.setattr("personaplex.heap.ctypes.CDLL", lambda _: object())
    assert not keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory.__wrapped__()
    keep_freed_memory.cache_clear()
