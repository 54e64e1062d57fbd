"""Where the page cannot be shown, one sentence says so at once."""

import socket

import pytest

from personaplex.errors import ConfigError
from personaplex.settings import Settings
from personaplex.web.address import check_address


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
