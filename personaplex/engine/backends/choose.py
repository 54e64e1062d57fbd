"""Choice of the backends: the fastest predictor and codec that can run a model on a device."""

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
from personaplex.nn.linear import use_rows_kernel

log = logging.getLogger(__name__)


def predictor_for(
    lm: LanguageModel, *, slots: int, context: int, device: str, cache_dtype: torch.dtype
) -> Predictor:  # fmt: skip
    """Compiled code on a CPU, Triton kernels on a GPU; the models themselves where there is neither."""
    if device.startswith("cuda"):
        return _gpu_predictor(lm, slots, context, device, cache_dtype)
    if device == "cpu" and native_library() is not None:
        return NativePredictor(lm)
    return PlainPredictor(lm)


def codec_for(mimi: Mimi, device: str) -> Mimi | NativeCodec:
    """Compiled code for single frames on a CPU; the codec itself where there is none."""
    return NativeCodec(mimi) if device == "cpu" and native_library() is not None else mimi


def _gpu_predictor(
    lm: LanguageModel, slots: int, context: int, device: str, cache_dtype: torch.dtype
) -> Predictor:  # fmt: skip
    """Triton kernels that passed their trial, which then multiply prompts too; else the models themselves."""
    use_rows_kernel(lm, None)  # another engine may have left one; the trial compares with a path without kernels
    kernels, reason = _trusted_kernels(lm, slots, context, device, cache_dtype)
    if kernels is not None:
        use_rows_kernel(lm, kernels.prompt_kernel)
        return kernels
    log.warning("PyTorch's own operators run instead of kernels for few slots: %s", reason)
    return PlainPredictor(lm)


def _trusted_kernels(
    lm: LanguageModel, slots: int, context: int, device: str, cache_dtype: torch.dtype
) -> tuple[Predictor | None, str]:
    """The kernels, or None and the reason why they cannot be used."""
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return None, f"the GPU has compute capability {capability[0]}.{capability[1]}"
    try:
        from personaplex.engine.backends.triton_predictor import TritonPredictor, why_not
    except ImportError as error:
        return None, f"Triton cannot be imported: {error}"
    reason = why_not(lm, slots, cache_dtype)
    if reason is not None:
        return None, reason
    kernels = TritonPredictor(lm, slots=slots, context=context, device=device)
    reason = why_not_trusted(kernels, lm, cache_dtype, device, context, slots)
    if reason is not None:
        return None, f"the kernels fail their trial on this GPU: {reason}"
    return kernels, ""
