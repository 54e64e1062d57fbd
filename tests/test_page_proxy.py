"""The page behind nginx as it comes: ``proxy_pass`` alone, at the root and below a path."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from browser import CHROMIUM, FLAGS, require_browser
from nginx import nginx, nginx_is_here
from page_app import QUESTION, App, answer_index, as_file, running_app, upload

from benchmarks.ports import free_port

SERVER = """
  client_max_body_size 50m;
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass {page}; }}
    location /persona/ {{ proxy_pass {page}/; }}
  }}
"""


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    if not nginx_is_here():
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    with running_app(tmp_path_factory.mktemp("app")) as app:
        yield app


@pytest.fixture(scope="module")
def proxy(app, tmp_path_factory):
    """The address that visitors know."""
    folder = tmp_path_factory.mktemp("nginx")
    port = free_port()
    address = f"http://localhost:{port}"
    with nginx(folder, SERVER.format(port=port, page=app.address), address + "/health"):
        yield address


def answer(app: App, page: str, session: str) -> list[dict]:
    """Files of an answer, as a browser on ``page`` is told of them."""
    told = {"Origin": "{0.scheme}://{0.netloc}".format(urlsplit(page)), "Sec-Fetch-Site": "same-origin"}
    data = [as_file(upload(app)), "You are kind.", "", None, 1, 0.8, 250, 0.7, 25, 0]
    body = {"data": data, "fn_index": answer_index(app), "session_hash": session}
    httpx.post(urljoin(page, "gradio_api/queue/join"), json=body, headers=told, timeout=60).raise_for_status()
    events = urljoin(page, f"gradio_api/queue/data?session_hash={session}")
    with httpx.stream("GET", events, headers=told, timeout=120) as stream:
        lines = (line for line in stream.iter_lines() if "process_completed" in line)
        output = json.loads(next(lines).removeprefix("data: "))["output"]
    player, both, _, downloads = output["data"]
    return [player, both, *downloads]


@pytest.mark.parametrize("path", ["/", "/persona/"])
def test_player_and_downloads_lead_to_where_the_visitor_is(app, proxy, path):
    """They led to http://127.0.0.1:PORT, the page's address behind the proxy."""
    page = proxy + path
    assert app.address not in httpx.get(page, headers={"Accept": "text/html"}, timeout=60).text
    for file in answer(app, page, f"visitor{len(path)}"):
        address = urljoin(page, file["url"])
        assert address.startswith(page)
        assert httpx.get(address, timeout=60).content == Path(file["path"]).read_bytes()


@pytest.mark.browser
@pytest.mark.parametrize("path", ["/", "/persona/"])
def test_a_question_is_answered_and_downloaded_in_a_browser(app, proxy, path):
    require_browser()
    from playwright.sync_api import sync_playwright

    elsewhere: list[str] = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = chromium.new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda request: elsewhere.append(request.url) if not is_own(request.url, proxy) else None)
        page.goto(proxy + path)
        page.wait_for_selector("#state .state[data-phase=ready]")
        page.get_by_role("tab", name="From a file").click()
        page.locator("#file-question input[type=file]").set_input_files(str(QUESTION))
        page.wait_for_selector("#file-question .play-pause-button", state="attached")
        page.locator("#file-run").click()
        page.wait_for_selector("#file-downloads a[download]")
        with page.expect_download() as download:
            page.locator("#file-downloads a[download$='.txt']").first.click()
        assert Path(download.value.path()).is_file()
        assert page.url.startswith(proxy + path), "a click on a download left the page"
        chromium.close()
    assert not elsewhere


def is_own(url: str, page: str) -> bool:
    return url.startswith((page, "data:", "blob:"))
