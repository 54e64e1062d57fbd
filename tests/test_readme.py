"""README and documents keep their word: commands parse and run, links lead somewhere, a Space gets its front matter."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from own_home import own_home

from personaplex import __version__
from personaplex.cli.main import app
from personaplex.files import shipped_folder
from personaplex.weights.names import nano_folder

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
    for path in (*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").glob("*.md")))
    if path.name != "LOG.md"
}
"""README, CONTRIBUTING, CHANGELOG and docs/; the log tells of commands as they were."""


def fences(page: str, language: str) -> list[str]:
    """The blocks of code of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


SETUP_LINES = [line for code in fences(README, "bash") for line in code.splitlines()]
SHELL_LINES = [line for page in PAGES.values() for code in fences(page, "bash") for line in code.splitlines()]
MODULES = sorted(
    {name for page in PAGES.values() for name in re.findall(r"python -m ((?:training|benchmarks)[\w.]*)", page)}
)
PYTHON_EXAMPLES = fences(README, "python")
COMMANDS = [line.split("python -m personaplex ", 1)[1] for line in SHELL_LINES if "python -m personaplex " in line]
# Those that need neither the 7B nor a file of the reader's own.
RUNNABLE = [line for line in dict.fromkeys(COMMANDS) if "nvidia/" not in line and "question.wav" not in line]


def nano_is_here() -> bool:
    return (nano_folder() / "config.json").is_file()


def test_the_two_commands_of_a_fresh_machine_are_there():
    setups = [line for line in SETUP_LINES if line.startswith("python3 -m venv .venv && ")]
    assert len(setups) == 2
    run, test = setups
    assert "-r requirements.txt" in run
    assert run.endswith("/python app.py")
    assert "-r requirements-dev.txt" in test
    assert test.endswith(" -m pytest")


def test_continuous_integration_runs_the_second_command():
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8").replace(" --quiet", "")
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
    second = next(line for line in SETUP_LINES if line.endswith(" -m pytest"))
    for part in second.split(" && "):
        assert part in script


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_parses(line):
    words = shlex.split(line)
    group = typer.main.get_command(app)
    while hasattr(group, "commands"):
        group = group.commands[words.pop(0)]
    group.make_context("personaplex", words)


@pytest.mark.parametrize("line", RUNNABLE)
def test_every_command_runs(line, tmp_path):
    if line.startswith("reply") and not nano_is_here():
        pytest.skip("nano is not in this clone yet")
    run([sys.executable, "-m", "personaplex", *shlex.split(line)], tmp_path)
    for output in re.findall(r"(?:-o|--stereo|--transcript) (\S+)", line):
        assert (tmp_path / output).stat().st_size > 44


@pytest.mark.parametrize("code", PYTHON_EXAMPLES)
def test_the_python_example_runs(code, tmp_path):
    if not nano_is_here():
        pytest.skip("nano is not in this clone yet")
    run([sys.executable, "-c", code], tmp_path, with_shipped_folders=False)
    assert (tmp_path / "answer.wav").stat().st_size > 44


def run(command: list[str], folder: Path, *, with_shipped_folders: bool = True) -> None:
    for name in ("examples", "voices") if with_shipped_folders else ():
        (folder / name).symlink_to(
            shipped_folder(name, {"examples": "personas.json", "voices": "catalogue.json"}[name])
        )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PERSONAPLEX_HOME": str(own_home(folder))}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr


def test_front_matter():
    matter = yaml.safe_load(README.split("---\n")[1])
    assert matter["sdk"] == "gradio"
    assert matter["app_file"] == "app.py"
    assert len(matter["short_description"]) <= 60
    assert matter["license"] == "mit"
    assert matter["python_version"] in ("3.10", "3.12"), "what ZeroGPU has"
    assert matter["emoji"]
    assert {matter["colorFrom"], matter["colorTo"]} <= {
        "red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray",
    }  # fmt: skip
    pinned = re.search(r"^gradio==(\S+)", (REPOSITORY / "requirements.txt").read_text(), flags=re.MULTILINE)
    assert pinned is None or pinned[1] == matter["sdk_version"]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", PAGES[name]):
        assert ((REPOSITORY / name).parent / target).exists(), target


@pytest.mark.parametrize("name", PAGES)
def test_links_to_headings_lead_somewhere(name):
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]*)\)", PAGES[name]):
        page = ((REPOSITORY / name).parent / target).resolve() if target else REPOSITORY / name
        titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert heading in anchors, f"{target}#{heading}"


@pytest.mark.parametrize("module", MODULES)
def test_every_program_that_is_named_is_there(module):
    path = REPOSITORY / module.rstrip(".").replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def test_the_readme_is_short():
    assert len(README.splitlines()) < 120, "details go into docs/"


def test_the_changelog_tells_of_this_version():
    assert f"## [{__version__}]" in PAGES["CHANGELOG.md"]
