"""Linear layers in every number format, against plain arithmetic."""

from types import SimpleNamespace

import pytest
import torch

from personaplex.nn import precision
from personaplex.nn import weight as weight_module
from personaplex.nn.linear import Linear
from personaplex.nn.packing import (
    FILE_LAYOUT,
    INT4_GROUP_SIZES,
    KERNEL_LAYOUTS,
    ROW_LAYOUT,
    PackedWeight,
    WeightFormat,
    cpu_int4_layout,
    dequantize_int4,
    dequantize_int8,
    int4_group_size,
    pack_int4,
    quantize_int4,
    quantize_int8,
    scales_by_block,
    scales_by_group,
    unpack_int4,
)

FLOAT32, BFLOAT16, INT8, INT4 = WeightFormat
KERNEL_SHAPES = [(192, 256), (1024, 128)]
ODD_SHAPES = [(7, 44), (30, 7), (88, 16), (1, 1), (130, 100)]
ROWS = (1, 3, 65, 200)
BFLOAT16_ERROR = 2.0**-7
"""Two roundings to bfloat16, in and out."""


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def loaded(weight: torch.Tensor, format: WeightFormat, group_size: int = 32) -> Linear:
    linear = Linear(weight.shape[1], weight.shape[0])
    linear.load_(weight, format, group_size=group_size)
    return linear


def as_held(weight: torch.Tensor, format: WeightFormat, group_size: int = 32) -> torch.Tensor:
    """The float32 weight that a format stands for."""
    if format is INT8:
        return dequantize_int8(*quantize_int8(weight))
    if format is INT4:
        held = dequantize_int4(*quantize_int4(weight, int4_group_size(weight.shape[1], group_size)))
        return held[: weight.shape[0], : weight.shape[1]]
    return weight.to(format.dtype).float()


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


# --- what a layer answers


@pytest.mark.parametrize("shape", KERNEL_SHAPES + ODD_SHAPES, ids=str)
@pytest.mark.parametrize("format", list(WeightFormat), ids=lambda format: format.value)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["from_float32", "from_bfloat16"])
def test_a_layer_is_its_weights_matmul(shape, format, dtype):
    weight = torch.randn(shape) / shape[1] ** 0.5
    linear, held = loaded(weight, format), as_held(weight, format)
    exact = format is FLOAT32 and dtype is torch.float32
    for rows in ROWS:
        x = torch.randn(rows, shape[1]).to(dtype)
        y = linear(x)
        assert y.shape == (rows, shape[0])
        assert y.dtype == dtype
        assert relative_error(y, x.float() @ held.t()) < (1e-5 if exact else BFLOAT16_ERROR), rows


@pytest.mark.parametrize("format", list(WeightFormat), ids=lambda format: format.value)
def test_axes_in_front_stay(format):
    linear = loaded(torch.randn(48, 64), format)
    x = torch.randn(2, 3, 5, 64)
    y = linear(x)
    assert y.shape == (2, 3, 5, 48)
    assert torch.allclose(y[1, 2, 4], linear(x[1, 2, 4]), atol=0.2)
    assert linear(torch.randn(4, 2, 64).transpose(0, 1)).shape == (2, 4, 48)


@pytest.mark.parametrize("format", [INT8, INT4], ids=lambda format: format.value)
def test_the_two_ways_of_computing_agree(format):
    """Few rows go through the packed kernel, many are multiplied with the dequantised weight."""
    linear = loaded(torch.randn(320, 256), format)
    x = torch.randn(linear.weight.packed_kernel_max_rows + 1, 256).bfloat16().float()
    many = linear(x)
    few = torch.cat([linear(x[:1]), linear(x[1:])])
    assert relative_error(few, many) < BFLOAT16_ERROR


def test_a_pytorch_that_cannot_tell_of_bfloat16_instructions_has_none(monkeypatch):
    """PyTorch for Apple's processors comes without oneDNN: the first prompt failed there."""
    monkeypatch.setattr(precision.platform, "machine", lambda: "arm64")
    knows = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: True)
    for library, answer in ((torch.ops.a_library_that_is_not_there, False), (knows, True)):
        monkeypatch.setattr(torch.ops, "mkldnn", library)
        assert precision.multiplies_bfloat16.__wrapped__() is answer


@pytest.mark.parametrize("shape", [(1100, 64), (7, 44)], ids=str)
@pytest.mark.parametrize("format", [BFLOAT16, INT8, INT4], ids=lambda format: format.value)
def test_with_and_without_bfloat16_instructions(format, shape, monkeypatch):
    """Without them a prompt took 250 times as long in bfloat16: its products are float32 there."""
    weight, x = torch.randn(shape), torch.randn(2, 30, shape[1]).bfloat16()
    linear, held = loaded(weight, format), as_held(weight, format)
    for supported in (True, False):
        for module in (precision, weight_module):
            monkeypatch.setattr(module, "multiplies_bfloat16", lambda supported=supported: supported)
        assert precision.product_dtype(x) is (torch.bfloat16 if supported else torch.float32)
        answer = linear(x)
        assert answer.dtype is torch.bfloat16 and answer.shape == (2, 30, shape[0])
        assert relative_error(answer, x.float() @ held.t()) < BFLOAT16_ERROR


@pytest.mark.parametrize("format", [BFLOAT16, INT8, INT4], ids=lambda format: format.value)
@pytest.mark.parametrize("rows", [2, 30])
def test_gradients_flow_through_frozen_weights(format, rows):
    weight, x = torch.randn(96, 64), torch.randn(rows, 64, requires_grad=True)
    loaded(weight, format)(x).sum().backward()
    wanted = as_held(weight, format).sum(0).expand(rows, -1)
    assert relative_error(x.grad, wanted) < 2 * BFLOAT16_ERROR


def test_group_sizes_of_int4_run():
    weight = torch.randn(64, 384)
    x = torch.randn(2, 384).bfloat16().float()
    for group_size in INT4_GROUP_SIZES:
        linear = loaded(weight, INT4, group_size)
        assert linear.weight.group_size == group_size
        assert relative_error(linear(x), x @ as_held(weight, INT4, group_size).t()) < BFLOAT16_ERROR


def test_a_group_that_does_not_divide_a_row_becomes_a_smaller_one():
    assert [int4_group_size(width, 128) for width in (4096, 11264, 192, 96, 44)] == [128, 128, 64, 32, 32]
    assert int4_group_size(4096, 32) == 32


def test_a_kernel_of_another_machine(monkeypatch):
    """The layers answer the same where the kernel reads another layout, or none that is known."""
    weight, x = torch.randn(208, 64), torch.randn(3, 64)
    here = loaded(weight, INT4)(x)
    for layout in (*KERNEL_LAYOUTS, None):
        monkeypatch.setattr("personaplex.nn.weight.cpu_int4_layout", lambda layout=layout: layout)
        monkeypatch.setattr("personaplex.nn.weight.native_library", lambda: None)
        linear = loaded(weight, INT4)
        assert torch.equal(
            unpack_int4(linear.weight.data, layout or FILE_LAYOUT),
            unpack_int4(PackedWeight.quantized(weight, INT4, 32).data),
        )
        monkeypatch.setattr(weight_module.Int4Weight, "_has_packed_kernel", lambda *_: False)
        assert relative_error(linear(x), here) < BFLOAT16_ERROR
        monkeypatch.undo()


# --- memory


def test_nothing_is_allocated_before_loading():
    linear = Linear(1_000_000, 1_000_000)
    assert linear.nbytes == 0
    assert not list(linear.parameters())
    with pytest.raises(AssertionError):
        linear(torch.zeros(1, 1_000_000))


def test_bytes_of_a_use():
    weight = torch.randn(128, 256)
    sizes = {format: loaded(weight, format).nbytes for format in WeightFormat}
    values = weight.numel()
    assert sizes == {
        FLOAT32: 4 * values,
        BFLOAT16: 2 * values,
        INT8: values + 2 * 128,  # a bfloat16 scale a row
        INT4: values // 2 + 4 * values // 32,  # a scale and a zero point a group
    }
    assert loaded(weight, INT4, group_size=128).nbytes == values // 2 + 4 * values // 128


def test_packed_weights_are_not_copied():
    for weight in (
        PackedWeight.quantized(torch.randn(64, 64), INT8, 0),
        PackedWeight.quantized(torch.randn(64, 64), INT4, 32),
    ):
        linear = Linear(64, 64)
        linear.load_packed_(weight)
        if weight.format is INT8 or cpu_int4_layout() == FILE_LAYOUT:
            assert linear.weight.data.data_ptr() == weight.data.data_ptr()


def test_plain_weights_of_the_right_type_are_not_copied():
    weight = torch.randn(8, 8)
    assert loaded(weight, FLOAT32).weight.data.data_ptr() == weight.data_ptr()
    assert loaded(weight.bfloat16(), BFLOAT16).weight.data.dtype == torch.bfloat16


# --- quantising


def test_int8_rounds_to_the_nearest_step_of_a_row():
    weight = torch.randn(300, 64) * torch.logspace(-6, 3, 300)[:, None]
    q, scale = quantize_int8(weight)
    assert q.dtype == torch.int8
    assert int(q.abs().max()) <= 127
    assert torch.equal(scale, scale.bfloat16().float()), "the kernel takes the scale in bfloat16"
    assert ((dequantize_int8(q, scale) - weight).abs() <= scale[:, None] * 0.5001).all()
    finest = weight.abs().amax(dim=1) / 127
    assert (scale >= finest).all()
    assert (scale <= finest * (1 + 2.0**-7)).all(), "a scale coarser than need be"


@pytest.mark.parametrize("group_size", INT4_GROUP_SIZES)
def test_int4_rounds_to_the_nearest_step_of_a_group(group_size):
    weight = torch.randn(96, 256) * torch.logspace(-4, 2, 96)[:, None] + 0.1
    packed, scale = quantize_int4(weight, group_size)
    assert scale.shape == (256 // group_size, 96, 2)
    step = scale[..., 0].float().t().repeat_interleave(group_size, dim=1)
    # Beside half a step, the ends of a group move by the rounding of scale and zero to bfloat16.
    slack = weight.abs().unflatten(1, (-1, group_size)).amax(dim=2).repeat_interleave(group_size, dim=1) * 2.0**-7
    assert ((dequantize_int4(packed, scale) - weight).abs() <= 0.5001 * step + slack).all()


def test_equal_and_zero_weights_survive():
    weight = torch.zeros(32, 64)
    weight[1] = 0.25
    for format in (INT8, INT4):
        held = as_held(weight, format)
        assert held.isfinite().all()
        assert torch.allclose(held, weight, atol=1e-2)
        assert not held[0].any()


def test_quantising_a_part_is_quantising_the_whole():
    """Rows of a file are quantised in blocks; where a block ends must not show."""
    weight = torch.randn(600, 64)
    whole, parts = quantize_int8(weight), [quantize_int8(part) for part in weight.split(100)]
    assert torch.equal(whole[0], torch.cat([q for q, _ in parts]))
    packed, scale = quantize_int4(weight, 32)
    again = [quantize_int4(part, 32) for part in weight.split(64)]
    assert torch.equal(unpack_int4(packed)[:600], torch.cat([unpack_int4(p) for p, _ in again])[:600])
    assert torch.equal(scale[:, :600], torch.cat([s for _, s in again], dim=1)[:, :600])


@pytest.mark.parametrize("layout", [*KERNEL_LAYOUTS, ROW_LAYOUT], ids=str)
@pytest.mark.parametrize("rows", [16, 64, 80, 208])
def test_packing_loses_nothing(layout, rows):
    q = torch.randint(0, 16, (rows, 96), dtype=torch.uint8)
    packed = pack_int4(q, layout)
    assert packed.shape == (rows, 48)
    assert torch.equal(unpack_int4(packed, layout), q)


def test_the_layout_of_files_does_not_change():
    """Saved models depend on it: a byte holds rows j and j + 32 of a block; of a smaller one, 2j and 2j + 1."""
    q = torch.zeros(80, 2, dtype=torch.uint8)
    q[3, 1], q[35, 1], q[64 + 4, 0], q[64 + 5, 0] = 7, 9, 2, 13
    flat = pack_int4(q).view(-1)
    assert flat[32 + 3] == 7 | 9 << 4
    assert flat[64 + 2] == 2 | 13 << 4
    assert int(flat.count_nonzero()) == 2


@pytest.mark.parametrize("rows", [2, 64, 88, 192])
def test_scales_by_block_come_back(rows):
    scale = torch.arange(3 * rows * 2).view(3, rows, 2)
    blocks = scales_by_block(scale)
    assert torch.equal(blocks[: 3 * min(rows, 64) * 2].view(3, -1, 2), scale[:, :64])
    assert torch.equal(scales_by_group(blocks, 3, rows), scale)


def test_this_machines_kernel_reads_a_layout_we_know():
    assert cpu_int4_layout() in KERNEL_LAYOUTS


@pytest.mark.parametrize(("rows", "columns"), ODD_SHAPES)
def test_the_row_layout_holds_the_same_weight(rows, columns):
    weight, x = torch.randn(rows, columns), torch.randn(300, columns)
    linear = loaded(weight, INT4)
    want = linear(x)
    linear.use_row_layout_()
    for rows in (300, 1):  # the answer may be rounded to bfloat16 in the one layout alone
        torch.testing.assert_close(linear(x[:rows]), want[:rows], atol=0.1, rtol=BFLOAT16_ERROR)
