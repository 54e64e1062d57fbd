"""The page's flags and variables, and what is refused before it is up."""

from __future__ import annotations

import os
import shutil

import pytest
from conftest import GOLDEN_FOLDER

from personaplex.cli import main as cli
from personaplex.cli import page as page_module
from personaplex.cli.page import check_model_and_device
from personaplex.errors import PersonaPlexError
from personaplex.settings import Settings


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in list(os.environ):
        if name.startswith("PERSONAPLEX_"):
            monkeypatch.delenv(name)


@pytest.fixture
def started(monkeypatch):
    """Settings of the pages that were started."""
    seen: list[Settings] = []
    monkeypatch.setattr(page_module, "run_page", seen.append)
    return seen


def test_flags_come_before_variables_before_defaults(started, monkeypatch):
    for name, value in {"PORT": "7000", "SHARE": "yes", "CONVERSATION_SEC": "90"}.items():
        monkeypatch.setenv(f"PERSONAPLEX_{name}", value)
    assert cli.run(cli.app, ["page", "--port", "7001", "--no-record", "--conversations=2"], "personaplex") == 0
    assert cli.run(cli.page_app, ["--port", "7001", "--no-record", "--conversations=2"], "python app.py") == 0
    settings, the_same = started
    assert settings == the_same
    assert (settings.port, settings.share, settings.record) == (7001, True, False)
    assert (settings.conversations, settings.conversation_sec, settings.model) == (2, 90.0, "auto")


@pytest.mark.parametrize(
    ("arguments", "variable", "hint"),
    [
        (["--prot", "7000"], "", "--prot is not known; did you mean --port?"),
        (["--modle=nano"], "", "--modle is not known; did you mean --model?"),
        (["--port", "x"], "", "--port is 'x'; a whole number is needed"),
        (["--port", "70000"], "", "1 to 65535"),
        (["--conversations", "0"], "", "1 to 64"),
        (["--model"], "", "'--model' requires an argument"),
        (["--ssl-cert", "a.pem"], "", "belong together"),
        (["--device", "tpu"], "", "device is 'tpu'; auto, cpu and cuda are allowed"),
        (["--dtype", "int5"], "", "dtype is 'int5'; auto, float32, bfloat16, int8, int4 are allowed"),
        ([], "CONVERSATION=2", "did you mean PERSONAPLEX_CONVERSATIONS?"),
        ([], "RECORD=perhaps", "true"),
        ([], "DTYPE=int5", "int8"),
        (["nano"], "", "unexpected extra argument"),
    ],
)
def test_a_slip_fails_with_what_is_allowed(started, monkeypatch, capsys, arguments, variable, hint):
    if variable:
        monkeypatch.setenv("PERSONAPLEX_" + variable.partition("=")[0], variable.partition("=")[2])
    assert cli.run(cli.page_app, arguments, "python app.py") == 2
    said = capsys.readouterr().err.splitlines()
    assert not started and len(said) == 1
    assert said[0].startswith("error: ") and hint in said[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(model="nosuch"), "there is no model 'nosuch'"),
        (dict(model="nano", device="cuda"), "the device cuda was asked for, but PyTorch finds no such GPU here"),
    ],
)
def test_what_cannot_run_is_refused_before_the_page_is_up(monkeypatch, settings, said):
    """It came up, and ran nano on the processor without a word or stayed without a model."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(PersonaPlexError, match=said):
        check_model_and_device(Settings(**settings))


@pytest.mark.parametrize("missing", ["tokenizer_spm_32k_3.model", "config.json", "everything"])
def test_a_folder_that_is_no_model_is_refused_before_the_page_is_up(tmp_path, missing):
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN_FOLDER, folder, ignore=shutil.ignore_patterns(missing) if missing != "everything" else None)
    if missing == "everything":
        shutil.rmtree(folder)
        folder.mkdir()
    elif missing == "config.json":
        (folder / "config.json").write_text('{"lm": {"dimm": 4}}')
    with pytest.raises(PersonaPlexError, match="tokenizer_spm|did you mean dim|holds no model"):
        check_model_and_device(Settings(model=str(folder)))


def test_what_can_run_is_let_through():
    for model in ("auto", "nano", "nvidia/personaplex-7b-v1", str(GOLDEN_FOLDER)):
        check_model_and_device(Settings(model=model))


def test_a_lent_gpu_is_not_looked_for(monkeypatch):
    monkeypatch.setattr(page_module, "on_zerogpu", lambda: True)
    check_model_and_device(Settings(device="cuda"))


def test_help_lists_every_setting(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run(cli.page_app, ["--help"], "python app.py") == 0
    said = capsys.readouterr().out
    for name in Settings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in said
    assert "PERSONAPLEX_CONVERSATION_SEC=300" in said
