"""Beside another Gradio the page says so at start instead of ending in a traceback."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from personaplex.errors import ConfigError
from personaplex.web.workarounds.versions import FASTRTC, GRADIO, check_versions

ROOT = Path(__file__).parents[1]


def installed(**versions):
    def version(name):
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    return version


def test_the_versions_of_the_requirements_are_the_ones_that_are_checked():
    check_versions()
    check_versions(installed(gradio=GRADIO, fastrtc=FASTRTC))
    check_versions(installed(gradio="5.51.1", fastrtc=FASTRTC))


@pytest.mark.parametrize(
    ("versions", "says"),
    [
        (dict(gradio="6.0.1", fastrtc="0.0.1"), r"gradio 6\.0\.1 is installed; the page needs 5\.50\.0 .*pip install"),
        (dict(gradio="4.44.0", fastrtc=FASTRTC), r"gradio 4\.44\.0 is installed"),
        (dict(gradio=GRADIO, fastrtc="0.0.1"), r"fastrtc 0\.0\.1 is installed; the page needs 0\.0\.34.*pip install"),
        (dict(fastrtc=FASTRTC), "gradio is not installed"),
        (dict(gradio=GRADIO), "fastrtc is not installed"),
    ],
)
def test_others_are_refused_with_a_sentence(versions, says):
    with pytest.raises(ConfigError, match=says):
        check_versions(installed(**versions))


def test_the_page_ends_before_anything_of_gradio_is_imported(monkeypatch):
    """In a process of its own, where nothing has imported Gradio yet."""
    code = """
import sys
from personaplex.web.workarounds import versions
versions.check_versions.__defaults__ = ({"gradio": "6.0.1", "fastrtc": "0.0.1"}.__getitem__,)
from personaplex.cli.main import page_app, run
status = run(page_app, [], "python app.py")
assert "gradio" not in sys.modules and "fastrtc" not in sys.modules
sys.exit(status)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("error: gradio 6.0.1 is installed"), ended.stderr
    assert len(ended.stderr.splitlines()) == 1
