"""The real page with nano on a cluster: a talk by WebRTC, and a process that holds no model."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

pytestmark = pytest.mark.cluster
pytest.importorskip("ray", reason="Ray is not installed: make cluster")

from client_server import MoshiClient  # noqa: E402
from page_app import running_app  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from benchmarks.load import question_sound  # noqa: E402
from benchmarks.rtc_client import Visitor  # noqa: E402
from personaplex.messages import STOPPING  # noqa: E402

BANK = Path(__file__).parents[1] / "examples" / "questions" / "bank.wav"
WITHIN_SEC = 60.0


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    flags = ["--model", "nano", "--window", "persona", "--ray", "local", "--conversations", "2"]
    with running_app(tmp_path_factory.mktemp("app"), *flags) as app:
        yield app


async def until(condition, what):
    end = time.monotonic() + WITHIN_SEC
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.05)


def is_loud(visitor):
    return np.abs(visitor.sound().astype(np.int32)).max(initial=0) > 1000


def moshi(app):
    address = app.address.replace("http:", "ws:") + "/api/chat?text_prompt=You+are+kind.&voice_prompt="
    return MoshiClient(connect(address, max_size=None, open_timeout=60)).wait_for_handshake()


def test_a_browser_talks_with_a_replica_through_a_page_without_torch(app):
    async def talk():
        visitor = Visitor(app.address, question_sound(BANK, 30))
        await visitor.connect(WITHIN_SEC)
        await until(lambda: is_loud(visitor), "the persona said nothing")
        await visitor.stop()

    asyncio.run(talk())
    libraries = {Path(found.path).name for found in psutil.Process(app.process.pid).memory_maps()}
    assert not [name for name in libraries if "torch" in name], "the page's process has loaded PyTorch"
    figures = app.wait_for("/metrics", 200).text
    assert "personaplex_placement_seconds_count 1.0" in figures and "personaplex_answer_seconds_count" in figures


def test_moshis_protocol_talks_with_a_replica_too(app):
    talking = moshi(app)
    talking.talk(5)
    assert len(talking.sound) > 0 and not talking.error
    talking.socket.close()


def test_everybody_is_told_when_the_page_is_stopped_and_ray_ends_with_it(app):
    """Last: the page is gone afterwards."""
    started = psutil.Process(app.process.pid).children(recursive=True)
    assert any("raylet" in " ".join(process.cmdline()) for process in started)
    talking = moshi(app)
    app.process.send_signal(signal.SIGTERM)
    assert talking.until_closed() == 1001 and talking.error == STOPPING
    assert app.process.wait(10) == 0
    _, left = psutil.wait_procs(started, timeout=10)
    assert not left, f"left behind: {left}"
    assert "Traceback" not in app.log.read_text() and "SIGTERM received" not in app.log.read_text()
