"""Where the page cannot be shown, one sentence says so at once."""

import socket
from types import SimpleNamespace

import pytest

from personaplex.errors import ConfigError
from personaplex.settings import Settings
from personaplex.web.address import check_address, is_elsewhere, is_loopback, listens_locally, visitor_address


def test_a_port_that_is_taken_and_a_free_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1, port {port}.*--port"):
            check_address(Settings(port=port))
    check_address(Settings(port=port))
    check_address(Settings(host="0.0.0.0"))


def test_an_address_of_another_machine():
    with pytest.raises(ConfigError, match="cannot listen on 192.0.2.1"):  # reserved for documentation (RFC 5737)
        check_address(Settings(host="192.0.2.1"))


def test_a_certificate_that_is_none(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    with pytest.raises(ConfigError, match="cert.pem and .*key.pem cannot be used"):
        check_address(Settings(ssl_cert=cert, ssl_key=key))
    cert.write_text("not a certificate")
    key.write_text("nor a key")
    with pytest.raises(ConfigError, match="cannot be used"):
        check_address(Settings(ssl_cert=cert, ssl_key=key))


# ---------------------------------------------------------------------------------- where visitors come from


def request(peer="127.0.0.1", **headers):
    return SimpleNamespace(
        client=peer and SimpleNamespace(host=peer),
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "::1", "[::1]", "127.0.0.2", "page.localhost"])
def test_names_of_this_machine(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org", "192.168.1.2", "localhost.example.org", "", "1.2.3"])
def test_names_of_others(host):
    assert not is_loopback(host)


def test_whether_only_this_machine_reaches_the_page():
    assert listens_locally(Settings(), {}) and listens_locally(Settings(host="::1"), {})
    assert not listens_locally(Settings(host="0.0.0.0"), {}) and not listens_locally(Settings(share=True), {})
    assert not listens_locally(Settings(), {"GRADIO_SERVER_NAME": "0.0.0.0"}), "as on a Space"
    assert listens_locally(Settings(host="localhost"), {"GRADIO_SERVER_NAME": "0.0.0.0"}), "a flag counts first"


@pytest.mark.parametrize(
    "headers",
    [
        dict(host="127.0.0.1:7860", origin="https://talk.example.org"),  # nginx as it comes passes its own address
        dict(host="talk.example.org", origin="https://talk.example.org"),
        dict(host="127.0.0.1:7860", x_forwarded_host="talk.example.org"),
        dict(host="127.0.0.1:7860", x_forwarded_for="8.8.4.4"),
        dict(host="192.168.1.9:7860"),
    ],
)
def test_a_page_that_is_reached_by_another_name_knows_it(headers):
    assert is_elsewhere(request(**headers))


@pytest.mark.parametrize(
    "headers",
    [{}, dict(host="localhost:7860", origin="http://localhost:7860"), dict(host="[::1]:7860"),
     dict(host="127.0.0.1:7860", origin="null"), dict(host="[", origin="http://[")],
)  # fmt: skip
def test_a_browser_on_this_machine(headers):
    assert not is_elsewhere(request(**headers)) and not is_elsewhere(request("::1", **headers))
    assert is_elsewhere(request("192.168.1.7", **headers))
    assert not is_elsewhere(None)


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("198.51.100.7", "", "198.51.100.7"),
        ("8.8.8.8", "9.9.9.9", "8.8.8.8"),  # who is no proxy of ours may claim anything
        ("10.1.2.3", "9.9.9.9, 8.8.4.4, 10.0.0.1", "8.8.4.4"),  # as on a Space
        ("10.1.2.3", "nonsense", "10.1.2.3"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("::1", "", "::1"),
        ("2a00:1450:4001:81c::200e", "", "2a00:1450:4001:81c::"),
        ("::ffff:8.8.8.8", "9.9.9.9", "::ffff:8.8.8.8"),
        ("", "", ""),
    ],
)
def test_a_visitors_address(peer, forwarded, address):
    assert visitor_address(request(peer, **({"x_forwarded_for": forwarded} if forwarded else {}))) == address
