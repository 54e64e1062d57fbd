"""The engine beside Kyutai's ``moshi`` on the same architecture and machine; ends in one JSON line.

    python -m benchmarks.peer
    python -m benchmarks.peer --dtypes bfloat16,int8,int4 --frames 20 --rounds 2

``moshi`` is installed from PyPI into a virtual environment of its own below ``build/``, which sees this
environment's PyTorch. Both sides have random weights of the published shapes; each runs alone, in a process of its
own, one after the other, ``--rounds`` times over. The authors' attention reads the whole ring however little is
in it, so their frame costs the same at every point of a conversation; ours is measured at an empty and at a full one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import sysconfig
import venv
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.measuring import ROOT, OtherLoad, check_free, facts, note, run_benchmark, summary_ms
from benchmarks.models import RANDOM_7B, described
from personaplex.config import ModelConfig
from personaplex.errors import InputError
from personaplex.machine.choose import inspect_here
from personaplex.machine.cost import cache_bytes
from personaplex.machine.inspect import GB
from personaplex.models.language_model import LanguageModel
from personaplex.nn.packing import INT4_GROUP_SIZES

ENVIRONMENT = ROOT / "build" / "peer"
PACKAGES = ("moshi==0.2.13", "einops>=0.7,<0.9")
"""Without their dependencies: what the frame needs of those is here already."""

PEER_DTYPE = "bfloat16"
PEER_OVERHEAD_BYTES = 1_500_000_000  # two codecs in float32, the interpreter, PyTorch
SHARED_KEYS = (
    "dim", "num_heads", "num_layers", "hidden_scale", "context", "max_period", "text_card", "existing_text_padding_id",
    "card", "n_q", "dep_q", "delays", "depformer_dim", "depformer_num_heads", "depformer_num_layers",
    "depformer_dim_feedforward",
)  # fmt: skip
OUR_STAGES = ("encode", "language_model", "decode", "frame")
EMPTY, FULL = "empty", "full"


def main() -> None:
    run_benchmark(measure, arguments())


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=RANDOM_7B, help=f"{RANDOM_7B}, or a config.json with fewer layers")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtypes", default="bfloat16,int4", help="of ours, comma-separated; the authors' is bfloat16")
    parser.add_argument("--group-size", type=int, default=32, choices=INT4_GROUP_SIZES, help="of our int4")
    parser.add_argument("--context", type=int, help="length of both rings in frames; the model's own if not given")
    parser.add_argument("--frames", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int)
    return parser.parse_args(words)


def measure(given: argparse.Namespace) -> dict:
    config, files = described(given.model)
    if files is not None:
        raise InputError(f"--model is {given.model}; {RANDOM_7B} or a config.json is needed: weights are random here")
    if given.context is not None:
        config = replace(config, lm=replace(config.lm, context=given.context))
    _check_peer_fits(config, given.device)
    python = peer_python()
    load = OtherLoad()
    theirs, ours = [], []
    for number in range(given.rounds):
        note(f"round {number + 1} of {given.rounds}: moshi")
        theirs.append(_run([str(python), str(ROOT / "benchmarks" / "peer_side.py"), *_peer_words(given, config)]))
        for dtype in given.dtypes.split(","):
            for filled in (EMPTY, FULL):
                note(f"round {number + 1} of {given.rounds}: ours, {dtype}, {filled} cache")
                ours.append((dtype, filled, _run([sys.executable, *_our_words(given, config, dtype, filled)])))
    return {
        "benchmark": "peer",
        "model": given.model,
        "layers": config.lm.num_layers,
        "context": config.lm.context,
        "frames": given.frames,
        "rounds": given.rounds,
        **compare(theirs, ours),
        "other_cores": load.cores(),
        **facts(inspect_here(), given.device),
    }


def compare(theirs: list[dict], ours: list[tuple[str, str, dict]]) -> dict:
    """Medians over the rounds, and how many times as long the authors' frame takes."""
    pooled = {name: [ms for run in theirs for ms in run["times_ms"][name]] for name in theirs[0]["times_ms"]}
    peer = {name: summary_ms(times) for name, times in pooled.items()}
    found: dict = {
        "peer": {
            **peer,
            "dtype": PEER_DTYPE,
            "peak_rss_gb": round(max(run["peak_rss_bytes"] for run in theirs) / GB, 3),
            "versions": theirs[0]["versions"],
        },
        "ours": {},
        "ratio": {},
    }
    for dtype, filled in dict.fromkeys((dtype, filled) for dtype, filled, _ in ours):
        lines = [line for other, how, line in ours if (other, how) == (dtype, filled)]
        median = {stage: round(statistics.median(line[stage]["p50_ms"] for line in lines), 3) for stage in OUR_STAGES}
        key = f"{dtype} {filled}"
        found["ours"][key] = {**median, "peak_rss_gb": max(line["peak_rss_gb"] for line in lines)}
        found["ratio"][key] = round(peer["frame"]["p50_ms"] / median["frame"], 2)
    return found


def _peer_words(given: argparse.Namespace, config: ModelConfig) -> list[str]:
    lm = asdict(config.lm)
    words = ["--config", json.dumps({key: lm[key] for key in SHARED_KEYS}), "--dtype", PEER_DTYPE]
    return [*words, *_common_words(given)]


def _our_words(given: argparse.Namespace, config: ModelConfig, dtype: str, filled: str) -> list[str]:
    frames = {EMPTY: 0, FULL: config.lm.context}[filled]
    words = ["-m", "benchmarks.frame", "--model", given.model, "--dtype", dtype, "--filled", str(frames)]
    words += ["--context", str(config.lm.context)]
    return [*words, "--group-size", str(given.group_size), *_common_words(given)]


def _common_words(given: argparse.Namespace) -> list[str]:
    words = ["--device", given.device, "--frames", str(given.frames), "--warmup", str(given.warmup)]
    return words + (["--threads", str(given.threads)] if given.threads else [])


def _check_peer_fits(config: ModelConfig, device: str) -> None:
    """The authors' side holds all depth steps and two codecs; refuse before the work."""
    weights = 2 * LanguageModel(config.lm).parameter_count() + cache_bytes(config.lm)
    check_free(weights + PEER_OVERHEAD_BYTES, f"{config.name} in the authors' code", device)


def _run(words: list[str]) -> dict:
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise InputError(f"{words[-1]} failed with {done.returncode}; what it said is above")
    return json.loads(done.stdout.splitlines()[-1])


def peer_python() -> Path:
    """The interpreter of the authors' environment, made on first use; it sees this environment's PyTorch."""
    python = ENVIRONMENT / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    done = ENVIRONMENT / "installed.txt"
    wanted = "\n".join(PACKAGES)
    if not done.is_file() or done.read_text(encoding="utf-8") != wanted:
        note(f"installing {', '.join(PACKAGES)} into {ENVIRONMENT}")
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(ENVIRONMENT)}))
        (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES]
        if subprocess.run(install, stdout=sys.stderr, check=False).returncode != 0:
            raise InputError(f"{', '.join(PACKAGES)} could not be installed; is there a network?")
        done.write_text(wanted, encoding="utf-8")
    return python


if __name__ == "__main__":
    main()
