"""Equality with what the model's authors' code answered on the golden checkpoint."""

import pytest
import soundfile as sf
import torch
from conftest import GOLDEN_FOLDER, GOLDEN_TEXT

from personaplex.config import LMConfig, ModelConfig
from personaplex.messages import SamplingOptions
from personaplex.models.language_model import LanguageModel
from personaplex.personas.voices import voice_from_file
from personaplex.session.session import Session

PCM_TOLERANCE = LOGITS_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def user(golden):
    """The user's recording as whole frames [60, 1920]; the last is filled up with zeros."""
    pcm, _ = sf.read(GOLDEN_FOLDER / "user.wav", dtype="float32")
    samples = golden.config.mimi.frame_samples
    return torch.nn.functional.pad(torch.from_numpy(pcm), (0, -len(pcm) % samples)).view(-1, samples)


def converse(golden, user, voice, slots=1):
    """The greedy conversation: whole outputs of every step, in the last slot."""
    session = Session(golden, window="published", slots=slots)
    snapshot = session.prepare(voice=voice_from_file(voice, config=golden.config), text=GOLDEN_TEXT)
    engine, row = session.engine, slots - 1
    engine.load(row, snapshot)
    engine.set_sampling(row, SamplingOptions(greedy=True))
    active = torch.arange(slots) == row
    steps = int(engine.state.frames.position[row])
    outputs = [engine.step(frame.expand(slots, -1), active) for frame in user]
    return steps, outputs, row


def test_the_published_7b_counts_its_parameters():
    assert LanguageModel(LMConfig()).parameter_count() == 8_371_408_896
    assert LanguageModel(ModelConfig.personaplex_7b().lm).parameter_count() == 8_371_408_896


def test_codec_codes_and_pcm(golden, user, expected):
    state, on = golden.mimi.encoder_state(1), torch.ones(1, dtype=torch.bool)
    codes = torch.cat([golden.mimi.encode(frame[None], state, on)[0] for frame in user], dim=1)
    assert torch.equal(codes[:, :59].int(), expected["codec_codes"])
    assert torch.equal(codes.int(), expected["wav_voice.user_codes"])
    decoder = golden.mimi.decoder_state(1)
    pcm = [golden.mimi.decode(expected["codec_codes"][None, :, t : t + 1].long(), decoder, on)[0] for t in range(30)]
    torch.testing.assert_close(torch.cat(pcm), expected["codec_pcm"], atol=PCM_TOLERANCE, rtol=0)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("kind", ["wav", "pt"])
def test_conversation_tokens(golden, user, expected, kind, slots):
    steps, outputs, row = converse(golden, user, GOLDEN_FOLDER / "voices" / f"VOICE.{kind}", slots)
    assert steps == expected[f"{kind}_voice.prompt_steps"].item()
    tokens = torch.stack([out.tokens[row] for out in outputs], dim=1)
    assert torch.equal(tokens.int(), expected[f"{kind}_voice.tokens"])


def test_conversation_pcm(golden, user, expected):
    _, outputs, row = converse(golden, user, GOLDEN_FOLDER / "voices" / "VOICE.wav")
    pcm = torch.cat([out.pcm[row] for out in outputs])
    torch.testing.assert_close(pcm, expected["wav_voice.pcm"], atol=PCM_TOLERANCE, rtol=0)


def test_logits(golden, user, expected):
    _, outputs, row = converse(golden, user, GOLDEN_FOLDER / "voices" / "VOICE.pt")
    text = torch.stack([out.text_logits[row] for out in outputs[:24]])
    audio = torch.stack([out.audio_logits[row] for out in outputs[:4]])
    torch.testing.assert_close(text, expected["pt_voice.text_logits"], atol=LOGITS_TOLERANCE, rtol=0)
    torch.testing.assert_close(audio, expected["pt_voice.audio_logits"], atol=LOGITS_TOLERANCE, rtol=0)


def test_the_ring_has_wrapped_in_these_conversations(golden, user, expected):
    assert expected["wav_voice.prompt_steps"].item() + len(user) > 2 * golden.config.lm.context
    assert 2 * len(user) > 2 * golden.config.mimi.transformer.context
