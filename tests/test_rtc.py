"""Which ICE servers are used when, and what happens when credentials do not come."""

import asyncio

import pytest

from personaplex.errors import ConfigError
from personaplex.settings import Settings
from personaplex.web.webrtc import (
    NO_SERVERS,
    STUN_ONLY,
    TURN_AGAIN_SEC,
    IceServers,
    has_turn_credentials,
    network_round_trip_ms,
)

TURN = {"iceServers": [{"urls": "turn:turn.example:3478", "username": "u", "credential": "c"}]}
OWN = '[{"urls": ["turn:own.example:3478?transport=tcp"], "username": "u", "credential": "own-secret"}]'


async def turn():
    return TURN


def both(ice, elsewhere):
    return asyncio.run(ice.for_browser(elsewhere)), ice.for_server(elsewhere)


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


def test_on_this_machine_no_server_is_asked():
    assert both(IceServers.of(Settings(), {}), elsewhere=False) == (NO_SERVERS, NO_SERVERS)


@pytest.mark.parametrize(
    ("settings", "environ"),
    [(dict(host="0.0.0.0"), {}), ({}, {"GRADIO_SERVER_NAME": "0.0.0.0"}), (dict(share=True), {})],
)
def test_a_page_for_others_has_stun(settings, environ, caplog):
    assert both(IceServers.of(Settings(**settings), environ), elsewhere=False) == (STUN_ONLY, STUN_ONLY)
    assert "HF_TOKEN" in caplog.text and "--ice-servers" in caplog.text


def test_a_loopback_page_that_is_reached_from_elsewhere_has_stun_and_says_what_is_missing(caplog):
    ice = IceServers.of(Settings(), {})
    assert not caplog.text
    assert both(ice, elsewhere=True) == (STUN_ONLY, STUN_ONLY) == both(ice, elsewhere=True)
    assert caplog.text.count("no TURN server is set") == 1


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("host", [None, "127.0.0.1", "0.0.0.0"])
def test_credentials_win_on_loopback_too(host, elsewhere):
    """Behind an ssh tunnel a browser elsewhere looks like one on this machine."""
    ice = IceServers(local_only=host != "0.0.0.0", has_turn=True, fetch=turn)
    assert both(ice, elsewhere) == (TURN, STUN_ONLY)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_servers_of_ones_own_win_for_both_sides(elsewhere):
    given = Settings(ice_servers=OWN)
    for environ in ({}, {"HF_TOKEN": "t"}):
        browser, server = both(IceServers.of(given, environ), elsewhere)
        assert browser == server and browser["iceServers"][0]["credential"] == "own-secret"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("turn:host", "no JSON"),
        ('{"urls": "stun:a"}', "list of objects"),
        ("[7]", "list of objects"),
        ('[{"url": "stun:a"}]', "list of objects"),
        ('[{"urls": []}]', "list of objects"),
        ('[{"urls": "http://a"}]', "stun:, stuns:, turn: and turns:"),
        ('[{"urls": "turn:a"}]', "without username and credential"),
        ('[{"urls": "turn:a", "username": 5, "credential": "c"}]', "list of objects"),
    ],
)
def test_servers_that_are_none_are_refused_at_start(text, says):
    with pytest.raises(ConfigError, match=says):
        IceServers.of(Settings(ice_servers=text), {})


def test_the_variable_is_read(monkeypatch):
    given = Settings.from_environment({"PERSONAPLEX_ICE_SERVERS": OWN})
    assert both(IceServers.of(given, {}), elsewhere=False)[0]["iceServers"][0]["username"] == "u"


async def broken():
    raise ValueError("no such key")


async def hanging():
    await asyncio.sleep(60)


@pytest.mark.parametrize("fetch", [broken, hanging])
def test_credentials_that_do_not_come_fall_back_with_a_line_in_the_log(fetch, caplog, monkeypatch):
    monkeypatch.setattr("personaplex.web.webrtc.TURN_WITHIN_SEC", 0.05)
    assert both(IceServers(local_only=False, has_turn=True, fetch=fetch), elsewhere=True) == (STUN_ONLY, STUN_ONLY)
    assert "TURN" in caplog.text
    assert both(IceServers(local_only=True, has_turn=True, fetch=fetch), elsewhere=False) == (NO_SERVERS, NO_SERVERS)


def test_an_offline_machine_does_not_wait_for_credentials_at_every_start():
    now, asked = [0.0], []

    async def fetch():
        asked.append(now[0])
        raise OSError("no network")

    ice = IceServers(local_only=True, has_turn=True, fetch=fetch, clock=lambda: now[0])
    for at_sec in (0.0, 1.0, TURN_AGAIN_SEC + 2):
        now[0] = at_sec
        assert asyncio.run(ice.for_browser(False)) == NO_SERVERS
    assert asked == [0.0, TURN_AGAIN_SEC + 2]


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
