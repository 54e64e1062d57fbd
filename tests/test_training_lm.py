"""The language model's recipe, in small: batches, a falling loss, other models to begin with, the published layout."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from lm_recipe import CARD, clip_bank, text_ids, tiny_config
from safetensors.torch import save_file

from personaplex.config import AGENT, USER, LMConfig
from personaplex.engine.engine import Engine
from personaplex.messages import SamplingOptions
from personaplex.models.language_model import LanguageModel as PublishedModel
from personaplex.weights.load import load_model
from training import dialogues, sentences, turn_taking
from training.draft import PAD_ID, STOPPED_FRAMES
from training.lm import export
from training.lm.clips import ClipBank
from training.lm.data import NOTHING, BatchMaker, BatchOptions, columns_of
from training.lm.lessons import Curriculum, Lessons
from training.lm.model import LanguageModel, Listener, causal_attention
from training.lm.play import UNKNOWN, live_frames, play_greedy
from training.lm.tokenizer import TOKENIZER, TextIds
from training.lm.train import Trainer, TrainOptions, nano_config
from training.lm.warm_start import listen_from, start_from


@pytest.fixture(scope="module")
def ids(tmp_path_factory) -> TextIds:
    return text_ids(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def bank(ids) -> ClipBank:
    return clip_bank(ids)


def test_columns_are_delayed_and_start_with_initial_tokens(bank, ids):
    config = tiny_config(ids)
    made = dialogues.DialogueMaker(bank, ids).make(257)
    columns = columns_of(made, config)
    assert (columns[0, 1:] == CARD).all() and columns[0, 0] == config.text_card
    assert (columns[1, 2:9] == CARD).all() and columns[1, 1] == made.agent[0, 1]
    assert (columns[2:, AGENT][:, 1:] == made.agent[1:, 1:-1].T).all()
    assert (columns[2:, USER][:, 0] == made.user[0, 2:]).all()


def test_only_agent_codes_of_the_conversation_are_hidden(bank, ids):
    batch = BatchMaker(dialogues.DialogueMaker(bank, ids), tiny_config(ids), BatchOptions(dialogues=4)).make()
    hidden = batch.inputs == NOTHING
    assert hidden.any()
    hidden[..., AGENT] = False
    assert not hidden.any()
    assert (batch.targets >= 0).all()


def test_a_silence_that_is_kept_weighs_more_than_an_idle_one(bank, ids, monkeypatch):
    monkeypatch.setattr(turn_taking, "INTERRUPTED_SHARE", 1.0)
    batch = BatchMaker(dialogues.DialogueMaker(bank, ids), tiny_config(ids), BatchOptions(dialogues=6)).make()
    silent = batch.text_weight[batch.targets[..., 0] == PAD_ID]
    for weight in (BatchOptions.pad_weight, BatchOptions.listening_pad_weight, BatchOptions.held_pad_weight):
        assert (silent == weight).sum() > 5


def test_drills_are_text_alone_and_name_the_persona_often(bank, ids):
    batch = BatchMaker(dialogues.DialogueMaker(bank, ids), tiny_config(ids), BatchOptions(drills=3)).make_drill()
    assert len(batch.depth_frames) == 0
    assert (batch.text_weight == BatchOptions.text_content_weight).sum() >= 6
    assert (batch.user_words >= 0).any()


def test_of_several_runs_the_mean_is_exported(ids, tmp_path):
    runs, seeds = [tmp_path / name for name in ("one", "two")], (1, 2)
    for run, seed in zip(runs, seeds, strict=True):
        run.mkdir()
        Trainer(tiny_config(ids), TrainOptions(seed=seed), run).save("final.pt")
        (run / TOKENIZER).write_bytes(ids.processor.serialized_model_proto())
    one, two, mean = (export.mean_model(chosen).state_dict() for chosen in (runs[:1], runs[1:], runs))
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)
    assert any(not torch.equal(one[name], two[name]) for name in mean)
    (runs[1] / TOKENIZER).write_bytes(b"another")
    with pytest.raises(ValueError, match="another size or tokenizer"):
        export.mean_model(runs)


def test_where_an_agent_is_interrupted_its_silence_is_learned_as_well_as_its_speech(bank, ids):
    draft = dialogues.DialogueMaker(bank, ids)._draft(60, bank.users[0])
    clip = bank.agent["slt", "greet"][0]
    draft.agent_says(clip, 2, (10, 11))
    made = draft.finished()
    assert list(np.flatnonzero(made.stopped)) == list(range(11, 11 + STOPPED_FRAMES))
    config = tiny_config(ids)
    maker = BatchMaker(dialogues.DialogueMaker(bank, ids), config, BatchOptions(quiet_frames=0))
    learned = maker._spoken([made], 0.0, 1000).depth_frames.tolist()
    assert set(range(1, 10 + STOPPED_FRAMES)) <= set(learned)


def test_recitals_are_learned_from_by_ear_alone(bank, ids):
    batch = BatchMaker(dialogues.DialogueMaker(bank, ids), tiny_config(ids), BatchOptions(recitals=2)).make_recital()
    assert batch.text_weight.sum() == 0
    assert (batch.depth_weight == BatchOptions.content_weight).sum() > 10


def test_loss_falls(bank, ids, tmp_path):
    options = BatchOptions(dialogues=2, frames=160, long_share=0.0, recitals=1, drills=2)
    maker = BatchMaker(dialogues.DialogueMaker(bank, ids), tiny_config(ids), options)
    trainer = Trainer(tiny_config(ids), TrainOptions(learning_rate=5e-3, warmup_steps=1), tmp_path)
    steps = [trainer.train_step(maker.make(), maker.make_recital(), maker.make_drill()) for _ in range(20)]
    totals = [sum(float(part.total().detach()) for part in parts) for parts in steps]
    assert np.mean(totals[-5:]) < 0.8 * np.mean(totals[:3])


def test_listening_alone_teaches_the_lower_layers(bank, ids, tmp_path):
    options = BatchOptions(listening=4, listening_frames=48)
    maker = BatchMaker(dialogues.DialogueMaker(bank, ids), tiny_config(ids), options)
    trainer = Trainer(tiny_config(ids), TrainOptions(learning_rate=5e-3, warmup_steps=1), tmp_path)
    before = trainer.model.layers[-1].in_proj.weight.detach().clone()
    losses = [float(trainer.listening_step(*maker.make_listening()).detach()) for _ in range(20)]
    assert np.mean(losses[-3:]) < 0.9 * losses[0]
    assert torch.allclose(before, trainer.model.layers[-1].in_proj.weight, rtol=0.02)  # but for weight decay


def test_lessons_follow_each_other_with_listening_between():
    class Maker:
        def __getattr__(self, name):
            return lambda *_: name

    lessons = Lessons(lambda worker: Maker(), Curriculum(listening_minutes=1, drill_minutes=1))
    made = iter(lessons)
    assert [next(made) for _ in range(2)] == ["make_listening"] * 2
    lessons.elapsed_sec = 61.0
    assert [next(made) for _ in range(4)] == [("make_drill",), "make_listening", ("make_drill",), ("make_drill",)]
    lessons.elapsed_sec = 121.0
    whole = ("make", "make_recital", "make_drill")
    assert [next(made) for _ in range(4)] == [whole, "make_listening", whole, whole]


def test_some_codebooks_are_hidden_for_a_while_where_there_are_only_users(bank, ids):
    options = BatchOptions(listening=16, listening_frames=200, listening_hidden=0.5)
    columns, _ = BatchMaker(dialogues.DialogueMaker(bank, ids, 3), tiny_config(ids), options).make_listening()
    hidden = (columns[..., USER] == NOTHING).numpy()
    assert 0.1 < hidden.mean() < 0.25  # a third of the frames of each
    assert (np.abs(np.diff(hidden.astype(int), axis=1)).sum(1) <= 2).all(), "one stretch a codebook"


def test_users_held_out_are_reported_and_never_trained_on(bank, ids, tmp_path, caplog):
    trained, others = bank.without(8)
    assert len(trained.users) == 32 and others == bank.users[32:] and len(bank.users) == 40
    trainer = Trainer(tiny_config(ids), TrainOptions(learning_rate=5e-3, warmup_steps=1, log_steps=5), tmp_path)
    options = BatchOptions(listening=4, listening_frames=48)
    made, kept = (
        BatchMaker(dialogues.DialogueMaker(dataclasses.replace(bank, users=users), ids), tiny_config(ids), options)
        for users in (trained.users, others)
    )
    trainer.held_out = kept.make_listening()
    for _ in range(5):
        trainer.listening_step(*made.make_listening())
    with caplog.at_level(logging.INFO):
        trainer.report()
    columns, words = trainer.held_out
    with torch.no_grad():
        wanted = trainer.listener.loss(trainer.model.lower(columns, trainer.listener.layers), words)
    assert json.loads(caplog.messages[-1])["listening_held_out"] == pytest.approx(float(wanted), abs=2e-2)


def test_a_checkpoint_goes_on_where_it_stopped(ids, tmp_path):
    trainer = Trainer(tiny_config(ids), TrainOptions(), tmp_path)
    trainer.step, trainer.elapsed_sec = 7, 3.0
    trainer.save("last.pt")
    other = Trainer(tiny_config(ids), TrainOptions(seed=1), tmp_path)
    other.resume(tmp_path / "last.pt")
    assert (other.step, other.elapsed_sec) == (7, 3.0)
    assert torch.equal(other.model.embedding, trainer.model.embedding)


def test_another_vocabulary_keeps_the_rows_of_common_pieces(ids, tmp_path):
    few = tmp_path / "few" / TOKENIZER
    few.parent.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Anna works", "Ben and Anna work"] * 20), model_prefix=str(few.parent / "m"),
        vocab_size=20, hard_vocab_limit=False, pad_id=3, minloglevel=2, user_defined_symbols=["\u2581Anna"],
    )  # fmt: skip
    (few.parent / "m.model").rename(few)
    known = TextIds(few)
    trainer = Trainer(tiny_config(known), TrainOptions(), few.parent)
    trainer.save("last.pt")
    model = LanguageModel(tiny_config(ids))
    start_from(model, ids, few.parent / "last.pt")
    old, new = (which.processor.piece_to_id("\u2581Anna") for which in (known, ids))
    theirs = trainer.model
    assert torch.equal(model.embedding[new], theirs.embedding[old])
    assert torch.equal(model.text_linear.weight[new], theirs.text_linear.weight[old])
    assert torch.equal(model.depth_text[new], theirs.depth_text[old])
    assert torch.equal(model.embedding[len(ids) :], theirs.embedding[len(known) :])
    assert torch.equal(model.layers[0].in_proj.weight, theirs.layers[0].in_proj.weight)


def test_a_listener_keeps_the_rows_of_words_it_knew(ids, tmp_path):
    trainer = Trainer(tiny_config(ids), TrainOptions(), tmp_path)
    trainer.save("last.pt")
    known = list(sentences.user_vocabulary())
    words = ["unheard", *reversed(known[:5])]
    torch.manual_seed(1)
    listener = Listener(tiny_config(ids), len(words))
    unheard = listener.linear.weight[0].clone()
    assert listen_from(listener, words, tmp_path / "last.pt") == 5
    assert torch.equal(listener.linear.weight[0], unheard)
    assert torch.equal(listener.linear.weight[1:], trainer.listener.linear.weight[:5].flip(0))
    assert listen_from(listener, words, tmp_path) == 0  # a published folder teaches no listener


def test_a_narrower_feed_forward_keeps_the_strongest_neurons(ids, tmp_path):
    """Neurons without weight are the ones left out, so that the layer computes the same."""
    (tmp_path / TOKENIZER).write_bytes(ids.processor.serialized_model_proto())
    wide = dataclasses.replace(tiny_config(ids), hidden_scale=6.0)
    trainer = Trainer(wide, TrainOptions(), tmp_path)
    width = tiny_config(ids).feedforward_dim
    idle = torch.randperm(wide.feedforward_dim)[width:]
    with torch.no_grad():
        for layer in trainer.model.layers:
            layer.linear_out.weight[:, idle] = 0.0
    trainer.save("last.pt")
    model = LanguageModel(tiny_config(ids))
    start_from(model, ids, tmp_path / "last.pt")
    x = torch.randn(1, 3, wide.dim)
    angles = model._angles(torch.arange(3)[None])
    for ours, theirs in zip(model.layers, trainer.model.layers, strict=True):
        assert torch.allclose(ours(x, *angles, None)[0], theirs(x, *angles, None)[0], atol=1e-5)


def test_a_model_of_other_sizes_is_no_beginning(ids, tmp_path):
    (tmp_path / TOKENIZER).write_bytes(ids.processor.serialized_model_proto())
    Trainer(tiny_config(ids), TrainOptions(), tmp_path).save("last.pt")
    with pytest.raises(ValueError, match="is trained"):
        start_from(LanguageModel(nano_config(len(ids))), ids, tmp_path / "last.pt")


def test_export_has_the_published_names_and_shapes(ids):
    for config in (tiny_config(ids), nano_config(len(ids))):
        with torch.device("meta"):
            expected = {entry.key: tuple(entry.shape) for entry in PublishedModel(config).checkpoint_entries()}
        given = {key: tuple(t.shape) for key, t in export.published_tensors(LanguageModel(config)).items()}
        assert given == expected


def test_sharpened_logits_make_published_sampling_cooler(ids):
    model = LanguageModel(tiny_config(ids))
    plain = export.published_tensors(model)
    sharp = export.published_tensors(model, export.Sharpness.of_temperatures(text=0.35, audio=0.2))
    changed = {name for name, tensor in plain.items() if not torch.equal(tensor, sharp[name])}
    assert changed == {"text_linear.weight", *(f"linears.{k}.weight" for k in range(8))}
    assert torch.allclose(sharp["text_linear.weight"], 2 * plain["text_linear.weight"])
    assert torch.allclose(sharp["linears.3.weight"], 4 * plain["linears.3.weight"])


def test_training_in_parallel_equals_playing_frame_by_frame(ids):
    """The first column's tokens are initial ones in both, and -1 is nothing in both."""
    torch.manual_seed(0)
    config = tiny_config(ids)
    model = LanguageModel(config).eval()
    known = live_frames(torch.randint(CARD, (8, 30)))
    known[:10, 0] = torch.randint(4, 100, (10,))
    known[:10, AGENT] = torch.randint(CARD, (10, 8))
    columns = play_greedy(model, known)
    assert (columns != UNKNOWN).all()
    with torch.inference_mode():
        hidden, _ = model.hidden(columns[None, :-1])
        text = model.text_linear(hidden[0]).argmax(-1)
        codes = model.depth_logits(hidden[0], columns[1:, 0], columns[1:, 1:8]).argmax(-1).T
    assert (text[11:] == columns[12:, 0]).all()
    assert (codes[11:] == columns[12:, AGENT]).all()


def test_attention_in_bfloat16_is_that_of_pytorchs_kernel():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 40, 16, requires_grad=True) for _ in range(3))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    wanted_gradients = torch.autograd.grad(wanted.square().sum(), (q, k, v))
    small = [t.detach().bfloat16().requires_grad_() for t in (q, k, v)]
    found = causal_attention(*small)
    gradients = torch.autograd.grad(found.float().square().sum(), small)
    assert torch.allclose(found.float(), wanted, atol=0.03)
    assert all(
        torch.allclose(g.float(), w, atol=0.05 * float(w.abs().max()))
        for g, w in zip(gradients, wanted_gradients, strict=True)
    )


@pytest.mark.slow
def test_compiled_layers_train_as_the_others_do(bank, ids, tmp_path):
    options = BatchOptions(dialogues=2, frames=160, long_share=0.0, recitals=1, drills=2)
    batches = BatchMaker(dialogues.DialogueMaker(bank, ids), tiny_config(ids), options).make()
    totals = []
    for compiled in (False, True):
        trainer = Trainer(tiny_config(ids), TrainOptions(learning_rate=5e-3, warmup_steps=1), tmp_path)
        if compiled:
            trainer.model.compile_layers()
        totals.append([float(trainer.train_step(batches)[0].total().detach()) for _ in range(5)])
    assert totals[0] == pytest.approx(totals[1], rel=1e-3)
    assert totals[1][-1] < totals[1][0]


def test_the_engine_says_what_the_training_model_says(tmp_path):
    """The exported weights, run by the real engine, give the same tokens: prompt in parallel, then frame by frame."""
    torch.manual_seed(1)
    config = LMConfig(
        dim=32, num_heads=2, num_layers=2, hidden_scale=4.0, context=48, text_card=400, card=2048, dep_q=8,
        depformer_dim=16, depformer_num_heads=2, depformer_num_layers=2, depformer_dim_feedforward=48,
    )  # fmt: skip
    model = LanguageModel(config).eval()
    folder = tmp_path / "model"
    shutil.copytree(Path(__file__).parent / "golden", folder)
    save_file(export.published_tensors(model), folder / "model.safetensors")
    described = json.loads((folder / "config.json").read_text()) | {"lm": dataclasses.asdict(config)}
    (folder / "config.json").write_text(json.dumps(described))
    loaded = load_model(folder, format="float32", device="cpu")
    again = export.import_model(folder, export.Sharpness())
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())

    sharpened = export.published_tensors(
        model, export.Sharpness.of_temperatures(export.USUAL_TEXT_TEMPERATURE, export.USUAL_AUDIO_TEMPERATURE)
    )
    save_file(sharpened, tmp_path / "model.safetensors")
    shutil.copytree(folder, tmp_path / "sharpened")
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "sharpened")
    blunt = export.import_model(tmp_path / "sharpened").state_dict()  # as it was before it was exported
    assert all(torch.allclose(t, blunt[name]) for name, t in model.state_dict().items())

    prompt, live = 20, 45  # longer than the window
    known = live_frames(torch.randint(2048, (8, prompt + live)))
    known[:prompt, 0] = torch.randint(4, 100, (prompt,))
    known[:prompt, AGENT] = torch.randint(2048, (prompt, 8))
    columns = play_greedy(model, known)
    engine = Engine(loaded.config, loaded.lm, loaded.mimi)
    engine.set_sampling(0, SamplingOptions(greedy=True))
    engine.prefill_frames(0, known[:prompt])
    for frame in range(prompt, prompt + live):
        out = engine.step_tokens(known[frame : frame + 1], torch.ones(1, dtype=torch.bool))
        assert out.tokens[0, :2].tolist() == columns[frame - 1, :2].tolist()
        assert out.tokens[0, 2:9].tolist() == columns[frame, 2:9].tolist()
