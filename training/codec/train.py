"""Trains the embedded codec: `python -m training.codec.train --speech DIR --out DIR --minutes 55`.

Three phases share the time limit: the autoencoder without quantisation; everything together with
codebooks; the decoder alone, with all that decides the codes frozen and already rounded to the
precision it is published in. A listener that knows phones is taught before and judges beside the
spectra, with `--recogniser` a general recogniser, too. A run goes on from `last.pt` when started again.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.codec import parallel
from training.codec.critic import Rival
from training.codec.data import IGNORED, Batch, PrefetchedCrops, SpeechCrops
from training.codec.export import any_codec
from training.codec.listener import PhoneListener, teach
from training.codec.loss import RESOLUTIONS, SpectralLoss, padded
from training.codec.model import SAMPLE_RATE_HZ, Codec, CodecShape
from training.codec.options import DECODER, JOINT, PHASES, PLAIN, TrainOptions
from training.codec.recogniser_listener import FeatureTarget, RecogniserListener
from training.loop import CHECKPOINT, TimedTrainer, set_rate, write_checkpoint
from training.precision import autocast, fastest_dtype

log = logging.getLogger(__name__)

LISTENER = "listener.pt"
CODES = "codes.pt"  # written when the codes are final, so that speech can be encoded while the decoder still learns
_LOSS_SCALE = 512.0  # at first, in float16, whose smallest numbers the gradients would fall below
_SCALE_UP_STEPS = 1000


class Trainer(TimedTrainer):
    """The same codec in every process; each draws its own crops, and gradients are averaged."""

    def __init__(
        self, crops: SpeechCrops | PrefetchedCrops, shape: CodecShape, options: TrainOptions, folder: Path
    ) -> None:
        torch.manual_seed(options.seed)
        random.seed(options.seed)
        self.options, self.crops = options, crops
        codec = Codec(shape)  # the same in every process
        super().__init__(folder, codec.parameters())
        self.codec = codec
        torch.manual_seed(options.seed + parallel.rank())
        self.optimizer = torch.optim.AdamW(
            self.codec.parameters(), lr=options.learning_rate, betas=(0.8, 0.98), weight_decay=1e-2, fused=True
        )
        self.losses = [SpectralLoss(window, bands) for window, bands in RESOLUTIONS]
        compiled = (lambda f: torch.compile(f, dynamic=False)) if options.compile else (lambda f: f)
        self._encode, self._decode = compiled(self._encode_plain), compiled(self._decode_plain)
        self._distance = compiled(lambda index, made, target: self.losses[index](made, target))
        self.listener = PhoneListener(shape.num_phones).requires_grad_(False)
        self._misheard = compiled(self.listener.distance)
        self._compare = compiled(RecogniserListener.load(options.recogniser).compare) if options.recogniser else None
        self._features = FeatureTarget()
        self.rival = None
        if options.critic:
            shares = dict(verdict_share=options.critic_share, feature_share=options.critic_feature_share)
            self.rival = Rival(**shares, head_start=options.critic_head_start, learning_rate=options.critic_rate)
        self.device = next(self.codec.parameters()).device
        self.dtype = fastest_dtype(self.device)
        log.info("computing in %s", self.dtype)
        self.loss_scale, self._finite_steps = _LOSS_SCALE if self.dtype == torch.float16 else 1.0, 0
        self.phase = PLAIN
        self.history: list[Tensor] = []

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self.dtype)

    def _encode_plain(self, wave: Tensor) -> Tensor:
        with self._autocast():
            return self.codec.encode(wave.to(self.dtype))

    def _decode_plain(self, latent: Tensor) -> Tensor:
        with self._autocast():
            return self.codec.decode(latent.to(self.dtype))

    # -- phases

    def _enter(self, phase: str) -> None:
        log.info("phase %s at step %d", phase, self.step)
        self.save(f"{self.phase}.pt")
        if phase == JOINT:
            with torch.no_grad():
                count = self.options.cluster_batches
                latents = torch.cat([self._encode(self._batch().heard).flatten(0, 1) for _ in range(count)])
                log.info("k-means leaves %.3f of the energy", self.codec.quantizer.cluster(latents))
            for buffer in self.codec.quantizer.buffers():
                parallel.from_first_(buffer)
        elif phase == DECODER:
            self.freeze_codes()
        self.phase = phase
        if phase == DECODER:
            self.save(CODES)

    @torch.no_grad()
    def freeze_codes(self) -> None:
        """Rounds what decides the codes to bfloat16, its precision when published, and trains it no more."""
        for parameter in self.codec.heard_parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
            parameter.requires_grad_(False)
            parameter.grad = None
        for codebook in self.codec.quantizer.books:
            codebook.embedding_sum.copy_(codebook.vectors().to(torch.bfloat16))
            codebook.cluster_usage.fill_(1.0)

    # -- one step

    def _batch(self) -> Batch:
        return self.crops.batch().to(self.device)

    def _reconstruct(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
        """The decoded wave, codebook 0's part, the phone loss and the commitment loss of one batch."""
        options, quantizer = self.options, self.codec.quantizer
        with torch.set_grad_enabled(self.phase != DECODER):
            latent = self._encode(batch.heard)
        if self.phase == PLAIN:
            result = quantizer.unquantized(latent)
        elif self.phase == DECODER:
            result = quantizer(latent)
        else:
            rows = len(latent)
            few = torch.rand(rows) < options.few_share
            books = len(quantizer.rest) + 1
            used = torch.where(few, books // 2, books)
            raw = torch.rand(rows) < options.raw_share
            result = quantizer(latent, update=True, used=used, raw=raw)
        logits = self.codec.phones(result.semantic).flatten(0, 1)
        phones = F.cross_entropy(logits, batch.phones.flatten(), ignore_index=IGNORED)
        return self._decode(result.latent), result.semantic, phones, result.commitment

    def _heard(self, sound: Tensor, semantic: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The perceptual losses: misheard phones, a recogniser's distance, and its features as read from codebook 0."""
        none = sound.new_zeros(())
        misheard = self._misheard(sound, batch.wanted) if self.options.listener_steps else none
        if not self._compare:
            return misheard, none, none
        unlike, features = self._compare(sound, batch.wanted)
        reader = self.codec.feature_reader
        return misheard, unlike, none if reader is None else self._features.distance(reader(semantic), features)

    def train_step(self) -> None:
        options = self.options
        set_rate(self.optimizer, options.rate(self.step, self.elapsed_sec / (60 * options.minutes)))
        batch = self._batch()
        sound, semantic, phones, commitment = self._reconstruct(batch)
        made, wanted = padded(sound), padded(batch.wanted)
        half = len(self.losses) // 2
        parts = [self._distance(i, made, wanted) for i in (random.randrange(half), half + random.randrange(half))]
        distance = sum(parts) / len(parts)
        misheard, unlike, untold = self._heard(sound, semantic, batch)
        total = distance + options.listener_weight * misheard + options.recogniser_weight * unlike
        if self.phase != DECODER:
            total = total + options.feature_weight * untold
        if self.phase != DECODER and bool((batch.phones != IGNORED).any()):
            total = total + options.semantic_weight * phones
        if self.phase == JOINT:
            total = total + options.commitment_weight * commitment
        unmasked = torch.zeros(())
        self.gradients.zero_()
        if self.phase == DECODER and self.rival:
            unmasked = self.rival.learn(sound, batch.wanted)
            (plain,) = torch.autograd.grad(total * self.loss_scale, sound)
            sound.backward(self.rival.joined(sound, batch.wanted, plain))
        else:
            (total * self.loss_scale).backward()
        self.gradients[:-1].div_(self.loss_scale)
        self.average_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.codec.parameters(), options.clip_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
        self._rescale(bool(torch.isfinite(norm)))
        self.step += 1
        values = (distance, misheard, phones, commitment, norm, unlike, untold, unmasked)
        self.history.append(torch.stack([torch.as_tensor(value).detach() for value in values]))  # no wait for a GPU

    def _rescale(self, finite: bool) -> None:
        """A smaller loss scale after an overflow, a larger one after many steps without."""
        if self.dtype != torch.float16:
            return
        self._finite_steps = self._finite_steps + 1 if finite else 0
        if not finite:
            self.loss_scale /= 2
        elif self._finite_steps % _SCALE_UP_STEPS == 0:
            self.loss_scale *= 2

    # -- the run

    def _compile(self) -> None:
        """Compiles in the first process; the others then find the results in the compiler's cache."""
        if parallel.rank() > 0:
            parallel.barrier()
        batch = self._batch()
        latent = self.codec.quantizer.unquantized(self._encode(batch.heard)).latent
        sound = self._decode(latent)
        parts = [self._distance(index, padded(sound), padded(batch.wanted)) for index in range(len(self.losses))]
        (sum(parts) + sum(self._heard(sound, latent, batch))).backward()
        if parallel.rank() == 0:
            parallel.barrier()
        parallel.barrier()
        log.info("ready")

    def _bring_listener(self) -> None:
        """From the run's folder, or taught by the first process; none with `listener_steps` 0."""
        if not self.options.listener_steps:
            return
        path = self.folder / LISTENER
        if not path.exists() and parallel.rank() == 0:
            pupil = PhoneListener(self.codec.shape.num_phones)
            share = teach(pupil, self._batch, self.options.listener_steps)
            log.info("the listener reads %.3f of the phones", share)
            write_checkpoint(pupil.state_dict(), path)
        parallel.barrier()
        self.listener.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))

    def run(self) -> None:
        options = self.options
        self._bring_listener()
        self._compile()
        clock = time.process_time if options.own_time else time.monotonic
        self.train_for(
            options.minutes,
            self._next_step,
            log_steps=options.log_steps,
            checkpoint_sec=options.checkpoint_sec,
            clock=clock,
        )
        if self.phase != DECODER:  # a run too short for its phases still ends with codes that are final
            self._enter(DECODER)
        self.finish()

    def _next_step(self) -> None:
        """A step, of the next phase if it is time for that."""
        phase = self.options.phase(self.elapsed_sec / (60 * self.options.minutes))
        phase = max(self.phase, phase, key=PHASES.index)  # a longer time leads back to no earlier phase
        if phase != self.phase:
            self._enter(phase)
        self.train_step()

    def figures(self) -> dict[str, Any]:
        """Means over the latest steps."""
        recent = torch.stack(self.history[-self.options.log_steps :])
        mean = recent.masked_fill(~recent.isfinite(), torch.nan).nanmean(0).tolist()
        crop_sec = self.options.frames * self.codec.shape.frame_samples / SAMPLE_RATE_HZ
        audio_sec = self.step * parallel.world() * self.options.batch * crop_sec
        line = {
            "phase": self.phase,
            "distance": round(mean[0], 4),
            "misheard": round(mean[1], 4),
            "phones": round(mean[2], 4),
            "commitment": round(mean[3], 5),
            "norm": round(mean[4], 2),
            "unlike": round(mean[5], 4),
            "untold": round(mean[6], 4),
            "unmasked": round(mean[7], 4),
            "loss_scale": self.loss_scale,
            "audio_sec_per_sec": round(audio_sec / max(1.0, self.elapsed_sec), 1),
        }
        if self.phase != PLAIN:
            line["perplexity"] = [round(book.perplexity()) for book in self.codec.quantizer.books]
        return line

    def state(self) -> dict[str, Any]:
        return {
            "shape": dataclasses.asdict(self.codec.shape),
            "phones": self.crops.phones,
            "codec": self.codec.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "phase": self.phase,
            "step": self.step,
            "elapsed_sec": self.elapsed_sec,
            "rival": self.rival.state() if self.rival else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """With a longer time than it had, the decoder of a finished run is trained further."""
        self.codec.load_state_dict(state["codec"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.phase, self.step, self.elapsed_sec = state["phase"], state["step"], state["elapsed_sec"]
        if self.phase == DECODER:
            self.freeze_codes()
        if self.rival and state.get("rival"):  # a checkpoint of a run without a critic has none
            self.rival.load(state["rival"])

    def start_from(self, codec: Codec) -> None:
        """Begins with another codec's weights and codebooks, and so with the joint phase."""
        ours = self.codec.shape
        theirs = dataclasses.replace(codec.shape, num_phones=ours.num_phones, num_features=ours.num_features)
        if theirs != ours:
            raise ValueError(f"the codec to start from is {theirs}; {self.codec.shape} is trained")
        tensors = codec.state_dict()
        if codec.shape.num_phones != self.codec.shape.num_phones:  # its phone reader knows other phones
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("phone_reader")}
        self.codec.load_state_dict(tensors, strict=False)
        self.phase = JOINT


def _train(arguments: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {parallel.rank()} %(message)s")
    torch.set_default_device(arguments.device)
    options = TrainOptions(
        minutes=arguments.minutes,
        batch=arguments.batch,
        decoder_from=arguments.decoder_from,
        learning_rate=arguments.learning_rate,
        recogniser=arguments.recogniser,
        listener_steps=arguments.listener_steps,
        critic=arguments.critic,
        compile=not arguments.no_compile,
        own_time=arguments.own_time,
    )
    shape = CodecShape()
    crops = PrefetchedCrops(
        SpeechCrops(
            arguments.speech,
            frames=options.frames,
            batch=options.batch,
            frame_samples=shape.frame_samples,
            clean=arguments.clean,
            seed=parallel.rank() + parallel.world() * worker,
        )
        for worker in range(arguments.workers)
    )
    log.info("%.2f h of speech, %d phones", crops.hours, len(crops.phones))
    features = RecogniserListener.load(options.recogniser).positions.shape[1] if options.recogniser else 0
    shape = dataclasses.replace(shape, num_phones=len(crops.phones), num_features=features)
    trainer = Trainer(crops, shape, options, arguments.out)
    log.info("%.2f M parameters", sum(p.numel() for p in trainer.codec.parameters()) / 1e6)
    if (arguments.out / CHECKPOINT).exists():
        trainer.resume(arguments.out / CHECKPOINT)
    elif arguments.start_from:
        trainer.start_from(any_codec(arguments.start_from))
    trainer.run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--speech", type=Path, required=True, help="a folder of training.codec.speech")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=TrainOptions.minutes)
    parser.add_argument("--decoder-from", type=float, default=TrainOptions.decoder_from, help="share; 0: it alone")
    parser.add_argument("--learning-rate", type=float, default=TrainOptions.learning_rate, help="half to go on with")
    parser.add_argument("--start-from", type=Path, help="a codec to go on with: a checkpoint or a published folder")
    parser.add_argument("--recogniser", type=Path, help="Whisper's folder, of training.neural_voices, to listen with")
    parser.add_argument("--listener-steps", type=int, default=TrainOptions.listener_steps, help="0: no such listener")
    parser.add_argument("--critic", action="store_true", help="a critic beside the decoder, when codes are final")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--processes", type=int, help="default: 2 on a CPU, 1 on a GPU")
    parser.add_argument("--batch", type=int, default=TrainOptions.batch, help="crops of 1.6 s a process and step")
    parser.add_argument("--workers", type=int, default=1, help="threads a process that draw crops")
    parser.add_argument("--clean", action="store_true", help="speech as recorded: for a decoder of few voices")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--own-time", action="store_true", help="minutes of its own work, not of the clock on the wall")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    processes = arguments.processes or (2 if arguments.device == "cpu" else 1)
    parallel.run(processes, _train, arguments)


if __name__ == "__main__":
    main()
