"""What an engine runs on where there is a GPU: Triton's kernels if they can run the model, and graphs of its frame."""

from __future__ import annotations

import logging

import torch

from personaplex.cuda_graphs import Frame, FrameGraphs
from personaplex.language_model import LanguageModel
from personaplex.prediction import PlainPredictor, Predictor

log = logging.getLogger(__name__)

LEAST_CAPABILITY = (8, 0)
"""Of a GPU that multiplies bfloat16 numbers on its tensor cores."""


def gpu_predictor(
    lm: LanguageModel, *, slots: int, context: int, device: str, cache_dtype: torch.dtype
) -> Predictor:  # fmt: skip
    """Triton's kernels, or the models themselves with the reason in the log."""
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        reason = f"the GPU has compute capability {capability[0]}.{capability[1]}"
    else:
        try:
            from personaplex.triton_predictor import TritonPredictor, why_not
        except ImportError as error:
            reason = f"Triton cannot be imported: {error}"
        else:
            reason = why_not(lm, slots, cache_dtype)
            if reason is None:
                return TritonPredictor(lm, slots=slots, context=context, device=device)
    log.warning("PyTorch's own operators run instead of kernels for few slots: %s", reason)
    return PlainPredictor(lm)


def frame_graphs(
    frame: Frame, predictor: Predictor, *, slots: int, context: int, frame_samples: int, draws: int, streams: int,
    device: str,
) -> FrameGraphs:  # fmt: skip
    """Graphs of ``Engine.frame``; nothing is recorded before the first frame or ``prepare``."""
    return FrameGraphs(
        frame, slots=slots, context=context, needs_span=predictor.needs_span, frame_samples=frame_samples, draws=draws,
        streams=streams, device=device,
    )  # fmt: skip
