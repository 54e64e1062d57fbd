"""Shared by the tests: the golden checkpoint, loaded once; visitors with a real browser."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import ROOT, Browser, microphone_file, require_browser
from safetensors.torch import load_file

from personaplex.audio.files import read_recording
from personaplex.weights.load import LoadedModel, load_model

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


@pytest.fixture(scope="module")
def playwright():
    require_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def microphone(tmp_path_factory) -> Path:
    """A question, again and again, with time to answer."""
    question = read_recording(ROOT / "examples" / "questions" / "teacher.wav").pcm
    sound = np.concatenate([np.zeros(24_000, np.float32), question, np.zeros(5 * 24_000, np.float32)])
    return microphone_file(tmp_path_factory.mktemp("microphone") / "question.wav", sound, 24_000)


@pytest.fixture
def visitor(playwright, microphone):
    """Makes browsers, and closes them."""
    browsers = []

    def make(sound: Path = microphone, *flags: str) -> Browser:
        browsers.append(Browser(playwright, sound, *flags))
        return browsers[-1]

    yield make
    for browser in browsers:
        with contextlib.suppress(Exception):
            browser.close()


@pytest.fixture
def seeded():
    """One thread: tensors this small are only slowed down by more, badly so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
