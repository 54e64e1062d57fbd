"""Trains the language model: `python -m training.lm.train --speech DIR --out DIR --minutes 42`.

The learning rate follows the wall clock, so a run ends when it is told to, however busy the machine; with
`--own-time` it follows the process's CPU time, so a busy machine takes longer and trains as much.
A run goes on from `last.pt` when started again.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from personaplex.config import LMConfig
from training import sentences
from training.codec import parallel
from training.dialogues import DialogueMaker
from training.lm.clips import ClipBank
from training.lm.data import BatchMaker, BatchOptions
from training.lm.lessons import Curriculum, Lessons
from training.lm.model import Batch, LanguageModel, Listener, Losses, losses
from training.lm.tokenizer import TOKENIZER, TextIds, train_tokenizer
from training.lm.warm_start import listen_from, start_from
from training.loop import CHECKPOINT, TimedTrainer, cosine, set_rate, warm_up
from training.precision import autocast, fastest_dtype

log = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.02  # of the users: never trained on, to tell what was learned from what was memorised


def nano_config(text_card: int) -> LMConfig:
    """The embedded model's sizes: with the codec just under 40 MB, its linear weights in int8."""
    return LMConfig(
        dim=384, num_heads=6, num_layers=6, hidden_scale=3.75, context=1500, text_card=text_card, card=512, dep_q=8,
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
    log_steps: int = 50
    seed: int = 0
    own_time: bool = False  # minutes are of CPU time: for a machine with other work

    def rate(self, step: int, share: float) -> float:
        """Learning rate: linear warm-up over steps, times a cosine decay; ``share`` of the run's time is over."""
        return self.learning_rate * warm_up(step, self.warmup_steps) * cosine(1.0, self.last_rate, share)


class Trainer(TimedTrainer):
    """The same model in every process; each brings its own batches, and gradients are averaged."""

    def __init__(self, config: LMConfig, options: TrainOptions, folder: Path) -> None:
        torch.manual_seed(options.seed)
        model, listener = LanguageModel(config), Listener(config, len(sentences.user_vocabulary()))
        named = [*model.named_parameters(), *listener.named_parameters()]
        super().__init__(folder, (parameter for _, parameter in named))
        self.options, self.model, self.listener = options, model, listener
        self.device = self.model.embedding.device
        self.dtype = fastest_dtype(self.device, (torch.float32, torch.bfloat16))
        matrices = [p for name, p in named if _decays(name, p)]
        others = [p for name, p in named if not _decays(name, p)]
        groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95), fused=True)
        self.frames = 0
        self.warm_from = 0  # the step at which the optimizer began
        self.history: list[tuple[bool, torch.Tensor]] = []  # of each step: only listening, its losses and norm
        self.held_out: tuple[torch.Tensor, torch.Tensor] | None = None  # users to report on: `make_listening`'s

    def train_step(self, *batches: Batch) -> list[Losses]:
        """One step on all of the batches together; the first and the last are reported."""
        with self._autocast():
            parts = [losses(self.model, batch, self.listener) for batch in batches]
        frames = sum(batch.text_weight.numel() for batch in batches)
        total = parts[0].total()
        for part in parts[1:]:
            total = total + part.total()
        norm = self._update(total, frames)
        first, last = parts[0], parts[-1]
        codes = first.codes.detach()
        self._note(False, first.text, codes[0], codes[1:].mean(), last.text, last.listening, norm)
        return parts

    def listening_step(self, columns: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """One step on users alone, for the lower half of the temporal transformer."""
        with self._autocast():
            loss = self.listener.loss(self.model.lower(columns, self.listener.layers), words)
        norm = self._update(loss, words.numel())
        self._note(True, 0.0, 0.0, 0.0, 0.0, loss, norm)
        return loss

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self.dtype)

    def _note(self, only_listening: bool, *values: torch.Tensor | float) -> None:
        told = torch.stack([torch.as_tensor(value).detach() for value in values])  # no wait for a GPU
        self.history.append((only_listening, told))

    def _update(self, loss: torch.Tensor, frames: int) -> torch.Tensor:
        """Backward pass and optimizer step; returns the gradients' norm."""
        share = self.elapsed_sec / (60 * self.options.minutes)
        set_rate(self.optimizer, self.options.rate(self.step - self.warm_from, share))
        self.gradients.zero_()
        loss.backward()
        self.average_gradients()
        norm = self.gradients[:-1].norm()
        if torch.isfinite(norm):
            self.gradients.mul_(torch.clamp(self.options.clip_norm / (norm + 1e-6), max=1.0))
            self.optimizer.step()
        self.step += 1
        self.frames += frames * parallel.world()
        return norm

    def run(self, lessons: Lessons, workers: int) -> None:
        """Trains until the time is up, on lessons that `workers` processes prepare."""
        lessons.elapsed_sec = self.elapsed_sec
        batches = lessons.ahead(workers)

        def next_step() -> None:
            lessons.elapsed_sec = self.elapsed_sec
            made = [part.to(self.device) for part in next(batches)]
            (self.listening_step if isinstance(made[0], torch.Tensor) else self.train_step)(*made)

        options = self.options
        self.train_for(
            options.minutes, next_step, log_steps=options.log_steps, checkpoint_sec=options.checkpoint_sec,
            clock=time.process_time if options.own_time else time.monotonic,
        )  # fmt: skip
        self.finish()

    def figures(self) -> dict[str, Any]:
        """Means over the latest steps, and the listening loss on users held out."""
        recent = self.history[-self.options.log_steps :]
        *_, listening, norm = torch.stack([told for _, told in recent]).mean(0).tolist()
        spoken = [told for only_listening, told in recent if not only_listening] or [torch.zeros(6)]
        text, first, rest, drill, *_ = torch.stack(spoken).mean(0).tolist()
        return {
            "text": round(text, 4),
            "codebook_0": round(first, 3),
            "codebooks_1_7": round(rest, 3),
            "drill": round(drill, 4),
            "listening": round(listening, 3),
            **self._heard_of_others(),
            "norm": round(norm, 2),
            "frames_per_sec": round(self.frames / max(1.0, self.elapsed_sec)),
        }

    def _heard_of_others(self) -> dict[str, float]:
        if self.held_out is None:
            return {}
        columns, words = (tensor.to(self.device) for tensor in self.held_out)
        with torch.no_grad(), self._autocast():
            loss = self.listener.loss(self.model.lower(columns, self.listener.layers), words)
        return {"listening_held_out": round(float(loss), 3)}

    def state(self) -> dict[str, Any]:
        return {
            "config": asdict(self.model.config),
            "model": self.model.state_dict(),
            "listener": self.listener.state_dict(),
            "user_words": list(sentences.user_vocabulary()),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed_sec": self.elapsed_sec,
            "frames": self.frames,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Where a checkpoint has no listener, the optimizer begins anew."""
        self.model.load_state_dict(state["model"])
        if "listener" in state:
            self.listener.load_state_dict(state["listener"])
            self.optimizer.load_state_dict(state["optimizer"])
        else:
            self.warm_from = state["step"]
        self.step, self.elapsed_sec, self.frames = state["step"], state["elapsed_sec"], state["frames"]


def _decays(name: str, parameter: torch.Tensor) -> bool:
    tables = ("embedding", "depth_text", "depth_codes")
    return parameter.dim() >= 2 and name not in tables


def train(arguments: argparse.Namespace) -> None:
    """The work of one process."""
    rank, world = parallel.rank(), parallel.world()
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(asctime)s %(message)s")
    ids = TextIds(arguments.out / TOKENIZER)
    options = TrainOptions(
        minutes=arguments.minutes, learning_rate=arguments.learning_rate, seed=arguments.seed,
        own_time=arguments.own_time,
    )  # fmt: skip
    with torch.device(arguments.device):
        trainer = Trainer(nano_config(len(ids)), options, arguments.out)
        log.info("%.2f M parameters, in %s", (len(trainer.gradients) - 1) / 1e6, trainer.dtype)
        if (arguments.out / CHECKPOINT).exists():
            trainer.resume(arguments.out / CHECKPOINT)
        elif arguments.start_from:
            start_from(trainer.model, ids, arguments.start_from)
            known = listen_from(trainer.listener, list(sentences.user_vocabulary()), arguments.start_from)
            log.info("%d of the words to listen for are known", known)
    if arguments.compile:
        trainer.model.compile_layers()
    bank = ClipBank.load(arguments.speech, ids)
    bank, held_out = bank.without(round(HELD_OUT_SHARE * len(bank.users)))
    log.info("%d agent clips, %d users", sum(map(len, bank.agent.values())), len(bank.users))
    batch = BatchOptions().scaled(arguments.scale / world)
    if held_out:
        others, whole = DialogueMaker(replace(bank, users=held_out), ids), BatchOptions(listening_hidden=0.0)
        trainer.held_out = BatchMaker(others, trainer.model.config, whole).make_listening()

    def maker(worker: int) -> BatchMaker:
        seed = arguments.seed + (trainer.step * world + rank) * arguments.workers + worker
        return BatchMaker(DialogueMaker(bank, ids, seed), trainer.model.config, batch, seed)

    lessons = Lessons(maker, Curriculum(arguments.listening_minutes, arguments.drill_minutes))
    with torch.device(arguments.device):
        trainer.run(lessons, arguments.workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--speech", type=Path, default=Path("build/nano/speech"), help="spoken and encoded streams")
    parser.add_argument("--out", type=Path, default=Path("build/nano/lm"))
    parser.add_argument("--minutes", type=float, default=TrainOptions.minutes)
    parser.add_argument("--own-time", action="store_true", help="minutes of its own work, not of the clock on the wall")
    parser.add_argument("--learning-rate", type=float, default=TrainOptions.learning_rate)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--processes", type=int, help="default: 2 on a CPU, 1 on a GPU")
    parser.add_argument("--workers", type=int, default=1, help="processes that make batches, for each that trains")
    parser.add_argument("--scale", type=float, default=1.0, help="batches so many times as large")
    parser.add_argument(
        "--listening-minutes", type=float, default=Curriculum.listening_minutes, help="of users alone, to begin with"
    )
    parser.add_argument(
        "--drill-minutes", type=float, default=Curriculum.drill_minutes, help="of drills alone, after that"
    )
    parser.add_argument("--start-from", type=Path, help="a checkpoint or a published folder to begin with")
    parser.add_argument("--compile", action="store_true", help="the temporal layers: pays where bfloat16 is fast")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer = arguments.out / TOKENIZER
    if not tokenizer.exists():
        train_tokenizer(tokenizer)
    processes = arguments.processes or (2 if arguments.device == "cpu" else 1)
    parallel.run(processes, train, arguments)


if __name__ == "__main__":
    main()
