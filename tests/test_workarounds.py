"""Repairs to other libraries: what they replace must still be there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from personaplex.web.workarounds.patch import replace


def test_a_part_that_is_there_is_replaced():
    owner = SimpleNamespace(parse=1)
    replace(owner, parse=2, print=3)
    assert (owner.parse, owner.print) == (2, 3)


def test_a_part_that_is_gone_is_named():
    with pytest.raises(AttributeError, match="has no parse any more"):
        replace(SimpleNamespace(), parse=2)
