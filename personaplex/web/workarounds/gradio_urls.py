"""Gradio 5.50.0: addresses of files.

Bug: they are absolute, built from the ``Host`` or ``X-Forwarded-Host`` of the request. Behind a proxy that sends
neither (nginx with ``proxy_pass`` alone) they name the address behind the proxy, which the visitor cannot reach.
"""

from __future__ import annotations

from typing import Any

from gradio import route_utils

from personaplex.web.workarounds.patch import replace

_absolute_root = route_utils.get_root_url


def root_url(request: Any, route_path: str, root_path: str | None) -> str:
    """``.`` for a browser on the page itself, so that it resolves addresses by its own; absolute for other clients.

    A ``root_path`` that is a whole address stays.
    """
    if _is_from_own_page(request) and not (root_path or "").startswith(("http://", "https://")):
        return "."
    return _absolute_root(request, route_path, root_path)


def _is_from_own_page(request: Any) -> bool:
    """Whether a browser asks for the page, or its script for data; a script elsewhere needs whole addresses."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin" or request.headers.get("sec-fetch-mode") == "navigate"
    # Over plain http, away from localhost, browsers send no Sec-Fetch headers.
    return "origin" in request.headers or "text/html" in request.headers.get("accept", "")


def use_relative_urls() -> None:
    """Let the page's own browser resolve the addresses of files."""
    replace(route_utils, get_root_url=root_url)
