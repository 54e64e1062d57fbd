"""Conversations, slots and the snapshots of prompts."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import GOLDEN_FOLDER, GOLDEN_TEXT

from personaplex.engine.engine import Snapshot
from personaplex.errors import CapacityError, InputError, OutputError, PromptError
from personaplex.messages import SamplingOptions, Voice
from personaplex.personas.voices import voice_from_file
from personaplex.session.prompt_frames import PromptBuilder
from personaplex.session.session import Session
from personaplex.session.snapshots import read_snapshot, save_snapshot

GREEDY = SamplingOptions(greedy=True)


@pytest.fixture
def voice(golden):
    return voice_from_file(GOLDEN_FOLDER / "voices" / "VOICE.wav", config=golden.config)


def heard(seed, frames=12):
    return (np.random.default_rng(seed).normal(size=(frames, 1920)) * 0.2).astype(np.float32)


def tokens_of(conversation, pcm):
    return np.stack([conversation.step(frame).tokens for frame in pcm])


def test_a_prompt_is_computed_once(golden, voice, monkeypatch):
    session = Session(golden, window="published")
    first = session.prepare(voice=voice, text=GOLDEN_TEXT)
    monkeypatch.setattr(session.engine, "prefill_frames", None)  # any further work would fail
    assert session.prepare(voice=voice, text=GOLDEN_TEXT) is first


def test_another_text_reuses_the_voice(golden, voice, monkeypatch):
    session = Session(golden, window="published")
    session.prepare(voice=voice, text=GOLDEN_TEXT)
    monkeypatch.setattr(session.engine, "encode", None)
    again = session.prepare(voice=voice, text="You are a teacher.")
    fresh = Session(golden, window="published").prepare(voice=voice, text="You are a teacher.")
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in fresh.tensors.items())


def test_snapshots_on_disk_serve_the_next_process(golden, voice, tmp_path, monkeypatch):
    first = Session(golden, window="published", snapshot_folder=tmp_path).prepare(voice=voice, text=GOLDEN_TEXT)
    session = Session(golden, window="published", snapshot_folder=tmp_path)
    monkeypatch.setattr(session.engine, "prefill_frames", None)
    again = session.prepare(voice=voice, text=GOLDEN_TEXT)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}, "nothing else stays behind"
    (tmp_path / "usual").touch()
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "usual").stat().st_mode}


@pytest.mark.parametrize("trouble", ["a file in its place", "a full disk", "no permission"])
def test_a_folder_that_cannot_be_written_ends_no_conversation(golden, voice, tmp_path, monkeypatch, caplog, trouble):
    """A prompted persona is kept to save time; failing to keep it used to end the work it was made for."""
    folder = tmp_path / "kept"
    if trouble == "a file in its place":
        folder.touch()
    else:
        number = {"a full disk": 28, "no permission": 13}[trouble]

        def refuse(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("personaplex.files._create", refuse)
    session = Session(golden, window="published", snapshot_folder=folder)
    snapshot = session.prepare(voice=voice, text=GOLDEN_TEXT)
    assert session.prepare(voice=voice, text=GOLDEN_TEXT) is snapshot
    assert caplog.text.count("kept in memory only") == 2, "of the voice, and of the persona"
    with pytest.raises(OutputError, match="kept"):
        save_snapshot(snapshot, folder / "me.safetensors", session.model_key)


def test_a_damaged_snapshot_on_disk_is_made_again(golden, voice, tmp_path):
    Session(golden, window="published", snapshot_folder=tmp_path).prepare(voice=voice, text=GOLDEN_TEXT)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert Session(golden, window="published", snapshot_folder=tmp_path).prepare(voice=voice, text=GOLDEN_TEXT).tensors


def test_a_saved_voice_equals_its_recording(golden, voice, tmp_path):
    session = Session(golden, window="published")
    path = tmp_path / "me.safetensors"
    save_snapshot(session.voice_snapshot(voice), path, session.model_key)
    saved = Session(golden, window="published").prepare(voice=voice_from_file(path), text=GOLDEN_TEXT)
    spoken = Session(golden, window="published").prepare(voice=voice, text=GOLDEN_TEXT)
    assert all(torch.equal(saved.tensors[name], tensor) for name, tensor in spoken.tensors.items())
    with pytest.raises(PromptError, match="another model"):
        read_snapshot(path, "other", session.engine.check)


SAVED_BY_0_1_0 = GOLDEN_FOLDER / "voice-0.1.0.safetensors"
"""The state of ``voice`` on the golden checkpoint with a cache of 8 frames, as 0.1.0 saved it: without a version."""
KEPT_BY_0_1_0 = {"74f988c8a12b5a453958dcfa669cdd74", "d8fb4d2eeeb0e817caf533b71d47cdc8"}
"""Names of the files in which 0.1.0 kept the voice of the test below, and the persona of GOLDEN_TEXT with it."""


@pytest.fixture
def longer_prompts(monkeypatch):
    """0.1.0 took prompts longer than a shortened cache."""
    monkeypatch.setattr("personaplex.session.prompt_frames.PromptBuilder.check_fits", lambda *_: None)


def test_a_model_listens_to_as_much_of_a_voice_as_it_says(golden, voice):
    """A minute of voice filled nano's whole memory."""
    config = replace(golden.config, prompt=replace(golden.config.prompt, max_voice_sec=1.0))
    long = replace(voice, pcm=np.tile(voice.pcm, 3))
    short = replace(voice, pcm=long.pcm[:24_000])
    session = Session(replace(golden, config=config), window="published")
    heard, wanted = (session.prepare(voice=given, text=GOLDEN_TEXT) for given in (long, short))
    assert heard is wanted
    whole = Session(golden, window="published").prepare(voice=short, text=GOLDEN_TEXT)
    assert all(torch.equal(heard.tensors[name], tensor) for name, tensor in whole.tensors.items())
    saved, other = (session.voice_snapshot(given).tensors for given in (long, short))
    assert all(torch.equal(saved[name], tensor) for name, tensor in other.items())


def test_a_prompt_longer_than_a_shortened_context_is_refused_with_the_least_that_works(golden, voice):
    """The persona was dropped without a word: a bank's clerk called itself Mars Station."""
    needed = int(PromptBuilder(golden.config).role(()).shape[0]) + PromptBuilder(golden.config).voice_frames(voice)
    with pytest.raises(PromptError, match=f"take {needed} frames.*the least that works is {needed + 1} .40 is"):
        Session(golden, window="published", context=needed).prepare(voice=voice, text="")
    assert Session(golden, window="published", context=needed + 1).prepare(voice=voice, text="").tensors
    session = Session(golden, window="published", context=10)
    with pytest.raises(PromptError, match="least that works"):
        session.prepare(voice=voice, text=GOLDEN_TEXT)
    assert session._free == [0]
    own = Session(golden, window="published")
    assert own.prepare(voice=voice, text=GOLDEN_TEXT).tensors, "the model's own takes any"


@pytest.mark.usefixtures("longer_prompts")
def test_a_voice_saved_by_0_1_0_still_opens(golden, voice):
    session = Session(golden, window="published", context=8)
    saved = session.prepare(voice=voice_from_file(SAVED_BY_0_1_0), text=GOLDEN_TEXT)
    spoken = Session(golden, window="published", context=8).prepare(voice=voice, text=GOLDEN_TEXT)
    for name, tensor in spoken.tensors.items():
        assert torch.allclose(saved.tensors[name].double(), tensor.double(), atol=1e-4), name


@pytest.mark.usefixtures("longer_prompts")
def test_personas_kept_by_0_1_0_are_found_again(golden, tmp_path):
    """Their files' names are the keys: another name would cost every persona its prompt again after an update."""
    voice = Voice("any", pcm=np.tile(np.array([0.5, -0.25], np.float32), 960))
    Session(golden, window="published", context=8, snapshot_folder=tmp_path).prepare(voice=voice, text=GOLDEN_TEXT)
    assert {path.stem for path in tmp_path.iterdir()} == KEPT_BY_0_1_0


def test_a_state_of_another_version_is_refused_by_name_and_made_again(golden, voice, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    session = Session(golden, window="published", snapshot_folder=kept)
    before = session.prepare(voice=voice, text=GOLDEN_TEXT)
    save_snapshot(session.voice_snapshot(voice), tmp_path / "me.safetensors", session.model_key)
    old_names = set(kept.iterdir())
    monkeypatch.setattr("personaplex.session.snapshots.STATE_VERSION", 2)
    monkeypatch.setattr("personaplex.session.snapshots.state_key.__defaults__", (2,))
    later = Session(golden, window="published", snapshot_folder=kept)
    assert later.model_key != session.model_key
    with pytest.raises(PromptError, match=r"me.safetensors has state version 1, this program reads version 2; make it"):
        later.prepare(voice=voice_from_file(tmp_path / "me.safetensors"), text=GOLDEN_TEXT)
    again = later.prepare(voice=voice, text=GOLDEN_TEXT)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in before.tensors.items())
    assert len(set(kept.iterdir()) - old_names) == 2, "made again, beside the old ones"


def changed(snapshot: Snapshot, name: str, change) -> Snapshot:
    """The same with one tensor changed in place, or replaced by what ``change`` returns."""
    if name == "noise":
        return replace(snapshot, noise=change(snapshot.noise))
    tensor = snapshot.tensors[name].clone()
    result = change(tensor)
    return replace(snapshot, tensors={**snapshot.tensors, name: tensor if result is None else result})


FORGED = {
    "before the ring": ("temporal.position", lambda t: t.fill_(-5)),
    "before the codec's ring": ("encoder.transformer.position", lambda t: t.fill_(-1)),
    "beyond all integers": ("decoder.transformer.position", lambda t: t.fill_(2**62)),
    "fewer than it says": ("temporal.layers.0.keys", lambda t: t[:, :3].contiguous()),
    "more than it says": ("temporal.position", lambda t: t.fill_(1)),
    "a word beyond the table": ("frames.columns", lambda t: t[0].fill_(10**9)),
    "a sound beyond the table": ("frames.columns", lambda t: t[16].fill_(10**6)),
    "a token below all": ("frames.columns", lambda t: t[3].fill_(-3)),
    "nothing where the model reads": ("frames.columns", lambda t: t[0].fill_(-2)),
    "nothing where the user spoke": ("frames.columns", lambda t: t[12].fill_(-2)),
    "half a generator": ("noise", lambda t: t[:100].clone()),
    "no generator": ("noise", lambda t: torch.full_like(t, 255)),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_snapshot_file_with_numbers_that_cannot_be_is_refused(golden, voice, tmp_path, caplog, name):
    """Positions and tokens are addresses of compiled code: a file could make it write and read anywhere."""
    session = Session(golden, window="published")
    good = session.voice_snapshot(voice)
    path = tmp_path / "me.safetensors"
    save_snapshot(changed(good, *FORGED[name]), path, session.model_key)
    with pytest.raises(PromptError, match="me.safetensors cannot be used: the snapshot's|of the snapshot"):
        session.prepare(voice=voice_from_file(path), text=GOLDEN_TEXT)
    folder = tmp_path / "kept"
    fresh = Session(golden, window="published", snapshot_folder=folder).prepare(voice=voice, text=GOLDEN_TEXT)
    for kept in folder.iterdir():
        save_snapshot(changed(fresh, *FORGED[name]), kept, session.model_key)
    again = Session(golden, window="published", snapshot_folder=folder).prepare(voice=voice, text=GOLDEN_TEXT)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in fresh.tensors.items())
    assert "ignoring" in caplog.text


def test_what_an_engine_exports_passes_the_check_of_files(golden, voice):
    """At every age: before the first call, between it and the ring's wrap, and after that."""
    session = Session(golden, window="published")
    engine, on = session.engine, torch.ones(1, dtype=torch.bool)
    engine.check(engine.export(0))
    for pcm in heard(3, 6):
        engine.step(torch.from_numpy(pcm)[None], on)
        engine.check(engine.export(0))
    for given in (voice, voice_from_file(GOLDEN_FOLDER / "voices" / "VOICE.pt", config=golden.config)):
        with session.start(session.prepare(voice=given, text=GOLDEN_TEXT)) as conversation:
            for pcm in heard(4, 40):
                engine.check(engine.export(0))
                conversation.step(pcm)


def test_an_empty_text_leaves_out_the_text_segment(golden, voice):
    session = Session(golden, window="published")
    with_text, without = (session.prepare(voice=voice, text=text) for text in (GOLDEN_TEXT, ""))
    assert int(with_text.tensors["frames.position"]) - int(without.tensors["frames.position"]) == 53


def test_too_long_a_text_is_refused_with_its_count_or_cut_on_request(golden, voice):
    session = Session(golden, window="published")
    with pytest.raises(PromptError, match="200"):
        session.prepare(voice=voice, text="bank " * 300)
    assert session.prepare(voice=voice, text="bank " * 300, truncate_text=True).tensors


def test_progress_counts_up_to_the_total(golden, voice):
    seen = []
    Session(golden, window="published").prepare(
        voice=voice, text=GOLDEN_TEXT, progress=lambda done, total: seen.append((done, total))
    )
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len({total for _, total in seen}) == 1 and seen[-1][0] == seen[-1][1]


def test_slots_run_out_and_come_back(golden, voice):
    session = Session(golden, window="published", slots=2)
    snapshot = session.prepare(voice=voice, text=GOLDEN_TEXT)
    first, second = session.start(snapshot, GREEDY), session.start(snapshot, GREEDY)
    with pytest.raises(CapacityError, match="2 conversations"):
        session.start(snapshot)
    first.close()
    first.close()  # closing twice gives the slot back once
    third = session.start(snapshot, GREEDY)
    assert (tokens_of(third, heard(1)) == tokens_of(second, heard(1))).all()
    with pytest.raises(InputError, match="closed"):
        first.step(heard(1)[0])


def test_an_abandoned_preparation_gives_its_slot_back(golden, voice):
    session = Session(golden, window="published")
    work = session.prepare_in_pieces(voice=voice, text=GOLDEN_TEXT)
    next(work)
    work.close()
    session.start(session.prepare(voice=voice, text=GOLDEN_TEXT)).close()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros(1919, np.float32), "1920"),
        (np.zeros(1920, np.int16), "float32"),
        (np.full(1920, np.nan, np.float32), "NaN"),
    ],
)
def test_a_frame_that_is_no_frame(golden, voice, frame, message):
    session = Session(golden, window="published")
    with session.start(session.prepare(voice=voice, text="")) as conversation, pytest.raises(InputError, match=message):
        conversation.step(frame)


def test_stepping_together_equals_stepping_alone(golden, voice):
    alone, together = Session(golden, window="published", slots=3), Session(golden, window="published", slots=3)
    sampled = [SamplingOptions(seed=seed) for seed in range(3)]
    snapshot = alone.prepare(voice=voice, text=GOLDEN_TEXT)
    apart = [alone.start(snapshot, options) for options in sampled]
    joined = [together.start(snapshot, options) for options in sampled]
    for number in range(6):
        frames = [heard(seed, 6)[number] for seed in range(3)]
        # the third joins in every second frame only
        who = [0, 1] if number % 2 else [0, 1, 2]
        outputs = together.step_together({joined[row]: frames[row] for row in who})
        for row in who:
            expected = apart[row].step(frames[row])
            assert (outputs[joined[row]].tokens == expected.tokens).all()
            assert np.allclose(outputs[joined[row]].pcm, expected.pcm, atol=1e-5)


def test_a_kept_answer_holds_its_own_row_only(golden, voice):
    """An answer was a view of the whole batch: to keep one conversation's sound was to keep everybody's."""
    session = Session(golden, window="published", slots=3)
    snapshot = session.prepare(voice=voice, text="")
    conversations = [session.start(snapshot, GREEDY) for _ in range(3)]
    outputs = session.step_together({conversation: heard(1)[0] for conversation in conversations})
    for output in outputs.values():
        assert output.pcm.base is None and output.tokens.base is None


def test_an_abandoned_conversation_leaves_nothing_that_could_spread(golden, voice):
    session = Session(golden, window="published")
    snapshot = session.prepare(voice=voice, text=GOLDEN_TEXT)
    healthy = tokens_of(session.start(snapshot, GREEDY), heard(1))
    session = Session(golden, window="published")
    spoiled = session.start(session.prepare(voice=voice, text=GOLDEN_TEXT), GREEDY)
    for leaf in session.engine.state.leaves():
        if leaf.tensor.is_floating_point():
            leaf.tensor.fill_(float("nan"))
    spoiled.abandon()
    spoiled.abandon()  # once is enough, twice is harmless
    assert (tokens_of(session.start(snapshot, GREEDY), heard(1)) == healthy).all()
