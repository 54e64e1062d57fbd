"""docs/security.md names a test for each statement, and the tests are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("|") and not re.match(r"\|\s*(statement|---)", line)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:50])
def test_a_statement_is_held_by_tests_that_exist(row):
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row.rsplit("|", 2)[1])
    assert named, "no test is named"
    for file, name in named:
        assert re.search(rf"^def {name}\(", (TESTS / file).read_text(encoding="utf-8"), flags=re.MULTILINE), name


def test_every_table_was_read():
    assert len(ROWS) >= 20
