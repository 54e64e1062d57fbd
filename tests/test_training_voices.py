"""Neural voices: times of phones and words, mixtures, what is kept for tests, and parts put together."""

from __future__ import annotations

import hashlib
import io
import tarfile

import numpy as np
import pytest

from training import kept_out, kokoro_speech, neural_voices, tts
from training.neural_voices import VoicesError, joined, unpack_styles
from training.tts_engines import TtsError
from training.tts_neural import KokoroEngine, mixture, number_words, spelled_out, timed


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "zero"), (14, "fourteen"), (40, "forty"), (99, "ninety nine"), (100, "one hundred"),
     (305, "three hundred five"), (12_000, "twelve thousand"), (1_000_001, "one zero zero zero zero zero one")],
)  # fmt: skip
def test_numbers_are_read(number, words):
    assert number_words(number) == words


def test_whole_numbers_become_words():
    assert spelled_out("A loaf costs 14 dollars.") == "A loaf costs fourteen dollars."


def test_stress_and_length_belong_to_their_vowel():
    phones, words = timed("hˈɑː tˈu.", [2, 1, 1, 3, 1, 2, 1, 1, 2, 4, 3])
    assert [name for name, _ in phones] == ["pau", "hh", "aa", "pau", "t", "uw", "pau", "pau"]
    assert [end for _, end in phones] == pytest.approx([0.05, 0.075, 0.2, 0.25, 0.275, 0.35, 0.45, 0.525])
    assert words == [(pytest.approx(0.05), pytest.approx(0.25)), (pytest.approx(0.25), pytest.approx(0.35))]


def test_as_many_lengths_as_symbols_are_wanted():
    with pytest.raises(TtsError, match="3 symbols came with 4 lengths instead of 5"):
        timed("abc", [1, 1, 1, 1])


def test_mixtures_add_up():
    assert mixture("af_heart") == {"af_heart": 1.0}
    assert mixture("af_heart=0.6,am_echo=0.4") == {"af_heart": 0.6, "am_echo": 0.4}
    with pytest.raises(TtsError, match=r"add up to 0\.90"):
        mixture("af_heart=0.5,am_echo=0.4")
    with pytest.raises(TtsError, match="is not a mixture"):
        mixture("af_heart=much")


class _Reader:
    def symbols(self, text, *, british=False):
        yield ("hi.", [0, 50, 51, 4, 0])


class _Session:
    def __init__(self):
        self.told = None

    def run(self, _, told):
        self.told = told
        units = np.array([[2, 3, 5, 4, 1]], np.float32)
        return np.full((1, int(units.sum()) * 600), 0.25, np.float32), units


def _kokoro(folder):
    """The engine on a fake network and reader, with two voices whose styles are their row's number, times 1 and 10."""
    for name, factor in (("af_one", 1.0), ("am_two", 10.0)):
        (np.arange(510, dtype=np.float32).repeat(256) * factor).tofile(folder / f"{name}.bin")
    engine = KokoroEngine.__new__(KokoroEngine)
    engine._reader, engine._session, engine._styles, engine._loaded = _Reader(), _Session(), folder, {}
    return engine


def test_kokoro_mixes_styles_and_tells_times(tmp_path):
    engine = _kokoro(tmp_path)
    said = engine.speak("Hi.", "af_one=0.5,am_two=0.5", tempo=1.1, pitch_hz=None, pitch_range=1.0)
    np.testing.assert_allclose(engine._session.told["style"], np.full((1, 256), 3 * 5.5))  # the row of three symbols
    assert len(said.pcm) == 9000
    assert said.words == [("Hi.", pytest.approx(0.05), pytest.approx(0.25))]
    assert said.phones[-2:] == [("iy", pytest.approx(0.25)), ("pau", pytest.approx(0.375))]
    with pytest.raises(TtsError, match="no voice 'bm_none'; allowed: af_one, am_two"):
        engine.speak("Hi.", "bm_none", tempo=1.0, pitch_hz=None, pitch_range=1.0)


@pytest.mark.parametrize("voice", ["kokoro:af_nova", "kokoro:af_heart=0.7,bm_daniel=0.3", "piper:joe", "pico:en-US"])
def test_voices_kept_for_tests_are_refused_by_name(voice):
    with pytest.raises(kept_out.KeptOutError, match="kept for tests"):
        kept_out.refuse_voice(voice)


@pytest.mark.parametrize("voice", ["kokoro:af_heart", "kokoro:af_heart=0.5,am_echo=0.5", "hibari", "slt"])
def test_other_voices_are_not(voice):
    kept_out.refuse_voice(voice)


def test_nobody_kept_is_drawn(tmp_path):
    for name in ("af_heart", "af_bella", "af_nova", "am_echo", "am_santa", "bf_lily", "jf_alpha"):
        (tmp_path / f"{name}.bin").touch()
    names = kokoro_speech.styles(tmp_path)
    assert names == ["af_bella", "af_heart", "am_echo", "am_santa"]
    draw = kokoro_speech.random.Random(3)
    drawn = {kokoro_speech.random_voice(draw, names) for _ in range(400)}
    for voice in drawn:
        kept_out.refuse_voice(voice)
        mixture(voice.removeprefix(tts.KOKORO_PREFIX))
    assert "kokoro:am_santa" in drawn and any("," in voice for voice in drawn)


def test_shards_are_read_as_they_were_spoken(tmp_path, monkeypatch):
    def speak(text, voice, *, tempo):
        phones, words = (tts.Phone("aa", 0.1),), (tts.Word("a", 0.0, 0.1),)
        return tts.Utterance(np.full(2400, 0.5, np.float32), 24_000, phones, words)

    monkeypatch.setattr(tts, "speak", speak)
    assert kokoro_speech.speak_shard(tmp_path, 0, ["af_heart"]) == pytest.approx(0.8)
    clips = list(kokoro_speech.clips(tmp_path))
    assert len(clips) == 8 and clips[3].voice == "kokoro:af_heart" and clips[3].utterance.phones[0].name == "aa"
    np.testing.assert_allclose(clips[3].utterance.pcm, 0.5, atol=1e-4)


def test_parts_are_joined_and_checked(tmp_path):
    parts = [tmp_path / "a", tmp_path / "b"]
    for part, data in zip(parts, (b"one", b"two"), strict=True):
        part.write_bytes(data)
    whole = joined(parts, tmp_path / "whole", hashlib.sha256(b"onetwo").hexdigest())
    assert whole.read_bytes() == b"onetwo"
    with pytest.raises(VoicesError, match="sha256 is"):
        joined(reversed(parts), tmp_path / "other", hashlib.sha256(b"onetwo").hexdigest())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "whole"]


def test_only_english_styles_are_unpacked(tmp_path):
    tarball = tmp_path / "voices.tgz"
    with tarfile.open(tarball, "w:gz") as archive:
        for name in ("package/voices/af_heart.bin", "package/voices/jf_alpha.bin", "package/README.md"):
            (member := tarfile.TarInfo(name)).size = 4
            archive.addfile(member, io.BytesIO(b"data"))
    sha512 = hashlib.sha512(tarball.read_bytes()).hexdigest()
    assert unpack_styles(tarball, tmp_path, sha512) == 1
    assert (tmp_path / "kokoro" / "af_heart.bin").read_bytes() == b"data"
    with pytest.raises(VoicesError, match="sha512"):
        unpack_styles(tarball, tmp_path)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(neural_voices.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(VoicesError, match=r"kokoro\.onnx is missing; make it with"):
        neural_voices.prepared(neural_voices.KOKORO_MODEL)
    with pytest.raises(VoicesError, match=r"requirements-voices\.txt"):
        neural_voices.in_package("no_such_package", "part.bin")
    with pytest.raises(TtsError, match="missing"):
        KokoroEngine()


def test_a_dequantised_graph_computes_the_same():
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -r requirements-voices.txt")
    from onnx import TensorProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    from training.onnx_graphs import dequantized, with_output

    draw = np.random.default_rng(0)
    weight, zero, scale = draw.integers(-100, 100, (8, 4)).astype(np.int8), np.array(3, np.int8), np.float32(0.02)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["product"]),
        helper.make_node("Cast", ["product"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "ws"], ["both"]),
        helper.make_node("Mul", ["real", "both"], ["y"]),
    ]
    stored = [numpy_helper.from_array(v, n) for v, n in ((weight, "w"), (zero, "wz"), (np.array([scale]), "ws"))]
    shape = [None, None]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], stored,
    )  # fmt: skip
    model = with_output(dequantized(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])), "real")
    x = draw.standard_normal((3, 8)).astype(np.float32)
    y, real = ReferenceEvaluator(onnx.ModelProto.FromString(model.SerializeToString())).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ ((weight.astype(np.float32) - 3) * scale), rtol=1e-5, atol=1e-5)
    assert real.shape == (3, 4)


def test_hibari_speaks_with_exact_times():
    if not tts.available(tts.HIBARI):
        pytest.skip("hibari is not installed: pip install -r requirements-voices.txt")
    plain, low = tts.speak("Hello, 2 coffees please.", tts.HIBARI), tts.speak("Hello there.", tts.HIBARI, pitch_hz=100)
    assert [word.text for word in plain.words] == ["Hello,", "2", "coffees", "please."]
    assert plain.phones[-1].end_sec == pytest.approx(len(plain.pcm) / 24_000, abs=0.03)
    assert len(low.pcm) and {phone.name for phone in low.phones} >= {"hh", "l", "ow", "pau"}
