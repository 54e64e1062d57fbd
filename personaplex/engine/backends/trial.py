"""A predictor's trial on the machine it is to run on: its frames are compared with the plain path's.

Kernels are compiled for whatever GPU is found, by whatever compiler is found; neither was there when they
were written. A predictor that fails or answers something else is not used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from personaplex.config import NUM_AGENT_CODEBOOKS
from personaplex.engine.backends.cuda_graphs import slot_buckets
from personaplex.engine.columns import UNKNOWN
from personaplex.engine.prediction import AUDIO_KIND, TEXT_KIND, PlainPredictor, Prediction, Predictor
from personaplex.errors import first_line
from personaplex.messages import SamplingOptions
from personaplex.models.language_model import LanguageModel
from personaplex.nn.attention import KeepingState
from personaplex.nn.cache_rows import loaded, stored
from personaplex.nn.sampling import SamplerState, draw
from personaplex.nn.weight import QuantizedWeight

TRIAL_FRAMES = 320
"""Length of the trial's cache. It is tried half full, more than one program of an attention reads, and passed."""

MANY_FRAMES = 16
"""Length of the cache where as many slots are tried as there are: 8 MB each, of the 7B."""

EXACT_TOLERANCE, ROUNDED_TOLERANCE = 1e-3, 0.1
"""‖difference‖ / ‖answer‖ that float32, and the formats that round, may show."""


@torch.inference_mode()
def why_not_trusted(
    candidate: Predictor, lm: LanguageModel, cache_dtype: torch.dtype, device: str, context: int = TRIAL_FRAMES,
    slots: int = 1,
) -> str | None:  # fmt: skip
    """Why a predictor's answers cannot be trusted, in words; None if they are the plain path's.

    ``lm`` must hold no ``RowsKernel``. context, slots: the most frames of cache and slots that the candidate was made
    for: with one slot, and in every size of a graph up to all of them, it must answer the same. Any error on the way
    counts as a failure.
    """
    try:
        frames = min(TRIAL_FRAMES, context)
        return (
            _frame_differs(candidate, lm, cache_dtype, device, frames, frames // 2)
            or _frame_differs(candidate, lm, cache_dtype, device, frames, 2 * frames)
            or _prompt_differs(candidate, lm, device)
            or _slots_differ(candidate, lm, cache_dtype, device, min(MANY_FRAMES, context), slots)
        )
    except Exception as error:  # a compiler's, a driver's, ours: there is a way that needs none of them
        return f"{type(error).__name__}: {first_line(str(error))}"


def _frame_differs(
    candidate: Predictor, lm: LanguageModel, cache_dtype: torch.dtype, device: str, frames: int, position: int
) -> str | None:
    """Compares a frame at a position of a conversation, before or after its window of ``frames`` is passed."""
    limit = _tolerance(lm)
    column, uniform, sampler = _inputs(lm, device)
    plain, tried = (_state(lm, cache_dtype, device, frames, position) for _ in range(2))
    on = torch.ones(1, dtype=torch.bool, device=device)
    wanted = PlainPredictor(lm)(column, column, uniform, plain, sampler, on, frames)
    found = candidate(column, column, uniform, tried, sampler, on, frames)
    for name in ("text_logits", "audio_logits"):
        if not _close(getattr(found, name), getattr(wanted, name), limit):
            return f"its {name.replace('_', ' ')} are not the plain path's"
    for left, right in zip(plain.leaves(), tried.leaves(), strict=True):
        if left.tensor.dtype is torch.int8:
            same = _close(loaded(right.tensor, torch.float32), loaded(left.tensor, torch.float32), limit)
        elif left.tensor.is_floating_point():
            same = _close(right.tensor.float(), left.tensor.float(), limit)
        else:
            same = torch.equal(right.tensor, left.tensor)
        if not same:
            return f"its {left.name} is not the plain path's"
    unknown = torch.full_like(column, UNKNOWN)
    drawn = candidate(column, unknown, uniform, tried, sampler, ~on, frames)
    return _draws_differ(drawn, uniform, sampler)


def _slots_differ(
    candidate: Predictor, lm: LanguageModel, cache_dtype: torch.dtype, device: str, frames: int, slots: int
) -> str | None:
    """Compares several slots, all with the same input, with one."""
    if slots == 1:
        return None
    limit = _tolerance(lm)
    column, uniform, sampler = _inputs(lm, device)
    on = torch.ones(1, dtype=torch.bool, device=device)
    alone = _state(lm, cache_dtype, device, frames, frames // 2)
    wanted = PlainPredictor(lm)(column, column, uniform, alone, sampler, on, frames)
    for count in slot_buckets(slots)[1:]:
        columns, noise = column.expand(count, -1).contiguous(), uniform.expand(count, -1).contiguous()
        state, many = _state(lm, cache_dtype, device, frames, frames // 2, count), _sampler(device, count)
        found = candidate(columns, columns, noise, state, many, on.expand(count).contiguous(), frames)
        for name in ("text_logits", "audio_logits"):
            answer = getattr(wanted, name)
            if not all(_close(row, answer[0], limit) for row in getattr(found, name)):
                return f"with {count} slots its {name.replace('_', ' ')} are not the plain path's"
        del state
    return None


def _draws_differ(drawn: Prediction, uniform: Tensor, sampler: SamplerState) -> str | None:
    """Each token must be the one that its own logits and noise give; equal logits may change places."""
    for stream in range(uniform.shape[1]):
        kind = TEXT_KIND if stream == 0 else AUDIO_KIND
        logits = drawn.text_logits if stream == 0 else drawn.audio_logits[:, stream - 1]
        token = drawn.text if stream == 0 else drawn.codes[:, stream - 1]
        options = (sampler.temperature[:, kind], sampler.top_k[:, kind], sampler.greedy)
        wanted = draw(logits, uniform[:, stream], *options)
        if not torch.equal(logits.gather(1, token[:, None]), logits.gather(1, wanted[:, None])):
            return f"it draws another token of stream {stream}"
    return None


def _prompt_differs(candidate: Predictor, lm: LanguageModel, device: str) -> str | None:
    """The candidate's kernel for a prompt's rows, on the first weight that it would multiply."""
    kernel = candidate.prompt_kernel
    weight = next((module for module in lm.modules() if isinstance(module, QuantizedWeight)), None)
    if kernel is None or weight is None:
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(kernel.max_rows, weight.in_features, generator=generator).to(device, torch.bfloat16)
    found, wanted = kernel.multiply(x, weight), weight.multiply(x)
    if _close(found.float(), wanted.float(), ROUNDED_TOLERANCE):
        return None
    return "its product of a prompt's rows is not the plain path's"


def _inputs(lm: LanguageModel, device: str) -> tuple[Tensor, Tensor, SamplerState]:
    """A column of known tokens [1, 17], noise [1, 9] and published sampling."""
    c, generator = lm.config, torch.Generator().manual_seed(0)
    column = torch.randint(0, min(c.card, c.text_card), (1, c.num_streams), generator=generator)
    return column.to(device), torch.rand(1, 1 + NUM_AGENT_CODEBOOKS, generator=generator).to(device), _sampler(device)


def _sampler(device: str, slots: int = 1) -> SamplerState:
    sampler = SamplerState.empty(slots, device)
    for row in range(slots):
        sampler.set_row(row, SamplingOptions())
    return sampler


def _state(
    lm: LanguageModel, cache_dtype: torch.dtype, device: str, frames: int, position: int, slots: int = 1
) -> KeepingState:  # fmt: skip
    """Slots in the middle of a conversation that keeps its prompt, all alike and the same at every call."""
    generator = torch.Generator().manual_seed(1)
    state = lm.temporal.initial_state(slots, frames, cache_dtype, device)
    shape = (1, lm.config.num_heads, frames, lm.config.head_dim)
    noise = torch.randn(shape, generator=generator).to(device)
    for layer, cache in enumerate(state.layers):  # numbers are slow to draw: each ring gets them in another order
        cache.keys.copy_(stored(noise.roll(2 * layer, -1), cache_dtype))
        cache.values.copy_(stored(noise.roll(2 * layer + 1, -1), cache_dtype))
    state.position.fill_(position)
    state.kept.fill_(frames // 8)
    state.held.fill_(frames // 16)  # the others were told less than a window ago
    return state


def _tolerance(lm: LanguageModel) -> float:
    return EXACT_TOLERANCE if lm.activation_dtype is torch.float32 else ROUNDED_TOLERANCE


def _close(found: Tensor, wanted: Tensor, limit: float) -> bool:
    """False also where a number is NaN."""
    return bool((found - wanted).norm() <= limit * wanted.norm())
