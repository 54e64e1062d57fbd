"""The wheel holds everything that the program needs: installed away from the clone, it answers a question."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import soundfile

REPOSITORY = Path(__file__).parents[1]
NOT_PACKAGED = (".*", "build", "dist", "tests", "training", "benchmarks", "docs", "*.egg-info", "__pycache__")


def run(*command: str | Path, cwd: Path) -> str:
    """What a command printed; the environment's own paths to this clone are left out."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PERSONAPLEX"))}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The scripts' folder of an environment that holds the wheel and, beside it, the packages installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = shutil.copytree(REPOSITORY, folder / "sources", ignore=shutil.ignore_patterns(*NOT_PACKAGED))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, sources, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=folder)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    own_packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (own_packages / "here.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return scripts


def test_the_installed_program_answers_a_question(installed, tmp_path):
    where = run(installed / "python", "-c", "import personaplex; print(personaplex.__file__)", cwd=tmp_path)
    assert str(installed.parent) in where
    question = REPOSITORY / "examples" / "questions" / "bank.wav"
    run(installed / "personaplex", "reply", question, "-o", "answer.wav", "--persona", "bank", "--seed", "1",
        "--tail", "3", "--transcript", "answer.txt", cwd=tmp_path)  # fmt: skip
    assert soundfile.info(tmp_path / "answer.wav").samplerate == 24_000
    assert (tmp_path / "answer.txt").read_text(encoding="utf-8").strip()


def test_the_page_finds_its_parts(installed, tmp_path):
    code = (
        "import tempfile; from pathlib import Path; "
        "from personaplex.serving.host import ModelHost; from personaplex.settings import Settings; "
        "from personaplex.web.page import build_page; "
        "page = build_page(ModelHost(Settings()), Path(tempfile.mkdtemp())).blocks; assert page.css and page.head"
    )
    run(installed / "python", "-c", code, cwd=tmp_path)
