"""A codec's judges: general recognisers' words, a recogniser's ears in the loss, a critic; and what disturbs speech."""

from __future__ import annotations

import dataclasses
import json
import struct

import numpy as np
import pytest
import torch

from training.codec import disturb
from training.codec.critic import Rival
from training.codec.data import SpeechCrops
from training.codec.judge import TEXTS, Item, Judged, judge, spread
from training.codec.model import Codec, CodecShape
from training.codec.recogniser_listener import FeatureTarget, RecogniserListener, mel_bands, read_weights
from training.codec.train import DECODER, Trainer, TrainOptions
from training.recognisers import normal_words, words_wrong

pytestmark = pytest.mark.usefixtures("seeded")

TINY = CodecShape(
    n_filters=4, dimension=32, num_layers=1, dim_feedforward=48, context=8, codebook_dim=16, codebook_size=32,
    num_phones=2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Mr. Hale's 2 dogs, OK?", "mister hale's two dogs okay"),
        ("It's $4.50 at 10 o'clock", "it's four dollars and fifty cents at ten o'clock"),
        ("The 3rd favourite — 'quoted'", "the three favorite quoted"),
        ("1,250 people", "one thousand two hundred fifty people"),
    ],
)
def test_words_are_compared_as_they_are_said(text, words):
    assert normal_words(text) == words


def test_words_wrong_counts_all_recordings_together():
    assert words_wrong(["one two three four", "five"], ["One, two tree four.", "five six"]) == pytest.approx(2 / 5)
    assert words_wrong(["", "one"], ["noise", "1"]) == 0.0


def test_texts_of_kept_recordings_are_plain_words():
    texts = json.loads(TEXTS.read_text())
    assert len(texts) == 40 and all(normal_words(text) == text for text in texts.values())


def test_some_are_spread_over_all():
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread(range(2), 3) == [0, 1]


def test_judging_compares_before_and_after(tmp_path):
    wave = np.sin(np.arange(24_000) * 0.05).astype(np.float32) * 0.3
    items = [Item("told", "a", wave, "yes"), Item("untold", "b", wave[:9000], None)]
    heard = []

    def hear(pcm):
        heard.append(len(pcm))
        return "yes" if pcm is wave else "no"

    judged = Judged(tmp_path, hear, lambda pcm: float(len(pcm)))
    for books in (None, 4, 0):
        report = judge(Codec(TINY).eval(), items, judged, books)
        assert report["told"] == dict(
            recordings=1, wrong_before=0.0, wrong_after=100.0, rating_before=24_000.0, rating_after=24_000.0
        )
        assert report["untold"]["wrong_before"] == 0.0 == report["untold"]["wrong_after"]
    assert heard.count(24_000) == 4  # once the original, which is remembered
    assert Judged(tmp_path, hear, len).original(items[0]) == ("yes", 24_000.0)


def _written(path, tensors):
    """A file as CTranslate2 writes it."""

    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, tensor in tensors.items():
        data += text(name) + struct.pack(f"<B{tensor.ndim}I", tensor.ndim, *tensor.shape)
        data += struct.pack("<BI", {"float32": 0, "float16": 4}[str(tensor.dtype)], tensor.nbytes) + tensor.tobytes()
    path.write_bytes(data)


def _whisper(folder, width=64, steps=40):
    """A recogniser of one layer with random weights."""
    draw = np.random.default_rng(0)
    shapes = {"conv1/weight": (width, 80, 3), "conv2/weight": (width, width, 3)}
    shapes |= {"position_encodings/encodings": (steps, width)}
    sizes = {"self_attention/linear_0": (3, 1), "self_attention/linear_1": (1, 1), "ffn/linear_0": (4, 1)}
    for name, (out, inputs) in (sizes | {"ffn/linear_1": (1, 4)}).items():
        shapes[f"layer_0/{name}/weight"] = (out * width, inputs * width)
        shapes[f"layer_0/{name}/bias"] = (out * width,)
    for name in ("layer_0/self_attention/layer_norm", "layer_0/ffn/layer_norm", "layer_norm"):
        shapes[f"{name}/gamma"] = shapes[f"{name}/beta"] = (width,)
    shapes |= {"conv1/bias": (width,), "conv2/bias": (width,)}
    tensors = {f"encoder/{n}": (draw.standard_normal(s) * 0.1).astype(np.float16) for n, s in shapes.items()}
    _written(folder / "model.bin", tensors | {"decoder/other": np.zeros(3, np.float32)})
    return tensors


def test_a_recognisers_ears_are_read_and_hear_differences(tmp_path):
    tensors = _whisper(tmp_path)
    stored = read_weights(tmp_path / "model.bin")
    assert len(stored) == len(tensors) and "other" not in stored
    listener = RecogniserListener.load(tmp_path)
    np.testing.assert_array_equal(
        listener.layers[0].mixed.weight, tensors["encoder/layer_0/self_attention/linear_0/weight"]
    )
    wave = torch.randn(2, 19_200) * 0.05
    assert float(listener.compare(wave, wave)[0]) == pytest.approx(0.0, abs=1e-6)
    made = (wave + 0.02 * torch.randn_like(wave)).requires_grad_()
    near, features = listener.compare(made, wave)
    far, _ = listener.compare(torch.randn_like(wave) * 0.05, wave)
    assert features.shape == (2, 40, 64)
    assert 0.0 < near.item() < far.item()
    near.backward()
    assert torch.isfinite(made.grad).all() and float(made.grad.abs().sum()) > 0
    (tmp_path / "model.bin").write_bytes(struct.pack("<I", 99) + struct.pack("<H", 2) + b"x\0" + bytes(8))
    with pytest.raises(ValueError, match="version 99"):
        read_weights(tmp_path / "model.bin")


def test_features_are_told_where_they_can_be_read():
    target, features = FeatureTarget(), torch.randn(3, 8, 16) + 5.0
    wanted = features.unflatten(1, (2, 4)).mean(2)
    told = float(target.distance((wanted - wanted.mean((0, 1))) / wanted.std((0, 1)), features))
    assert told == pytest.approx(0.0, abs=1e-3)
    assert float(FeatureTarget().distance(torch.randn(3, 2, 16), features)) > 0.4


def test_bands_have_one_area_and_reach_8_khz():
    bands = mel_bands()
    assert bands.shape == (201, 80) and float(bands[0].sum()) == 0.0 == float(bands[200].sum())
    assert (bands.sum(0) * 40.0)[20:].numpy() == pytest.approx(1.0, abs=0.12)


def test_a_critic_learns_to_tell_and_pushes_no_harder_than_its_share():
    rival = Rival(verdict_share=0.5, feature_share=0.0, head_start=4, learning_rate=2e-3)
    target = torch.sin(torch.arange(9_600) * 0.05).repeat(2, 1) * 0.3
    made, plain = (0.1 * torch.randn(2, 9_600)).requires_grad_(), torch.randn(2, 9_600)
    assert rival.joined(made, target, plain) is plain
    first = float(rival.learn(made, target))
    for _ in range(14):
        last = float(rival.learn(made, target))
    assert last < 0.7 * first
    pushed = rival.joined(made, target, plain) - plain
    assert float(pushed.norm()) == pytest.approx(0.5 * float(plain.norm()), rel=1e-4)
    with torch.no_grad():  # a critic a thousand times as sure pushes as hard
        for scale in rival.critic.scales:
            scale.last.parametrizations.weight.original0.mul_(1000.0)
    torch.testing.assert_close(rival.joined(made, target, plain) - plain, pushed, rtol=1e-3, atol=1e-3)
    assert all(parameter.requires_grad for parameter in rival.critic.parameters())
    again = Rival(verdict_share=0.5, feature_share=0.0, head_start=4, learning_rate=2e-3)
    again.load(rival.state())
    torch.testing.assert_close(again.joined(made, target, plain), rival.joined(made, target, plain))


def test_a_codec_trains_with_ears_and_critic_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("training.codec.train.fastest_dtype", lambda device: torch.float32)  # measuring takes seconds
    _whisper(tmp_path)
    (tmp_path / "pcm.i16").write_bytes((np.sin(np.arange(120_000) * 0.05) * 9000).astype(np.int16).tobytes())
    (tmp_path / "phones.u8").write_bytes(bytes(250))
    (tmp_path / "phones.json").write_text(json.dumps(["pau", "aa"]))
    crops = SpeechCrops(tmp_path, frames=6, batch=2, frame_samples=1920)
    options = TrainOptions(
        minutes=1, batch=2, frames=6, compile=False, cluster_batches=4, listener_steps=0, recogniser=tmp_path,
        critic=True, critic_head_start=1, own_time=True,
    )  # fmt: skip
    shape = dataclasses.replace(TINY, num_features=64)
    trainer = Trainer(crops, shape, options, tmp_path)
    trainer.train_step()
    assert 0.0 < float(trainer.history[-1][6]) < 2.0  # what codebook 0 does not tell yet
    assert float(trainer.history[-1][5]) > 0.0 == float(trainer.history[-1][7])  # ears, and no critic yet
    trainer.phase = DECODER
    for _ in range(3):
        trainer.train_step()
    assert trainer.rival.steps == 3 and float(trainer.history[-1][7]) > 0.0
    trainer.save("last.pt")
    other = Trainer(crops, shape, dataclasses.replace(options, seed=1), tmp_path)
    other.resume(tmp_path / "last.pt")
    assert other.rival.steps == 3 and other.phase == DECODER
    plain = Trainer(crops, shape, dataclasses.replace(options, critic=False), tmp_path)
    plain.resume(tmp_path / "last.pt")
    assert plain.rival is None and plain.step == 4
    for saved in ({"rival": None}, {}):  # of a run without a critic, and from before there was one
        state = {name: value for name, value in plain.state().items() if name != "rival"} | saved
        torch.save(state, tmp_path / "without.pt")
        other = Trainer(crops, shape, options, tmp_path)
        other.resume(tmp_path / "without.pt")
        assert other.rival.steps == 0 and other.step == 4


def test_rooms_telephones_and_noises():
    draw = np.random.default_rng(0)
    wave = draw.standard_normal(24_000).astype(np.float32) * 0.1
    heard, wanted = disturb.room(wave, draw)
    assert heard.shape == wanted.shape == wave.shape and heard.dtype == wanted.dtype == np.float32
    assert 0 < np.abs(wanted - wave).mean() < np.abs(heard - wave).mean()
    narrow, power = disturb.telephone(wave, coarse=True), np.abs(np.fft.rfft(wave))
    kept = np.abs(np.fft.rfft(narrow)) / power
    assert np.median(kept[500:3000]) == pytest.approx(1.0, abs=0.1)
    assert np.median(kept[6000:]) < 0.1 and np.median(kept[:150]) < 0.1
    for _ in range(20):
        noise = disturb.noise(4_800, draw)
        assert noise.dtype == np.float32 and float(noise.std()) == pytest.approx(1.0, abs=1e-3)
