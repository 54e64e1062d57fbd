"""The page: what is on it, what its settings ask for, and its words for what goes wrong."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import soundfile
from fake_host import golden_hosted, ready_host

from personaplex.audio.cleaning import can_clean
from personaplex.audio.frames import to_int16
from personaplex.errors import AudioError, InputError, PromptError, UnknownNameError
from personaplex.messages import ConversationState, EndReason, Meter, Phase
from personaplex.personas import own_voice as own_voice_module
from personaplex.personas.own_voice import own_voice
from personaplex.personas.presets import Persona, persona
from personaplex.personas.voices import catalogue
from personaplex.serving.host import ModelHost
from personaplex.serving.hosted import Hosted
from personaplex.settings import Settings
from personaplex.text.transcript import Word
from personaplex.web.controls import (
    Choices,
    count_of,
    judge_recording,
    persona_choices,
    ready_updates,
    voice_choices,
    voice_sample,
)
from personaplex.web.file_tab import read_question
from personaplex.web.html import (
    READY_LINE,
    conversation_state_html,
    count_html,
    meter_html,
    picture_html,
    state_html,
    transcript_html,
)
from personaplex.web.page import MOST_EVENTS, Page, build_page, launch_options
from personaplex.web.talk_tab import read_request, record_updates
from personaplex.web.visits import Visits

GOLDEN = Path(__file__).parent / "golden"
RATE_HZ = 24_000
DEFAULTS = (-1, 0.8, 250, 0.7, 25)
PROMISED_IDS = "persona prompt voice conversation transcript state meter file-question file-answer".split()


@pytest.fixture(scope="module")
def hosted() -> Hosted:
    return golden_hosted()


@pytest.fixture
def host(hosted) -> ModelHost:
    return ready_host(hosted)


@pytest.fixture(scope="module")
def whole_page(tmp_path_factory) -> Page:
    return build_page(ModelHost(Settings(model="nano")), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(whole_page) -> gr.Blocks:
    return whole_page.blocks


def speech(seconds: float, level: float = 0.1) -> np.ndarray:
    """Bursts that rise and fall as syllables do."""
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    noise = np.random.default_rng(5).normal(0, 1, len(time))
    return (level * noise * np.clip(np.sin(2 * np.pi * 2 * time), 0, None)).astype(np.float32)


def wav(path: Path, pcm: np.ndarray) -> str:
    soundfile.write(path, pcm, RATE_HZ)
    return str(path)


def event(page: gr.Blocks, name: str):
    """What a control of the page calls."""
    return next(found.fn for found in page.fns.values() if found.fn is not None and found.fn.__name__ == name)


# --- what is on the page


def test_the_promised_ids_are_there_once(page):
    ids = [block.elem_id for block in page.blocks.values() if getattr(block, "elem_id", None)]
    assert set(PROMISED_IDS) <= set(ids)
    assert len(ids) == len(set(ids))


def test_every_control_has_a_label_a_help_line_and_a_default(page):
    kinds = (gr.Dropdown, gr.Textbox, gr.Number, gr.Slider, gr.Checkbox)
    controls = [block for block in page.blocks.values() if isinstance(block, kinds)]
    assert len(controls) >= 18
    for control in controls:
        assert control.label and control.info and control.value is not None, control.elem_id


def test_the_page_says_when_settings_are_fixed(page):
    said = " ".join(block.value or "" for block in page.blocks.values() if isinstance(block, gr.Markdown))
    assert "fixed when you press Start" in said and "headphones" in said and "English only" in said


def test_only_the_answer_can_be_called_by_scripts(page):
    assert [found.api_name for found in page.fns.values() if found.api_name] == ["answer"]


def test_every_event_is_queued(page):
    """One that is not, as Gradio's examples, asks the route ``/run/predict``, which is closed."""
    assert all(found.queue for found in page.fns.values())


def test_nothing_is_fetched_from_elsewhere(page):
    assert not re.findall(r"https?://(?!localhost)", page.css + page.head)
    assert "fonts.googleapis" not in " ".join(page.theme_css.split()[:50])


# --- persona and voice


def test_nano_marks_the_personas_outside_its_world(monkeypatch):
    known = Persona("bank", "Bank agent", "…", "NATF2", "You work for a bank.")
    presets = (known, Persona("pirate", "Pirate", "…", "NATM0"))
    monkeypatch.setattr("personaplex.web.controls.personas", lambda: presets)
    labels = [label for label, _ in persona_choices("nano")]
    assert labels == ["Bank agent", "Pirate (beyond nano's small world)", "In my own words"]
    assert not any("beyond" in label for label, _ in persona_choices("7b"))


def test_a_persona_fills_the_box_and_takes_its_voice(host, tmp_path):
    text, voice, count = event(build_page(host, tmp_path).blocks, "pick_persona")("bank")
    assert text == "You work for First Neuron Bank and your name is Sanni."
    assert voice == "nano-f" and "of 200 tokens" in count


def test_my_own_words_leave_the_box_alone(host, tmp_path):
    assert all(
        update["__type__"] == "update" for update in event(build_page(host, tmp_path).blocks, "pick_persona")("")
    )


def test_voices_come_in_their_groups():
    labels = [label for label, _ in voice_choices(catalogue("7b"))]
    assert labels[0] == "Natural, female · NATF0" and labels[-1] == "Variety, male · VARM4"
    groups = [label.split(" · ")[0] for label in labels]
    assert len(set(groups)) == 4 and groups == sorted(groups, key=groups.index)
    assert voice_choices(()) == [("The model's own voice", "default")]


def test_a_voice_without_a_recording_has_no_sample(hosted):
    assert voice_sample(hosted, "nobody") is None and voice_sample(None, "nano-f") is None


def test_loading_keeps_what_was_typed_meanwhile(hosted, page):
    from personaplex.web.controls import build_controls

    with gr.Blocks():
        controls, _ = build_controls()
    typed = ready_updates(controls, hosted, "bank", "You are a pirate.")
    assert typed[controls.prompt] == gr.skip()  # the box may hold more by now than was sent
    assert "tokens" in typed[controls.count]
    untouched = ready_updates(controls, hosted, "bank", persona("bank").prompt)
    assert untouched[controls.prompt] == persona("bank").nano_prompt
    assert untouched[controls.voice]["value"] == "nano-f"


def test_whoever_pressed_start_while_the_model_loaded_is_told_of_their_conversation(hosted, tmp_path):
    """The page's own tick wrote "Ready, press Start" over "Preparing"."""
    host = ModelHost(Settings(model="nano"))
    page = build_page(host, tmp_path).blocks
    refresh = event(page, "refresh")
    state = next(block for block in page.blocks.values() if block.elem_id == "state")
    loading = state.value
    host.hosted = hosted
    assert READY_LINE in refresh(loading, "bank", "", "bank", "")[state]
    preparing = conversation_state_html(ConversationState(Phase.PREPARING, done=1, total=9), "Preparing")
    assert refresh(preparing, "bank", "", "bank", "")[state] == gr.skip()


# --- the count


def test_tokens_are_counted_against_the_limit(hosted):
    assert "of 200 tokens" in count_of(hosted, "You are kind.") and "over" not in count_of(hosted, "You are kind.")
    assert ">0 of 200 tokens" in count_of(hosted, "")
    too_long = count_of(hosted, "word " * 500)
    assert "too long by" in too_long and 'role="alert"' in too_long
    assert "control character" in count_of(hosted, "a\x07b")
    assert "far too long" in count_of(hosted, "a" * 200_000)
    assert "once the model is loaded" in count_of(None, "anything")


# --- what the settings ask for


def test_settings_become_a_request(host):
    request = read_request(host, ["You are kind.", "default", None, 7, 0.5, 100, 0.6, 20, True, True, True, True])
    assert (request.text, request.wait_for_greeting, request.record) == ("You are kind.", True, True)
    assert request.clean_microphone is can_clean() and request.write_user_words is (host.recognition is not None)
    drawn = request.sampling
    assert (drawn.seed, drawn.temperature_audio, drawn.top_k_audio) == (7, 0.5, 100)
    assert (drawn.temperature_text, drawn.top_k_text) == (0.6, 20)


def test_a_new_seed_each_time_unless_one_is_given(hosted):
    seeds = {Choices("", "default", None, *DEFAULTS).request(hosted).sampling.seed for _ in range(8)}
    assert len(seeds) > 1 and min(seeds) >= 0


def test_the_operators_no_to_recordings_counts(hosted):
    host = ModelHost(Settings(model="nano", record=False))
    host.hosted = hosted
    assert read_request(host, ["", "default", None, *DEFAULTS, True, True, False, False]).record is False


@pytest.mark.parametrize(
    ("values", "kind", "says"),
    [
        (["word " * 500, "", None], PromptError, "200 are allowed"),
        (["a" * 200_000, "", None], PromptError, "far too long"),
        (["a\x00b", "", None], InputError, "control character"),
        (["", "NATF9", None], UnknownNameError, "NATF9"),
        (["", "/etc/passwd", None], UnknownNameError, "there is no voice"),
        (["", "../golden/voices/VOICE", None], UnknownNameError, "there is no voice"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_sentence(host, values, kind, says):
    with pytest.raises(kind, match=says):
        read_request(host, [*values, *DEFAULTS, True, False, False, False])


def test_starting_while_the_model_loads():
    with pytest.raises(InputError, match="not there yet"):
        read_request(ModelHost(Settings(model="nano")), ["", "", None, *DEFAULTS, True, False, False, False])


# --- one's own voice


def test_a_good_recording_becomes_the_voice(host, tmp_path):
    path = wav(tmp_path / "me.wav", speech(6))
    assert own_voice(path).duration_sec == pytest.approx(6)
    for family, says in (("7b", "recording of 6.0 s will be the persona"), ("nano", "one of its own four voices")):
        assert says in judge_recording(path, family) and "good" in judge_recording(path, family)
    request = Choices("", "nobody", path, *DEFAULTS).request(host.hosted)
    assert request.voice.name == own_voice_module.RECORDING_NAME, "it takes the place of the voice that is chosen"


@pytest.mark.parametrize(
    ("pcm", "says"),
    [
        (speech(2.0), "2.0 s long; 3 to 60 s"),
        (speech(61.0), "60"),
        (np.zeros(5 * RATE_HZ, np.float32), "silent"),
        (np.random.default_rng(0).normal(0, 0.0005, 5 * RATE_HZ).astype(np.float32), "silent, or nearly"),
    ],
)
def test_recordings_that_are_no_voice(tmp_path, pcm, says):
    verdict = judge_recording(wav(tmp_path / "me.wav", pcm), "7b")
    assert says in verdict and 'role="alert"' in verdict and str(tmp_path) not in verdict


def test_a_clipped_recording_is_taken_with_a_warning(tmp_path):
    verdict = judge_recording(wav(tmp_path / "me.wav", np.clip(speech(6, level=2), -1, 1)), "7b")
    assert "good" in verdict and "clipped" in verdict and str(tmp_path) not in verdict


def test_an_upload_that_is_no_sound(tmp_path):
    path = tmp_path / "virus.wav"
    path.write_text("this is no sound")
    verdict = judge_recording(str(path), "nano")
    assert "not a sound file" in verdict and str(tmp_path) not in verdict
    with pytest.raises(AudioError, match="Your recording is not a sound file"):
        read_question(str(path))
    with pytest.raises(InputError, match="no question yet"):
        read_question(None)


# --- moving parts


def test_the_transcript_in_lines_with_times():
    words = [Word("Hello.", 0.5, 0.9), Word("I", 1.0, 1.2), Word("am", 1.3, 1.5), Word("Sanni.", 75.0, 75.4)]
    html = transcript_html(words, live=True)
    assert re.findall(r"<time>(.*?)</time>", html) == ["0:00", "0:01", "1:15"]
    lines = [re.sub(r"<[^>]+>", "", line) for line in re.findall(r'<span class="words">(.*?)</span></p>', html)]
    assert lines == ["Hello.", "I am", "Sanni."]
    assert html.count('class="now"') == 1 and 'class="now" title="75.00 s">Sanni.' in html
    assert "now" not in transcript_html(words)


def test_what_is_said_or_typed_never_becomes_html():
    bad = '<img src=x onerror="alert(1)">'
    told = ConversationState(Phase.ENDED, reason=EndReason.REFUSED, message=bad)
    for html in (
        transcript_html([Word(bad, 0, 1)]), transcript_html((), empty=bad), state_html(bad, bad),
        conversation_state_html(told, bad), count_html(None, 0, bad), picture_html("", bad),
    ):  # fmt: skip
        assert "<img" not in html and "&lt;img" in html


def test_the_state_shows_how_far_the_persona_is_prepared():
    html = conversation_state_html(ConversationState(Phase.PREPARING, done=30, total=120), "Preparing")
    assert 'value="0.250"' in html and 'data-phase="preparing"' in html
    failed = ConversationState(Phase.ENDED, reason=EndReason.FAILED, message="It stopped.")
    assert 'data-phase="ended-failed"' in conversation_state_html(failed, failed.message)


@pytest.mark.parametrize(("step_ms", "level"), [(40, "good"), (75, "tight"), (120, "late")])
def test_the_meter_holds_steps_against_80_ms(step_ms, level):
    html = meter_html(Meter(step_ms=step_ms, frames=100, dropped_frames=1), 231.4)
    assert f'data-level="{level}"' in html and f"<b>{step_ms}</b>" in html
    assert "<b>1</b> <span>frame<" in html and "<b>231</b>" in html
    assert 'data-level="idle"' in meter_html(Meter())


# --- after a conversation


def record(hosted: Hosted, sound: bool):
    from personaplex.web.updates import Record

    transcript = hosted.new_transcript()
    for frame, token in enumerate(hosted.tokenizer.encode("hello there")):
        transcript.push(token, frame)
    pcm = to_int16(speech(2)) if sound else np.zeros(0, np.int16)
    ended = ConversationState(Phase.ENDED, reason=EndReason.STOPPED, message="You stopped the conversation.")
    return Record("w", "anna", transcript, ended, pcm, pcm)


def test_afterwards_there_is_a_recording_a_transcript_and_a_picture(hosted, tmp_path):
    visits = Visits(tmp_path / "visits")
    visits.keep("anna", "talk", record(hosted, sound=True))
    state, words, group, both, picture, kept = record_updates(visits, "anna", RATE_HZ)
    assert "You stopped the conversation." in state and "hello" in words and group["visible"] is True
    assert soundfile.info(both["value"]).channels == 2 and "<svg" in picture
    assert [Path(path).suffix for path in kept] == [".txt", ".json", ".vtt", ".png"]
    visits.end("anna")
    assert not any(Path(path).exists() for path in [*kept, both["value"]])


def test_a_full_disk_costs_the_files_and_not_the_words(hosted, tmp_path, monkeypatch):
    visits = Visits(tmp_path / "uploads" / "visits")
    visits.keep("anna", "talk", record(hosted, sound=True))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(visits, "new_folder", full)
    state, words, *after = record_updates(visits, "anna", RATE_HZ)
    assert "You stopped the conversation." in state and "hello" in words and after == [gr.skip()] * 4


def test_a_voice_is_judged_by_who_finds_it(page):
    """A page that was open while the server started again names a voice that Gradio has not told it of."""
    voice = next(block for block in page.blocks.values() if getattr(block, "elem_id", None) == "voice")
    assert voice.preprocess("nano-old") == "nano-old"


def test_without_a_recording_there_are_words_only(hosted, tmp_path):
    visits = Visits(tmp_path / "visits")
    visits.keep("anna", "talk", record(hosted, sound=False))
    _, _, group, both, picture, kept = record_updates(visits, "anna", RATE_HZ)
    assert group["visible"] is True and both["visible"] is False and picture == "" and len(kept) == 3


def test_another_visitor_sees_nothing_of_it(hosted, tmp_path, monkeypatch):
    monkeypatch.setattr("personaplex.web.talk_tab.RECORD_WITHIN_SEC", 0.0)
    visits = Visits(tmp_path / "visits")
    visits.keep("anna", "talk", record(hosted, sound=True))
    assert record_updates(visits, "bert", RATE_HZ) == (gr.skip(),) * 6


def test_a_start_that_came_to_nothing_leaves_the_conversation_before_on_the_page(hosted, tmp_path):
    visits = Visits(tmp_path / "visits")
    nothing = replace(record(hosted, sound=False), transcript=hosted.new_transcript())
    visits.keep("anna", "talk", nothing)
    state, _, *after = record_updates(visits, "anna", RATE_HZ)
    assert "You stopped the conversation." in state and after == [gr.skip()] * 4


# --- the page's own limits


def test_events_of_many_visitors_fit(whole_page, page):
    """Each visitor holds one for as long as it talks or waits; and Gradio lets one wait on ZeroGPU."""
    assert page._queue.max_size == MOST_EVENTS
    crowded = ModelHost(Settings(conversations=32, waiting=30))
    assert launch_options(crowded, whole_page)["max_threads"] >= 40 + 62
