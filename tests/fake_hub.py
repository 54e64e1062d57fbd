"""A small hub on 127.0.0.1: the part of the Hugging Face API that downloads use; it misbehaves on request."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "1234567890" * 4


@dataclass
class FakeHub:
    """One repository. Files above ``large_bytes`` lie behind a redirect, as on the real hub."""

    repo: str
    files: dict[str, bytes]
    large_bytes: int = 1000
    commit: str = COMMIT  # of main; older ones are known, too
    token: str | None = None  # needed for files, if set
    accepted: bool = True  # the token's account has accepted the licence
    break_after: dict[str, list[int]] = field(default_factory=dict)  # bytes after which a large file's next answers end
    swapped: dict[str, bytes] = field(default_factory=dict)  # what is sent instead of a file, under its name and hash
    status: int | None = None  # answers everything with this
    cdn_status: int | None = None  # answers with this where the bytes of large files are
    outages: int = 0  # so many requests there are answered with 503 first
    ranges: bool = True
    requests: list[str] = field(default_factory=list)
    given_tokens: set[tuple[str, str | None]] = field(default_factory=set)  # (kind of request, token)

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(_Handler):
            fake = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def sent(self, kind: str) -> list[str]:
        """Requests so far whose line holds ``kind``."""
        return [line for line in self.requests if kind in line]


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer()

    def do_GET(self) -> None:  # noqa: N802
        self._answer()

    def _answer(self) -> None:
        fake, path = self.fake, self.path.partition("?")[0]
        fake.requests.append(f"{self.command} {path} {self.headers.get('Range') or ''}".strip())
        kind = path.split("/")[1] if path.startswith(("/api", "/cdn")) else "resolve"
        fake.given_tokens.add((kind, self.headers.get("Authorization")))
        if fake.status is not None:
            self._send(fake.status)
        elif path.startswith("/cdn/"):
            self._send_large(path.removeprefix("/cdn/"))
        elif path.startswith(f"/api/models/{fake.repo}"):
            self._send_info(path.removeprefix(f"/api/models/{fake.repo}"))
        elif path.startswith(f"/{fake.repo}/resolve/"):
            self._send_file(*path.removeprefix(f"/{fake.repo}/resolve/").split("/", 1))
        else:
            self._send(404, {"X-Error-Code": "RepoNotFound"})

    def _send_info(self, rest: str) -> None:
        if rest not in ("", "/revision/main", f"/revision/{COMMIT}", f"/revision/{self.fake.commit}"):
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for name, data in self.fake.files.items():
            lfs = {"sha256": _sha256(data), "size": len(data), "pointerSize": 100}
            large = {"lfs": lfs} if len(data) > self.fake.large_bytes else {}
            siblings.append({"rfilename": name, "size": len(data), "blobId": _sha256(data)[:40], **large})
        info = {"id": self.fake.repo, "sha": self.fake.commit, "siblings": siblings}
        info |= {"private": False, "gated": False, "tags": []}
        return self._send(200, {"Content-Type": "application/json"}, json.dumps(info).encode())

    def _send_file(self, revision: str, name: str) -> None:
        if revision not in ("main", COMMIT, self.fake.commit):
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        if self.fake.token is not None:
            given = self.headers.get("Authorization")
            if given is None:
                return self._send(401, {"X-Error-Code": "GatedRepo"})
            if given != f"Bearer {self.fake.token}":
                return self._send(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
            if not self.fake.accepted:
                return self._send(403, {"X-Error-Code": "GatedRepo"})
        if name not in self.fake.files:
            return self._send(404, {"X-Error-Code": "EntryNotFound"})
        data = self.fake.files[name]
        headers = {
            "X-Repo-Commit": self.fake.commit if revision == "main" else revision,
            "ETag": f'"{_sha256(data)[:40]}"',
        }
        if len(data) <= self.fake.large_bytes:
            return self._send(200, headers, self.fake.swapped.get(name, data))
        headers |= {"X-Linked-Etag": f'"{_sha256(data)}"', "X-Linked-Size": str(len(data))}
        return self._send(302, headers | {"Location": f"{self.fake.url.replace('127.0.0.1', 'localhost')}/cdn/{name}"})

    def _send_large(self, name: str) -> None:
        data = self.fake.swapped.get(name, self.fake.files[name])
        if self.fake.cdn_status is not None:
            return self._send(self.fake.cdn_status)
        if self.command == "GET" and self.fake.outages:
            self.fake.outages -= 1
            return self._send(503)
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if not self.fake.ranges:
            start = 0
        breaks = self.fake.break_after.get(name)
        limit = breaks.pop(0) if breaks and self.command == "GET" else None
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        return self._send(206 if start else 200, headers, data[start:], limit)

    def _send(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", limit: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:limit])
            if limit is not None:
                self.close_connection = True


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
