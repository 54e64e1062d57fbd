"""The choice of model and format, on machines that are only described."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest
import torch

from personaplex.config import PUBLISHED, LMConfig, ModelConfig
from personaplex.errors import InputError
from personaplex.machine import inspect as machine
from personaplex.machine.choose import choose, inspect_here, weigh
from personaplex.machine.cost import (
    BUDGET_MS,
    cache_bytes,
    conversations_at_once,
    embedding_weights,
    memory_needed_bytes,
    weights_per_frame,
)
from personaplex.machine.inspect import GB, Gpu, Machine
from personaplex.machine.load import OtherPrograms, crowded
from personaplex.machine.report import report
from personaplex.nn.packing import WeightFormat
from personaplex.settings import DTYPES, Settings

LAPTOP = Machine(
    "Linux x86_64", "Python 3", "A processor", cores=8, memory_bytes=16 * GB, free_memory_bytes=12 * GB,
    bandwidth_gb_s=40, free_disk_bytes=100 * GB,
)  # fmt: skip
H200 = Gpu("NVIDIA H200", 150 * GB, 149 * GB, 4000)


def test_costs_are_those_of_the_published_model():
    config = LMConfig()
    layers = config.depformer_num_layers
    a_layer = weights_per_frame(config) - weights_per_frame(replace(config, depformer_num_layers=layers - 1))
    depth_steps_left_out = 8 * layers * a_layer
    assert 2 * weights_per_frame(config) == pytest.approx((13.4 + 1.34) * 1e9, rel=0.01)
    assert cache_bytes(config, 1) == 512 * 1024
    assert cache_bytes(config) == pytest.approx(1.57e9, rel=0.01)
    not_read = depth_steps_left_out / 8 + 8 * config.depformer_dim * (config.dim + config.card)
    assert weights_per_frame(config) + not_read + embedding_weights(config) == pytest.approx(8_371_408_896, rel=0.001)


def test_memory_needed_keeps_within_the_machines_it_is_meant_for():
    config = ModelConfig.personaplex_7b()
    assert memory_needed_bytes(config, "int4", 1000) < 6.9 * GB
    assert memory_needed_bytes(config, "int8", 1000) < 10 * GB


def test_a_laptop_gets_nano_and_is_told_why():
    choice = choose(LAPTOP)
    assert (choice.model, choice.device, choice.format) == ("nano", "cpu", "int8")
    assert 0 < choice.expected_ms < 5
    assert "nano as int8 on cpu, at least" in dict(report(LAPTOP, choice))["auto takes"]
    assert "nothing here holds the 7B in real time" in choice.reason
    assert any("speed" in note for note in choice.missing)
    assert any("HF_TOKEN" in note for note in choice.missing)


def test_a_gpu_with_the_weights_at_hand_gets_the_7b():
    choice = choose(replace(LAPTOP, gpu=H200, weights_cached=True))
    assert (choice.model, choice.device, choice.format) == (PUBLISHED, "cuda", "bfloat16")
    assert choice.expected_ms < BUDGET_MS
    assert choice.missing == ()


def test_a_gpu_without_a_token_gets_nano():
    choice = choose(replace(LAPTOP, gpu=H200))
    assert choice.model == "nano"
    assert "weights are not at hand" in choice.reason
    assert [note for note in choice.missing if "HF_TOKEN" in note]


def test_a_small_gpu_takes_the_packed_weights():
    small = Gpu("A small GPU", 10 * GB, 9 * GB, 400)
    choice = choose(replace(LAPTOP, gpu=small, has_token=True))
    assert (choice.device, choice.format) == ("cuda", "int4")


def test_a_fast_processor_runs_the_7b_itself():
    server = replace(LAPTOP, bandwidth_gb_s=300, free_memory_bytes=64 * GB, has_token=True)
    assert (choose(server).model, choose(server).format) == (PUBLISHED, "int4")


def test_little_memory_and_little_disk_are_named():
    small = replace(LAPTOP, free_memory_bytes=2 * GB, free_disk_bytes=GB)
    assert not any(candidate.fits for candidate in weigh(small))
    notes = choose(small).missing
    assert any(note.startswith("memory for the 7B") for note in notes)
    assert any(note.startswith("disk for the 7B") for note in notes)


def test_this_machine_is_inspected_and_reported():
    machine = inspect_here()
    assert machine.cores >= 1
    assert machine.memory_bytes >= machine.free_memory_bytes > 0
    assert 0.1 < machine.bandwidth_gb_s < 10_000
    rows = report(machine, choose(machine))
    assert {"memory speed", "GPU", "auto takes"} <= {what for what, _ in rows}
    assert all(finding and "\n" not in finding for _, finding in rows)


def test_conversations_at_once_are_bounded_by_memory_and_by_time():
    config, free = ModelConfig.personaplex_7b(), 149e9
    cache = cache_bytes(config.lm)
    count = conversations_at_once(config, "bfloat16", free, 4000)
    needed = memory_needed_bytes(config, "bfloat16") + (count - 1) * cache
    assert needed <= free < needed + cache
    slow = conversations_at_once(config, "bfloat16", free, 300)
    assert 0 < slow < count
    read_sec = (2 * weights_per_frame(config.lm) + slow * cache) / 300e9
    assert read_sec <= 0.8 * BUDGET_MS / 1000 < read_sec + cache / 300e9
    assert conversations_at_once(config, "bfloat16", free, 100) == 0
    assert conversations_at_once(config, "int8", free, 4000, 500) > 3 * count


def test_the_report_says_how_many_conversations_a_gpu_holds():
    machine = replace(LAPTOP, gpu=H200, weights_cached=True)
    lines = dict(report(machine, choose(machine)))
    assert "conversations at once" in lines["7B bfloat16 on cuda"]


def test_memory_that_a_system_does_not_tell_of_is_no_obstacle():
    """Windows says nothing here."""
    silent = replace(LAPTOP, memory_bytes=0, free_memory_bytes=0)
    assert all(candidate.fits for candidate in weigh(silent))
    assert dict(report(silent, choose(silent)))["memory"] == "this system does not say"


NVIDIA_DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  Tue Apr  8 12:41:17 UTC 2025"


@pytest.mark.parametrize(
    ("cuda", "driver", "said"),
    [
        ("13.0", "", "none that PyTorch can use"),
        ("13.0", NVIDIA_DRIVER, "the NVIDIA driver 550.163.01 is too old for PyTorch's CUDA 13.0"),
        (None, NVIDIA_DRIVER, "a build without CUDA: pip install --force-reinstall torch --index-url https://download"),
    ],
)
def test_a_gpu_that_is_here_and_not_found_is_told_apart_from_none(monkeypatch, cuda, driver, said):
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.torch.version, "cuda", cuda)
    monkeypatch.setattr(machine, "_text", lambda path: driver if path == "/proc/driver/nvidia/version" else "")
    gpu, problem = machine._gpu()
    assert gpu is None
    described = replace(LAPTOP, gpu_problem=problem)
    lines = report(described, choose(described))
    assert said in dict(lines)["GPU"]
    assert any("a GPU: " in finding for what, finding in lines if what == "missing") == bool(driver)
    with pytest.raises(
        InputError, match="device cuda was asked for, but PyTorch finds no such GPU here.*; use cpu or auto"
    ):
        choose(described, Settings(device="cuda"))


def test_a_gpu_without_kernels_is_not_thought_to_read_packed_weights():
    """PyTorch's operators unpack all of them in every frame."""
    older = replace(LAPTOP, weights_cached=True, gpu=Gpu("A T4", 16 * GB, 15 * GB, 300, (7, 5)))
    assert [c.format for c in weigh(older) if c.device == "cuda"] == ["bfloat16"]
    assert choose(older).device != "cuda" and any("Ampere" in note for note in choose(older).missing)


class FakeGpu:
    """Stands in for torch.cuda: a GPU with so much memory free, part of it in PyTorch's own cache."""

    def __init__(self, monkeypatch, free_bytes, full=False, capability=(7, 5), built=("sm_75",)):
        self.free_bytes, self.cached_bytes, self.full = free_bytes, 0, full
        self.capability, self.built = capability, list(built)
        names = {"is_available": lambda: True, "mem_get_info": self.info, "get_device_name": lambda _: "A GPU",
                 "get_device_capability": lambda _: self.capability, "get_arch_list": lambda: self.built}  # fmt: skip
        for name, function in {**names, "empty_cache": self.empty}.items():
            monkeypatch.setattr(machine.torch.cuda, name, function)
        monkeypatch.setattr(machine.torch, "ones", self.ones)
        monkeypatch.setattr(machine, "_PROBE_SEC", 0.0)

    def info(self, device="cuda"):
        return self.free_bytes - self.cached_bytes, 10 * GB

    def empty(self):
        self.cached_bytes = 0

    def ones(self, count, dtype, device):
        assert device == "cuda"
        if self.full or 4 * count > self.free_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.07 GB.\nSee the manual")
        self.cached_bytes = 4 * count
        return torch.zeros(8)


@pytest.mark.parametrize("free_bytes", [10 * GB, GB, GB // 10, 0])
def test_a_gpu_is_measured_in_the_memory_it_has_left_and_gets_it_back(monkeypatch, free_bytes):
    fake = FakeGpu(monkeypatch, free_bytes)
    found, problem = machine._gpu()
    assert problem == ""
    assert (found.name, found.memory_bytes, found.free_bytes) == ("A GPU", 10 * GB, free_bytes)
    assert fake.info()[0] == free_bytes, "the probe stays in PyTorch's cache"


def test_a_full_gpu_does_not_keep_the_processor_from_running(monkeypatch, caplog):
    FakeGpu(monkeypatch, GB, full=True)
    gpu, problem = machine._gpu()
    assert gpu is None and problem.startswith("CUDA out of memory") and "end what else runs" in problem
    assert "the GPU is left out: CUDA out of memory" in caplog.text and "manual" not in caplog.text


UP_TO_HOPPER = ("sm_75", "sm_80", "sm_90")
WITH_BLACKWELL = (*UP_TO_HOPPER, "sm_100", "sm_120", "compute_120")


@pytest.mark.parametrize(
    ("capability", "cuda", "built", "wheel"),
    [
        ((12, 0), "12.6", UP_TO_HOPPER, "cu128"), ((12, 1), "12.6", UP_TO_HOPPER, "cu130"),
        ((10, 0), "12.4", UP_TO_HOPPER, "cu128"), ((11, 0), "12.8", UP_TO_HOPPER, "cu130"),
        ((12, 0), "12.8", WITH_BLACKWELL, ""), ((12, 1), "13.0", WITH_BLACKWELL, ""),
        ((8, 9), "12.6", UP_TO_HOPPER, ""),
    ],
)  # fmt: skip
def test_a_gpu_newer_than_this_pytorch_is_told_which_build_it_needs(monkeypatch, capability, cuda, built, wheel):
    """RTX 50 and GB10 with a build that has no code for them: they were called "none that PyTorch can use"."""
    FakeGpu(monkeypatch, GB, capability=capability, built=built)
    monkeypatch.setattr(machine.torch.version, "cuda", cuda)
    gpu, problem = machine._gpu()
    if not wheel:
        assert gpu is not None and problem == ""
        return
    assert gpu is None
    described = replace(LAPTOP, gpu_problem=problem)
    for said in (dict(report(described, choose(described)))["GPU"], *choose(described).missing[:1]):
        assert f"compute capability {capability[0]}.{capability[1]} needs a PyTorch for CUDA" in said
        assert f"--index-url https://download.pytorch.org/whl/{wheel}" in said


def test_a_gpu_on_which_an_older_build_computes_is_used_and_told_what_its_kernels_need(monkeypatch):
    """GB10 runs the code for 12.0, but the compiler of CUDA 12.8 does not know 12.1."""
    FakeGpu(monkeypatch, GB, capability=(12, 1), built=WITH_BLACKWELL)
    monkeypatch.setattr(machine.torch.version, "cuda", "12.8")
    gpu, problem = machine._gpu()
    assert gpu.capability == (12, 1) and "whl/cu130" in problem


# --- other programs


def counted(monkeypatch, *looks: tuple[float, float, float]) -> OtherPrograms:
    left = list(looks)
    monkeypatch.setattr("personaplex.machine.load._times", lambda: left.pop(0))
    return OtherPrograms()


def test_cores_that_others_keep_busy_are_those_that_this_program_does_not(monkeypatch):
    assert counted(monkeypatch, (10.0, 100.0, 1.0), (12.0, 104.0, 1.5)).busy_cores() == pytest.approx(1.75)
    assert counted(monkeypatch, (10.0, 100.0, 1.0), (12.0, 100.4, 1.5)).busy_cores() == 0.0
    assert counted(monkeypatch, (10.0, 100.0, 1.0), (10.1, 100.2, 1.0)).busy_cores() is None, "too short to say"
    assert crowded(1.75, 2) and crowded(3.0, 2) and not crowded(0.9, 2) and not crowded(None, 1)


def test_the_load_is_part_of_the_report():
    lines = {
        cores: dict(report(replace(LAPTOP, cores=2, busy_cores=cores), choose(LAPTOP)))["load"] for cores in (0.1, 1.8)
    }
    assert lines[0.1] == "other programs keep 0.1 of 2 cores busy" and "takes longer" in lines[1.8]
    if sys.platform == "linux":
        assert 0 <= inspect_here().busy_cores <= 1.1 * (os.cpu_count() or 1)


# --- one decision


def test_a_processor_that_was_asked_for_is_what_is_weighed_and_reported():
    """With ``--device cpu`` the page ran one choice and showed another."""
    wanted = Settings(model="auto", device="cpu")
    here = replace(LAPTOP, gpu=H200, weights_cached=True)
    choice = choose(here, wanted)
    assert (choice.model, choice.device) == ("nano", "cpu")
    assert {candidate.device for candidate in choice.candidates} == {"cpu"}
    lines = dict(report(here, choice))
    assert lines["auto takes"].startswith("nano as int8 on cpu")
    assert not [what for what in lines if "cuda" in what]


def test_a_format_that_was_asked_for_is_weighed_alone():
    choice = choose(
        replace(LAPTOP, gpu=Gpu("A GPU", 24 * GB, 23 * GB, 900), has_token=True), Settings("auto", "auto", "float32")
    )
    assert {candidate.format for candidate in choice.candidates} == {"float32"}
    assert choice.model == "nano", "33 GB do not fit"


def test_a_model_that_was_asked_for_is_reported_as_such():
    here = replace(LAPTOP, gpu=H200)
    choice = choose(here, Settings(model="nano", device="cpu"))
    assert dict(report(here, choice))["runs"].startswith("nano as int8 on cpu, at least")
    assert (choice.model, choose(here, Settings(model="nano")).device) == ("nano", "cuda")
    assert choose(here, Settings(model="a/b", dtype="int4")).format == "int4"


def test_the_settings_know_every_format():
    assert DTYPES[1:] == tuple(format.value for format in WeightFormat)


def test_a_disk_that_is_gone_has_nothing_free(monkeypatch):
    def gone(_):
        raise FileNotFoundError("the system cannot find the path")

    monkeypatch.setattr("shutil.disk_usage", gone)
    assert inspect_here().free_disk_bytes == 0
