"""What fine-tuning computes: the text stream, delays, weights, equality with the engine, adapters."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN_FOLDER
from finetune_runs import (
    EPAD,
    PAD,
    RATE_HZ,
    assert_logits_equal,
    fresh,
    lesson_maker,
    random_frames,
    write_recordings,
)
from safetensors.torch import load_file

from personaplex.audio.files import write_wav
from personaplex.config import AGENT, TEXT, USER
from personaplex.engine.engine import Engine
from personaplex.engine.prediction import PlainPredictor
from personaplex.errors import ConfigError, OutputError, WeightsError
from personaplex.messages import SamplingOptions
from personaplex.personas.voices import voice_from_file
from personaplex.session.session import Session
from personaplex.weights.checkpoint import Checkpoint
from training.finetune import checkpoints
from training.finetune.codes import CodeBook
from training.finetune.config import (
    LoraOptions,
    LossOptions,
)
from training.finetune.lessons import Lesson, batch_of, delayed, loss_weights, text_stream
from training.finetune.lora import LoraLinear, add_adapters_, load_adapter_, plain_weight, save_adapter, trained
from training.finetune.model import SequenceModel, train_whole_
from training.finetune.recordings import Word, read_manifest


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("data"))


# ---------------------------------------------------------------------------------- lessons


def test_words_begin_in_their_frame_after_an_end_of_padding():
    words = [Word("ab", 0.17, 0.3), Word("c", 0.26, 0.3), Word("d", 0.75, 0.9), Word("ef", 0.81, 1.0)]
    tokens = {"ab": [10, 11], "c": [12], "d": [13], "ef": [14, 15]}
    stream = text_stream(words, 12, tokens.__getitem__, PAD, 12.5)
    # Frames of 80 ms: "ab" in 2, "c" wanted 3 but "ab" ends there, "d" in 9, "ef" right behind it in 10.
    assert stream.tolist() == [PAD, EPAD, 10, 11, 12, PAD, PAD, PAD, EPAD, 13, 14, 15]


def test_words_are_cut_at_the_end_and_a_word_at_the_start_has_no_end_of_padding():
    words = [Word("a", 0.0, 0.1), Word("bc", 0.25, 0.3), Word("d", 9.0, 9.1)]
    stream = text_stream(words, 4, {"a": [7], "bc": [8, 9], "d": [5]}.__getitem__, PAD, 12.5)
    assert stream.tolist() == [7, PAD, EPAD, 8]


def test_delays_by_hand(golden):
    config = golden.config.lm
    frames = torch.arange(4)[:, None] * 100 + torch.arange(17)[None]
    columns = delayed(frames, config)
    assert columns.shape == (4, 17)
    assert columns[0].tolist() == [config.initial_text_id] + [config.initial_audio_id] * 16
    assert columns[1, [0, 1, 9]].tolist() == [100, 101, 109]
    assert (columns[1, 2:9] == config.initial_audio_id).all() and (columns[1, 10:] == config.initial_audio_id).all()
    assert columns[2, [0, 1, 2, 8, 9, 10, 16]].tolist() == [200, 201, 102, 108, 209, 110, 116]
    assert columns[3, [0, 1, 2, 8, 9, 10, 16]].tolist() == [300, 301, 202, 208, 309, 210, 216]


def test_weights_by_hand(golden):
    config = golden.config.lm
    frames = torch.full((6, 17), 9)
    frames[4, 0] = PAD
    columns = delayed(frames, config)
    weights = loss_weights(columns, 2, config, LossOptions(padding=0.3, semantic=1.0, acoustic=0.1))
    low = [0.1] * 7
    expected = [
        [0.0] * 9,
        [0.0] * 9,
        [1.0, 1.0] + [0.0] * 7,  # of frame 2 text and semantic code; the other codes are still the prompt's
        [1.0, 1.0, *low],
        [0.3, 1.0, *low],
        [1.0, 1.0, *low],
    ]
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_without_a_prompt_the_initial_tokens_are_not_learned(golden):
    columns = delayed(torch.full((4, 17), 9), golden.config.lm)
    weights = loss_weights(columns, 0, golden.config.lm, LossOptions())
    assert (weights[0] == 0).all() and (weights[1, 2:] == 0).all()
    assert (weights[1, :2] > 0).all() and (weights[2:] > 0).all()


def test_a_lesson_is_the_prompt_then_the_recording(golden, data):
    maker, recording = lesson_maker(golden), read_manifest(data / "train.jsonl")[0]
    prompt, frames = maker.prompt(recording), maker.frames(recording)
    assert frames.shape == (26, 17)  # 2.03 s
    stereo = torch.from_numpy(recording.read(RATE_HZ))
    state, on = golden.mimi.encoder_state(2), torch.ones(2, dtype=torch.bool)
    pcm = torch.nn.functional.pad(stereo, (0, 26 * 1920 - stereo.shape[1]))
    codes = torch.cat([golden.mimi.encode(p, state, on) for p in pcm.split(1920, 1)], 2)
    assert torch.equal(frames[:, AGENT], codes[0].t()) and torch.equal(frames[:, USER], codes[1].t())
    (lesson,) = maker.lessons([recording])
    assert lesson.prompt_frames == prompt.shape[0]
    assert torch.equal(lesson.columns, delayed(torch.cat([prompt, frames]), golden.config.lm))
    assert (lesson.weights[: prompt.shape[0]] == 0).all() and (lesson.weights[prompt.shape[0] + 1 :] > 0).all()


def test_the_prompt_is_the_one_a_session_forces(golden, data):
    recording = read_manifest(data / "train.jsonl")[0]
    session = Session(golden, window="published")
    session.engine.load(
        0, session.prepare(voice=voice_from_file(recording.voice, config=golden.config), text=recording.prompt_text)
    )
    engine = Engine(golden.config, golden.lm, golden.mimi)
    engine.prefill_frames(0, lesson_maker(golden).prompt(recording))
    assert torch.equal(engine.state.frames.columns, session.engine.state.frames.columns)
    for ours, theirs in zip(engine.state.temporal.layers, session.engine.state.temporal.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys)


def test_long_recordings_are_cut_and_every_piece_has_the_prompt(golden, data):
    recording = read_manifest(data / "train.jsonl")[0]
    whole, prompt = lesson_maker(golden).frames(recording), lesson_maker(golden).prompt(recording)
    lessons = list(lesson_maker(golden, max_sec=1.0).lessons([recording]))
    assert [lesson.columns.shape[0] - lesson.prompt_frames for lesson in lessons] == [12, 12, 2]
    assert torch.equal(lessons[1].columns, delayed(torch.cat([prompt, whole[12:24]]), golden.config.lm))


def test_codes_are_kept_beside_the_data_until_the_sound_changes(golden, tmp_path):
    path, sound = tmp_path / "voice.wav", 0.1 * np.random.default_rng(1).standard_normal((2, RATE_HZ))
    write_wav(path, sound[0], RATE_HZ)
    codebook = CodeBook(golden.config, golden.mimi)
    codes = codebook.voice(path)
    (kept,) = tmp_path.glob("*.codes.npy")
    np.save(kept, np.load(kept)[:, :, :3])
    assert codebook.voice(path).shape == (3, 8)
    write_wav(path, sound[1], RATE_HZ)
    assert codebook.voice(path).shape == codes.shape and not torch.equal(codebook.voice(path), codes)


def test_batches_are_filled_up_with_what_does_not_count_and_hide_only_the_conversation():
    lessons = [Lesson(torch.full((length, 17), 5), torch.ones(length, 9), prompt_frames=4) for length in (6, 300)]
    batch = batch_of(lessons, hidden_share=1.0, generator=torch.Generator().manual_seed(0))
    assert batch.inputs.shape == batch.targets.shape == (2, 299, 17)
    assert batch.weights[0].sum() == 5 * 9 and batch.weights[1].sum() == 299 * 9
    hidden = batch.inputs == -1
    assert hidden[1, 4:, AGENT].any() and not hidden[1, 4:, AGENT].all()
    assert not hidden[:, :4].any() and not hidden[..., USER].any() and not hidden[..., TEXT].any()
    assert (batch.targets >= 0).all()


# ---------------------------------------------------------------------------------- equality


@pytest.mark.parametrize("source", [GOLDEN_FOLDER, "nano"])
def test_whole_sequences_give_the_logits_of_stepping(source):
    """The golden context is 40 frames, so its window is passed over, too."""
    loaded = fresh(source)
    config = loaded.config.lm
    frames = random_frames(config, 70 if source == GOLDEN_FOLDER else 24)
    engine = Engine(loaded.config, loaded.lm, loaded.mimi, predictor=PlainPredictor(loaded.lm))
    on = torch.ones(1, dtype=torch.bool)
    engine.set_sampling(0, SamplingOptions(greedy=True))
    steps = [engine.step_tokens(frame[None], on) for frame in frames]
    columns = delayed(frames, config)[None]
    inputs, targets = columns[:, :-1], columns[:, 1:]
    everywhere = torch.ones(inputs.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        logits = SequenceModel(loaded.lm)(inputs, targets, everywhere)
    # In column 1 the engine feeds its depth steps what it forces there, initial tokens; those are the targets, too.
    text = torch.cat([out.text_logits for out in steps[1:]])
    audio = torch.cat([out.audio_logits for out in steps[1:]])
    assert_logits_equal(logits.text[0], text)
    assert_logits_equal(logits.audio, audio)


def test_gradient_checkpointing_changes_no_gradient(data):
    gradients = []
    for again in (False, True):
        loaded = fresh()
        train_whole_(loaded.lm)
        batch = batch_of(list(lesson_maker(loaded).lessons(read_manifest(data / "train.jsonl"))))
        SequenceModel(loaded.lm, again).losses(batch).total().backward()
        gradients.append({name: p.grad for name, p in trained(loaded.lm)})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_losses_are_the_weighted_means(golden):
    """Against sums written out, with weights that differ from token to token."""
    columns = delayed(random_frames(golden.config.lm, 12), golden.config.lm)
    torch.manual_seed(1)
    weights = torch.rand(12, 9) * (torch.arange(12) > 4)[:, None]
    batch = batch_of([Lesson(columns, weights, 0)])
    model = SequenceModel(golden.lm)
    with torch.no_grad():
        losses = model.losses(batch)
        predicted = batch.weights[..., 1:].sum(-1) > 0
        logits = model(batch.inputs, batch.targets, predicted)
    text = sound = 0.0
    for row, column in enumerate(range(5, 12)):
        text -= weights[column, 0] * logits.text[0, column - 1].log_softmax(-1)[columns[column, 0]]
        for k in range(8):
            sound -= weights[column, 1 + k] * logits.audio[row, k].log_softmax(-1)[columns[column, 1 + k]]
    torch.testing.assert_close(losses.text, text / weights[5:, 0].sum())
    torch.testing.assert_close(losses.sound, sound / weights[5:, 1:].sum())


# ---------------------------------------------------------------------------------- adapters


def scrambled_adapters(options: LoraOptions):
    """A model with adapters that say something."""
    loaded = fresh()
    add_adapters_(loaded.lm, options)
    torch.manual_seed(3)
    with torch.no_grad():
        for _, parameter in trained(loaded.lm):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return loaded


def test_only_what_is_named_gets_an_adapter_and_a_gradient():
    loaded = fresh()
    untouched = fresh().lm
    add_adapters_(
        loaded.lm, LoraOptions(targets=("temporal.layers.*.in_proj",), modules_to_save=("temporal.out_norm",))
    )
    names = {name for name, _ in trained(loaded.lm)}
    layers = range(loaded.config.lm.num_layers)
    expected = {f"temporal.layers.{i}.in_proj.lora_{m}.weight" for i in layers for m in "AB"}
    assert names == expected | {"temporal.out_norm.alpha"}
    columns = delayed(random_frames(loaded.config.lm, 8), loaded.config.lm)[None]
    with torch.no_grad():  # B is zero at first: nothing has changed yet
        assert torch.equal(SequenceModel(loaded.lm).hidden(columns), SequenceModel(untouched).hidden(columns))


def test_a_merged_model_is_the_one_with_its_adapter(tmp_path):
    options = LoraOptions(rank=4, alpha=8.0, modules_to_save=("temporal.text_emb",))
    loaded = scrambled_adapters(options)
    save_adapter(loaded.lm, options, str(GOLDEN_FOLDER), tmp_path / "adapter")
    checkpoints.merge(tmp_path / "adapter", tmp_path / "model")
    merged = fresh(tmp_path / "model")
    frames = random_frames(loaded.config.lm, 30)
    columns = delayed(frames, loaded.config.lm)[None]
    everywhere = torch.ones((1, 29), dtype=torch.bool)
    with torch.no_grad():
        ours, theirs, base = (
            SequenceModel(lm).eval()(columns[:, :-1], columns[:, 1:], everywhere)
            for lm in (loaded.lm, merged.lm, fresh().lm)
        )
    assert_logits_equal(theirs.text, ours.text)
    assert_logits_equal(theirs.audio, ours.audio)
    assert (ours.text - base.text).abs().max() > 0.1


def test_adapter_files_have_the_layout_of_peft(tmp_path):
    options = LoraOptions(rank=4, alpha=8.0, targets=("temporal.text_linear",))
    loaded = scrambled_adapters(options)
    save_adapter(loaded.lm, options, "nano", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 4 and config["lora_alpha"] == 8.0
    assert config["target_modules"] == ["temporal.text_linear"] and config["base_model_name_or_path"] == "nano"
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    prefix = "base_model.model.temporal.text_linear"
    assert tensors[f"{prefix}.lora_A.weight"].shape == (4, 32)
    assert tensors[f"{prefix}.lora_B.weight"].shape == (loaded.config.lm.text_card, 4)
    product = tensors[f"{prefix}.lora_B.weight"] @ tensors[f"{prefix}.lora_A.weight"] * 2.0
    layer = loaded.lm.temporal.text_linear
    assert isinstance(layer, LoraLinear)
    torch.testing.assert_close(plain_weight(layer), layer.base.weight.data + product)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    loaded = scrambled_adapters(LoraOptions(rank=4))
    save_adapter(loaded.lm, LoraOptions(rank=4), "nano", tmp_path)
    other = fresh()
    add_adapters_(other.lm, LoraOptions(rank=2))
    with pytest.raises(WeightsError, match="does not fit"):
        load_adapter_(other.lm, tmp_path)


def test_a_layer_that_does_not_exist_is_named_with_its_neighbours():
    with pytest.raises(ConfigError, match=r"temporal\.text_liner.*temporal\.text_linear"):
        add_adapters_(fresh().lm, LoraOptions(targets=("temporal.text_liner",)))


def test_an_unchanged_model_is_written_as_it_was_read(tmp_path):
    loaded = fresh()
    checkpoints.save_model(loaded.lm, loaded.folder, tmp_path / "model")
    old, new = (Checkpoint.open(f, loaded.config.files.lm) for f in (GOLDEN_FOLDER, tmp_path / "model"))
    assert old.tensors.keys() == new.tensors.keys()
    for key in old.tensors:
        assert torch.equal(old.get(key), new.get(key)), key
    with pytest.raises(OutputError, match="there already"):
        checkpoints.save_model(loaded.lm, loaded.folder, tmp_path / "model")
