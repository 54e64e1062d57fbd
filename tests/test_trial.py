"""A predictor that answers something else than the plain path is found out, and done without."""

import logging
from dataclasses import replace

import pytest
import torch

from personaplex.engine.backends import choose as acceleration
from personaplex.engine.backends.trial import TRIAL_FRAMES, why_not_trusted
from personaplex.engine.prediction import PlainPredictor
from personaplex.nn.linear import Linear, use_rows_kernel
from personaplex.weights.load import load_model


class Tampered:
    """The plain path with a fault in one of its answers."""

    needs_span = True
    prompt_kernel = None

    def __init__(self, lm, fault):
        self.plain, self.fault = PlainPredictor(lm), fault

    def __call__(self, read, forced, uniform, state, sampler, moves, span):
        return self.fault(self.plain(read, forced, uniform, state, sampler, moves, span), state)


def louder(prediction, state):
    return replace(prediction, text_logits=prediction.text_logits * 1.5)


def nothing_of_a_code(prediction, state):
    logits = prediction.audio_logits.clone()
    logits[:, 3] = 0
    return replace(prediction, audio_logits=logits)


def not_a_number(prediction, state):
    logits = prediction.audio_logits.clone()
    logits[0, 7, 5] = float("nan")
    return replace(prediction, audio_logits=logits)


def forgets(prediction, state):
    state.layers[1].values.zero_()
    return prediction


def stands_still(prediction, state):
    state.position.fill_(TRIAL_FRAMES // 2)
    return prediction


def another_draw(prediction, state):
    return replace(prediction, codes=(prediction.codes + 1) % 2000)


def breaks(prediction, state):
    raise RuntimeError("PTXAS error: out of resource\nmore of it")


FAULTS = {
    louder: "text logits",
    nothing_of_a_code: "audio logits",
    not_a_number: "audio logits",
    forgets: "values",
    stands_still: "position",
    another_draw: "draws another token of stream 1",
    breaks: "RuntimeError: PTXAS error: out of resource",
}


@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8"])
def test_the_plain_path_passes(golden, format):
    model = load_model(golden.folder, format=format, device="cpu")
    assert why_not_trusted(PlainPredictor(model.lm), model.lm, model.cache_dtype, "cpu") is None


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_fault_is_found(golden, fault):
    said = why_not_trusted(Tampered(golden.lm, fault), golden.lm, torch.float32, "cpu")
    assert said is not None and FAULTS[fault] in said and "more of it" not in said


@pytest.mark.parametrize("format", ["float32", "int8"])
def test_as_many_slots_as_there_are_are_tried_too(golden, format):
    def forgets_the_last(prediction, state):
        if len(prediction.text) == 5:
            prediction.audio_logits[-1] = 0
        return prediction

    model = load_model(golden.folder, format=format, device="cpu")
    plain = PlainPredictor(model.lm)
    assert why_not_trusted(plain, model.lm, model.cache_dtype, "cpu", slots=5) is None
    tampered = Tampered(model.lm, forgets_the_last)
    assert why_not_trusted(tampered, model.lm, model.cache_dtype, "cpu", slots=4) is None
    said = why_not_trusted(tampered, model.lm, model.cache_dtype, "cpu", slots=5)
    assert said == "with 5 slots its audio logits are not the plain path's"


class InBlocks:
    """A prompt's kernel that answers what the plain path does, or something else."""

    max_rows = 256

    def __init__(self, factor=1):
        self.factor = factor

    def multiply(self, rows, weight):
        return weight._multiply_in_blocks(rows) * self.factor


def kernels_of(lm):
    return [m.weight.rows_kernel for m in lm.modules() if isinstance(m, Linear)]


@pytest.mark.parametrize("factor", [1, 2])
def test_a_prompts_kernel_is_tried_too(golden, factor):
    model = load_model(golden.folder, format="int8", device="cpu")
    candidate = PlainPredictor(model.lm)
    candidate.prompt_kernel = InBlocks(factor)
    said = why_not_trusted(candidate, model.lm, model.cache_dtype, "cpu")
    assert ("prompt's rows" in said) if factor == 2 else said is None
    assert kernels_of(model.lm) and not any(kernels_of(model.lm)), "a trial leaves no kernel behind"


def test_what_fails_is_withdrawn_and_the_log_says_why(golden, monkeypatch, caplog):
    triton_predictor = pytest.importorskip(
        "personaplex.engine.backends.triton_predictor", reason="Triton is not installed"
    )
    model = load_model(golden.folder, format="int8", device="cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(triton_predictor.TritonPredictor, "__call__", lambda *_: breaks(None, None))

    def on_the_cpu(lm, slots, context, device):
        return made(lm, slots=slots, context=context, device="cpu")

    made = triton_predictor.TritonPredictor
    monkeypatch.setattr(triton_predictor, "TritonPredictor", on_the_cpu)
    monkeypatch.setattr(
        acceleration,
        "why_not_trusted",
        lambda k, lm, dtype, device, context, slots: why_not_trusted(k, lm, dtype, "cpu", context, slots),
    )
    with caplog.at_level(logging.WARNING):
        found = acceleration.predictor_for(model.lm, slots=1, context=40, device="cuda", cache_dtype=model.cache_dtype)
    assert isinstance(found, PlainPredictor)
    assert "fail their trial" in caplog.text and "PTXAS" in caplog.text
    assert not any(kernels_of(model.lm))


@pytest.mark.parametrize("trusted", [True, False])
def test_only_trusted_kernels_multiply_prompts(golden, monkeypatch, trusted):
    """A trial compares with a path without kernels, also where an engine before left its own."""
    triton_predictor = pytest.importorskip(
        "personaplex.engine.backends.triton_predictor", reason="Triton is not installed"
    )
    model = load_model(golden.folder, format="int8", device="cpu")
    use_rows_kernel(model.lm, InBlocks())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    at_trial = []

    def trial(kernels, lm, *_):
        at_trial.extend(kernels_of(lm))
        return None if trusted else "told so"

    monkeypatch.setattr(acceleration, "why_not_trusted", trial)
    made = triton_predictor.TritonPredictor
    monkeypatch.setattr(triton_predictor, "TritonPredictor", lambda lm, device, **o: made(lm, device="cpu", **o))
    acceleration.predictor_for(model.lm, slots=1, context=40, device="cuda", cache_dtype=model.cache_dtype)
    assert at_trial and not any(at_trial)
    assert set(kernels_of(model.lm)) == ({made.prompt_kernel} if trusted else {None})


def test_a_short_context_bounds_the_trial(golden):
    """A candidate has room for its own context and no more."""
    seen = []

    def look(prediction, state):
        seen.append(state.layers[0].keys.shape[2])
        return prediction

    assert why_not_trusted(Tampered(golden.lm, look), golden.lm, torch.float32, "cpu", 40) is None
    assert set(seen) == {40}
