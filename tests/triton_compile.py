"""Compile the Triton kernels of the 7B for a Hopper GPU that need not be there; prints how many there are.

    python -m tests.triton_compile --formats bfloat16,int8 --slots 1,32 --dependent-launch

Fails if one does not compile, or keeps its registers in memory although it runs all the time.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from personaplex.config import ModelConfig
from personaplex.engine.backends.triton_predictor import KernelOptions, TritonPredictor
from personaplex.models.language_model import LanguageModel
from personaplex.nn.linear import Linear
from personaplex.nn.packing import ROW_LAYOUT, WeightFormat
from personaplex.nn.sampling import SamplerState
from personaplex.nn.weight import FloatWeight, Int4Weight, Int8Weight

CONTEXT_FRAMES, GROUP_SIZE = 3000, 32
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MAY_SPILL = {"draw_kernel"}
"""One program looks at all text logits, once a frame."""


class AbsentHopper:
    """What the compiler asks of a driver."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(found: dict[str, Any]) -> Callable:
    """Instead of a launch: compile for the arguments' types and keep what came out."""
    run = JITFunction.run

    def compiled(self: JITFunction, *args: Any, grid: Any, warmup: bool, **fixed: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **fixed)
        found[kernel.hash] = kernel
        return kernel

    return compiled


def hollow_model(format: WeightFormat) -> LanguageModel:
    """The 7B's shapes without memory."""

    def hollow(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    lm = LanguageModel(ModelConfig.personaplex_7b().lm)
    for module in lm.modules():
        if isinstance(module, Linear):
            rows, columns = module.out_features, module.in_features
            if format is WeightFormat.INT8:
                module.weight = Int8Weight(rows, columns, hollow(rows, columns, dtype=torch.int8), hollow(rows))
            elif format is WeightFormat.INT4:
                data = hollow(rows, columns // 2, dtype=torch.uint8)
                scale = hollow(columns // GROUP_SIZE, rows, 2)
                module.weight = Int4Weight(rows, columns, data, scale, GROUP_SIZE, ROW_LAYOUT)
            else:
                module.weight = FloatWeight(hollow(rows, columns, dtype=format.dtype), format)
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(hollow(*value.shape), requires_grad=False))
    lm.activation_dtype = format.dtype
    return lm


@torch.inference_mode()
def compile_frame(format: WeightFormat, slots: int, dependent_launch: bool) -> None:
    lm = hollow_model(format)
    options = KernelOptions(dependent_launch=dependent_launch)
    predict = TritonPredictor(lm, slots=slots, context=CONTEXT_FRAMES, device="meta", options=options)
    state = lm.temporal.initial_state(slots, CONTEXT_FRAMES, lm.activation_dtype, "meta")
    column = torch.empty(slots, 17, dtype=torch.int64, device="meta")
    noise, moves = torch.empty(slots, 9, device="meta"), torch.empty(slots, dtype=torch.bool, device="meta")
    predict(column, column, noise, state, SamplerState.empty(slots, "meta"), moves, CONTEXT_FRAMES)


def stack_bytes(kernel: Any) -> int:
    """Memory a thread uses for registers it lacks."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        words = [str(TOOLS / "cuobjdump"), "-res-usage", file.name]
        report = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return int(re.findall(r"STACK:(\d+)", report)[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="bfloat16,int8,int4")
    parser.add_argument("--slots", default="1,2,64")
    parser.add_argument("--dependent-launch", action="store_true")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    driver.set_active(AbsentHopper())
    JITFunction.run = compile_only(found)
    for format in given.formats.split(","):
        for slots in map(int, given.slots.split(",")):
            compile_frame(WeightFormat(format), slots, given.dependent_launch)
    spilling = {kernel.name: stack_bytes(kernel) for kernel in found.values() if stack_bytes(kernel)}
    assert spilling.keys() <= MAY_SPILL, f"bytes of stack a thread: {spilling}"
    print(f"{len(found)} kernels")


if __name__ == "__main__":
    main()
