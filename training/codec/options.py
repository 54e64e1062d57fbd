"""Options of the embedded codec's training: times, rates and weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.loop import cosine, warm_up

PLAIN, JOINT, DECODER = PHASES = "plain", "joint", "decoder"


@dataclass(frozen=True)
class TrainOptions:
    minutes: float = 55.0
    batch: int = 3  # crops a process
    frames: int = 20  # of a crop: longer than the transformers' window
    joint_from: float = 0.3  # share of the time
    decoder_from: float = 0.7
    learning_rate: float = 1.2e-3
    last_rate: float = 0.03  # share of the learning rate that is left when the codes freeze, and at the end
    decoder_rate: float = 0.4  # share of it that the decoder alone starts with again
    warmup_steps: int = 300
    semantic_weight: float = 0.15
    commitment_weight: float = 0.25
    listener_weight: float = 0.4  # its gradient is three times as large as the spectra's
    listener_steps: int = 1200
    recogniser: Path | None = None  # Whisper in CTranslate2's form
    recogniser_weight: float = 4.0  # its gradient is twice as large as that of the spectra
    feature_weight: float = 0.5  # of the recogniser's features, read from codebook 0
    critic: bool = False  # while the decoder learns alone
    critic_share: float = 0.7  # of its gradient's size beside that of all other losses
    critic_feature_share: float = 0.7
    critic_rate: float = 2e-4
    critic_head_start: int = 200
    raw_share: float = 0.3  # of the sequences of the joint phase, left unquantised
    few_share: float = 0.05  # … and with half of the codebooks
    clip_norm: float = 2.0
    cluster_batches: int = 100
    checkpoint_sec: float = 240.0
    log_steps: int = 200
    compile: bool = True
    own_time: bool = False  # minutes are of CPU time: for a machine with other work
    seed: int = 0

    def phase(self, share: float) -> str:
        if share >= self.decoder_from:
            return DECODER
        return PLAIN if share < self.joint_from else JOINT

    def rate(self, step: int, share: float) -> float:
        """Two cosines: one until the codes freeze, a lower one for the decoder alone."""
        if share < self.decoder_from:
            first, done = 1.0, share / self.decoder_from
        else:
            first, done = self.decoder_rate, (share - self.decoder_from) / (1 - self.decoder_from)
        return self.learning_rate * warm_up(step, self.warmup_steps) * cosine(first, self.last_rate, done)
