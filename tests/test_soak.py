"""The soak's shortest run: every stage is there, and nothing is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from browser import has_nano

ROOT = Path(__file__).parents[1]
SHORT = (
    "--warm-talks 0 --talks 1 --talk-sec 0.5 --at-once 2 --minutes 0.02 "
    "--killed 1 --uploads 2 --malformed-sec 2 --calm-sec 1 --recorded-minutes 0.05"
).split()


@pytest.mark.skipif(not has_nano(), reason="there is no embedded model")
def test_a_short_soak_loses_nothing():
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *SHORT], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout.splitlines()[-1])
    print(report)
    assert report["talks"] == 1 + 2 + 1 + 1 and report["failed_talks"] == 0 and not report["errors"]
    assert report["killed_clients"] == 1 and report["aborted_uploads"] == 2 and report["malformed_offers"] >= 5
    assert report["slots_lost"] == report["files_left"] == report["malformed_offers_answered_500"] == 0
    assert report["tracebacks"] == 0
    assert len(report["recorded_cpu_sec"]) == len(report["recorded_memory_mb"]) == 1
    assert report["descriptors_after"] <= report["descriptors_before"] + 5
