"""The cluster's parts without Ray: requests as bytes, options, facts, and a page and a replica in this process."""

from __future__ import annotations

import asyncio
import ctypes
import json
import re
import signal
import subprocess
import sys
import threading
from dataclasses import fields

import numpy as np
import pytest
import yaml
from cluster_scene import ROOT, FakeTalks, Visitor, until
from fake_host import GOLDEN, golden_hosted
from fake_session import Notes, frame

from personaplex.cluster import front as front_module
from personaplex.cluster import replica as replica_module
from personaplex.cluster import request as request_module
from personaplex.cluster.connect import _in_lasting_thread
from personaplex.cluster.facts import Facts, described, hosted_from
from personaplex.cluster.front import HANGS, LOST, NO_REPLICAS, SILENT, ClusterServer
from personaplex.cluster.host import ClusterHost
from personaplex.cluster.options import ClusterOptions
from personaplex.cluster.request import FLAGS, decode_request, encode_request
from personaplex.cluster.watch import Watch
from personaplex.errors import ConfigError, PromptError
from personaplex.messages import ConversationRequest, EndReason, Limits, Phase, SamplingOptions, Voice
from personaplex.settings import Settings
from personaplex.text.tokenizer import TextTokenizer

PR_SET_PDEATHSIG = 1


# ---------------------------------------------------------------------------------- requests as bytes


@pytest.mark.parametrize(
    "request_",
    [
        ConversationRequest(),
        ConversationRequest(
            text="„Höflich“", sampling=SamplingOptions(seed=2**62, greedy=True), wait_for_greeting=True
        ),
        ConversationRequest(voice=Voice("NATF2", of_model=True), truncate_text=True),
        ConversationRequest(
            voice=Voice("own", pcm=np.linspace(-1, 1, 24_000, dtype=np.float32)), question=np.ones(7, np.float32)
        ),
    ],
    ids=["empty", "words", "named", "sound"],
)
def test_a_request_comes_back_as_it_was(request_, tmp_path):
    found = decode_request(encode_request(request_), tmp_path)
    for name in ("text", "sampling", *FLAGS):
        assert getattr(found, name) == getattr(request_, name)
    assert (found.question is None) == (request_.question is None)
    if request_.question is not None:
        assert np.array_equal(found.question, request_.question)
    if request_.voice is not None:
        assert (found.voice.name, found.voice.of_model) == (request_.voice.name, request_.voice.of_model)
        assert request_.voice.pcm is None or np.array_equal(found.voice.pcm, request_.voice.pcm)
    assert not list(tmp_path.iterdir())


def test_a_request_loses_none_of_its_fields():
    """One that is added must travel, too."""
    of_the_page = {"record", "write_user_words"}
    travel = {*FLAGS, "voice", "text", "sampling", "question"}
    assert {field.name for field in fields(ConversationRequest)} == travel | of_the_page
    assert {field.name for field in fields(Voice)} == {
        "name", "pcm", "embeddings_path", "snapshot_path", "of_model", "notes",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["embeddings_path", "snapshot_path"])
def test_a_voices_file_travels_and_its_path_does_not(kind, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "voice.bin").write_bytes(b"a voice")
    data = encode_request(ConversationRequest(voice=Voice("v", **{kind: here / "voice.bin"})))
    assert str(here).encode() not in data
    found = decode_request(data, there)
    path = getattr(found.voice, kind)
    assert path.parent == there and path.read_bytes() == b"a voice"


def test_a_voice_that_cannot_travel_is_refused_with_a_sentence(tmp_path, monkeypatch):
    missing = ConversationRequest(voice=Voice("v", embeddings_path=tmp_path / "gone.pt"))
    with pytest.raises(PromptError, match="the voice v cannot be read: No such file"):
        encode_request(missing)
    monkeypatch.setattr(request_module, "MAX_VOICE_BYTES", 3)
    (tmp_path / "gone.pt").write_bytes(b"four")
    with pytest.raises(PromptError, match="a file of 4 bytes; 3 bytes can be sent"):
        encode_request(missing)


def test_what_is_not_a_request_is_refused(tmp_path):
    whole = encode_request(ConversationRequest(question=np.zeros(5, np.float32)))
    for data in (b"", b"\xff\xff\xff\xff", whole[:-1], whole + b"\0", whole[:20]):
        with pytest.raises(ValueError):  # noqa: PT011 - JSON's errors are of this kind
            decode_request(data, tmp_path)


# ---------------------------------------------------------------------------------- options


def test_options_are_read_from_a_command_line_and_from_yaml():
    typed = ClusterOptions.read({"slots": "4", "conversation_sec": "120", "gpus": "0.5", "context": "300"})
    assert typed == ClusterOptions.read({"slots": 4, "conversation_sec": 120, "gpus": 0.5, "context": 300})
    assert ClusterOptions.read(typed.to_dict()) == typed


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"slot": 2}, "did you mean slots"),
        ({"slots": "two"}, "slots is 'two'; a whole number is needed"),
        ({"slots": 0}, "slots is 0; 1 to 64 are allowed"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas is 2; 3 or more is needed"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
        ({"window": "narrow"}, "window is 'narrow'"),
    ],
)
def test_a_slip_in_the_options_is_a_sentence(given, says):
    with pytest.raises(ConfigError, match=says):
        ClusterOptions.read(given)


def test_serves_options_follow_from_ours():
    fixed = ClusterOptions(slots=4, conversation_sec=600).deployment()
    assert fixed["num_replicas"] == 1 and fixed["max_ongoing_requests"] == 4 and "autoscaling_config" not in fixed
    assert fixed["graceful_shutdown_timeout_s"] == 660 and fixed["ray_actor_options"]["num_gpus"] == 0
    scaled = ClusterOptions(model="nvidia/personaplex-7b-v1", slots=4, max_replicas=8).deployment()
    assert scaled["autoscaling_config"]["target_ongoing_requests"] == 3 and "num_replicas" not in scaled
    assert scaled["ray_actor_options"]["num_gpus"] == 1
    assert ClusterOptions(model="nvidia/personaplex-7b-v1", device="cpu").gpus_of_replica == 0


# ---------------------------------------------------------------------------------- what the page knows of the model


def plain_facts():
    hosted = golden_hosted()
    return described(Facts.of(hosted, 2, 120.0, "persona"), hosted.finder.config, hosted.tokenizer)


def test_the_page_knows_the_replicas_model_as_its_own():
    here, there = golden_hosted(), hosted_from(plain_facts(), server=None, home=None)
    for name in ("name", "reason", "format", "device", "context_frames", "max_prompt_tokens", "sample_rate_hz",
                 "frame_sec", "text_padding_id", "family"):  # fmt: skip
        assert getattr(there, name) == getattr(here, name)
    assert there.finder.config == here.finder.config and there.tokenizer.encode("hello") == here.tokenizer.encode(
        "hello"
    )
    assert [entry.name for entry in there.finder.entries()] == [entry.name for entry in here.finder.entries()]


def test_facts_are_plain_values():
    """Every version of the program can unpack them; a page of another version is told so."""
    given = plain_facts()
    assert isinstance(given.pop("tokenizer"), bytes)
    assert json.loads(json.dumps(given))["facts"] == given["facts"], "nothing of our own classes is in it"
    newer = {**given, "tokenizer": b"", "facts": {**given["facts"], "colour": "blue"}}
    with pytest.raises(ConfigError, match="another version"):
        hosted_from(newer, server=None, home=None)


def test_a_voice_beside_the_model_is_named_and_a_shipped_one_travels_as_sound():
    given = plain_facts()
    given["facts"]["voices"] = ["Mine"]
    finder = hosted_from(given, server=None, home=None).finder
    assert finder.find("mine") == Voice("Mine", of_model=True)
    assert finder.find(None).pcm is not None


# ---------------------------------------------------------------------------------- a page and a replica in one process


class Local(FakeTalks):
    def gauges(self):
        return lambda status, held: None


class InProcess:
    """Stands in for Serve: runs a replica's ``hold`` on an event loop in this process."""

    def __init__(self, **options):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.replica = Local({"slots": 2, **options})
        self.calls = 0

    def place(self, *asked):
        self.calls += 1
        return _Call(self.loop, self.replica.hold(*asked))

    def close(self):
        self.replica.host.hosted.server.close()
        self.loop.call_soon_threadsafe(self.loop.stop)


class _Call:
    def __init__(self, loop, work):
        self.loop, self.work = loop, work

    def __iter__(self):
        while True:
            try:
                yield asyncio.run_coroutine_threadsafe(self.work.__anext__(), self.loop).result()
            except StopAsyncIteration:
                return

    def cancel(self):
        pass


@pytest.fixture
def serve():
    made = InProcess()
    yield made
    made.close()


@pytest.fixture
def server(serve):
    made = ClusterServer(serve.place, Limits(slots=2, waiting=0))
    yield made
    made.close()


def value_of(server, name, **labels):
    return server.metrics.registry.get_sample_value(name, labels)


def test_a_talk_through_a_replica(server):
    visitor = Visitor(server)
    until(lambda: len(visitor.came) >= 8)
    assert visitor.numbers == sorted(visitor.numbers) and [state.phase for state in visitor.states][0] is Phase.QUEUED
    visitor.leave.set()
    until(lambda: visitor.ended_at and server.status().running == 0)
    assert visitor.last.reason is EndReason.STOPPED
    assert value_of(server, "personaplex_placement_seconds_count") == 1
    assert 1 <= value_of(server, "personaplex_answer_seconds_count") <= len(visitor.came)


def test_the_replicas_own_end_keeps_its_reason_and_sentence(server, serve):
    serve.replica.host.hosted.server.limits = Limits(slots=2, idle_sec=0.2)
    notes = Notes()
    server.open(ConversationRequest(), notes)
    until(lambda: notes.states and notes.last.phase is Phase.ENDED)
    assert notes.last.reason is EndReason.IDLE and "microphone" in notes.last.message
    until(lambda: server.status().running == 0)


def test_a_replica_that_falls_silent_is_lost_to_its_visitor_alone(server, serve, monkeypatch):
    monkeypatch.setattr(front_module, "SILENT_SEC", 0.3)
    monkeypatch.setattr(replica_module, "BEAT_SEC", 0.05)
    a, b = Visitor(server, "a"), Visitor(server, "b")
    until(lambda: a.came and b.came)
    next(iter(serve.replica._held)).send = lambda kind, payload=b"": None  # hangs: it says nothing any more
    until(lambda: a.ended_at or b.ended_at, 3)
    lost, kept = (a, b) if a.ended_at else (b, a)
    assert lost.last.reason is EndReason.FAILED and lost.last.message == HANGS and not kept.ended_at
    assert value_of(server, "personaplex_errors_total", kind=SILENT) == 1
    until(lambda: server.status().running == 1)
    kept.leave.set()


def test_an_engine_that_answers_nothing_is_told_and_the_replica_says_that_it_is_not_healthy(server, serve, monkeypatch):
    monkeypatch.setattr(front_module, "ANSWER_WITHIN_SEC", 0.2)
    monkeypatch.setattr(replica_module, "REPLACE_AFTER_SEC", 0.1)
    monkeypatch.setattr(replica_module, "BEAT_SEC", 0.05)
    serve.replica.check_health()
    notes = Notes()
    handle = server.open(ConversationRequest(), notes)
    until(lambda: notes.states and notes.last.is_live)
    stuck = threading.Event()
    serve.replica.host.hosted.server.session.on_step = lambda conversation, pcm: stuck.wait(5) and None
    handle.push(frame(0.1))
    until(lambda: any(held.watch.late_sec() > 0.1 for held in serve.replica._held))
    with pytest.raises(RuntimeError, match="has not answered"):
        serve.replica.check_health()
    until(lambda: notes.last.phase is Phase.ENDED, 3)
    assert notes.last.message == HANGS
    stuck.set()


def test_a_replica_whose_line_breaks_is_told_at_once_and_leaves_no_place_taken(server, serve):
    visitor = Visitor(server)
    until(lambda: visitor.came)
    (held,) = serve.replica._held
    held.line.hang_up()
    until(lambda: visitor.ended_at, 2)
    assert visitor.last.reason is EndReason.FAILED and "is gone" in visitor.last.message
    assert value_of(server, "personaplex_errors_total", kind=LOST) == 1
    until(lambda: server.status().running == 0 and not serve.replica._held)


def test_a_page_that_is_gone_gives_its_place_back(server, serve):
    visitor = Visitor(server)
    until(lambda: visitor.came)
    (held,) = serve.replica._held
    visitor.handle.take = lambda kind, payload: None
    held.line._socket.shutdown(0)  # nothing comes from the page any more
    until(lambda: not serve.replica._held, 3)
    visitor.leave.set()


def test_a_cluster_without_replicas_is_a_sentence(monkeypatch, caplog):
    def place(*asked):
        raise ConnectionError("no route\nto a secret place")

    server = ClusterServer(place, Limits())
    notes = Notes()
    server.open(ConversationRequest(text="my secret"), notes)
    until(lambda: notes.states and notes.last.phase is Phase.ENDED)
    assert notes.last.message == NO_REPLICAS and "secret" not in caplog.text
    server.close()


def test_who_waits_too_long_is_told(monkeypatch):
    monkeypatch.setattr(front_module, "PLACE_WITHIN_SEC", 0.1)
    cancelled = threading.Event()

    class Waiting:
        def __iter__(self):
            cancelled.wait(5)
            return iter(())

        def cancel(self):
            cancelled.set()

    server = ClusterServer(lambda *asked: Waiting(), Limits())
    notes = Notes()
    server.open(ConversationRequest(), notes)
    until(lambda: notes.states and notes.last.phase is Phase.ENDED)
    assert notes.last.reason is EndReason.REFUSED and "No place became free" in notes.last.message
    assert cancelled.is_set()
    until(lambda: server.status().waiting == 0)
    server.close()


def test_a_voice_that_the_model_lacks_is_refused_with_its_sentence(server, serve):
    serve.replica.host.hosted.finder = golden_hosted().finder
    notes = Notes()
    server.open(ConversationRequest(voice=Voice("nobody", of_model=True)), notes)
    until(lambda: notes.states and notes.last.phase is Phase.ENDED)
    assert notes.last.reason is EndReason.REFUSED and "there is no voice 'nobody'" in notes.last.message
    until(lambda: server.status().running == 0)


def test_a_watch_counts_from_the_oldest_question():
    now = [10.0]
    watch = Watch(lambda: now[0])
    assert watch.late_sec() == 0 and watch.answered() is None
    watch.asked()
    now[0] = 12.0
    watch.asked()
    assert watch.late_sec() == 2.0 and watch.answered() == 2.0 and watch.late_sec() == 0


# ---------------------------------------------------------------------------------- the page's host


def test_a_page_joins_a_cluster_and_shows_its_model(serve):
    from personaplex.cluster.connect import Cluster
    from personaplex.web.about_tab import running_markdown

    def connect(told):
        told("joining")
        return Cluster(serve.place, plain_facts, "127.0.0.1")

    host = ClusterHost(Settings(ray="head:6379", conversations=3), connect)
    host.start()
    assert host.wait(10) and host.hosted is not None, host.loading.error
    assert host.limits == Limits(slots=3, waiting=8, conversation_sec=120.0) and not host.is_lent
    assert "nano-1" in running_markdown(host)
    visitor = Visitor(host.hosted.server)
    until(lambda: visitor.came)
    host.close()
    until(lambda: visitor.ended_at)
    assert visitor.last.reason is EndReason.SHUTDOWN


def test_a_cluster_that_cannot_be_joined_is_a_sentence():
    def connect(told):
        raise ConfigError("the cluster at head:6379 cannot be joined (no)")

    host = ClusterHost(Settings(ray="head:6379"), connect)
    host.start()
    assert host.wait(10) and host.hosted is None and "cannot be joined" in host.loading.sentence


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends processes with the thread that started them")
def test_rays_processes_outlive_the_thread_that_starts_them():
    """Ray asks Linux to end its processes with their parent, which is a thread: the page's loader is over soon."""
    children = {}

    def start(name):
        prctl = ctypes.CDLL(None).prctl
        children[name] = subprocess.Popen(["sleep", "60"], preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL))

    for name, work in (("plain", start), ("lasting", lambda name: _in_lasting_thread(lambda: start(name)))):
        loader = threading.Thread(target=work, args=[name])
        loader.start()
        loader.join()
    try:
        assert children["plain"].wait(5) == -signal.SIGKILL
        assert children["lasting"].poll() is None
    finally:
        children["lasting"].kill()
        children["lasting"].wait()


def test_what_fails_in_the_lasting_thread_is_raised_where_it_was_asked_for():
    def fail():
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        _in_lasting_thread(fail)


@pytest.mark.parametrize("value", ["head", "head:port", "", ":", "LOCAL"])
def test_the_flag_wants_an_address_or_local(value):
    with pytest.raises(ConfigError, match="HOST:PORT and local are allowed"):
        Settings(ray=value)


def test_the_pages_modules_hold_no_torch_and_no_ray():
    code = (
        "import sys\n"
        "import personaplex.cluster.host, personaplex.cluster.connect, personaplex.web.page\n"
        "sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_a_tokenizer_travels_as_bytes():
    whole = TextTokenizer(GOLDEN / "tokenizer_spm_32k_3.model")
    assert TextTokenizer.from_bytes(bytes(whole)).encode("one two") == whole.encode("one two")


# ---------------------------------------------------------------------------------- for the operator


def test_the_dashboard_asks_for_figures_that_exist(server):
    known = {metric.name for metric in server.metrics.registry.collect()}
    known |= {f"ray_personaplex_replica_{name}" for name in replica_module.REPLICA_FIGURES}
    dashboard = json.loads((ROOT / "docs" / "cluster-dashboard.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {
        re.sub(r"_(total|bucket)$", "", name) for expr in asked for name in re.findall(r"\w*personaplex_\w+", expr)
    }
    assert named <= known and len(named) > 10, named - known


def test_the_example_for_serve_deploy_is_one_that_the_program_takes():
    given = yaml.safe_load((ROOT / "docs" / "cluster.yaml").read_text(encoding="utf-8"))
    (application,) = given["applications"]
    assert application["name"] == "personaplex" and application["import_path"] == "personaplex.cluster.app:app"
    assert ClusterOptions.read(application["args"]).slots == 2


def test_the_page_documents_every_argument():
    documented = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert [field.name for field in fields(ClusterOptions) if f"`{field.name}`" not in documented] == []
