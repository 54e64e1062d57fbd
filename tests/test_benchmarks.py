"""Benchmarks: what they count and report, on the tiny model; times are not looked at."""

from __future__ import annotations

import ast
import json
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import GOLDEN_FOLDER

from benchmarks import footprint, frame, measuring, models, peer, prompt, quality, report, tell
from personaplex.config import KV_CACHES, ModelConfig
from personaplex.engine.engine import Engine
from personaplex.errors import InputError
from personaplex.nn.linear import Linear
from personaplex.nn.packing import WeightFormat

GOLDEN_CONFIG = str(GOLDEN_FOLDER / "config.json")
FACTS = {"processor", "gpu", "device", "cores", "threads", "python", "torch", "personaplex", "commit", "date"}


@pytest.fixture(autouse=True)
def short_probes(monkeypatch):
    monkeypatch.setattr(measuring, "BANDWIDTH_PROBE_BYTES", 1 << 20)
    monkeypatch.setattr(measuring, "BANDWIDTH_PROBE_SEC", 0.001)
    monkeypatch.setattr("personaplex.machine.inspect._PROBE_SEC", 0.001)


def checked(line: dict) -> dict:
    """A line as a reader of it gets it."""
    assert line.keys() >= FACTS
    return json.loads(json.dumps(line, allow_nan=False))


@pytest.mark.parametrize("folder", ["benchmarks", "training"])
def test_what_people_run_imports_nothing_of_the_tests(folder):
    tests = Path(__file__).parent
    names = {"tests", "conftest", *(path.stem for path in tests.glob("*.py"))}
    for path in (tests.parent / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in found} & names, path


# --- a frame, and one before which something is told


def test_tell():
    words = ["--model", str(GOLDEN_FOLDER), "--dtype", "float32", "--context", "40", "--prompt", "8"]
    line = checked(tell.measure(tell.arguments([*words, "--tokens", "5", "--times", "2"])))
    assert (line["benchmark"], line["context"], line["tokens"], line["prompt_frames"]) == ("tell", 40, 5, 8)
    for name in ("frame", "telling", "late", "held"):
        assert line[name]["p50_ms"] > 0
    assert line["late"]["p50_ms"] >= line["telling"]["p50_ms"]
    with pytest.raises(InputError, match="must be 15 together at most, of a context of 40"):
        tell.measure(tell.arguments([*words, "--tokens", "8"]))
    with pytest.raises(InputError, match="--tokens must be 1 to 200"):
        tell.measure(tell.arguments([*words, "--tokens", "201"]))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("model", [str(GOLDEN_FOLDER), GOLDEN_CONFIG])
def test_frame(model, plain):
    words = ["--model", model, "--dtype", "int8", "--frames", "3", "--warmup", "1", "--slots", "2", "--context", "24"]
    line = checked(frame.measure(frame.arguments(words + ["--plain"] * plain)))
    assert (line["benchmark"], line["dtype"], line["slots"], line["context"], line["filled"]) == (
        "frame", "int8", 2, 24, 24,
    )  # fmt: skip
    assert line["bandwidth_gb_s"] > 0
    assert line["peak_rss_gb"] > 0
    stages = ["encode", "language_model", "decode", "frame"] + ["temporal", "depth"] * plain
    for name in stages:
        stage = line[name]
        assert 0 < stage["p50_ms"] <= stage["p99_ms"] <= stage["max_ms"]
        rounding = 1e-3 + 5e-4 / stage["p50_ms"]  # of the share itself, and of a floor given to the microsecond
        assert stage["share_of_floor"] == pytest.approx(stage["floor_ms"] / stage["p50_ms"], abs=rounding)
    parts = sum(line[name]["bytes"] for name in ("encode", "language_model", "decode"))
    assert line["frame"]["bytes"] == pytest.approx(parts, abs=2)


def test_a_frame_with_a_prompt_that_stays():
    words = ["--model", str(GOLDEN_FOLDER), "--dtype", "int8", "--frames", "2", "--warmup", "0", "--kept", "10"]
    line = checked(frame.measure(frame.arguments(words)))
    assert line["kept"]["prompt"] == 10 and 0 < line["kept"]["p50_ms"] <= line["kept"]["max_ms"]
    assert line["kept"]["times_without"] > 0


def test_a_frame_beside_busy_processes(monkeypatch):
    """They compute while the second run lasts, each on a core, and are gone after it, however it ends."""
    seen = []

    def alive():
        return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]

    before = len(alive())
    time_frames = frame.time_frames

    def watch(*arguments):
        seen.append(len(alive()) - before)
        return time_frames(*arguments)

    monkeypatch.setattr(frame, "time_frames", watch)
    words = ["--model", str(GOLDEN_FOLDER), "--frames", "3", "--warmup", "1", "--context", "24", "--beside", "2"]
    line = checked(frame.measure(frame.arguments(words)))
    assert seen == [0, 2] and len(alive()) == before
    beside = line["beside"]
    assert beside["processes"] == 2
    assert beside["times_quiet"] == pytest.approx(beside["p50_ms"] / line["frame"]["p50_ms"], abs=0.01)
    with suppress(KeyboardInterrupt), measuring.busy_processes(1):
        assert len(alive()) == before + 1
        raise KeyboardInterrupt
    assert len(alive()) == before
    with pytest.raises(InputError, match="--beside is 65; 0 to 64"):
        frame.measure(frame.arguments([*words[:-1], "65"]))


def test_bytes_of_the_7b_are_those_that_were_counted():
    """13.4 GB of temporal and 1.34 GB of depth weights in bfloat16, and 512 KiB of cache a frame."""
    config = ModelConfig.personaplex_7b()
    lm = models.LanguageModel(config.lm)
    counts = {}
    for name, part in (("temporal", lm.temporal), ("depth", lm.depth)):
        counts[name] = sum(m.in_features * m.out_features for m in part.modules() if isinstance(m, Linear))
    assert 2 * counts["temporal"] / 1e9 == pytest.approx(13.4, abs=0.05)
    assert 2 * counts["depth"] / 1e9 == pytest.approx(1.34, abs=0.01)
    state = lm.temporal.initial_state(1, 4, torch.bfloat16, "meta")
    assert frame._ring_bytes(state, 2) == 2 * 512 * 1024
    assert frame._ring_bytes(state, 9) == 4 * 512 * 1024  # a ring holds no more than its length


@pytest.mark.parametrize("filled", [0, 5, 24])
def test_a_slot_is_put_into_the_middle_of_a_conversation(golden, filled):
    engine = Engine(golden.config, golden.lm, golden.mimi, slots=2, context=24)
    frame.start_all(engine, filled)
    assert engine.state.temporal.position.tolist() == [filled, filled]
    assert engine.state.frames.position.tolist() == [filled, filled]
    assert engine.state.encoder.transformer.position.tolist() == [2 * filled] * 2
    out = engine.step(torch.zeros(2, engine.frame_samples), torch.ones(2, dtype=torch.bool))
    assert torch.isfinite(out.text_logits).all()
    assert out.valid.tolist() == [filled >= 2] * 2
    assert engine.state.temporal.position.tolist() == [max(filled, 0) + (filled > 0)] * 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--filled", "41"], "0 to 40"),
        (["--kept", "16"], "0 to 15 are allowed with 40 of 40"),
        (["--frames", "0"], "at least 1"),
        (["--context", "3"], "allowed for this model: 4 to 40"),
        (["--dtype", "int3"], "no number format"),
        (["--device", "cuda:77"], "GPU"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, says):
    with pytest.raises(InputError, match=says):
        frame.measure(frame.arguments(["--model", str(GOLDEN_FOLDER), *words]))


def test_a_machine_too_small_is_told_before(monkeypatch):
    small = replace(measuring.inspect_here(), free_memory_bytes=8 * 10**9)
    monkeypatch.setattr(measuring, "inspect_here", lambda: small)
    monkeypatch.setattr(models, "random_model", None)
    with pytest.raises(InputError, match=r"bfloat16 with 1 x 3000 frames .* needs 1[78]\.\d GB of memory, 8\.0 GB"):
        frame.measure(frame.arguments(["--model", "7b-random", "--dtype", "bfloat16"]))


def test_an_error_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        measuring.run_benchmark(frame.measure, frame.arguments(["--model", str(GOLDEN_FOLDER), "--frames", "0"]))
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: --frames")


# --- random models


@pytest.mark.parametrize("format", WeightFormat)
def test_random_weights_keep_numbers_near_one(tmp_path, format):
    """Every matrix of every format has the spread of 1 / sqrt(inputs)."""
    config = ModelConfig.from_json(GOLDEN_CONFIG)
    model = models.random_model(config, format, "cpu", tmp_path)
    assert model.tokenizer_path.is_file()
    layers = [m for m in model.lm.modules() if isinstance(m, Linear)]
    assert {layer.weight.format for layer in layers} == {format}
    wide = [layer for layer in layers if layer.out_features >= 100]
    assert wide
    for layer in wide:
        x = torch.randn(8, layer.in_features, generator=torch.Generator().manual_seed(0))
        assert 0.5 < float(layer(x).std()) < 2


# --- the prompt


def test_prompt():
    line = checked(prompt.measure(prompt.arguments(["--model", str(GOLDEN_FOLDER), "--repeats", "2"])))
    assert line["prompt_frames"] == 250
    assert line["cold"]["p50_ms"] > line["prepare"]["p50_ms"] > line["snapshot"]["p50_ms"] > 0
    assert line["first_frame"]["max_ms"] > 0
    assert line["snapshot_bytes"] > 10_000


def test_a_prompt_shorter_than_its_role():
    with pytest.raises(InputError, match="more than the role's 91 are needed"):
        prompt.measure(prompt.arguments(["--model", str(GOLDEN_FOLDER), "--prompt-frames", "91"]))


# --- quality


def test_quality():
    words = ["--model", "golden", "--frames", "6", "--group-sizes", "32"]
    line = checked(quality.measure(quality.arguments([*words, "--kv-caches", "auto"])))
    rows = {row["dtype"]: row for row in line["formats"]}
    assert line["frames"] == 5
    assert list(rows) == ["float32", "bfloat16", "int8", "int4"]
    assert all(row["against_itself_max"] == 0 for row in rows.values())
    for kind in ("text", "audio"):
        assert rows["float32"][kind]["max"] < 1e-3
        assert rows["float32"][kind]["greedy_agreement"] == 1
        means = [rows[dtype][kind]["mean"] for dtype in ("float32", "bfloat16", "int8", "int4")]
        assert means == sorted(means)
        assert 0 < rows["bfloat16"][kind]["kl_mean"] <= rows["bfloat16"][kind]["kl_max"]
    line = quality.measure(quality.arguments([*words, "--formats", "float32"]))
    exact, packed = (next(row for row in line["formats"] if row["kv_cache"] == kv_cache) for kv_cache in KV_CACHES)
    assert exact["text"]["mean"] < 1e-3 < packed["text"]["mean"] < rows["bfloat16"]["text"]["mean"]


def test_drift_of_known_distributions():
    wanted = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    found = torch.tensor([[math.log(3), 0.0], [0.0, 2.0]])
    drift = quality.drift(found, wanted)
    assert drift["max"] == pytest.approx(math.log(3))
    assert drift["mean"] == pytest.approx(math.log(3) / 4)
    assert drift["kl_max"] == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25), rel=1e-6)
    assert drift["kl_mean"] == pytest.approx(drift["kl_max"] / 2)
    assert drift["greedy_agreement"] == 1  # of equals, the first counts on both sides


def test_a_format_that_does_not_exist():
    with pytest.raises(InputError, match="names int2; allowed: float32"):
        quality.measure(quality.arguments(["--model", "golden", "--formats", "int8,int2"]))


# --- the command line's memory


def test_footprint(monkeypatch):
    monkeypatch.setenv("PERSONAPLEX_WINDOW", "published")  # the golden prompt is longer than its model's window
    words = [str(GOLDEN_FOLDER), "--context", "40", "--frames", "3"]
    line = checked(footprint.measure(footprint.arguments(words)))
    assert (line["dtype"], line["context"], line["frames"], line["opened"]) == ("int4", 40, 3, "published file")
    assert 0.05 < line["peak_rss_gb"] < 6
    assert line["before_answer_sec"] > 0


@pytest.mark.slow
def test_footprint_of_a_packed_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONAPLEX_WINDOW", "published")
    words = [str(GOLDEN_FOLDER), "--context", "40", "--frames", "3", "--packed", str(tmp_path / "packed")]
    line = checked(footprint.measure(footprint.arguments(words)))
    assert line["opened"] == "packed copy"
    assert line["packing_sec"] > line["open_sec"] > 0
    again = checked(footprint.measure(footprint.arguments(words)))
    assert "packing_sec" not in again
    assert again["packed_gb"] == line["packed_gb"]


def test_footprint_passes_on_what_the_command_says():
    with pytest.raises(InputError, match="allowed for this model: 4 to 40"):
        footprint.measure(footprint.arguments([str(GOLDEN_FOLDER), "--context", "50", "--frames", "3"]))


# --- the peer


def peer_run(ms: float) -> dict:
    times = {"encode": [ms], "lm": [10 * ms], "decode": [ms], "frame": [12 * ms]}
    return {"times_ms": times, "peak_rss_bytes": 10**9, "versions": {"moshi": "0", "torch": "0"}}


def our_line(ms: float) -> dict:
    stages = {name: {"p50_ms": ms} for name in ("encode", "language_model", "decode", "frame")}
    return {**stages, "peak_rss_gb": ms}


def test_the_ratio_is_of_medians():
    ours = [("int4", "empty", our_line(ms)) for ms in (10, 30)] + [("int4", "full", our_line(60))]
    found = peer.compare([peer_run(10), peer_run(10)], ours)
    assert found["ratio"] == {"int4 empty": 6.0, "int4 full": 2.0}
    assert found["ours"]["int4 empty"]["peak_rss_gb"] == 30
    assert found["peer"]["frame"] == {"p50_ms": 120, "p99_ms": 120, "max_ms": 120}


def test_the_peer_takes_random_models_only():
    with pytest.raises(InputError, match="weights are random here"):
        peer.measure(peer.arguments(["--model", str(GOLDEN_FOLDER)]))


# --- measuring


def test_percentiles_are_measured_values():
    assert measuring.summary_ms([5.0]) == {"p50_ms": 5.0, "p99_ms": 5.0, "max_ms": 5.0}
    hundred = measuring.summary_ms(list(range(200, 0, -1)))
    assert hundred == {"p50_ms": 100, "p99_ms": 198, "max_ms": 200}


def test_other_load_is_what_all_processes_did_but_this_one(monkeypatch):
    """Ten seconds in which the machine worked for 9 s, 4 of them here; waiting for the disk is no work."""
    told = [dict(user=100.0, system=20.0, idle=50.0, iowait=1.0), dict(user=107.0, system=22.0, idle=61.0, iowait=9.0)]
    clock, own = iter([5.0, 15.0]), iter([(1.0, 0.5, 0.0, 0.0, 0.0), (3.0, 1.0, 1.0, 0.5, 0.0)])
    monkeypatch.setattr(measuring.psutil, "cpu_times", lambda: SimpleNamespace(**told.pop(0)))
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(measuring.os, "times", lambda: next(own))
    assert measuring.OtherLoad().cores() == 0.5


def test_stages_add_up_every_entry():
    now = iter(range(100))

    class Clock(measuring.HostClock):
        def mark(self) -> float:
            return next(now)

    class Work:
        def double(self, x: int) -> int:
            return 2 * x

    stages, work = measuring.Stages(Clock()), Work()
    with stages.watching(work, "double", "doubling"):
        assert [work.double(3), work.double(x=4)] == [6, 8]
    assert work.double(5) == 10  # not timed any more: a second measurement does not time the first one's watching
    assert stages.ms() == {"doubling": [1000.0, 1000.0]}


# --- the page


def test_of_equal_measurements_the_last_counts():
    line = {"benchmark": "frame", "model": "nano", "dtype": "int8", "gpu": None, "filled": 0}
    found = report.newest([{**line, "n": 1}, {**line, "dtype": "float32", "n": 2}, {**line, "n": 3}])
    assert [other["n"] for other in found] == [2, 3]


def test_blocks_of_the_page_are_made_anew():
    page = "# A\n<!-- quality -->\nold\n<!-- end -->\nkept\n"
    made = report.filled_page(page, {})
    assert "old" not in made
    assert made.startswith("# A\n<!-- quality -->\n\n| model |")
    assert made.endswith("<!-- end -->\nkept\n")
    assert report.filled_page(made, {}) == made


def test_the_page_shows_the_newest_figures():
    text = report.PAGE.read_text(encoding="utf-8")
    assert report.filled_page(text, report.read_results()) == text
