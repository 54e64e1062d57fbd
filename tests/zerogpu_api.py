"""Stands in for the machine that lends GPUs: with it, the decorator of ``spaces`` really forks, GPU or not."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class DeviceApi:
    """Grants every request at once and remembers it; ``with DeviceApi() as api: api.environ``."""

    def __init__(self):
        self.asked: list[tuple[str, dict[str, str]]] = []
        api = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self):  # noqa: N802, the library's name
                url = urlsplit(self.path)
                what = url.path.strip("/")
                api.asked.append((what, {name: values[0] for name, values in parse_qs(url.query).items()}))
                body = json.dumps(api.answer(what)).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)

    def answer(self, what):
        if what != "schedule":
            return {}
        # The first call of all gets a worker of its own; later ones may reuse an idle one.
        idle = sum(asked == "schedule" for asked, _ in self.asked) > 1
        return {"idle": idle, "nvidiaIndex": 0, "nvidiaUUID": "GPU-stand-in", "allowToken": "token"}

    @property
    def environ(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return {"SPACES_ZERO_GPU": "1", "SPACES_ZERO_DEVICE_API_URL": url}

    def __enter__(self) -> DeviceApi:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()
