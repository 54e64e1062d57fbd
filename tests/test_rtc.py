"""Which ICE servers are used when, and what happens when credentials do not come."""

import asyncio
import inspect

import pytest

from personaplex.rtc import (
    NO_SERVERS,
    STUN_ONLY,
    browser_configuration,
    has_turn_credentials,
    is_loopback,
    network_round_trip_ms,
    server_configuration,
)

TURN = {"iceServers": [{"urls": "turn:turn.example:3478", "username": "u", "credential": "c"}]}


async def turn():
    return TURN


@pytest.mark.parametrize(
    ("environ", "has"),
    [
        ({}, False),
        ({"HF_TOKEN": "t"}, True),
        ({"HF_TOKEN": ""}, False),
        ({"CLOUDFLARE_TURN_KEY_ID": "i"}, False),
        ({"CLOUDFLARE_TURN_KEY_ID": "i", "CLOUDFLARE_TURN_KEY_API_TOKEN": "t"}, True),
    ],
)
def test_which_variables_are_credentials(environ, has):
    assert has_turn_credentials(environ) is has


def test_on_loopback_no_server_is_asked():
    assert is_loopback("127.0.0.1") and is_loopback(None) and not is_loopback("0.0.0.0")
    assert browser_configuration(True, {"HF_TOKEN": "t"}, turn) == server_configuration(True) == NO_SERVERS


def test_without_credentials_stun_alone():
    assert browser_configuration(False, {}, turn) == STUN_ONLY == server_configuration(False)


def test_credentials_are_fetched_for_each_visitor():
    configuration = browser_configuration(False, {"HF_TOKEN": "t"}, turn)
    assert inspect.isfunction(configuration), "FastRTC calls plain functions only"
    assert asyncio.run(configuration()) == TURN


async def broken():
    raise ValueError("no such key")


async def hanging():
    await asyncio.sleep(60)


@pytest.mark.parametrize("fetch", [broken, hanging])
def test_credentials_that_do_not_come_fall_back_to_stun_with_a_line_in_the_log(fetch, caplog, monkeypatch):
    monkeypatch.setattr("personaplex.rtc.TURN_WITHIN_SEC", 0.05)
    configuration = browser_configuration(False, {"HF_TOKEN": "secret-token"}, fetch)
    assert asyncio.run(configuration()) == STUN_ONLY
    assert "TURN" in caplog.text and "secret-token" not in caplog.text


class Report:
    def __init__(self, kind, seconds=None):
        self.type, self.roundTripTime = kind, seconds


class Peer:
    def __init__(self, *reports):
        self.reports = reports

    def getSenders(self):  # noqa: N802, aiortc's name
        return [self]

    async def getStats(self):  # noqa: N802, aiortc's name
        return dict(enumerate(self.reports))


@pytest.mark.parametrize(
    ("peer", "expected_ms"),
    [
        (None, None),
        (Peer(Report("outbound-rtp")), None),
        (Peer(Report("remote-inbound-rtp")), None),
        (Peer(Report("outbound-rtp"), Report("remote-inbound-rtp", 0.042)), 42.0),
    ],
)
def test_the_networks_round_trip_comes_from_rtcp(peer, expected_ms):
    assert asyncio.run(network_round_trip_ms(peer)) == expected_ms
