"""The training loop: steps, curves, validation, and going on exactly where it was stopped."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from personaplex.errors import InputError
from personaplex.messages import SamplingOptions
from personaplex.native.process import use_all_threads
from personaplex.nn.packing import WeightFormat
from personaplex.text.tokenizer import TextTokenizer
from personaplex.weights.load import load_model
from training import loop
from training.finetune.checkpoints import save_model
from training.finetune.codes import CodeBook
from training.finetune.config import LORA, FinetuneConfig
from training.finetune.free_running import FreeRunner, right_shares, vocabulary_ear
from training.finetune.lessons import Batch, Lesson, LessonMaker, batch_of
from training.finetune.lora import add_adapters_, save_adapter, trained
from training.finetune.model import Losses, SequenceModel, train_whole_
from training.finetune.recordings import Recording, read_manifest

log = logging.getLogger(__name__)

ADAPTER_FOLDER, MODEL_FOLDER, CURVES_FOLDER = "adapter", "model", "tensorboard"
_BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Data:
    """Training and validation sequences, and the recordings for free running."""

    train: list[Lesson]
    validation: list[Lesson]
    talks: list[Recording]


class Trainer(loop.Trainer):
    """One run; ``run`` may be called again, also by another process that made the same Trainer."""

    def __init__(self, config: FinetuneConfig) -> None:
        """Loads the base model and the data.

        Raises a PersonaPlexError: no such model, recordings that do not fit, a folder of another run.
        """
        super().__init__(Path(config.out))
        self.config = config
        torch.manual_seed(config.seed)
        loaded = load_model(config.model.base, format=_format(config), device=config.model.device)
        use_all_threads()
        self.loaded, self.device = loaded, loaded.device
        if config.train.mode == LORA:
            add_adapters_(loaded.lm, config.lora)
        else:
            train_whole_(loaded.lm)
        self.model = SequenceModel(loaded.lm, config.model.gradient_checkpointing)
        self.parameters = dict(trained(loaded.lm))
        self.optimizer = torch.optim.AdamW(self._groups(), lr=config.train.learning_rate, betas=_BETAS)
        self.seconds, self.frames = 0.0, 0
        if (self.folder / loop.CHECKPOINT).exists():
            self.resume(self.folder / loop.CHECKPOINT)
        self.data, self._runner = self._prepare()
        log.info(
            "%.2f of %.2f M parameters are trained, on %d sequences", sum(p.numel() for p in self.parameters.values())
            / 1e6, loaded.lm.parameter_count() / 1e6, len(self.data.train),
        )  # fmt: skip

    # -- preparation ------------------------------------------------------------------------------

    def _groups(self) -> list[dict[str, Any]]:
        """Matrices decay; norms and embedding tables do not."""
        tables = ("emb", "alpha")
        plain = [p for name, p in self.parameters.items() if any(part in name for part in tables)]
        matrices = [p for name, p in self.parameters.items() if not any(part in name for part in tables)]
        groups = [{"params": matrices, "weight_decay": self.config.train.weight_decay}]
        return groups + ([{"params": plain, "weight_decay": 0.0}] if plain else [])

    def _prepare(self) -> tuple[Data, FreeRunner]:
        config, loaded = self.config, self.loaded
        tokenizer = TextTokenizer(loaded.tokenizer_path)
        codebook = CodeBook(loaded.config, loaded.mimi, self.device)
        maker = LessonMaker(loaded.config, tokenizer, codebook, config.loss, config.data.max_sec)
        train, validation = read_manifest(config.data.train), read_manifest(config.data.validation)
        log.info("reading %d and %d recordings; the first time they are encoded", len(train), len(validation))
        talks = [recording for recording in validation if recording.expected][: config.validation.conversations]
        ear = None
        if config.validation.hear and talks:
            ear = vocabulary_ear(validation, loaded.config.mimi.sample_rate)
        runner = FreeRunner(
            loaded.config, loaded.lm, loaded.mimi, maker, tokenizer,
            slots=config.validation.slots, device=self.device, ear=ear,
        )  # fmt: skip
        return Data(list(maker.lessons(train)), list(maker.lessons(validation)), talks), runner

    # -- the loop ---------------------------------------------------------------------------------

    def run(self, until: int | None = None) -> None:
        """Train up to step ``until``, the last by default; at the last, write the model."""
        train, checks = self.config.train, self.config.validation
        last = train.steps if until is None else min(until, train.steps)
        curves = SummaryWriter(self.folder / CURVES_FOLDER, purge_step=self.step + 1)
        with curves:
            if self.step == 0 and last > 0:
                self._judge(curves, talk=True)
            while self.step < last:
                losses, norm = self.train_step()
                if self.step % train.log_every == 0:
                    self._report(curves, "train", {**losses, "gradient_norm": norm, "learning_rate": self.rate()})
                final = self.step == train.steps
                talk = final or (checks.talk_every > 0 and self.step % checks.talk_every == 0)
                if talk or self.step % checks.loss_every == 0:
                    self._judge(curves, talk)
                if self.step % train.save_every == 0 or self.step == last:
                    self.save()
        if self.step == train.steps:
            self._write_model()

    def train_step(self) -> tuple[dict[str, float], float]:
        """One update; returns the mean losses and the gradients' norm before clipping."""
        started = time.perf_counter()
        options = self.config.train
        # All chance comes from the seed and the step, so a run that was stopped goes on as if it had not been.
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        loop.set_rate(self.optimizer, self.rate())
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for part in range(options.accumulate):
            batch = self._batch(part)
            with self._autocast():
                losses = self.model.losses(batch)
            (losses.total(self.config.loss.text) / options.accumulate).backward()
            self.frames += batch.targets.shape[0] * batch.targets.shape[1]
            for name, value in _floats(losses).items():
                sums[name] = sums.get(name, 0.0) + value / options.accumulate
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), options.clip_norm))
        if math.isfinite(norm):
            self.optimizer.step()
        else:
            log.warning("step %d is left out: its gradient is not finite", self.step)
        self.step += 1
        self.seconds += time.perf_counter() - started
        return sums, norm

    def rate(self) -> float:
        """The learning rate of the coming step: a linear warm-up, then a cosine."""
        options = self.config.train
        warmup = max(1, round(options.warmup_share * options.steps))
        if self.step < warmup:
            return options.learning_rate * loop.warm_up(self.step, warmup)
        share = (self.step - warmup) / max(1, options.steps - warmup)
        return options.learning_rate * loop.cosine(1.0, options.last_rate, share)

    def _batch(self, part: int) -> Batch:
        """The lessons of a step's ``part``-th batch: every lesson once before any comes again."""
        size, count = self.config.train.batch, len(self.data.train)
        first = (self.step * self.config.train.accumulate + part) * size
        chosen = []
        for place in range(first, first + size):
            order = torch.randperm(count, generator=torch.Generator().manual_seed(self.config.seed + place // count))
            chosen.append(self.data.train[int(order[place % count])])
        return batch_of(chosen, self.config.data.hidden_agent_share).to(self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.config.model.bfloat16)

    # -- validation and curves --------------------------------------------------------------------

    @torch.no_grad()
    def validation_losses(self) -> dict[str, float]:
        """Mean losses over every validation sequence, nothing hidden, no dropout."""
        self.model.eval()
        size, lessons = self.config.train.batch, self.data.validation
        sums: dict[str, float] = {}
        for at in range(0, len(lessons), size):
            group = lessons[at : at + size]
            with self._autocast():
                losses = self.model.losses(batch_of(group).to(self.device))
            for name, value in _floats(losses).items():
                sums[name] = sums.get(name, 0.0) + value * len(group) / len(lessons)
        return sums

    def _judge(self, curves: SummaryWriter, talk: bool) -> None:
        self._report(curves, "validation", self.validation_losses())
        if talk and self.data.talks:
            self.model.eval()
            answers = self._runner.answers(self.data.talks, SamplingOptions(seed=self.config.seed))
            counts = right_shares(answers)
            self._report(curves, "right", {kind: right / total for kind, (right, total) in counts.items()})
            samples = "\n".join(f"{'; '.join(a.expected.say)} <- {a.text}" for a in answers)
            curves.add_text("answers", samples.replace("\n", "  \n"), self.step)

    def _report(self, curves: SummaryWriter, group: str, values: dict[str, float]) -> None:
        for name, value in values.items():
            curves.add_scalar(f"{group}/{name}", value, self.step)
        rate = self.frames / self.seconds if self.seconds else 0.0
        told = {name: round(value, 6 if name == "learning_rate" else 4) for name, value in values.items()}
        line = {"step": self.step, "seconds": round(self.seconds, 1), "frames_per_sec": round(rate), group: told}
        log.info(json.dumps(line))

    # -- files ------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {
            "config": asdict(self.config), "step": self.step, "seconds": self.seconds, "frames": self.frames,
            "parameters": {name: p.detach().cpu() for name, p in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Raises InputError for the state of another run."""
        differing = _differences(state["config"], asdict(self.config))
        if differing:
            raise InputError(
                f"{self.folder} holds a run with another {', '.join(differing)}; give a new `out`, or the old config"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                # Runs saved before weights were modules of their own call a matrix `in_proj.data`.
                former = name.replace(".weight.data", ".data")
                parameter.copy_(state["parameters"][name if name in state["parameters"] else former])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.frames = state["step"], state["seconds"], state["frames"]

    def save(self, name: str = loop.CHECKPOINT) -> None:
        """Write the checkpoint and, where adapters are trained, the adapter."""
        super().save(name)
        if self.config.train.mode == LORA:
            save_adapter(self.loaded.lm, self.config.lora, self.config.model.base, self.folder / ADAPTER_FOLDER)

    def _write_model(self) -> None:
        folder = self.folder / MODEL_FOLDER
        if folder.exists():
            shutil.rmtree(folder)  # ours: the end of this very run, written again
        save_model(self.loaded.lm, self.loaded.folder, folder)
        log.info("the model is in %s", folder)


def _format(config: FinetuneConfig) -> WeightFormat:
    """The format to load weights in: floats always, since packed ones take no gradient."""
    frozen = config.train.mode == LORA
    return WeightFormat.BFLOAT16 if config.model.bfloat16 and frozen else WeightFormat.FLOAT32


def _floats(losses: Losses) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in vars(losses).items()}


def _differences(old: Any, new: Any, name: str = "") -> Sequence[str]:
    """Dotted names of the values that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [n for key in keys for n in _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)]
    return [] if old == new else [name]
