"""Training keeps the memory that it frees."""

import subprocess
import sys

import pytest

from training.memory import keep_freed_memory

_STEPS = """
import resource, torch
from training.memory import keep_freed_memory
torch.set_num_threads(1)
{call}
def step():
    return [torch.full((2_000_000,), float(number)) for number in range(12)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(call: str) -> int:
    ran = subprocess.run([sys.executable, "-c", _STEPS.format(call=call)], capture_output=True, text=True, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_steps_take_no_fresh_pages():
    """960 MB go through the allocator: with 4 KB pages that is 234 000 of them, if each is fresh."""
    assert keep_freed_memory()
    assert _page_faults("keep_freed_memory()") < 5_000
