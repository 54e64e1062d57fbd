"""Other people's programs talk to this one, untouched: those that are small. tests/clients/run.py has the others.

They need an environment of their own, build/clients or $CLIENTS_PYTHON (requirements-clients.txt).
"""

from __future__ import annotations

import os

import pytest
from clients.run import CLIENTS, ROOT, Client, Server, server, talk, why_not

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]

PYTHON = os.environ.get("CLIENTS_PYTHON", str(ROOT / "build" / "clients" / "bin" / "python"))
SMALL = [client for client in CLIENTS if client.small]


@pytest.fixture(scope="module")
def served():
    with server() as served:
        yield served


@pytest.mark.parametrize("client", SMALL, ids=lambda client: client.name)
def test_a_client_that_nobody_here_wrote_is_content(served: Server, client: Client):
    reason = why_not(client, PYTHON)
    if reason:
        pytest.skip(reason)
    content, line = talk(client, served, PYTHON)
    assert content, line
