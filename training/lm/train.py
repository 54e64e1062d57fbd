"""Trains the language model: `python -m training.lm.train --speech DIR --out DIR --minutes 42`.

The learning rate follows the wall clock, so a run ends when it is told to, however busy the machine.
A run goes on from `last.pt` when started again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from personaplex.config import LMConfig
from training.codec import parallel
from training.codec.train import faster_dtype
from training.dialogues import DialogueMaker
from training.lm.clips import ClipBank
from training.lm.data import BatchMaker, BatchOptions
from training.lm.model import Batch, LanguageModel, Losses, losses
from training.lm.tokenizer import TextIds, train_tokenizer

log = logging.getLogger(__name__)

CHECKPOINT = "last.pt"
TOKENIZER = "tokenizer_spm_32k_3.model"


def nano_config(text_card: int) -> LMConfig:
    """The embedded model's sizes; its linear weights are 18 MB in int8."""
    return LMConfig(
        dim=384, num_heads=6, num_layers=6, hidden_scale=4.0, context=1500, text_card=text_card, card=512, dep_q=8,
        depformer_dim=160, depformer_num_heads=5, depformer_num_layers=3, depformer_dim_feedforward=480,
    )  # fmt: skip


@dataclass(frozen=True)
class TrainOptions:
    minutes: float = 42.0
    learning_rate: float = 1e-3
    last_rate: float = 0.02  # share of the learning rate left at the end
    warmup_steps: int = 60
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    checkpoint_sec: float = 150.0
    log_steps: int = 100
    seed: int = 0

    def rate(self, step: int, share: float) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        return (
            self.learning_rate
            * min(1.0, (step + 1) / self.warmup_steps)
            * (self.last_rate + (1 - self.last_rate) * cosine)
        )


def prefetched(make, depth: int = 4) -> Iterator[Batch]:
    """Batches made in a thread of their own while the last one is trained on."""
    ready: queue.Queue = queue.Queue(maxsize=depth)

    def fill() -> None:
        while True:
            ready.put(make())

    threading.Thread(target=fill, daemon=True).start()
    while True:
        yield ready.get()


class Trainer:
    """The same in every process; each brings its own batches, and gradients are averaged."""

    def __init__(self, config: LMConfig, options: TrainOptions, folder: Path) -> None:
        torch.manual_seed(options.seed)
        self.options, self.folder = options, folder
        self.model = LanguageModel(config)
        self.dtype = faster_dtype()
        named = list(self.model.named_parameters())
        # All gradients in a row, and the first process's clock behind them.
        self.gradients = torch.zeros(sum(p.numel() for _, p in named) + 1)
        for (_, parameter), piece in zip(named, self.gradients[:-1].split([p.numel() for _, p in named]), strict=True):
            parameter.grad = piece.view_as(parameter)
        matrices = [p for name, p in named if _decays(name, p)]
        others = [p for name, p in named if not _decays(name, p)]
        groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95), fused=True)
        self.step, self.elapsed_sec, self.frames = 0, 0.0, 0
        self.history: list[list[float]] = []

    def train_step(self, batch: Batch) -> Losses:
        share = self.elapsed_sec / (60 * self.options.minutes)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.rate(self.step, share)
        self.gradients.zero_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            result = losses(self.model, batch)
        result.total().backward()
        norm = self._join_gradients()
        if torch.isfinite(norm):
            self.gradients.mul_(torch.clamp(self.options.clip_norm / (norm + 1e-6), max=1.0))
            self.optimizer.step()
        self.step += 1
        self.frames += batch.text_weight.numel() * parallel.world()
        codes = result.codes.detach()
        self.history.append([float(v) for v in (result.text.detach(), codes[0], codes[1:].mean(), norm)])
        return result

    def _join_gradients(self) -> torch.Tensor:
        """Averages gradients over the processes, and takes over the first one's clock; returns their norm."""
        if parallel.world() > 1:
            self.gradients[-1] = self.elapsed_sec * parallel.world() if parallel.rank() == 0 else 0.0
            parallel.sum_(self.gradients).div_(parallel.world())
            self.elapsed_sec = float(self.gradients[-1])
        return self.gradients[:-1].norm()

    def run(self, batches: Iterator[Batch]) -> None:
        limit_sec, saved_sec, last = 60 * self.options.minutes, self.elapsed_sec, time.monotonic()
        while self.elapsed_sec < limit_sec:
            self.train_step(next(batches))
            now = time.monotonic()
            self.elapsed_sec, last = self.elapsed_sec + now - last, now
            if self.step % self.options.log_steps == 0:
                self._report()
            if self.elapsed_sec - saved_sec > self.options.checkpoint_sec:
                saved_sec = self.elapsed_sec
                self.save(CHECKPOINT)
        self.save(CHECKPOINT)
        self.save("final.pt")

    def _report(self) -> None:
        if parallel.rank() > 0:
            return
        text, first, rest, norm = np.mean(self.history[-self.options.log_steps :], 0)
        line = {
            "step": self.step,
            "elapsed_sec": round(self.elapsed_sec),
            "text": round(text, 4),
            "codebook_0": round(first, 3),
            "codebooks_1_7": round(rest, 3),
            "norm": round(norm, 2),
            "frames_per_sec": round(self.frames / max(1.0, self.elapsed_sec)),
        }
        log.info(json.dumps(line))

    def save(self, name: str) -> None:
        if parallel.rank() > 0:
            return
        state = {
            "config": asdict(self.model.config),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed_sec": self.elapsed_sec,
            "frames": self.frames,
        }
        partial = self.folder / f"{name}.part"
        torch.save(state, partial)
        partial.rename(self.folder / name)

    def resume(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed_sec, self.frames = state["step"], state["elapsed_sec"], state["frames"]
        log.info("going on at step %d, %.0f s", self.step, self.elapsed_sec)


def _decays(name: str, parameter: torch.Tensor) -> bool:
    tables = ("embedding", "depth_text", "depth_codes")
    return parameter.dim() >= 2 and name not in tables


def load_model(path: Path) -> LanguageModel:
    """The language model of a checkpoint, ready to run."""
    state = torch.load(path, weights_only=True)
    config = LMConfig(**{**state["config"], "delays": tuple(state["config"]["delays"])})
    model = LanguageModel(config).eval()
    model.load_state_dict(state["model"])
    return model


def train(arguments: argparse.Namespace) -> None:
    """The work of one process."""
    rank, world = parallel.rank(), parallel.world()
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(asctime)s %(message)s")
    ids = TextIds(arguments.out / TOKENIZER)
    options = TrainOptions(minutes=arguments.minutes, learning_rate=arguments.learning_rate, seed=arguments.seed)
    trainer = Trainer(nano_config(len(ids)), options, arguments.out)
    log.info("%.2f M parameters, in %s", (len(trainer.gradients) - 1) / 1e6, trainer.dtype)
    if (arguments.out / CHECKPOINT).exists():
        trainer.resume(arguments.out / CHECKPOINT)
    bank = ClipBank.load(arguments.speech, ids)
    log.info("%d agent clips, %d users", sum(map(len, bank.agent.values())), len(bank.users))
    seed = arguments.seed + trainer.step * world + rank
    batch = BatchOptions()
    batch = replace(
        batch,
        dialogues=batch.dialogues // world,
        depth_frames_max=batch.depth_frames_max // world,
        quiet_frames=batch.quiet_frames // world,
    )
    maker = BatchMaker(DialogueMaker(bank, ids, seed), trainer.model.config, batch, seed)
    trainer.run(prefetched(maker.make))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--speech", type=Path, default=Path("build/nano/speech"), help="spoken and encoded streams")
    parser.add_argument("--out", type=Path, default=Path("build/nano/lm"))
    parser.add_argument("--minutes", type=float, default=TrainOptions.minutes)
    parser.add_argument("--learning-rate", type=float, default=TrainOptions.learning_rate)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not (arguments.out / TOKENIZER).exists():
        train_tokenizer(arguments.out / TOKENIZER)
    parallel.run(arguments.processes, train, arguments)


if __name__ == "__main__":
    main()
