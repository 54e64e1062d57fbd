"""Other people's programs against this one: starts the page with nano and lets each client that is here talk to it.

    python tests/clients/run.py                        # all that are installed, one after the other
    python tests/clients/run.py openai_sdk-burst phone # these
    python tests/clients/run.py --together             # four of three protocols at once; no frame may be dropped

Clients run in an environment of their own, build/clients (requirements-clients.txt), or that of --python. A line for
each: passed, FAILED, or NOT TRIED with the reason; ends with 1 if one failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
START_WITHIN_SEC = 180.0
TALK_WITHIN_SEC = 120.0

sys.path.insert(0, str(ROOT))
from benchmarks.ports import free_port  # noqa: E402


@dataclass(frozen=True)
class Client:
    """A script, the package it needs, and its arguments; {page}, {moshi}: where the server is, without the scheme."""

    name: str
    needs: str
    arguments: tuple[str, ...]
    small: bool = False  # small enough to be tried with every change

    @property
    def script(self) -> Path:
        name = self.name.split("-")[0]
        return HERE / (name if "." in name else f"{name}.py")


CLIENTS = (
    Client("moshi_client", "moshi", ("ws://{moshi}/bank", "http://{page}"), small=True),
    Client("openai_sdk-burst", "openai", ("http://{page}/v1", "burst"), small=True),
    Client("openai_sdk-paced", "openai", ("http://{page}/v1", "paced")),
    Client("openai_sdk-interrupt", "openai", ("http://{page}/v1", "interrupt"), small=True),
    Client("agents_sdk", "agents", ("ws://{page}/v1/realtime",), small=True),
    Client("phone", "streamdouble", ("ws://{page}/twilio/media",), small=True),
    Client("livekit_moshi", "livekit.plugins.nvidia", ("ws://{moshi}",)),
    Client("livekit_openai", "livekit.plugins.openai", ("http://{page}/v1",)),
    Client("pipecat_openai", "pipecat", ("ws://{page}/v1/realtime",)),
    Client("agents.mjs", "@openai/agents-realtime", ("ws://{page}/v1/realtime",)),
)
TOGETHER = ("moshi_client", "openai_sdk-paced", "agents_sdk", "phone")


def why_not(client: Client, python: str) -> str:
    """Why a client cannot be tried here; "" if it can."""
    if client.script.suffix == ".mjs":
        return "" if (ROOT / "node_modules" / client.needs).is_dir() else f"npm i {client.needs} in {ROOT} first"
    if not Path(python).is_file():
        return f"no {python}: see requirements-clients.txt"
    # Found, not imported: moshi's own package needs PyTorch, its client does not.
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({client.needs.split('.')[0]!r}) is None)"
    if "." in client.needs:
        code = f"import {client.needs}"
    found = subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0
    return "" if found else f"{client.needs} is not installed there"


@dataclass(frozen=True)
class Server:
    """The page with nano, and where it is."""

    page: str
    moshi: str

    def figure(self, name: str) -> float:
        text = urllib.request.urlopen(f"http://{self.page}/metrics", timeout=10).read().decode()
        return float(next(line for line in text.splitlines() if line.startswith(name + " ")).split()[1])


@contextlib.contextmanager
def server(conversations: int = 1) -> Iterator[Server]:
    """`python app.py --model nano`, loaded, until the end."""
    page, moshi = free_port(), free_port()
    command = [sys.executable, "app.py", "--model", "nano", "--port", str(page), "--moshi-port", str(moshi)]
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "GRADIO_TEMP_DIR": folder, "HF_HUB_OFFLINE": "1"}
        log = Path(folder) / "log.txt"
        with log.open("w") as file:
            process = subprocess.Popen(
                [*command, "--conversations", str(conversations)], cwd=ROOT, env=environ, stdout=file, stderr=file
            )
        try:
            until = time.monotonic() + START_WITHIN_SEC
            while not _is_ready(page):
                assert process.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.2)
            yield Server(f"127.0.0.1:{page}", f"127.0.0.1:{moshi}")
        finally:
            process.terminate()
            process.wait(20)


def _is_ready(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10).status == 200
    except OSError:
        return False


def talk(client: Client, served: Server, python: str) -> tuple[bool, str]:
    """Let a client talk; → whether it was content, and the line that it printed or its error."""
    arguments = [argument.format(page=served.page, moshi=served.moshi) for argument in client.arguments]
    command = ["node" if client.script.suffix == ".mjs" else python, str(client.script), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=TALK_WITHIN_SEC, check=False)
    lines = run.stdout.strip().splitlines()
    printed = next((line for line in reversed(lines) if line.startswith("{")), "")
    error = "" if run.returncode == 0 else " | " + " ".join(run.stderr.split())[-400:]
    return run.returncode == 0, printed + error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=", ".join(client.name for client in CLIENTS))
    parser.add_argument("--python", default=str(ROOT / "build" / "clients" / "bin" / "python"))
    parser.add_argument("--together", action="store_true")
    given = parser.parse_args()
    names = TOGETHER if given.together else given.names or [client.name for client in CLIENTS]
    unknown = set(names) - {client.name for client in CLIENTS}
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    able = []
    for client in CLIENTS:
        if client.name in names:
            reason = why_not(client, given.python)
            if reason:
                print(f"NOT TRIED  {client.name}: {reason}")
            else:
                able.append(client)
    with server(len(TOGETHER) if given.together else 1) as served, ThreadPoolExecutor(len(TOGETHER)) as pool:
        if given.together:
            results = list(pool.map(lambda client: talk(client, served, given.python), able))
        else:
            results = [_told(client, talk(client, served, given.python)) for client in able]
        dropped = served.figure("personaplex_dropped_frames_total")
    if given.together:
        for client, result in zip(able, results, strict=True):
            _told(client, result)
    print(f"dropped frames: {dropped:.0f}")
    return 1 if dropped or not all(content for content, _ in results) else 0


def _told(client: Client, result: tuple[bool, str]) -> tuple[bool, str]:
    content, line = result
    print(
        f"{'passed   ' if content else 'FAILED   '}  {client.name}: {re.sub(chr(27) + '[^m]*m', '', line)[:1200]}",
        flush=True,
    )
    return result


if __name__ == "__main__":
    sys.exit(main())
