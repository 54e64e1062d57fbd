"""Gradio 5.50.0 and FastRTC 0.0.34: what their front ends fetch from elsewhere.

Bugs: Gradio's page loads a script from cdnjs.cloudflare.com, connects to Google's fonts although the theme needs none,
and asks for ``/manifest.json`` at the host's root, which answers 404 and is wrong behind a path. FastRTC's component
plays a sound that it fetches from huggingface.co.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from gradio import routes
from jinja2 import BaseLoader, Environment

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",  # Gradio's page has inline scripts
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "media-src 'self' data: blob:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
    )
)
"""The browser itself refuses whatever else the front ends would fetch from another host."""

_ELSEWHERE = (
    re.compile(r"<script\s+src=\"https://cdnjs[^>]*></script>"),
    re.compile(r"<link\s+rel=\"preconnect\"[^>]*/>"),
    re.compile(r"<meta\s+(?:property|name)=\"(?:og|twitter):(?:image|url)\"[^>]*/>"),
)


def without_foreign_tags(html: str) -> str:
    """Gradio's page without the tags that point to other hosts, and with a manifest beside the page."""
    for tag in _ELSEWHERE:
        html = tag.sub("", html)
    return html.replace('href="/manifest.json"', 'href="./manifest.json"')


class _OwnTagsOnly(BaseLoader):
    def __init__(self, loader: BaseLoader) -> None:
        self._loader = loader

    def get_source(self, environment: Environment, template: str) -> tuple[str, str | None, Callable[[], bool] | None]:
        source, name, is_fresh = self._loader.get_source(environment, template)
        return without_foreign_tags(source), name, is_fresh


def keep_to_own_host() -> None:
    """Serve Gradio's page without foreign tags."""
    environment: Any = routes.templates.env
    if not isinstance(environment.loader, _OwnTagsOnly):
        environment.loader = _OwnTagsOnly(environment.loader)
