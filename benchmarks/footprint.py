"""Memory and time that the command line needs to answer with a large model; ends in one JSON line.

    python -m benchmarks.random_weights /tmp/big
    python -m benchmarks.footprint /tmp/big --dtype int4 --context 1000
    python -m benchmarks.footprint /tmp/big --dtype int4 --context 1000 --packed /tmp/big-int4

It runs ``personaplex reply`` on a question of ``--frames`` frames in a process of its own and reads that
process's peak memory from the system. With ``--packed`` the model is first saved by ``personaplex
quantize`` (unless the folder is there already), the copy's opening is timed, and the copy is what answers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.measuring import EXIT_BAD_INPUT, ROOT, OtherLoad, facts, note, run_benchmark
from personaplex.audio.files import write_wav
from personaplex.config import ModelConfig
from personaplex.errors import InputError
from personaplex.machine.choose import inspect_here
from personaplex.machine.inspect import GB
from personaplex.weights.folder import ModelFiles, wanted_format

LOUDNESS = 0.1
VOICE = ROOT / "voices" / "nano-f.wav"
SUMMARY = re.compile(r"([\d.]+) s in ([\d.]+) s, real-time factor")

OPEN_ONCE = """
import json, sys, time
from personaplex.weights.load import load_model
started = time.perf_counter()
load_model(sys.argv[1], device="cpu")
print(json.dumps(time.perf_counter() - started))
"""


def main() -> None:
    run_benchmark(measure, arguments())


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model's folder")
    parser.add_argument("--dtype", default="int4", help="float32, bfloat16, int8 or int4")
    parser.add_argument("--context", type=int, default=1000, help="frames of cache")
    parser.add_argument("--frames", type=int, default=100, help="of conversation")
    parser.add_argument("--packed", type=Path, help="where a packed copy is, or is to be saved")
    return parser.parse_args(words)


def measure(given: argparse.Namespace) -> dict:
    if given.frames < 1:
        raise InputError("--frames must be at least 1")
    format, config = wanted_format(given.dtype), ModelFiles.open(given.model).config
    if format is None:
        raise InputError("--dtype must name a format")
    load = OtherLoad()
    packing = _pack(given, format.value) if given.packed else {}
    folder = given.packed or given.model
    with TemporaryDirectory() as scratch:
        answered = _answer(given, folder, format.value, config, Path(scratch))
    return {
        "benchmark": "footprint",
        "model": config.name,
        "dtype": format.value,
        "context": given.context,
        "frames": given.frames,
        "opened": "packed copy" if given.packed else "published file",
        **packing,
        **answered,
        "other_cores": load.cores(),
        **facts(inspect_here(), "cpu"),
    }


def _answer(given: argparse.Namespace, folder: Path, format: str, config: ModelConfig, scratch: Path) -> dict:
    """One conversation through the command line."""
    question = scratch / "question.wav"
    noise = np.random.default_rng(0).standard_normal(given.frames * config.mimi.frame_samples).astype(np.float32)
    write_wav(question, LOUDNESS * noise, config.mimi.sample_rate)
    words = ["reply", str(question), "-o", str(scratch / "answer.wav"), "--model", str(folder), "--dtype", format]
    words += ["--context", str(given.context), "--voice", str(VOICE), "--seed", "0", "--device", "cpu"]
    output, wall_sec, peak_bytes = run_apart(["-m", "personaplex", *words])
    found = SUMMARY.search(output)
    if found is None:
        raise InputError(f"personaplex reply did not tell its times, but: {output[-300:]}")
    answer_sec = float(found.group(2))
    return {
        "peak_rss_gb": round(peak_bytes / GB, 3),
        "frame_ms": round(1000 * answer_sec / given.frames, 1),
        "before_answer_sec": round(wall_sec - answer_sec, 1),  # opening, prompt and all
    }


def _pack(given: argparse.Namespace, format: str) -> dict:
    """Save a packed copy unless it is there, and open it."""
    found: dict[str, float] = {}
    if not given.packed.exists():
        words = ["quantize", str(given.model), str(given.packed), "--dtype", format]
        _, sec, peak_bytes = run_apart(["-m", "personaplex", *words])
        found |= {"packing_sec": round(sec, 1), "packing_peak_rss_gb": round(peak_bytes / GB, 3)}
    output, _, _ = run_apart(["-c", OPEN_ONCE, str(given.packed)])
    size = sum(path.stat().st_size for path in given.packed.iterdir())
    return {**found, "packed_gb": round(size / GB, 3), "open_sec": round(json.loads(output.splitlines()[-1]), 2)}


def run_apart(words: Sequence[str]) -> tuple[str, float, int]:
    """Run Python with these arguments → its output, its seconds, and its peak memory in bytes.

    On Linux the peak is at least what this process held when it started the other: some 300 MB, less than any 7B.
    """
    note(f"personaplex {' '.join(words[2:4])} …" if words[0] == "-m" else f"opening {words[-1]}")
    started = time.perf_counter()
    with TemporaryDirectory() as scratch:
        log = Path(scratch) / "output"
        with log.open("wb") as file:
            process = subprocess.Popen([sys.executable, *words], stdout=file, stderr=file, cwd=ROOT)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        output = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode == EXIT_BAD_INPUT:
        raise InputError(output.strip().splitlines()[-1].removeprefix("error: "))
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(words[:3])} ended with {process.returncode}: {output[-2000:]}")
    return output, time.perf_counter() - started, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
