"""nginx in front of something, for tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
AROUND = """
{user}
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  {servers}
}}
"""


def nginx_is_here() -> bool:
    return Path(NGINX).is_file()


@contextlib.contextmanager
def nginx(folder: Path, servers: str, answers_at: str) -> Iterator[None]:
    """nginx with these directives of its http block, from when something answers at ``answers_at``."""
    # Started by root its workers are another user, who cannot write below pytest's own folder.
    user = "user root;" if hasattr(os, "geteuid") and os.geteuid() == 0 else ""
    file = folder / "nginx.conf"
    file.write_text(AROUND.format(user=user, folder=folder, servers=servers), encoding="utf-8")
    process = subprocess.Popen([NGINX, "-p", folder, "-c", file], stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 30
        while True:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < until, f"{answers_at} does not answer"
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(answers_at, timeout=10).status_code == 200:
                    break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)
