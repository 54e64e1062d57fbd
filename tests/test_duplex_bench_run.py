"""The behaviour bench on a small folder in the public layout, with a model that needs no weights."""

import http.server
import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from benchmarks.duplex import cli, layout, published, runner
from benchmarks.duplex.judge import Judge
from benchmarks.duplex.layout import Kind
from benchmarks.duplex.report import Results, write_report
from benchmarks.duplex.scoring import listen, score
from benchmarks.duplex.speech_activity import speech_spans, to_tenths
from personaplex.audio.files import write_wav
from personaplex.config import ModelConfig
from personaplex.errors import DownloadError, InputError
from personaplex.messages import SamplingOptions
from personaplex.text.transcript import Word
from tests.duplex_bench_model import PoliteSession, prompts, question, wav

OPTIONS = SamplingOptions(seed=1)
ASKED_SEC = len(question()) / 16_000


def put(folder, pcm, rate_hz=16_000, name="input.wav", **annotations):
    folder.mkdir(parents=True, exist_ok=True)
    write_wav(folder / name, pcm, rate_hz)
    for stem, content in annotations.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))


@pytest.fixture
def public(tmp_path):
    """One item of every task, as the public sets lay them out: v1.0 and v1.5 under one roof."""
    root, asked = tmp_path / "bench", question()
    pause, turn = ASKED_SEC + 0.3, ASKED_SEC + 0.5
    put(
        root / "v1_0" / "synthetic_pause_handling" / "0",
        wav(0.5, asked, 0.3, asked[: 16_000 // 2]),
        pause=[{"text": "[PAUSE]", "timestamp": [pause, pause + 0.3]}],
    )
    put(
        root / "v1_0" / "candor_turn_taking" / "10",
        wav(0.5, asked, 4.0),
        turn_taking=[{"text": "[TURN-TAKING]", "timestamp": [turn, turn + 0.4]}],
    )
    put(root / "v1_0" / "icc_backchannel" / "2", wav(0.5, asked, 0.2, asked))
    (root / "v1_0" / "icc_gt_distribution.json").write_text(json.dumps({"2": [0.25] * 4}))
    broken = turn + 1.5
    put(
        root / "v1_0" / "synthetic_user_interruption" / "1",
        wav(0.5, asked, 1.5, asked, 4.0),
        interrupt=[{"context": "Who?", "interrupt": "Where?", "timestamp": [broken, broken + ASKED_SEC]}],
    )
    overlap = root / "v1_5" / "user_backchannel" / "3"
    told = {"context_text": "Who?", "current_turn_text": "Yes.", "timestamps": [broken, broken + ASKED_SEC]}
    put(overlap, wav(0.5, asked, 1.5, asked, 4.0), metadata=told)
    put(overlap, wav(0.5, asked, 6.0), name="clean_input.wav")
    return root


def answered(root, out, **session):
    items = layout.find_items(root)
    model = PoliteSession(**session)
    count = runner.run(model, items, out, prompts(model), slots=model.slots, options=OPTIONS, progress=False)
    return model, runner.takes_of(items, out), count


def records_of(takes):
    listen(takes, None, progress=False)
    return {take.item.task: score(take) for take in takes if take.stem == "output"}


def test_a_model_hears_its_own_echo(tmp_path):
    """What it said comes back later, in `heard.wav`; cleaned, it does not."""
    asked, loud = question(), []
    for name in ("plain", "clean"):
        folder = tmp_path / name / "some_turn_taking" / "0"
        echo = {"level_db": -10.0, "delay_ms": 120.0, "room_ms": 100.0, "seed": 1}
        turn = [{"text": "[TURN-TAKING]", "timestamp": [ASKED_SEC + 0.5, ASKED_SEC + 1.0]}]
        put(folder, wav(0.5, asked, 4.0), turn_taking=turn, echo=echo)
        (item,) = layout.find_items(tmp_path / name)
        model = PoliteSession(slots=1, eager=True)
        runner.run(
            model, [item], tmp_path / "out", prompts(model), slots=1, options=OPTIONS, clean=name == "clean",
            progress=False,
        )  # fmt: skip
        (take,) = runner.takes_of([item], tmp_path / "out")
        heard, _ = soundfile.read(take.heard)
        after = heard[round((ASKED_SEC + 2.0) * 16_000) : round((ASKED_SEC + 3.0) * 16_000)]
        loud.append(float(np.sqrt(np.mean(after**2))))
        take.text.unlink()
    assert loud[0] > 0.005 and loud[1] < loud[0] / 2


# ---------------------------------------------------------------------------------- layout


def test_every_item_is_found_with_its_kind(public):
    found = {item.key: item.kind for item in layout.find_items(public)}
    assert found == {
        "v1_0/synthetic_pause_handling/0": Kind.PAUSE,
        "v1_0/candor_turn_taking/10": Kind.TURN,
        "v1_0/icc_backchannel/2": Kind.BACKCHANNEL,
        "v1_0/synthetic_user_interruption/1": Kind.INTERRUPTION,
        "v1_5/user_backchannel/3": Kind.OVERLAP,
    }


def test_a_single_root_a_task_or_an_item_has_no_condition(public, monkeypatch):
    assert {item.condition for item in layout.find_items(public / "v1_0")} == {""}
    task = public / "v1_0" / "candor_turn_taking"
    for folder in (task, task / "10"):
        assert [item.key for item in layout.find_items(folder)] == ["candor_turn_taking/10"]
    monkeypatch.chdir(task)
    assert [item.key for item in layout.find_items(Path("."))] == ["candor_turn_taking/10"]


def test_items_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("10", "9", "1"):
        put(tmp_path / "x_backchannel" / name, wav(0.1))
    assert [item.name for item in layout.find_items(tmp_path)] == ["1", "9", "10"]


def test_selecting_by_task_and_count(public):
    items = layout.find_items(public)
    assert [item.task for item in layout.select(items, ["turn_taking"])] == ["candor_turn_taking"]
    with pytest.raises(InputError, match="there are v1_0/candor_turn_taking"):
        layout.select(items, ["nonsense"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda item: (item / "turn_taking.json").unlink(), "has no turn_taking.json"),
        (lambda item: (item / "turn_taking.json").write_text("{"), "cannot be read as JSON"),
        (lambda item: (item / "turn_taking.json").write_text("[]"), "whose first entry has"),
        (lambda item: (item / "turn_taking.json").write_text('[{"timestamp": 3}]'), "no .start, end. in seconds"),
    ],
)
def test_a_spoilt_item_is_told_before_the_work(public, tmp_path, spoil, message):
    spoil(public / "v1_0" / "candor_turn_taking" / "10")
    with pytest.raises(InputError, match=message):
        answered(public, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_backchannel_distribution_is_told_before_the_work(public, tmp_path):
    (public / "v1_0" / "icc_gt_distribution.json").write_text('{"7": [1.0]}')
    with pytest.raises(InputError, match="nothing for the item 2"):
        answered(public, tmp_path / "out")
    (public / "v1_0" / "icc_gt_distribution.json").unlink()
    with pytest.raises(InputError, match="copy it there"):
        answered(public, tmp_path / "out")


def test_a_folder_without_items(tmp_path):
    with pytest.raises(InputError, match="holds no TASK/ID/input.wav"):
        layout.find_items(tmp_path)


# ---------------------------------------------------------------------------------- running


def test_an_answer_is_16_khz_mono_and_as_long_as_its_question(public, tmp_path):
    strange = np.interp(np.arange(44_100 * 2 + 17) / 44_100, np.arange(2 * 16_000) / 16_000, wav(2.0))
    put(public / "v1_0" / "icc_backchannel" / "2", strange, rate_hz=44_100)
    _, takes, _ = answered(public, tmp_path / "out")
    for take in takes:
        given, answer = (soundfile.info(path) for path in (take.item.folder / take.given, take.sound))
        assert (answer.samplerate, answer.channels) == (16_000, 1)
        assert answer.frames == round(given.frames / given.samplerate * 16_000)


def test_the_answer_is_in_step_with_the_question(tmp_path):
    """The fake model speaks 0.4 s after it heard the last of the question."""
    put(
        tmp_path / "s" / "x_turn_taking" / "0",
        wav(0.48, 0.3 * np.ones(16_000, np.float32), 4.0),
        turn_taking=[{"timestamp": [1.48, 2.0]}],
    )
    _, (take,), _ = answered(tmp_path / "s", tmp_path / "out")
    pcm, _ = soundfile.read(take.sound)
    first = np.flatnonzero(np.abs(pcm) > 1e-3)[0] / 16_000
    assert 1.8 <= first < 2.1
    assert layout.words_of(layout.read_json(take.text))[0].start_sec == pytest.approx(1.84, abs=0.09)


def test_stopped_and_gone_on_with(public, tmp_path):
    """What is whole stays as it is; what is not is made again, the same as if nothing had happened."""
    _, takes, count = answered(public, tmp_path / "out")
    assert count == len(takes) == 6
    kept, lost = takes[0], takes[1]
    before = {take.stem + take.item.key: take.sound.read_bytes() for take in takes}
    kept_at = kept.sound.stat().st_mtime_ns
    lost.text.unlink()
    model, _, count = answered(public, tmp_path / "out")
    assert count == 1 and model.prepared == [lost.item.key]
    assert kept.sound.stat().st_mtime_ns == kept_at
    assert {take.stem + take.item.key: take.sound.read_bytes() for take in takes} == before


def test_several_conversations_go_on_at_once_and_each_ends_when_it_is_over(public, tmp_path):
    model, takes, _ = answered(public, tmp_path / "out", slots=3)
    assert max(map(len, model.batches)) == 3
    frames = [-(-soundfile.info(take.item.folder / take.given).frames // 1280) for take in takes]
    assert sum(map(len, model.batches)) == sum(frames)
    assert model.free == [0, 1, 2]


def test_every_take_has_a_seed_of_its_own_whatever_else_runs(public, tmp_path):
    model, takes, _ = answered(public, tmp_path / "out")
    seeds = {conversation.options.seed for conversation in model.conversations}
    assert len(seeds) == len(takes)
    assert seeds == {take.seed(1) for take in takes}
    assert takes[0].seed(1) != takes[0].seed(2)


def test_a_failure_gives_the_slots_back(public, tmp_path):
    model = PoliteSession()
    model.on_step = lambda conversation, pcm: 1 / 0
    with pytest.raises(ZeroDivisionError):
        runner.run(
            model, layout.find_items(public), tmp_path / "o", prompts(model), slots=2, options=OPTIONS, progress=False
        )
    assert model.free == [0, 1]


def test_other_settings_need_another_folder(tmp_path):
    runner.settle_run(tmp_path, {"model": "nano", "seed": 0})
    runner.settle_run(tmp_path, {"model": "nano", "seed": 0})
    with pytest.raises(InputError, match="seed was 0 and is 1"):
        runner.settle_run(tmp_path, {"model": "nano", "seed": 1})


# ---------------------------------------------------------------------------------- scoring


def test_a_polite_model(public, tmp_path):
    _, takes, _ = answered(public, tmp_path / "out")
    records = records_of(takes)
    assert records["synthetic_pause_handling"].words["text"] == {"takeover": 0.0}
    turn = records["candor_turn_taking"].words["text"]
    assert turn["takeover"] == 1.0 and 0.2 < turn["latency_sec"] < 0.6
    silent = {"takeover": 0.0, "rate_hz": 0.0, "distance": 1.0, "any_takeover": 0.0, "nods_hz": 0.0}
    assert records["icc_backchannel"].words["text"] == silent
    broken = records["synthetic_user_interruption"]
    assert broken.words["text"]["takeover"] == 1.0 and 0.2 < broken.words["text"]["latency_sec"] < 0.6
    assert broken.sound["speaking"] == broken.sound["stopped_soon"] == 1.0 and 0.0 < broken.sound["stop_sec"] < 0.4
    assert 0.2 < records["user_backchannel"].sound["response_sec"] < 0.7


def test_an_eager_model(public, tmp_path):
    _, takes, _ = answered(public, tmp_path / "out", eager=True)
    records = records_of(takes)
    assert records["synthetic_pause_handling"].words["text"]["takeover"] == 1.0
    assert records["icc_backchannel"].words["text"]["takeover"] == 1.0
    assert records["candor_turn_taking"].words["text"]["latency_sec"] == 0.0
    assert records["candor_turn_taking"].words["text"]["early"] == 1.0
    assert records["user_backchannel"].sound["stop_sec"] > 0.5


def test_output_json_is_what_the_published_scripts_read(public, tmp_path):
    _, takes, _ = answered(public, tmp_path / "out")
    listen(takes, None, progress=False)
    for take in takes:
        told = json.loads(take.words.read_text())
        assert told["text"] == " ".join(chunk["text"] for chunk in told["chunks"])
        assert all(start < end for start, end in (chunk["timestamp"] for chunk in told["chunks"]))
    broken = next(take for take in takes if take.item.kind is Kind.INTERRUPTION)
    end_sec = layout.interruption(broken.folder).end_sec
    assert layout.words_of(layout.read_json(broken.words))[0].start_sec >= end_sec
    assert layout.words_of(layout.read_json(broken.text))[0].start_sec < end_sec  # said before, and cut away
    assert (broken.folder / "interrupt.json").is_file() and (broken.folder / "input.wav").is_file()


class Hearing:
    """A recogniser that hears the same word in every stretch of speech."""

    def __init__(self, name):
        self.name, self.listened = name, 0

    def words(self, pcm, speech):
        self.listened += 1
        return [Word(self.name, start, end) for start, end in speech]


def test_a_recognisers_words_take_the_place_of_the_text_streams(public, tmp_path):
    _, takes, _ = answered(public, tmp_path / "out")
    listen(takes, Hearing("no"), progress=False)
    turn = next(take for take in takes if take.item.kind is Kind.TURN)
    assert set(layout.read_json(turn.words)["text"].split()) == {"no"}
    record = score(turn)
    assert set(record.words) == {"text", "asr"}
    # nothing that was heard is right; words beyond the wanted number are errors too
    assert record.sound["word_errors"] >= record.sound["words"] > 0


def test_sound_is_listened_to_once_by_each_recogniser(public, tmp_path):
    _, takes, _ = answered(public, tmp_path / "out")
    first, second = Hearing("first"), Hearing("second")
    for recogniser_ in (first, first, None, second):
        listen(takes, recogniser_, progress=False)
    assert first.listened == second.listened == len(takes)
    listen(takes, None, progress=False)
    turn = next(take for take in takes if take.item.kind is Kind.TURN)
    assert "second" in layout.read_json(turn.words)["text"]
    turn.text.unlink()  # said anew: what was heard of the old answer is gone
    answered(public, tmp_path / "out")
    assert not turn.asr.exists() and not turn.words.exists()


def test_silero_finds_speech_and_rounds_as_it_does_itself():
    from silero_vad import get_speech_timestamps, load_silero_vad

    pcm = wav(0.55, question(), 1.0)
    spans = speech_spans(pcm)
    assert len(spans) == 1 and spans[0][0] == pytest.approx(0.5, abs=0.15)
    import torch

    own = get_speech_timestamps(torch.from_numpy(pcm), load_silero_vad(), return_seconds=True)
    assert to_tenths(spans, len(pcm) / 16_000) == [(span["start"], span["end"]) for span in own]
    assert speech_spans(wav(2.0)) == []


# ---------------------------------------------------------------------------------- the judge


class _Endpoint(http.server.BaseHTTPRequestHandler):
    replies: list[str] = []
    asked: list[dict] = []

    def do_POST(self):
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        body = json.dumps({"choices": [{"message": {"content": self.replies.pop(0)}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing is to be read on the terminal."""


@pytest.fixture
def endpoint():
    _Endpoint.replies, _Endpoint.asked = [], []
    server = http.server.HTTPServer(("127.0.0.1", 0), _Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_the_judges_rating_is_read_from_its_last_line(endpoint):
    _Endpoint.replies = ["The answer has a rating of its own.\nRating: 4"]
    assert Judge(endpoint, "some-model").rate("Who?", "Where?", "At the bank.") == 4
    told = _Endpoint.asked[0]
    assert told["model"] == "some-model" and "At the bank." in told["messages"][1]["content"]


def test_a_judge_without_a_rating_is_asked_three_times(endpoint):
    _Endpoint.replies = ["Well.", "Rating: 9", "I do not know."]
    assert Judge(endpoint, "m").rate("", "", "") is None
    assert [told["seed"] for told in _Endpoint.asked] == [0, 1, 2]


def test_a_judge_that_is_not_there():
    with pytest.raises(DownloadError, match="leave the judge out"):
        Judge("http://127.0.0.1:9/v1", "m", timeout_sec=2).rate("", "", "")


def test_a_rating_is_asked_for_once(public, tmp_path, endpoint):
    _, takes, _ = answered(public, tmp_path / "out")
    listen(takes, None, progress=False)
    broken = next(take for take in takes if take.item.kind is Kind.INTERRUPTION)
    _Endpoint.replies = ["Rating: 3"]
    judge = Judge(endpoint, "m")
    assert score(broken, judge).rating == score(broken, judge).rating == score(broken).rating == 3
    _Endpoint.replies = ["Rating: 5"]
    listen(takes, Hearing("other"), progress=False)  # other words are another answer
    assert score(broken).rating is None and score(broken, judge).rating == 5


# ---------------------------------------------------------------------------------- report and commands


def test_the_report(public, tmp_path):
    _, takes, _ = answered(public, tmp_path / "out")
    records = list(records_of(takes).values())
    results = Results({"model": "polite", "synthetic": True}, records, notes=["The judge: none."])
    told = write_report(results, takes, tmp_path / "r").read_text()
    assert "not the public set" in told and "* The judge: none." in told
    assert "| turn takeover | ↑ | 1.000 [1.000, 1.000] 1 | 0.992 |" in told
    assert "| smooth turn taking | 100.0 [100.0, 100.0] 1 | 90.8 | 1.8 | 43.9 | – |" in told
    page = (tmp_path / "r" / "report.html").read_text()
    for name in ("latencies.png", "candor_turn_taking-10.png", "candor_turn_taking-10.mp3"):
        assert f'src="{name}"' in page and (tmp_path / "r" / name).stat().st_size > 1000
    both, rate_hz = soundfile.read(tmp_path / "r" / "candor_turn_taking-10.mp3")
    assert both.shape[1] == 2 and rate_hz == 16_000


def test_report_without_answers(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", str(tmp_path)])
    assert stopped.value.code == 2 and "run.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere", "out"], "nowhere is not a folder"),
        (["run", "nowhere", "out", "--slots", "0"], "at least one conversation"),
        (["run", "nowhere", "out", "--judge-url", "http://x"], "belong together"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and message in told and told.count("\n") == 1


class Prompted:
    """A session that only takes note of what it is prompted with."""

    def __init__(self):
        self.loaded = SimpleNamespace(config=replace(ModelConfig(), name="nano"))
        self.prepared = []

    def prepare(self, *, voice, text):
        self.prepared.append((voice.name, text))


def test_an_items_own_persona_goes_before_the_runs_and_that_before_the_published(public):
    items = {item.task: item for item in layout.find_items(public)}
    pause, broken = items["synthetic_pause_handling"], items["synthetic_user_interruption"]
    (pause.folder / "persona.json").write_text(json.dumps({"prompt": "You are Ann.", "voice": "ann.wav"}))
    write_wav(pause.folder / "ann.wav", wav(question(), 0.2, question()), 16_000)
    for prompt, expected in ((None, published.ASSISTANT_PROMPT), ("You are Bob.", "You are Bob.")):
        session = Prompted()
        prompts_ = cli._Prompts(session, SimpleNamespace(prompt=prompt, voice="nano-m"), public)
        prompts_(pause)
        prompts_(broken)
        assert session.prepared == [("ann", "You are Ann."), ("nano-m", expected)]
    assert published.prompt_for(Kind.PAUSE) == published.CASUAL_PROMPT


def test_one_command_from_question_to_report(public, tmp_path, monkeypatch):
    """`run`, with the model put in the place of a loaded one."""
    model = PoliteSession()
    monkeypatch.setattr(cli, "load_model", lambda *_, **__: None)
    monkeypatch.setattr(cli, "Session", lambda *_, **__: model)
    monkeypatch.setattr(cli, "_Prompts", lambda *_: prompts(model))
    out = tmp_path / "out"
    cli.main(["run", str(public / "v1_0"), str(out), "--slots", "2", "--quiet"])
    results = json.loads((out / "results.json").read_text())
    assert {item["task"] for item in results["items"]} == {item.task for item in layout.find_items(public / "v1_0")}
    sounds = (soundfile.info(path) for path in (public / "v1_0").glob("*/*/input.wav"))
    cost = json.loads((out / "cost.json").read_text())
    assert "given as a folder in the public layout" in (out / "report.md").read_text()
    assert cost["sound_min"] == pytest.approx(sum(info.duration for info in sounds) / 60, rel=1e-3)
    before = (out / "report.md").read_text()
    model.conversations.clear()
    cli.main(["run", str(public / "v1_0"), str(out), "--slots", "2", "--quiet"])
    assert not model.conversations
    assert before.splitlines()[8:] == (out / "report.md").read_text().splitlines()[8:]
