"""Which model runs, its loading behind the page, and what is said when it cannot be had."""

from __future__ import annotations

import threading

import pytest

from personaplex.errors import DownloadError
from personaplex.machine.choose import choose, choose_on_zerogpu
from personaplex.machine.inspect import GB, Gpu, Machine
from personaplex.serving import host as host_module
from personaplex.serving.host import ModelHost
from personaplex.serving.hosted import Loading
from personaplex.serving.server import DuplexServer
from personaplex.serving.zerogpu import ZeroGpuServer
from personaplex.settings import Settings
from personaplex.weights.names import nano_folder

LAPTOP = Machine("Linux", "Python", "CPU", 4, 16 * GB, 12 * GB, 20.0, free_disk_bytes=100 * GB)
H200 = Gpu("H200", 141 * GB, 140 * GB, 4000.0)
SEVEN_B = "nvidia/personaplex-7b-v1"


def planned(machine: Machine, **settings) -> tuple[str, str, str]:
    chosen = choose(machine, Settings(**{"model": "auto", **settings}))
    return chosen.model, chosen.device, chosen.format


def with_(machine: Machine, **changes) -> Machine:
    return Machine(**{**machine.__dict__, **changes})


# --- what auto means


def test_a_laptop_runs_nano():
    assert planned(LAPTOP) == ("nano", "cpu", "int8"), "as it is stored"


def test_a_gpu_with_the_weights_at_hand_runs_the_7b():
    assert planned(with_(LAPTOP, gpu=H200, has_token=True)) == (SEVEN_B, "cuda", "bfloat16")
    assert planned(with_(LAPTOP, gpu=H200, weights_cached=True))[0] == SEVEN_B
    assert planned(with_(LAPTOP, gpu=H200))[0] == "nano"


def test_a_fast_processor_runs_the_7b_packed():
    server = with_(LAPTOP, bandwidth_gb_s=120.0, free_memory_bytes=64 * GB, has_token=True)
    assert planned(server) == (SEVEN_B, "cpu", "int4")


def test_what_was_asked_for_is_taken():
    machine = with_(LAPTOP, gpu=H200, has_token=True)
    assert planned(machine, device="cpu")[0] == "nano", "without its GPU it is a laptop"
    assert planned(machine, dtype="float32") == (SEVEN_B, "cuda", "float32")
    assert planned(machine, model="folder", device="cpu", dtype="int8") == ("folder", "cpu", "int8")


def test_where_gpus_are_lent_nothing_is_measured(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert choose_on_zerogpu(Settings(model="auto")).model == "nano"
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    assert choose_on_zerogpu(Settings(model="auto")).model == SEVEN_B


# --- loading


@pytest.fixture
def loading(monkeypatch):
    """A host whose models load as the test says: name → what happens."""

    def make(happens, machine=LAPTOP, **settings) -> ModelHost:
        monkeypatch.setattr("personaplex.machine.choose.inspect_here", lambda device: machine)
        host = ModelHost(Settings(**{"model": "auto", **settings}))
        monkeypatch.setattr(host, "_host", lambda chosen: happens(chosen))
        return host

    return make


def refuse(*names: str):
    def happens(chosen):
        if chosen.model in names:
            raise DownloadError(f"{chosen.model}: accept the licence first")
        return chosen

    return happens


def run(host: ModelHost) -> ModelHost:
    host.start()
    assert host.wait(20)
    return host


def test_nano_stands_in_for_a_7b_that_cannot_be_fetched(loading):
    host = run(loading(refuse(SEVEN_B), with_(LAPTOP, gpu=H200, has_token=True)))
    assert host.hosted.model == "nano"
    assert "accept the licence" in host.hosted.reason
    assert host.loading.error == ""
    assert dict(host.findings)["auto takes"].startswith("nano on cpu: nvidia/personaplex-7b-v1 would run here, but")


def test_a_model_that_was_asked_for_has_no_stand_in(loading):
    host = run(loading(refuse(SEVEN_B), model=SEVEN_B))
    assert host.hosted is None
    assert "accept the licence" in host.loading.sentence


def test_an_unexpected_failure_ends_loading_with_a_sentence(loading):
    def fall_over(chosen):
        raise OSError("the disk is gone")

    host = run(loading(fall_over))
    assert host.hosted is None and "the disk is gone" in host.loading.sentence


def test_the_machine_is_described(loading):
    host = run(loading(refuse()))
    assert dict(host.findings)["auto takes"].startswith("nano as int8 on cpu") and host.hosted.model == "nano"


def test_the_page_shows_the_choice_that_runs(loading):
    """It ran nano on the processor and showed the 7B on the GPU."""
    machine = with_(LAPTOP, gpu=H200, has_token=True)
    host = run(loading(refuse(), machine, device="cpu"))
    assert (host.hosted.model, host.hosted.device) == ("nano", "cpu")
    assert dict(host.findings)["auto takes"].startswith("nano as int8 on cpu")
    host = run(loading(refuse(), machine, model=SEVEN_B, dtype="int4"))
    assert dict(host.findings)["runs"] == f"{SEVEN_B} as int4 on cuda: it was asked for"


def test_a_gpu_that_was_asked_for_and_is_not_here_is_not_replaced_by_the_processor(loading):
    host = run(loading(refuse(), device="cuda"))
    assert host.hosted is None and "no such GPU here; use cpu or auto" in host.loading.sentence


def test_closing_while_loading_closes_the_server_that_comes(loading):
    closed, go_on = threading.Event(), threading.Event()

    class Hosted:
        server = type("Server", (), {"close": staticmethod(closed.set)})

    def slow(chosen):
        assert go_on.wait(20)
        return Hosted

    host = loading(slow)
    host.start()
    host.close()
    go_on.set()
    assert host.wait(20) and closed.is_set()


def test_loading_in_words():
    assert Loading("reading the model", 1, 4).sentence == "Loading – reading the model: 25 %"
    assert "looking" in Loading().sentence


# --- where GPUs are lent


@pytest.fixture
def lent(monkeypatch):
    monkeypatch.setattr(host_module, "on_zerogpu", lambda: True)
    monkeypatch.setattr(ModelHost, "_lent", lambda self, call: call)  # the decorator refuses a PyTorch without CUDA
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)


def test_a_conversation_fits_into_what_a_visitor_has_a_day(lent):
    assert ModelHost(Settings()).limits.conversation_sec == host_module.LENT_CONVERSATION_SEC
    for given in (300.0, 600.0):
        assert ModelHost(Settings(conversation_sec=given)).limits.conversation_sec == given


@pytest.mark.parametrize("model", ["auto", "nano"])
def test_what_runs_on_the_processor_asks_for_no_gpu(lent, model):
    """nano talks, without a token for the 7B or because it was asked for, and costs nobody's quota."""
    host = run(ModelHost(Settings(model=model, conversations=2)))
    assert isinstance(host.hosted.server, DuplexServer) and host.hosted.device == "cpu"
    assert host.hosted.server.status().slots == 2
    host.close()


def test_a_model_on_a_lent_gpu_is_opened_there(lent):
    host = run(ModelHost(Settings(model=str(nano_folder()))))
    assert isinstance(host.hosted.server, ZeroGpuServer)
    host.close()
