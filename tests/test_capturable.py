"""A frame has no host decision inside: the same operations on the same addresses, whatever the state holds."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from personaplex.engine.backends.cuda_graphs import FrameGraphs, at_least, slot_buckets, span_buckets
from personaplex.engine.engine import DRAWS_PER_FRAME, Engine
from personaplex.engine.prediction import PlainPredictor
from personaplex.messages import SamplingOptions

READS_THE_DEVICE = {
    "aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::nonzero_static", "aten::masked_select",
    "aten::is_nonzero", "aten::equal", "aten::_unique2", "aten::unique_dim", "aten::bincount",
    "aten::repeat_interleave.Tensor", "aten::lift_fresh", "aten::lift_fresh_copy",
}  # fmt: skip


class Recorder(TorchDispatchMode):
    """Fails on what waits for the device or depends on its data; keeps every operation with its shapes."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name if func._overloadname == "default" else f"{func._schema.name}.{func._overloadname}"
        assert func._schema.name not in READS_THE_DEVICE and name not in READS_THE_DEVICE, f"{name} in a frame"
        if func._schema.name.startswith("aten::index"):
            masks = [
                leaf for leaf in tree_leaves(args[1:]) if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool
            ]
            assert not masks, f"{name} with a mask: its shape depends on data"
        result = func(*args, **(kwargs or {}))
        shapes = [tuple(leaf.shape) for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        self.operations.append((name, shapes))
        return result


def make(golden, slots=2):
    engine = Engine(golden.config, golden.lm, golden.mimi, slots=slots, predictor=PlainPredictor(golden.lm))
    engine.codec = golden.mimi  # compiled code hides its operations
    return engine


def inputs(slots, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(slots, 1920, generator=generator) * 0.3, torch.rand(slots, DRAWS_PER_FRAME, generator=generator)


def record(engine, active, seed):
    with torch.inference_mode(), Recorder() as recorder:
        engine.frame(*inputs(engine.slots, seed), active, engine.context)
    return recorder.operations


def test_a_frame_is_the_same_operations_at_every_point_of_a_conversation(golden):
    engine = make(golden)
    both, one = torch.tensor([True, True]), torch.tensor([False, True])
    record(engine, both, 0)  # tables that are computed once
    first = record(engine, both, 1)
    assert len(first) > 500
    engine.set_sampling(0, SamplingOptions(seed=3, top_k_text=5))
    engine.keep(1)
    for seed in range(2, 60):  # past the ring's wrap
        with torch.inference_mode():
            engine.frame(*inputs(2, seed), both if seed % 3 else one, engine.context)
    assert record(engine, one, 60) == first
    engine.reset(1)
    assert record(engine, both, 61) == first


def test_the_recorder_finds_host_decisions():
    """The checks above can fail."""
    values = torch.arange(4.0)
    for decides in (
        lambda: values.sum().item(),
        lambda: values.nonzero(),
        lambda: values[values > 1],
        lambda: values.masked_select(values > 1),
        lambda: bool(values[0] > 1),
    ):
        with pytest.raises(AssertionError, match="in a frame|depends on data"), Recorder():
            decides()


def test_every_state_tensor_keeps_its_address(golden):
    engine = make(golden)
    addresses = {leaf.name: leaf.tensor.data_ptr() for leaf in engine.state.leaves()}
    with torch.inference_mode():
        for seed in range(3):
            engine.frame(*inputs(2, seed), torch.tensor([True, False]), engine.context)
            engine.frame(*(tensor[:1] for tensor in inputs(2, seed)), torch.tensor([True]), engine.context)
    assert {leaf.name: leaf.tensor.data_ptr() for leaf in engine.state.leaves()} == addresses


class Repeat:
    """Stands in for a CUDA graph on a CPU: runs the recorded work again, into the same output tensors."""

    def __init__(self):
        self.recorded = 0

    def warm_up(self, work):
        work(self.beside)

    def record(self, work):
        self.recorded += 1
        static = work(self.beside)

        def replay():
            fresh = work(self.beside)
            static.text_logits.copy_(fresh.text_logits)
            static.audio_logits.copy_(fresh.audio_logits)

        # Recording a graph runs nothing; here it did, with nobody moving.
        return replay, static

    def beside(self, work):
        result = work()  # before what it runs beside, as a second stream might
        return lambda: result

    def wait(self):
        pass


def with_graphs(engine):
    capture = Repeat()
    engine.run_frame = FrameGraphs(
        engine.frame, slots=engine.slots, context=engine.context, needs_span=True, frame_samples=engine.frame_samples,
        draws=DRAWS_PER_FRAME, streams=engine.config.lm.num_streams, device="cpu", capture=capture,
    )  # fmt: skip
    return capture


def talk(engine, ticks):
    """[(tokens, valid, pcm)] of a conversation whose slots come and go."""
    found = []
    for row in range(engine.slots):
        engine.set_sampling(row, SamplingOptions(seed=row))
    engine.prefill_frames(0, torch.randint(0, 400, (12, 17), generator=torch.Generator().manual_seed(0)))
    engine.keep(0)
    for tick in range(ticks):
        active = torch.tensor([(tick + row) % (row + 2) != 0 for row in range(engine.slots)])
        out = engine.step(inputs(engine.slots, tick)[0], active)
        found.append((out.tokens[active], out.valid[active], out.pcm[active], out.valid.any() and not active.any()))
    return found


def test_the_graphs_give_what_the_engine_gives(golden):
    plain, graphed = make(golden, 3), make(golden, 3)
    capture = with_graphs(graphed)
    for want, have in zip(talk(plain, 50), talk(graphed, 50), strict=True):
        assert torch.equal(want[0], have[0]) and torch.equal(want[1], have[1])
        torch.testing.assert_close(have[2], want[2], atol=1e-5, rtol=0)
        assert not have[3]
    assert capture.recorded >= 2  # several numbers of slots were met
    for want, have in zip(plain.state.leaves(), graphed.state.leaves(), strict=True):
        torch.testing.assert_close(have.tensor, want.tensor, atol=1e-4, rtol=0)


def test_outputs_stay_when_the_next_frame_comes(golden):
    engine = make(golden, 1)
    with_graphs(engine)
    on = torch.ones(1, dtype=torch.bool)
    outs = [engine.step(inputs(1, seed)[0], on) for seed in range(4)]
    kept = [(out.tokens.clone(), out.pcm.clone()) for out in outs]
    engine.step(inputs(1, 9)[0], on)
    assert all(torch.equal(out.tokens, t) and torch.equal(out.pcm, p) for out, (t, p) in zip(outs, kept, strict=True))
    assert not torch.equal(outs[2].pcm, outs[3].pcm)


def test_graphs_are_recorded_once_and_again_when_asked(golden):
    engine = make(golden, 1)
    capture = with_graphs(engine)
    before = engine.export(0)
    engine.run_frame.prepare()
    assert capture.recorded == len(engine.run_frame.slot_buckets) * len(engine.run_frame.span_buckets)
    after = engine.export(0)
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())
    recorded = capture.recorded
    engine.step(inputs(1, 0)[0], torch.ones(1, dtype=torch.bool))
    assert capture.recorded == recorded
    engine.run_frame.recapture()
    engine.step(inputs(1, 1)[0], torch.ones(1, dtype=torch.bool))
    assert capture.recorded == recorded + 1


@pytest.mark.parametrize("fails", ["warm_up", "record"])
@pytest.mark.parametrize("prepared", [True, False])
def test_frames_that_cannot_be_recorded_run_without_graphs(golden, caplog, fails, prepared):
    """No frame is lost: the conversation is the same, token for token, and the log says why it is slower."""
    plain, graphed = make(golden), make(golden)
    capture = with_graphs(graphed)

    def refuse(work):
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with ...")

    setattr(capture, fails, refuse)
    with caplog.at_level("WARNING"):
        if prepared:
            graphed.warm_up()
        for want, have in zip(talk(plain, 12), talk(graphed, 12), strict=True):
            assert torch.equal(want[0], have[0]) and torch.equal(want[1], have[1])
    assert caplog.text.count("no CUDA graph") == 1
    assert "operation not permitted" in caplog.text and "Compile with" not in caplog.text


@pytest.mark.parametrize(
    ("slots", "buckets"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (64, (1, 2, 4, 8, 16, 32, 64))]
)
def test_slot_buckets(slots, buckets):
    assert slot_buckets(slots) == buckets
    assert at_least(buckets, slots) == slots


def test_span_buckets():
    assert span_buckets(3000, True) == (64, 128, 256, 512, 1024, 2048, 3000)
    assert span_buckets(40, True) == (40,)
    assert span_buckets(3000, False) == (3000,)
    assert at_least(span_buckets(3000, True), 65) == 128
