"""Shared by the tests: the golden checkpoint, loaded once."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from personaplex.weights import LoadedModel, load_model

torch.set_num_threads(1)  # the models here are tiny: threads would only wait for one another

GOLDEN_FOLDER = Path(__file__).parent / "golden"
GOLDEN_TEXT = "You work for First Neuron Bank and your name is Sanni."


@pytest.fixture(scope="session")
def golden() -> LoadedModel:
    """A tiny checkpoint in the published layout, in float32 on the CPU."""
    return load_model(str(GOLDEN_FOLDER), format="float32", device="cpu")


@pytest.fixture(scope="session")
def expected() -> dict:
    """What the model's authors' code answered on it."""
    return load_file(GOLDEN_FOLDER / "expected.safetensors")
