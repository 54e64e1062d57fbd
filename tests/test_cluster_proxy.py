"""docs/cluster.md's block for nginx before several fronts: who came to one stays there, and moves when it is gone."""

from __future__ import annotations

import http.server
import re
import threading
from pathlib import Path

import httpx
import pytest
from nginx import nginx, nginx_is_here

from benchmarks.ports import free_port

PAGE = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.skipif(not nginx_is_here(), reason="nginx is not installed")


class Front(http.server.ThreadingHTTPServer):
    """Answers with its own name."""

    def __init__(self, name: str) -> None:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(name)))
                self.end_headers()
                self.wfile.write(name.encode())

            def log_message(self, *_: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def end(self) -> None:
        self.shutdown()
        self.server_close()


@pytest.fixture
def fronts():
    made = {name: Front(name) for name in ("first", "second")}
    yield made
    for front in made.values():
        front.end()


@pytest.fixture
def address(fronts, tmp_path):
    port = free_port()
    documented = re.search(r"```nginx\n(.*?)```", PAGE, flags=re.DOTALL).group(1)
    documented = documented.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    for name, written in (("first", "10.0.0.11:7860"), ("second", "10.0.0.12:7860")):
        assert written in documented
        documented = documented.replace(written, f"127.0.0.1:{fronts[name].server_address[1]}")
    address = f"http://127.0.0.1:{port}"
    with nginx(tmp_path, documented, address):
        yield address


def visit(address: str, cookie: str = "") -> tuple[str, str]:
    """(the front that answered, the cookie it is kept by)"""
    answer = httpx.get(address, headers={"Cookie": cookie} if cookie else {})
    assert answer.status_code == 200
    return answer.text, answer.headers["Set-Cookie"].split(";")[0]


def test_newcomers_are_spread_and_stay_where_they_came(address):
    newcomers = [visit(address) for _ in range(40)]
    assert {front for front, _ in newcomers} == {"first", "second"}
    for front, cookie in newcomers[:10]:
        assert [visit(address, cookie) for _ in range(3)] == [(front, cookie)] * 3


def test_a_front_that_is_gone_is_stood_in_for(address, fronts):
    cookie = next(cookie for front, cookie in iter(lambda: visit(address), None) if front == "first")
    fronts["first"].end()
    assert [visit(address, cookie)[0] for _ in range(3)] == ["second"] * 3
    assert visit(address, "front=forged")[0] == "second"


def test_figures_are_not_for_visitors(address):
    assert httpx.get(address + "/metrics").status_code == 404
