"""Recordings of noise in the layout of fine-tuning, and small runs on the golden checkpoint."""

import json
from pathlib import Path

import numpy as np
import torch
from conftest import GOLDEN_FOLDER

from personaplex.audio.files import write_stereo_wav, write_wav
from personaplex.config import TEXT, LMConfig
from personaplex.text.tokenizer import TextTokenizer
from personaplex.weights.load import load_model
from training.finetune.codes import CodeBook
from training.finetune.config import (
    DataOptions,
    FinetuneConfig,
    LoraOptions,
    LossOptions,
    ModelOptions,
    TrainOptions,
    ValidationOptions,
)
from training.finetune.lessons import LessonMaker
from training.finetune.recordings import write_manifest

RATE_HZ = 24_000
PAD, EPAD = 3, 0


def fresh(source=GOLDEN_FOLDER):
    """A model of one's own, to be changed."""
    return load_model(str(source), format="float32", device="cpu")


def write_recordings(folder: Path) -> Path:
    """Three recordings of noise in the layout, each with words, a role and a voice."""
    rng = np.random.default_rng(0)
    write_wav(folder / "voice.wav", 0.1 * rng.standard_normal(RATE_HZ + 500), RATE_HZ)
    wavs = []
    for index in range(3):
        wavs.append(folder / f"{index}.wav")
        write_stereo_wav(wavs[-1], *(0.1 * rng.standard_normal((2, 2 * RATE_HZ + 700))), RATE_HZ)
        told = {
            "alignments": [
                ["Hello", [0.4, 0.7], "SPEAKER_MAIN"],
                ["what", [0.8, 1.0], "SPEAKER_OTHER"],
                ["there.", [1.2, 1.5], "SPEAKER_MAIN"],
            ],
            "prompt": {"text": "You are kind.", "voice": "voice.wav"},
            "expect": [{"kind": "greet", "say": ["hello"], "from_sec": 0.0, "to_sec": 1.0}],
        }
        wavs[-1].with_suffix(".json").write_text(json.dumps(told))
    write_manifest(folder / "train.jsonl", wavs)
    write_manifest(folder / "validation.jsonl", wavs[:1])
    return folder


def run_config(data: Path, out: Path, **train) -> FinetuneConfig:
    return FinetuneConfig(
        out=str(out),
        data=DataOptions(str(data / "train.jsonl"), str(data / "validation.jsonl"), hidden_agent_share=0.5),
        model=ModelOptions(str(GOLDEN_FOLDER), device="cpu"),
        lora=LoraOptions(rank=4, alpha=8.0, dropout=0.1, modules_to_save=("temporal.text_emb",)),
        train=TrainOptions(**{**dict(steps=4, batch=2, learning_rate=1e-2, log_every=1), **train}),
        validation=ValidationOptions(loss_every=2, talk_every=0, conversations=1, slots=2),
    )


def lesson_maker(loaded, max_sec=100.0) -> LessonMaker:
    tokenizer = TextTokenizer(loaded.tokenizer_path)
    return LessonMaker(loaded.config, tokenizer, CodeBook(loaded.config, loaded.mimi), LossOptions(), max_sec)


def random_frames(config: LMConfig, count: int) -> torch.Tensor:
    torch.manual_seed(0)
    frames = torch.randint(config.card, (count, 17))
    frames[:, TEXT.start] = torch.randint(config.text_card, (count,))
    return frames


def assert_logits_equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Within 1e-4, of their spread where that is above one: random weights give the golden's codes wide logits."""
    torch.testing.assert_close(ours, theirs, atol=1e-4 * max(1.0, float(theirs.std())), rtol=0)
