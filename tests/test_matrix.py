"""The matrix of Pythons and libraries is that of the requirements."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SCRIPT = (ROOT / ".ci" / "matrix").read_text(encoding="utf-8")
ALLOWED = {
    found.name: found.specifier
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith(("#", "-"))
    for found in [Requirement(line)]
}


def rows() -> list[dict[str, str]]:
    (libraries,) = re.findall(r'^LIBRARIES="(.*)"$', SCRIPT, flags=re.MULTILINE)
    return [dict(re.findall(r"(\w+)([<=][^,]+)", row)) for row in libraries.split()]


def test_its_libraries_are_the_oldest_and_the_newest_that_are_allowed():
    for name in ("torch", "av"):
        least = next(part for part in ALLOWED[name] if part.operator == ">=").version
        most = next(part for part in ALLOWED[name] if part.operator == "<").version
        assert rows()[0][name] == f"=={least}.*"
        assert rows()[1][name] == f"<{most}"
        assert all(ALLOWED[name].contains(row[name][2:]) for row in rows() if re.fullmatch(r"==[\d.]+", row[name]))


def test_its_pythons_begin_with_the_oldest_that_is_allowed():
    (pythons,) = re.findall(r"^PYTHONS=\${PYTHONS:-(.*)}$", SCRIPT, flags=re.MULTILINE)
    (allowed,) = re.findall(r'^requires-python = "(.*)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    listed = pythons.split()
    assert all(SpecifierSet(allowed).contains(f"{python}.9") for python in listed)
    assert f">={min(listed, key=Version)}" == allowed


@pytest.mark.skipif(shutil.which("bash") is None, reason="the script is for bash")
def test_a_dry_run_says_what_would_run_and_what_is_not_here():
    done = subprocess.run([ROOT / ".ci" / "matrix", "--dry-run"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 5 * len(rows())
    assert all(line.startswith(("would run", "NOT TRIED")) for line in lines)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if shutil.which(f"python{here}") and not subprocess.run([f"python{here}", "-c", ""], check=False).returncode:
        assert any(line.startswith(f"would run  Python {here},") for line in lines)
