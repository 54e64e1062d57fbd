"""Text told in the middle of a conversation: as the model's authors' code forces it, and kept on every path."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
import torch
from conftest import GOLDEN_FOLDER, GOLDEN_TEXT
from safetensors.torch import load_file

from personaplex.messages import SamplingOptions
from personaplex.personas.voices import voice_from_file
from personaplex.session.session import Session

TOLD = {10: "The pool is closed today.", 35: "Dinner is at 8."}
"""What the authors' code was told, by the frame of the user before which it was."""

GREEDY = SamplingOptions(greedy=True)


@pytest.fixture(scope="module")
def user():
    """The user's recording as frames, [60, 1920] float32."""
    pcm, _ = sf.read(GOLDEN_FOLDER / "user.wav", dtype="float32")
    return np.pad(pcm, (0, -len(pcm) % 1920)).reshape(-1, 1920)


@pytest.fixture(scope="module")
def roomy(golden):
    """The golden model with a context that holds the prompt, the conversation and all that is told: 217 frames."""
    return replace(golden, config=replace(golden.config, lm=replace(golden.config.lm, context=240)))


@pytest.fixture(scope="module")
def authors():
    """Tokens of the authors' LMGen on the golden checkpoint with VOICE.pt, greedy, and which calls were told ones.

    Told: ``_step_text_prompt`` of ``step_system_prompts``, called between two frames of the user with other tokens.
    ``published`` has the golden context of 40 frames, ``roomy`` one of 240.
    """
    return load_file(GOLDEN_FOLDER / "told.safetensors")


def without_told(tokens, told):
    """The frames [17, T] that were said: the first call of a text finishes the frame before it, the next ones return
    the text, the last of it in the first call after.
    """
    told = told.tolist()
    before = [False, *told]
    return torch.stack([tokens[:, n] for n in range(len(told)) if not before[n]], dim=1)


def converse(model, user, window, tells=TOLD, seed=None):
    """The conversation with VOICE.pt: outputs of each step."""
    session = Session(model, window=window)
    voice = voice_from_file(GOLDEN_FOLDER / "voices" / "VOICE.pt", config=model.config)
    options = GREEDY if seed is None else SamplingOptions(seed=seed)
    outputs, left = [], []
    with session.start(session.prepare(voice=voice, text=GOLDEN_TEXT), options) as conversation:
        for number, frame in enumerate(user):
            if number in tells:
                left.append(conversation.tell(tells[number]))
            outputs.append(conversation.step(frame))
    return outputs, left


@pytest.mark.parametrize(
    ("window", "context"), [("published", "published"), ("published", "roomy"), ("persona", "roomy")]
)
def test_what_is_said_is_what_the_authors_code_says(golden, roomy, user, authors, window, context):
    model = roomy if context == "roomy" else golden
    outputs, left = converse(model, user, window)
    wanted = without_told(authors[f"{context}.tokens"], authors[f"{context}.told"])
    assert torch.equal(torch.from_numpy(np.stack([out.tokens for out in outputs], axis=1)).int(), wanted)
    assert left == [200 - 37, 200 - 37 - 28]
    silent, _ = converse(model, user, window, tells={})
    assert any((out.tokens != other.tokens).any() for out, other in zip(outputs, silent, strict=True))
