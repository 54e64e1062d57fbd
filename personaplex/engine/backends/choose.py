"""What computes the language model's part of a frame on a device: the fastest way that can run the model there."""

from __future__ import annotations

import logging

import torch

from personaplex.engine.backends.cpu_codec import NativeCodec
from personaplex.engine.backends.cpu_predictor import NativePredictor
from personaplex.engine.backends.trial import why_not_trusted
from personaplex.engine.prediction import PlainPredictor, Predictor
from personaplex.machine.inspect import LEAST_CAPABILITY
from personaplex.models.language_model import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.native.library import native_library

log = logging.getLogger(__name__)


def predictor_for(
    lm: LanguageModel, *, slots: int, context: int, device: str, cache_dtype: torch.dtype
) -> Predictor:  # fmt: skip
    """Compiled code on a CPU, Triton's kernels on a GPU; the models themselves where there is neither."""
    if device.startswith("cuda"):
        return _gpu_predictor(lm, slots, context, device, cache_dtype)
    if device == "cpu" and native_library() is not None:
        return NativePredictor(lm)
    return PlainPredictor(lm)


def codec_for(mimi: Mimi, device: str) -> Mimi | NativeCodec:
    """Compiled code on a CPU for single frames; the codec itself where there is none."""
    return NativeCodec(mimi) if device == "cpu" and native_library() is not None else mimi


def _gpu_predictor(
    lm: LanguageModel, slots: int, context: int, device: str, cache_dtype: torch.dtype
) -> Predictor:  # fmt: skip
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        reason: str | None = f"the GPU has compute capability {capability[0]}.{capability[1]}"
    else:
        try:
            from personaplex.engine.backends.triton_predictor import TritonPredictor, why_not
        except ImportError as error:
            reason = f"Triton cannot be imported: {error}"
        else:
            reason = why_not(lm, slots, cache_dtype)
            if reason is None:
                kernels = TritonPredictor(lm, slots=slots, context=context, device=device)
                reason = why_not_trusted(kernels, lm, cache_dtype, device, context, slots)
                if reason is None:
                    return kernels
                kernels.withdraw()
                reason = f"the kernels fail their trial on this GPU: {reason}"
    log.warning("PyTorch's own operators run instead of kernels for few slots: %s", reason)
    return PlainPredictor(lm)
