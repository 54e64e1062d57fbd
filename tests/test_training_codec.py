"""The recipe of the embedded codec: its layers against plain ones, its loss, its export. No synthesiser is needed."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from training.codec.data import IGNORED, SpeechCrops
from training.codec.encode import decode_many, encode_many
from training.codec.export import CODEC_FILE, CONFIG_FILE, any_codec, export_codec, import_codec
from training.codec.layers import Conv, TransposedConv, WideConv, ring_mask
from training.codec.listener import PhoneListener, teach
from training.codec.loss import SpectralLoss, mel_filters
from training.codec.model import Codec, CodecShape, load_codec
from training.codec.quantizer import Codebook
from training.codec.speech import SLOT_SAMPLES, UNKNOWN_PHONE
from training.codec.train import DECODER, JOINT, Trainer, TrainOptions

pytestmark = pytest.mark.usefixtures("seeded")

TINY = CodecShape(
    n_filters=4,
    dimension=32,
    num_layers=2,
    dim_feedforward=48,
    context=8,
    codebook_dim=16,
    codebook_size=32,
    num_phones=3,
)
OPTIONS = TrainOptions(
    batch=2, frames=6, compile=False, cluster_batches=4, warmup_steps=5, learning_rate=3e-3, listener_steps=20
)


@pytest.fixture
def speech_folder(tmp_path):
    """Ten seconds of gliding harmonics with two made-up phones and a stretch that has no labels."""
    time = np.arange(10 * 24_000) / 24_000
    pitch_hz = 120 + 40 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / 24_000
    wave = sum(np.sin(k * phase) / k for k in range(1, 12)) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time)) * 0.2
    labels = (np.arange(len(time) // SLOT_SAMPLES) // 7 % 2 + 1).astype(np.uint8)
    labels[-50:] = UNKNOWN_PHONE
    (tmp_path / "pcm.i16").write_bytes((wave * 32767).astype(np.int16).tobytes())
    (tmp_path / "phones.u8").write_bytes(labels.tobytes())
    (tmp_path / "phones.json").write_text(json.dumps(["pau", "aa", "iy"]))
    return tmp_path


@pytest.fixture
def trainer(speech_folder):
    crops = SpeechCrops(speech_folder, frames=OPTIONS.frames, batch=OPTIONS.batch, frame_samples=TINY.frame_samples)
    return Trainer(crops, TINY, OPTIONS, speech_folder)


@pytest.mark.parametrize(
    ("kernel", "stride", "fold"), [(3, 1, 2), (3, 1, 8), (1, 1, 4), (8, 4, 1), (8, 4, 2), (10, 5, 1), (16, 8, 1)]
)
def test_banded_convolution_equals_the_plain_one(kernel, stride, fold):
    layer = Conv(3, 5, kernel, stride, fold)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 80, 3)
    plain = F.conv1d(F.pad(x.transpose(1, 2), (kernel - stride, 0)), layer.weight, layer.bias, stride)
    torch.testing.assert_close(layer(x).reshape(2, -1, 5), plain.transpose(1, 2))


@pytest.mark.parametrize("fold", [1, 8])
def test_unfolding_convolution_equals_the_plain_one(fold):
    layer = WideConv(2, 6, 7, fold)
    x = torch.randn(2, 40, 2)
    plain = F.conv1d(F.pad(x.transpose(1, 2), (6, 0)), layer.weight, layer.bias)
    torch.testing.assert_close(layer(x).reshape(2, -1, 6), plain.transpose(1, 2))


def test_transposed_convolution_equals_the_plain_one():
    layer = TransposedConv(6, 3, 5)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 9, 6)
    plain = F.conv_transpose1d(x.transpose(1, 2), layer.weight, layer.bias, 5)[..., : 9 * 5]
    torch.testing.assert_close(layer(x).reshape(2, -1, 3), plain.transpose(1, 2))


def test_ring_mask_hides_what_the_published_ring_hides():
    """Once full, a frame's second step sees context - 1 keys and its first context - 2."""
    mask = ring_mask(12, 6)
    seen = (mask == 0).sum(1).tolist()
    assert seen == [1, 2, 3, 4, 4, 5, 4, 5, 4, 5, 4, 5]
    assert bool((mask.triu(1) < 0).any()) and float(mask.tril().diagonal().sum()) == 0


def test_mel_filters_leave_no_band_empty():
    for window, bands in ((256, 24), (2048, 120)):
        assert bool((mel_filters(window, bands).sum(0) > 0).all())


def test_loss_is_least_for_equal_waves():
    loss = SpectralLoss(512, 48)
    wave = torch.randn(1, 4096) * 0.1
    same, other = float(loss(wave, wave)), float(loss(wave * 0.5, wave))
    assert same < 0.01 < other


def test_a_soft_voice_counts_as_much_as_a_loud_one():
    loss = SpectralLoss(512, 48)
    wave = torch.randn(1, 4096) * 0.1
    made = wave + 0.03 * torch.randn(1, 4096)
    assert float(loss(0.4 * made, 0.4 * wave)) == pytest.approx(float(loss(made, wave)), rel=1e-3)


def test_an_offset_costs_little_but_is_not_free():
    """In silence the logarithm at 0 Hz was most of the gradient."""
    loss = SpectralLoss(512, 48)
    silence, made = torch.zeros(1, 4096), torch.full((1, 4096), 1e-3, requires_grad=True)
    distance = loss(made, silence)
    distance.backward()
    assert float(distance.detach()) < 2e-3
    assert float(made.grad.sum()) == pytest.approx(1.0, rel=0.2)


def test_a_listener_learns_phones_and_hears_what_is_lost(speech_folder):
    crops = SpeechCrops(speech_folder, frames=6, batch=4, frame_samples=1920, clean=True)
    listener = PhoneListener(3)
    batch = crops.batch()
    untaught = float((listener(batch.wanted)[0].argmax(1) == batch.phones).float().mean())
    assert teach(listener, crops.batch, steps=80, crops=4) > max(0.5, untaught + 0.1)  # of two phones
    listener.requires_grad_(False)
    wave = batch.wanted
    assert float(listener.distance(wave, wave)) < 1e-5
    assert float(listener.distance(0.5 * wave, wave)) < float(listener.distance(wave.roll(2400, 1), wave))
    dull = torch.cumsum(wave, 1) * 0.05
    dull = (dull - dull.mean(1, keepdim=True)).requires_grad_()
    listener.distance(dull, wave).backward()
    assert bool(dull.grad.isfinite().all()) and float(dull.grad.abs().sum()) > 0


def test_kmeans_finds_the_clusters():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    book = Codebook(2, 4)
    points = centres.repeat(50, 1) + 0.1 * torch.randn(200, 2)
    for _ in range(20):  # a draw of four starting points may miss a cluster
        book.cluster(points)
        if float((book.vectors()[book.nearest(centres)] - centres).abs().max()) < 0.2:
            return
    pytest.fail("k-means never found four well separated clusters")


def test_crops_carry_labels_and_keep_the_target_clean(speech_folder):
    crops = SpeechCrops(speech_folder, frames=8, batch=64, frame_samples=1920)
    batch = crops.batch()
    assert batch.heard.shape == batch.wanted.shape == (64, 8 * 1920)
    assert batch.phones.shape == (64, 32)
    assert set(batch.phones.unique().tolist()) <= {IGNORED, 0, 1, 2}
    assert float(batch.wanted.abs().max()) <= 1.0
    disturbed = (batch.heard != batch.wanted).any(1).float().mean()
    assert 0.0 < float(disturbed) < 0.6


def test_training_lowers_the_loss_and_ends_with_frozen_codes(trainer, speech_folder):
    limit_sec = 60 * OPTIONS.minutes
    for _ in range(30):
        trainer.train_step()
    distances = [row[0] for row in trainer.history]
    assert np.mean(distances[-5:]) < 0.85 * np.mean(distances[:5])
    for share in (OPTIONS.joint_from, OPTIONS.decoder_from):
        trainer.elapsed_sec = share * limit_sec
        trainer._enter(OPTIONS.phase(share))
        for _ in range(4):
            trainer.train_step()
    assert trainer.phase == DECODER
    recordings = [np.random.default_rng(1).standard_normal(1920 * n).astype(np.float32) * 0.1 for n in (3, 9)]
    before = encode_many(trainer.codec, recordings)
    decoder = trainer.codec.decoder.last.weight.detach().clone()
    for _ in range(3):
        trainer.train_step()
    after = encode_many(trainer.codec, recordings)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)), "the last phase moved the codes"
    assert not torch.equal(decoder, trainer.codec.decoder.last.weight)
    trainer.save("final.pt")
    codec = load_codec(speech_folder / "final.pt")
    export_codec(codec, speech_folder / "export")
    codes = encode_many(speech_folder / "export", recordings)
    assert all(np.array_equal(a, b) for a, b in zip(after, codes, strict=True)), "the export changed the codes"


def test_export_has_the_published_names_and_comes_back(tmp_path):
    codec = Codec(TINY).eval()
    export_codec(codec, tmp_path)
    tensors = load_file(tmp_path / CODEC_FILE)
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert tensors["encoder.model.0.conv.conv.weight"].shape == (4, 1, 7)
    assert tensors["decoder.model.11.convtr.convtr.weight"].shape == (8, 4, 8)
    assert tensors["quantizer.rvq_rest.vq.layers.6._codebook.embedding_sum"].shape == (32, 16)
    assert tensors["upsample.convtr.convtr.convtr.weight"].shape == (32, 1, 4)
    back = import_codec(tmp_path)
    assert dataclasses.replace(back.shape, num_phones=3) == TINY
    codes = np.random.default_rng(0).integers(0, 32, (8, 6))
    ours, theirs = decode_many(codec, [codes])[0], decode_many(back, [codes])[0]
    assert np.abs(ours - theirs).max() < 0.05 * np.abs(ours).max()


def test_training_goes_on_from_a_published_codec(speech_folder, tmp_path):
    """From a folder whose file is split, as nano's is; what is of another size is refused."""
    folder = tmp_path / "published"
    path = export_codec(Codec(TINY), folder)
    tensors = sorted(load_file(path).items())
    path.unlink()
    with pytest.raises(ValueError, match="has no tokenizer"):
        any_codec(folder)
    shards = {}
    for number, half in enumerate((tensors[::2], tensors[1::2]), 1):
        shard = CODEC_FILE.replace(".safetensors", f"-0000{number}-of-00002.safetensors")
        save_file(dict(half), folder / shard)
        shards |= dict.fromkeys(dict(half), shard)
    (folder / f"{CODEC_FILE}.index.json").write_text(json.dumps({"weight_map": shards}))
    codec = any_codec(folder)
    crops = SpeechCrops(speech_folder, frames=8, batch=2, frame_samples=1920)
    trainer = Trainer(crops, TINY, OPTIONS, speech_folder)
    trainer.start_from(codec)
    assert trainer.phase == JOINT
    assert torch.equal(trainer.codec.quantizer.first.vectors(), codec.quantizer.first.vectors())
    assert torch.equal(trainer.codec.decoder.last.weight, codec.decoder.last.weight)
    trainer.train_step()
    with pytest.raises(ValueError, match="n_filters=8"):
        trainer.start_from(Codec(dataclasses.replace(TINY, n_filters=8)))


def test_the_decoder_alone_leaves_the_codes_as_they_were(speech_folder, tmp_path):
    """From a published codec, with no time for anything else: what it encodes stays, what it decodes changes."""
    folder = tmp_path / "published"
    export_codec(Codec(TINY), folder)
    published = import_codec(folder)
    crops = SpeechCrops(speech_folder, frames=8, batch=2, frame_samples=1920, clean=True)
    options = dataclasses.replace(OPTIONS, minutes=0.02, decoder_from=0.0)
    trainer = Trainer(crops, TINY, options, tmp_path)
    trainer.start_from(published)
    trainer.run()
    assert trainer.phase == DECODER and trainer.step > 0
    wave = crops.batch().heard
    with torch.no_grad():
        before, after = (codec.quantizer.encode(codec.encode(wave)) for codec in (published, trainer.codec))
        assert torch.equal(before, after)
        assert not torch.equal(*(codec.decode(codec.quantizer.decode(before)) for codec in (published, trainer.codec)))


def test_export_names_are_the_published_ones(tmp_path):
    golden = load_file(Path(__file__).parent / "golden" / CODEC_FILE)
    published = {name for name in golden if not re.search(r"rvq_rest\.vq\.layers\.([7-9]|1\d)\.", name)}
    export_codec(Codec(TINY), tmp_path)
    assert load_file(tmp_path / CODEC_FILE).keys() == published


def test_export_keeps_the_other_sections(tmp_path):
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"name": "nano", "prompt": {"silence_sec": 0.5}}))
    export_codec(Codec(TINY), tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert config["name"] == "nano" and config["prompt"] == {"silence_sec": 0.5}
    assert config["mimi"]["codebook_size"] == 32


def test_codes_equal_the_streaming_codecs(tmp_path):
    """Whole and batched here, frame by frame there: the window convention and the paddings agree."""
    pytest.importorskip("personaplex.models.mimi", reason="the streaming codec is not there")
    from training.codec.streaming import StreamingCodec

    export_codec(Codec(TINY).eval(), tmp_path)
    generator = np.random.default_rng(0)
    recordings = [0.2 * generator.standard_normal(1920 * frames).astype(np.float32) for frames in (30, 21)]
    ours = encode_many(tmp_path, recordings)
    codec = StreamingCodec(tmp_path)
    for recording, codes in zip(recordings, ours, strict=True):
        assert np.array_equal(codec.encode(recording), codes)
        np.testing.assert_allclose(codec.decode(codes), decode_many(tmp_path, [codes])[0], atol=2e-5)
