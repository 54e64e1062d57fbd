"""What a refused command looks like."""

from __future__ import annotations

from pathlib import Path


def refused(result: tuple[int, str, str], *parts: str) -> None:
    """One line, exit code 2, and nothing written."""
    code, out, err = result
    assert code == 2, err
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in err
    assert not [path for path in Path().rglob("*") if path.name.startswith((".personaplex", "answer"))]
