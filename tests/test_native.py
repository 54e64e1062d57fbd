"""The CPU's compiled code answers what PyTorch's operators answer, and is done without where it cannot be made."""

import copy
import ctypes
import logging
import platform
import re
import shutil
import subprocess
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from personaplex.engine.backends.choose import codec_for
from personaplex.engine.backends.cpu_codec import NativeCodec, int24
from personaplex.engine.backends.cpu_predictor import NativePredictor
from personaplex.engine.engine import Engine
from personaplex.engine.prediction import PlainPredictor
from personaplex.messages import SamplingOptions
from personaplex.native import compile as compiling
from personaplex.native import library as native
from personaplex.native.library import native_library
from personaplex.native.structures import STRUCTURES, MatrixKind
from personaplex.nn.linear import Linear
from personaplex.nn.packing import PackedWeight, WeightFormat

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler here"
)
FRAMES = 50
STRESS = Path(__file__).with_name("team_stress.cpp")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@needs_compiler
def test_a_machine_with_a_compiler_has_the_code():
    assert native_library() is not None, native.native_status()
    assert "compiled" in native.native_status()


# --- products


def loaded(format, shape, group_size=32):
    """A layer with a random weight, and what the weight is by the packing's own word: float32 [out, in]."""
    weight, linear = torch.randn(shape), Linear(shape[1], shape[0])
    if not format.quantized:
        linear.load_(weight, format)
        return linear, linear.weight.data.float()
    packed = PackedWeight.quantized(weight, format, group_size)
    linear.load_packed_(packed)
    return linear, packed.plain()[: shape[0], : shape[1]]


@needs_compiler
@pytest.mark.parametrize("format", list(WeightFormat), ids=lambda format: format.value)
@pytest.mark.parametrize("shape", [(192, 256), (88, 44), (7, 33), (130, 100), (70, 600), (1, 1)], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
def test_products_of_every_format(format, shape, rows):
    linear, held = loaded(format, shape)
    x = torch.randn(rows, shape[1])
    wanted = x.double() @ held.double().t()
    y = native.multiply(linear.weight.native_matrix(), x)
    # Columns for quantised weights are made whole numbers of 14 or 16 bits; all else is float32.
    assert float((y - wanted).norm() / wanted.norm()) < (2e-4 if format.quantized else 2e-6)


def in_whole_numbers(x):
    """x [rows, columns] with 32 neighbours a step, of which the largest has 127."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % 32)).unflatten(1, (-1, 32))
    step = padded.abs().amax(dim=-1, keepdim=True) / 127
    return ((padded / step).nan_to_num().round() * step).flatten(1)[:, : x.shape[1]]


@needs_compiler
@pytest.mark.parametrize("format", list(WeightFormat), ids=lambda format: format.value)
@pytest.mark.parametrize(
    "shape", [(192, 256), (64, 600), (128, 384), (88, 44), (7, 33), (130, 100), (70, 600), (1, 1)], ids=str
)
@pytest.mark.parametrize("rows", [1, 29])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_products_with_many_rows(format, shape, rows, dtype):
    linear, held = loaded(format, shape)
    x = torch.randn(rows, shape[1]).to(dtype)
    y = native.multiply_many(linear.weight.native_matrix(), x)
    assert y.dtype is dtype
    x, rounding = x.float(), native.rounding_of_many(linear.weight.native_matrix())
    if rounding is torch.bfloat16:
        x, held = x.bfloat16(), held.bfloat16()
    elif rounding is torch.int8:
        assert format is WeightFormat.INT4 and shape[0] % 64 == 0
        assert float((in_whole_numbers(x) - x).norm() / x.norm()) < 0.01
        x = in_whole_numbers(x)
    wanted = x.double() @ held.double().t()
    # A step is divided by on the one side and multiplied by on the other: now and then a number is rounded elsewhere.
    allowed = 5e-3 if dtype is torch.bfloat16 else 5e-4 if rounding is torch.int8 else 2e-6
    assert float((y - wanted).norm() / wanted.norm()) < allowed


@needs_compiler
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("many", [False, True])
def test_products_of_int4_groups(group_size, many):
    linear, held = loaded(WeightFormat.INT4, (128, 384), group_size)
    x = torch.randn(9, 384)
    x = in_whole_numbers(x) if many else x
    y = (native.multiply_many if many else native.multiply)(linear.weight.native_matrix(), x)
    wanted = x @ held.t()
    assert float((y - wanted).norm() / wanted.norm()) < 2e-4


@needs_compiler
@pytest.mark.parametrize("rows", [64, 70])
def test_many_rows_of_int4_lose_a_row_whose_number_is_lost(rows):
    linear, _ = loaded(WeightFormat.INT4, (rows, 100))
    x = torch.randn(20, 100)
    x[3, 70], x[5, 1], x[7] = float("nan"), float("inf"), 0
    y = native.multiply_many(linear.weight.native_matrix(), x)
    others = [row for row in range(20) if row not in (3, 5)]
    assert not y[[3, 5]].isfinite().any() and y[others].isfinite().all() and not y[7].any()


@needs_compiler
@pytest.mark.parametrize("format", list(WeightFormat), ids=lambda format: format.value)
@pytest.mark.parametrize("columns", [33, 100, 256, 600])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
def test_a_number_that_is_lost_is_lost_in_every_product(format, columns, rows, lost):
    linear, x = Linear(columns, 64), torch.randn(rows, columns)
    linear.load_(torch.randn(64, columns), format)
    x[-1, 0] = lost
    y = native.multiply(linear.weight.native_matrix(), x)
    assert not y[-1].isfinite().any() and y[:-1].isfinite().all()


# --- frames


def plain_engine(golden, slots=1, **options):
    engine = Engine(golden.config, golden.lm, golden.mimi, slots=slots, predictor=PlainPredictor(golden.lm), **options)
    engine.codec = golden.mimi
    return engine


def compiled_engine(golden, slots=1, **options):
    engine = Engine(golden.config, golden.lm, golden.mimi, slots=slots, predictor=NativePredictor(golden.lm), **options)
    engine.codec = NativeCodec(golden.mimi)
    return engine


@needs_compiler
def test_the_engine_takes_compiled_code_on_a_cpu(golden):
    engine = Engine(golden.config, golden.lm, golden.mimi)
    assert isinstance(engine.predictor, NativePredictor)
    assert isinstance(engine.codec, NativeCodec)


@needs_compiler
def test_warming_up_changes_nothing_but_the_first_frame_s_time(golden):
    engine, cold = compiled_engine(golden, 2), compiled_engine(golden, 2)
    engine.warm_up()
    assert all(engine.codec.narrow_numbers(direction) > 0 for direction in ("encode", "decode"))
    for left, right in zip(engine.state.leaves(), cold.state.leaves(), strict=True):
        assert torch.equal(left.tensor, right.tensor), left.name
    everybody = torch.ones(2, dtype=torch.bool)
    for _ in range(4):
        pcm = torch.randn(2, golden.config.mimi.frame_samples) * 0.3
        warm, other = engine.step(pcm, everybody), cold.step(pcm, everybody)
        assert torch.equal(warm.tokens, other.tokens) and torch.equal(warm.pcm, other.pcm)


@needs_compiler
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("greedy", [True, False])
def test_frames_equal_those_of_the_operators(golden, slots, greedy):
    """Past the wrap of every ring (contexts of 40 and 24 steps), with slots that start later and pause."""
    engines = plain_engine(golden, slots), compiled_engine(golden, slots)
    for engine in engines:
        for row in range(slots):
            engine.set_sampling(row, SamplingOptions(greedy=greedy, seed=row))
    for tick in range(FRAMES):
        pcm = torch.randn(slots, golden.config.mimi.frame_samples) * 0.3
        active = torch.tensor([tick >= 5 * row and (row == 0 or tick % 4 != row) for row in range(slots)])
        plain, compiled = (engine.step(pcm, active) for engine in engines)
        assert torch.equal(plain.valid, compiled.valid)
        rows = plain.valid
        assert torch.equal(plain.tokens[rows], compiled.tokens[rows]), tick
        torch.testing.assert_close(compiled.pcm[rows], plain.pcm[rows], atol=1e-5, rtol=0)
        torch.testing.assert_close(compiled.text_logits[rows], plain.text_logits[rows], atol=5e-4, rtol=0)
        torch.testing.assert_close(compiled.audio_logits[rows], plain.audio_logits[rows], atol=5e-4, rtol=0)
    for left, right in zip(engines[0].state.leaves(), engines[1].state.leaves(), strict=True):
        difference = (right.tensor.double() - left.tensor.double()).norm()
        assert difference <= 3e-5 * left.tensor.double().norm() + 1e-6, left.name


def test_24_bits_are_the_nearest_whole_steps_of_their_row():
    values = torch.randn(6, 50) * 10.0 ** torch.arange(-20, 4, 4)[:, None]
    values[0] = 0.0
    values[1] = values[1].bfloat16().clamp(min=values[1].abs().max() * 2**-15)  # few digits, none far below the rest
    values[2, 7] = 2.0**-37 - 2.0**-61  # by far the largest; half a step below a power of two
    values[3, 0] = torch.nan
    values[4, 0] = -torch.inf
    packed = int24(values)[: 6 * (4 + 3 * 50)].reshape(6, -1)
    step = packed[:, :4].contiguous().view(torch.float32)
    bits = torch.zeros(6, 50, 4, dtype=torch.uint8)
    bits[..., 1:] = packed[:, 4:].reshape(6, 50, 3)
    back = bits.view(torch.int32)[..., 0].float() * step
    assert torch.equal(back[:2], values[:2])
    error, top = (back - values).abs(), values.abs().amax(1, keepdim=True)
    assert error[[2, 5]].le(top[[2, 5]] * 2.0**-23).all()
    assert back[3:5].isnan().all()


@needs_compiler
def test_a_lost_weight_of_the_codec_is_heard_of(golden):
    """A NaN that an activation or a softmax swallows would be played as noise instead of ending the conversation."""
    mimi = copy.deepcopy(golden.mimi)
    on = torch.ones(1, dtype=torch.bool)
    codes = torch.zeros(1, 8, 1, dtype=torch.int64)
    assert NativeCodec(mimi).decode(codes, mimi.decoder_state(1), on).isfinite().all()
    first = next(layer for layer in mimi.decoder.layers.values() if hasattr(layer, "weight"))
    with torch.no_grad():
        first.weight[0, 0, 0] = torch.nan
    assert not NativeCodec(mimi).decode(codes, mimi.decoder_state(1), on).isfinite().any()


@needs_compiler
def test_one_codec_decodes_for_one_state_after_another(golden):
    codec, on = NativeCodec(golden.mimi), torch.ones(1, dtype=torch.bool)
    codes = torch.randint(0, 8, (3, 1, 8, 1))
    told = []
    for _ in range(2):
        state = golden.mimi.decoder_state(1)
        told.append(torch.cat([codec.decode(frame, state, on) for frame in codes]))
    assert torch.equal(*told)


@needs_compiler
def test_a_half_precision_cache_and_a_short_context(golden):
    """The bfloat16 cache is the same to its last bit or the one before."""
    options = {"cache_dtype": torch.bfloat16, "context": 12}
    engines = plain_engine(golden, **options), compiled_engine(golden, **options)
    on = torch.ones(1, dtype=torch.bool)
    for _ in range(30):
        pcm = torch.randn(1, golden.config.mimi.frame_samples) * 0.3
        plain, compiled = (engine.step(pcm, on) for engine in engines)
        if not torch.equal(plain.tokens, compiled.tokens):
            break
        torch.testing.assert_close(compiled.text_logits, plain.text_logits, atol=2e-2, rtol=0)
    keys = [engine.state.temporal.layers[0].keys for engine in engines]
    assert keys[1].dtype == torch.bfloat16
    torch.testing.assert_close(keys[1], keys[0], atol=2e-2, rtol=2e-2)


@needs_compiler
@pytest.mark.parametrize("slots", [1, 6])
def test_the_number_of_threads_changes_no_bit(golden, slots):
    outputs = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            engine = compiled_engine(golden, slots)
            generator = torch.Generator().manual_seed(1)
            pcm = torch.randn(12, slots, golden.config.mimi.frame_samples, generator=generator) * 0.3
            moves = [torch.tensor([tick % (row + 2) != 1 for row in range(slots)]) for tick in range(len(pcm))]
            outputs.append([engine.step(frame, active) for frame, active in zip(pcm, moves, strict=True)])
    finally:
        torch.set_num_threads(before)
    for other in outputs[1:]:
        for left, right in zip(outputs[0], other, strict=True):
            assert torch.equal(left.tokens, right.tokens)
            assert torch.equal(left.pcm[left.valid], right.pcm[left.valid])


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_team_computes_every_piece_once_and_in_order(tmp_path, threads):
    """More threads than cores, some of them late: none computes a piece again, or before what it needs."""
    program = tmp_path / "stress"
    command = [
        compiling.find_compiler(),
        "-std=c++17",
        "-O1",
        "-fopenmp",
        f"-I{compiling.SOURCES}",
        str(STRESS),
        "-o",
        program,
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "fopenmp" in built.stderr:
        pytest.skip("this compiler has no OpenMP, so there are no threads")
    assert built.returncode == 0, built.stderr
    phases = 3000
    ended = subprocess.run([program, str(threads), str(phases)], capture_output=True, text=True, timeout=120)
    assert ended.stdout.split() == ["0", str(phases)]


@needs_compiler
def test_recordings_of_many_frames_and_a_new_state(golden):
    codec = codec_for(golden.mimi, "cpu")
    on = torch.ones(1, dtype=torch.bool)
    pcm = torch.randn(1, 4 * golden.config.mimi.frame_samples) * 0.3
    whole = codec.encode(pcm, golden.mimi.encoder_state(1), on)
    for _ in range(2):  # the second time with a state that was not there before
        state = golden.mimi.encoder_state(1)
        frames = [codec.encode(frame, state, on) for frame in pcm.split(golden.config.mimi.frame_samples, dim=1)]
        assert torch.equal(torch.cat(frames, dim=2), whole)


@needs_compiler
def test_a_state_that_would_have_to_be_copied_is_refused(golden):
    """Compiled code writes into the state where it lies: a copy would take the steps in its place."""
    state = golden.mimi.encoder_state(1)
    cache = state.transformer.layers[0]
    cache.keys = cache.keys.transpose(1, 2).contiguous().transpose(1, 2)
    pcm = torch.zeros(1, golden.config.mimi.frame_samples)
    with pytest.raises(AssertionError):
        codec_for(golden.mimi, "cpu").encode(pcm, state, torch.ones(1, dtype=torch.bool))


# --- the interface


@needs_compiler
def test_python_and_cpp_describe_the_same_structs():
    header = (compiling.SOURCES / "interface.h").read_text(encoding="utf-8")
    assert set(re.findall(r"^struct (\w+) \{", header, re.MULTILINE)) == {s.__name__ for s in STRUCTURES}
    native._check_interface(native_library(), STRUCTURES)


@needs_compiler
def test_a_struct_that_differs_is_named():
    class Matrix(ctypes.Structure):
        _fields_ = native.Matrix._fields_[:-1]

    class Unheard(ctypes.Structure):
        _fields_ = native.Matrix._fields_

    with pytest.raises(compiling.NativeUnavailable, match="Matrix has 40 bytes.* at 32 .* 40 and 36"):
        native._check_interface(native_library(), [Matrix])
    with pytest.raises(compiling.NativeUnavailable, match="struct Unheard"):
        native._check_interface(native_library(), [Unheard])


@needs_compiler
def test_a_kind_that_differs_is_named(monkeypatch):
    monkeypatch.setattr(native, "MatrixKind", [*MatrixKind, IntEnum("Other", {"INT4": 9}).INT4])
    with pytest.raises(compiling.NativeUnavailable, match="kind INT4 is 9"):
        native._check_interface(native_library(), STRUCTURES)


@needs_compiler
def test_functions_take_what_they_declare():
    with pytest.raises(ctypes.ArgumentError):
        native_library().personaplex_multiply(1.5, None, 1, None, 1)


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize(
    "flags", [(), ("-march=haswell", "-fopenmp"), ("-march=skylake-avx512", "-fopenmp")], ids=" ".join
)
def test_the_code_compiles_without_warnings(tmp_path, compiler, flags):
    path = shutil.which(compiler)
    if path is None or (flags and "march" in flags[0] and platform.machine() not in ("x86_64", "AMD64")):
        pytest.skip(f"{compiler} {' '.join(flags)} is not for this machine")
    quiet = ()
    if compiler == "g++" and "avx512" in " ".join(flags):
        quiet = ("-Wno-uninitialized", "-Wno-maybe-uninitialized")  # of GCC's own headers, GCC bug 105593
    for source in compiling.source_files():
        words = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", *flags, *quiet, "-c", str(source)]
        done = subprocess.run([path, *words, "-o", str(tmp_path / "unit.o")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:2000]


# --- without a compiler


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No code compiled yet: an empty home, and nothing remembered."""
    monkeypatch.setenv("PERSONAPLEX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(compiling.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    native._load.cache_clear()
    yield monkeypatch
    native._load.cache_clear()


@pytest.mark.parametrize(
    ("compiler", "said"), [("", "not a program"), ("/nowhere/c++", "not a program"), ("false", "fails")]
)
def test_without_a_compiler_the_operators_run_and_the_log_says_why(fresh, golden, caplog, compiler, said):
    fresh.setenv("CXX", compiler)
    with caplog.at_level(logging.WARNING):
        engine = Engine(golden.config, golden.lm, golden.mimi)
    assert isinstance(engine.predictor, PlainPredictor)
    assert engine.codec is golden.mimi
    assert said in caplog.text
    assert said in native.native_status()


@needs_compiler
def test_what_was_compiled_once_is_taken_again(fresh):
    assert native_library() is not None
    native._load.cache_clear()
    fresh.setattr(compiling, "compile_library", lambda *_: pytest.fail("compiled twice"))
    assert native_library() is not None


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [(), ("-mavx",), ("-march=haswell",), ("-march=skylake-avx512",)],
    ids=["any processor", "AVX", "AVX2", "AVX512"],
)
def test_other_processors(fresh, golden, flags):
    """The same sources for narrower vectors, on a machine that has them too."""
    needed = ("AVX512",) if "skylake" in " ".join(flags) else ("AVX2", "AVX512")
    if flags and torch.backends.cpu.get_cpu_capability() not in needed:
        pytest.skip(f"this processor has none of {', '.join(needed)}")
    fresh.setattr(compiling, "flag_sets", lambda: [(*flags, *compiling.THREAD_FLAGS), flags])
    for format in WeightFormat:
        for shape in ((192, 256), (88, 44), (7, 33)):
            test_products_of_every_format(format, shape, rows=3)
            for dtype in (torch.float32, torch.bfloat16):
                test_products_with_many_rows(format, shape, rows=20, dtype=dtype)
    test_frames_equal_those_of_the_operators(golden, slots=2, greedy=True)


def test_a_macs_stand_in_for_a_compiler_is_left_alone(monkeypatch):
    """Run, it would open a window that asks to install the real one."""
    monkeypatch.setattr(compiling.sys, "platform", "darwin")
    monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CXX", raising=False)
    asked = []

    def run(words, **_):
        asked.append(words)
        return SimpleNamespace(returncode=2)

    monkeypatch.setattr(compiling.subprocess, "run", run)
    with pytest.raises(compiling.NativeUnavailable, match="no C\\+\\+ compiler"):
        compiling.find_compiler()
    assert asked and all(words == ["xcode-select", "-p"] for words in asked)
    monkeypatch.setattr(compiling.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    assert compiling.find_compiler() == "/usr/bin/c++"
