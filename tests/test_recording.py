"""What a conversation leaves behind: files, and that they go with their visitor."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import soundfile

from personaplex.errors import ConfigError
from personaplex.text.tokenizer import TextTokenizer
from personaplex.text.transcript import Transcript
from personaplex.web.exports import export
from personaplex.web.housekeeping import housekeeping
from personaplex.web.storage import RunFolder
from personaplex.web.visits import INCOMING, Visits
from personaplex.web.workarounds.gradio_memory import SilentSessions, forget_events

RATE_HZ = 24_000
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def transcript() -> Transcript:
    tokenizer = TextTokenizer(GOLDEN / "tokenizer_spm_32k_3.model")
    spoken = Transcript(tokenizer)
    for frame, token in enumerate([3, 3, *tokenizer.encode("hello there"), 3, 3]):
        spoken.push(token, frame)
    return spoken


def tone(hz: float, seconds: float) -> np.ndarray:
    return (0.2 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


# --- files


def test_the_persona_is_left_and_the_visitor_right(tmp_path, transcript):
    agent, user = tone(300, 2.0), tone(700, 1.5)
    files = export(tmp_path, "conversation", transcript, agent, user)
    both, rate_hz = soundfile.read(files.stereo, dtype="float32")
    assert rate_hz == RATE_HZ and both.shape == (len(agent), 2)
    np.testing.assert_allclose(both[:, 0], agent, atol=1 / 32_768)
    np.testing.assert_allclose(both[: len(user), 1], user, atol=1 / 32_768)
    assert not both[len(user) :, 1].any()
    alone, _ = soundfile.read(files.answer, dtype="float32")
    np.testing.assert_allclose(alone, agent, atol=1 / 32_768)


def test_the_transcript_in_three_formats(tmp_path, transcript):
    files = export(tmp_path, "conversation", transcript)
    assert files.transcript_text.read_text() == "hello there\n"
    data = json.loads(files.transcript_json.read_text())
    assert data["text"] == "hello there"
    assert [chunk["text"] for chunk in data["chunks"]] == ["hello", "there"]
    assert files.transcript_webvtt.read_text().startswith("WEBVTT\n\n00:00:00.160 --> ")
    assert [path.suffix for path in files.transcripts] == [".txt", ".json", ".vtt"]


def test_without_sound_there_are_words_only(tmp_path, transcript):
    files = export(tmp_path, "conversation", transcript)
    assert (files.answer, files.stereo, files.picture) == (None, None, None)
    assert len(list(tmp_path.iterdir())) == 3
    nothing = np.zeros(0, np.float32)
    assert export(tmp_path, "conversation", transcript, nothing, nothing).stereo is None


def test_the_picture_is_one(tmp_path, transcript):
    files = export(tmp_path, "conversation", transcript, tone(300, 1), tone(300, 1))
    assert files.picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "", "ü", "a" * 300])
def test_a_name_never_leads_out_of_the_folder(tmp_path, transcript, name):
    folder = tmp_path / "here"
    folder.mkdir()
    files = export(folder, name, transcript)
    assert all(path.parent == folder for path in files.transcripts)
    assert list(tmp_path.iterdir()) == [folder]


# --- visits


class Uploads:
    """Files as the upload route writes them."""

    def __init__(self, root: Path) -> None:
        self.root, self.written = root, set()

    def add(self, name: str, folder: str = "abc") -> Path:
        path = self.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"sound")
        self.written.add(str(path))
        return path


@pytest.fixture
def uploads(tmp_path) -> Uploads:
    return Uploads(tmp_path / "run")


@pytest.fixture
def visits(uploads) -> Visits:
    return Visits(uploads.root, uploaded=uploads.written)


def test_what_a_visitor_left_goes_with_them(visits, uploads):
    upload = uploads.add("voice.wav")
    folder = visits.new_folder("anna", "talk")
    (folder / "both.wav").write_bytes(b"sound")
    visits.own_upload("anna", upload)
    other = visits.new_folder("bert", "talk")
    visits.end("anna")
    assert not folder.exists() and not folder.parent.exists() and not upload.parent.exists()
    assert other.exists() and len(visits) == 1 and not uploads.written


def test_a_new_conversation_replaces_the_one_before(visits):
    first = visits.new_folder("anna", "talk")
    second = visits.new_folder("anna", "talk")
    assert first != second and not first.exists() and second.exists()


def test_folders_cannot_be_guessed(visits):
    assert len(visits.new_folder("anna", "talk").name) == 16
    assert "anna" not in str(visits.new_folder("anna", "talk"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes of files")
def test_other_users_of_the_machine_cannot_read_them(visits, transcript):
    folder = visits.new_folder("anna", "talk")
    files = export(folder, "conversation", transcript, tone(300, 1.0), tone(700, 1.0))
    for level in (folder, *folder.parents[: folder.parents.index(visits.root) + 1]):
        assert stat.S_IMODE(level.stat().st_mode) == 0o700, level
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert files.stereo is not None


def test_only_what_was_uploaded_is_ever_deleted(visits, uploads, tmp_path):
    """Naming the folder of uploads as the question ended the deletion of files for good; naming the shared sample of
    a voice took it from all open pages."""
    mine, sample = tmp_path / "mine.wav", uploads.root / "def" / "nano-f.wav"
    sample.parent.mkdir(parents=True)
    for path in (mine, sample):
        path.write_bytes(b"sound")
    upload = uploads.add("voice.wav")
    uploads.written |= {str(uploads.root), str(upload.parent), str(mine)}  # even if the route had written them
    for path in (uploads.root, upload.parent, mine, uploads.root / ".." / "mine.wav", sample, upload):
        visits.own_upload("anna", path)
    visits.end("anna")
    assert mine.exists() and sample.exists() and not upload.exists()


def test_a_file_that_resists_ends_nothing_and_goes_later(visits, uploads, monkeypatch):
    upload, other = uploads.add("voice.wav"), uploads.add("other.wav", "def")
    visits.own_upload("anna", upload)
    visits.own_upload("bert", other)
    unlink = Path.unlink

    def resisting(path, **more):
        if path.name == "voice.wav":
            raise PermissionError("in use")
        unlink(path, **more)

    monkeypatch.setattr(Path, "unlink", resisting)
    visits.end_all()
    assert upload.exists() and not other.exists()
    monkeypatch.undo()
    visits.sweep()
    assert not upload.exists()


def test_a_file_that_two_visitors_sent_goes_with_the_last(visits, uploads):
    upload = uploads.add("voice.wav")
    visits.own_upload("anna", upload)
    visits.own_upload("bert", upload)
    visits.end("anna")
    assert upload.exists()
    visits.end("bert")
    assert not upload.exists()


def test_uploads_that_nobody_claimed_and_that_broke_off_go_by_time(visits, uploads):
    claimed, unclaimed, new = uploads.add("mine.wav"), uploads.add("b.wav", "b"), uploads.add("c.wav", "c")
    broken = uploads.root / INCOMING / "tmpabc"
    broken.parent.mkdir()
    broken.write_bytes(b"half a sound")
    visits.own_upload("anna", claimed)
    for path in (claimed, unclaimed, broken):
        os.utime(path, (time.time() - 601,) * 2)
    visits.sweep()
    assert claimed.exists() and new.exists() and not unclaimed.exists() and not broken.exists()
    assert broken.parent.is_dir(), "the next upload is received there"


def test_a_conversation_is_handed_out_once(visits):
    visits.keep("anna", "talk", "said")
    assert visits.take("bert", "talk") is None
    assert visits.take("anna", "talk") == "said"
    assert visits.take("anna", "talk") is None


def test_the_tabs_of_a_page_replace_only_their_own(visits):
    talk, answer = visits.new_folder("anna", "talk"), visits.new_folder("anna", "file")
    visits.keep("anna", "talk", "said")
    visits.new_folder("anna", "file")
    assert talk.exists() and not answer.exists()
    assert visits.take("anna", "file") is None and visits.take("anna", "talk") == "said"
    visits.end("anna")
    assert not talk.exists()


class Clock:
    now_sec = 0.0

    def __call__(self) -> float:
        return self.now_sec


def test_what_was_left_goes_when_the_page_is_silent_for_long(tmp_path):
    """A broken connection is no leaving: a telephone that slept found its own voice deleted under an open page."""
    clock = Clock()
    visits = Visits(tmp_path / "visits", silent_sec=600.0, clock=clock)
    folder, gone = visits.new_folder("anna", "talk"), visits.new_folder("bert", "talk")
    for _ in range(20):
        clock.now_sec += 60.0
        visits.seen("anna")
        visits.sweep()
    assert folder.exists() and not gone.exists() and len(visits) == 1
    clock.now_sec += 601.0
    visits.sweep()
    assert not folder.exists() and len(visits) == 0


def test_it_is_swept_without_anybody_asking(visits):
    """Whatever a round meets, the next one comes; a round's failure used to be the last."""
    rounds = []

    def sweep():
        rounds.append(1)
        if len(rounds) == 1:
            raise OSError("in use")

    visits.sweep = sweep
    with gr.Blocks() as blocks:
        blocks.queue()

    async def serve():
        async with housekeeping(blocks, visits, keep_sec=0.04)(None):
            until = time.monotonic() + 20.0
            while len(rounds) < 3 and time.monotonic() < until:
                await asyncio.sleep(0.01)

    asyncio.run(serve())
    assert len(rounds) >= 3


def test_who_left_nothing_is_not_remembered(visits):
    visits.seen("anna")
    assert len(visits) == 0


def test_ending_everything(visits):
    folders = [visits.new_folder(name, "talk") for name in ("anna", "bert")]
    visits.end_all()
    assert len(visits) == 0 and not any(folder.exists() for folder in folders)
    visits.end("nobody")


# --- what Gradio keeps


def test_gradio_forgets_events_that_are_over():
    with gr.Blocks() as blocks:
        blocks.queue()
    queue = SimpleNamespace(
        event_analytics={
            "over": {"status": "success"}, "awaited": {"status": "success"}, "runs": {"status": "processing"},
        },
        event_ids_to_events=dict.fromkeys(("over", "awaited", "runs", "new"), "typed text"),
        pending_event_ids_session={"anna": {"awaited"}, "bert": set()},
        pending_messages_per_session={"over": "a result", "anna": "another"}, server_app=None,
        _asyncio_tasks=[SimpleNamespace(done=lambda: True), SimpleNamespace(done=lambda: False)],
    )  # fmt: skip
    assert vars(queue).keys() <= vars(blocks._queue).keys(), "Gradio keeps its events elsewhere now"
    assert forget_events(queue, now=1000.0) == 0  # a listener has time to fetch what has just ended
    queue.event_analytics["new"] = {"status": "failed"}
    assert forget_events(queue, now=1031.0) == 1
    assert set(queue.event_analytics) == set(queue.event_ids_to_events) == {"awaited", "runs", "new"}
    assert set(queue.pending_event_ids_session) == {"anna"} and len(queue._asyncio_tasks) == 1
    assert set(queue.pending_messages_per_session) == {"anna"}
    assert forget_events(queue, now=1301.0) == 2, "what nobody fetches goes later"
    assert set(queue.event_ids_to_events) == {"runs"} and not queue.pending_event_ids_session


def test_a_silent_pages_session_is_forgotten_and_a_page_that_tells_of_itself_stays():
    """A visit left half a megabyte in Gradio's tables until a thousand others had come."""
    with gr.Blocks() as blocks:
        gr.Textbox()
    app = gr.routes.App.create_app(blocks)
    queue, holder = blocks._queue, app.state_holder
    queue.server_app = app
    sessions = SilentSessions(600.0)
    for name in ("anna", "bert"):
        assert holder[name].components
        queue.pending_messages_per_session[name] = "for them"
    queue.pending_event_ids_session["bert"] = {"awaited"}
    assert sessions.forget(queue, now=1000.0) == 0
    assert holder["anna"].components  # as each tick of its page does
    assert sessions.forget(queue, now=1300.0) == 0
    assert sessions.forget(queue, now=1601.0) == 1
    assert set(holder.session_data) == set(holder.time_last_used) == {"anna"}
    assert not queue.pending_event_ids_session and list(queue.pending_messages_per_session) == ["anna"]
    assert sessions.forget(queue, now=1901.0) == 1 and not holder.session_data


# --- a run's folder


def test_a_killed_runs_folder_goes_at_the_next_start_and_a_living_ones_stays(tmp_path):
    """Recordings of a run that was killed stayed on the disk for good."""
    code = (
        "import os, sys; from pathlib import Path; from personaplex.web.storage import RunFolder; "
        "folder = RunFolder.create(Path(sys.argv[1])); (folder.path / 'both.wav').write_bytes(b'sound'); "
        "print(folder.path, flush=True); os._exit(1)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    left = Path(killed.stdout.strip())
    assert (left / "both.wav").exists()
    living = RunFolder.create(tmp_path)
    another = RunFolder.create(tmp_path)
    assert not left.exists() and living.path.exists() and another.path.exists()
    another.delete()
    living.delete()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes of files")
def test_a_runs_folder_is_private_and_one_that_cannot_be_made_is_a_sentence(tmp_path):
    folder = RunFolder.create(tmp_path)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.delete()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="GRADIO_TEMP_DIR"):
        RunFolder.create(tmp_path / "file" / "below")
