"""Conversations, slots and the snapshots of prompts."""

import numpy as np
import pytest
import torch
from conftest import GOLDEN_FOLDER, GOLDEN_TEXT

from personaplex.errors import CapacityError, InputError, PromptError
from personaplex.sampling import SamplingOptions
from personaplex.session import Session
from personaplex.snapshots import read_snapshot, save_snapshot
from personaplex.voices import voice_from_file

GREEDY = SamplingOptions(greedy=True)


@pytest.fixture
def voice(golden):
    return voice_from_file(GOLDEN_FOLDER / "voices" / "VOICE.wav", config=golden.config)


def heard(seed, frames=12):
    return (np.random.default_rng(seed).normal(size=(frames, 1920)) * 0.2).astype(np.float32)


def tokens_of(conversation, pcm):
    return np.stack([conversation.step(frame).tokens for frame in pcm])


def test_a_prompt_is_computed_once(golden, voice, monkeypatch):
    session = Session(golden)
    first = session.prepare(voice=voice, text=GOLDEN_TEXT)
    monkeypatch.setattr(session.engine, "prefill_frames", None)  # any further work would fail
    assert session.prepare(voice=voice, text=GOLDEN_TEXT) is first


def test_another_text_reuses_the_voice(golden, voice, monkeypatch):
    session = Session(golden)
    session.prepare(voice=voice, text=GOLDEN_TEXT)
    monkeypatch.setattr(session.engine, "encode", None)
    again = session.prepare(voice=voice, text="You are a teacher.")
    fresh = Session(golden).prepare(voice=voice, text="You are a teacher.")
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in fresh.tensors.items())


def test_snapshots_on_disk_serve_the_next_process(golden, voice, tmp_path, monkeypatch):
    first = Session(golden, snapshot_folder=tmp_path).prepare(voice=voice, text=GOLDEN_TEXT)
    session = Session(golden, snapshot_folder=tmp_path)
    monkeypatch.setattr(session.engine, "prefill_frames", None)
    again = session.prepare(voice=voice, text=GOLDEN_TEXT)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())
    assert not list(tmp_path.glob("*.part"))


def test_a_damaged_snapshot_on_disk_is_made_again(golden, voice, tmp_path):
    Session(golden, snapshot_folder=tmp_path).prepare(voice=voice, text=GOLDEN_TEXT)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert Session(golden, snapshot_folder=tmp_path).prepare(voice=voice, text=GOLDEN_TEXT).tensors


def test_a_saved_voice_equals_its_recording(golden, voice, tmp_path):
    session = Session(golden)
    path = tmp_path / "me.safetensors"
    save_snapshot(session.voice_snapshot(voice), path, session.model_key)
    saved = Session(golden).prepare(voice=voice_from_file(path), text=GOLDEN_TEXT)
    spoken = Session(golden).prepare(voice=voice, text=GOLDEN_TEXT)
    assert all(torch.equal(saved.tensors[name], tensor) for name, tensor in spoken.tensors.items())
    with pytest.raises(PromptError, match="another model"):
        read_snapshot(path, "other")


def test_an_empty_text_leaves_out_the_text_segment(golden, voice):
    session = Session(golden)
    with_text, without = (session.prepare(voice=voice, text=text) for text in (GOLDEN_TEXT, ""))
    assert int(with_text.tensors["frames.position"]) - int(without.tensors["frames.position"]) == 53


def test_too_long_a_text_is_refused_with_its_count_or_cut_on_request(golden, voice):
    session = Session(golden)
    with pytest.raises(PromptError, match="200"):
        session.prepare(voice=voice, text="bank " * 300)
    assert session.prepare(voice=voice, text="bank " * 300, truncate_text=True).tensors


def test_progress_counts_up_to_the_total(golden, voice):
    seen = []
    Session(golden).prepare(voice=voice, text=GOLDEN_TEXT, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len({total for _, total in seen}) == 1 and seen[-1][0] == seen[-1][1]


def test_slots_run_out_and_come_back(golden, voice):
    session = Session(golden, slots=2)
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
    session = Session(golden)
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
    session = Session(golden)
    with session.start(session.prepare(voice=voice, text="")) as conversation, pytest.raises(InputError, match=message):
        conversation.step(frame)


def test_stepping_together_equals_stepping_alone(golden, voice):
    alone, together = Session(golden, slots=3), Session(golden, slots=3)
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


def test_an_abandoned_conversation_leaves_nothing_that_could_spread(golden, voice):
    session = Session(golden)
    snapshot = session.prepare(voice=voice, text=GOLDEN_TEXT)
    healthy = tokens_of(session.start(snapshot, GREEDY), heard(1))
    session = Session(golden)
    spoiled = session.start(session.prepare(voice=voice, text=GOLDEN_TEXT), GREEDY)
    for leaf in session.engine.state.leaves():
        if leaf.tensor.is_floating_point():
            leaf.tensor.fill_(float("nan"))
    spoiled.abandon()
    spoiled.abandon()  # once is enough, twice is harmless
    assert (tokens_of(session.start(snapshot, GREEDY), heard(1)) == healthy).all()
