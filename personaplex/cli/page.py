"""The page as a process: refuse what cannot work, show it, load the model behind it, and end in order."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

from personaplex.settings import AUTO, LOCAL, Settings, on_zerogpu
from personaplex.web.address import check_address
from personaplex.web.log_format import keep_log_private, log_to_stderr
from personaplex.web.storage import RunFolder
from personaplex.web.workarounds.gradio_import import leave_stubs_alone
from personaplex.web.workarounds.versions import check_versions
from personaplex.weights.names import HubModel, model_config, named_model

if TYPE_CHECKING:
    from personaplex.cli.clients import Clients
    from personaplex.serving.hosted import Host
    from personaplex.web.page import Page

log = logging.getLogger(__name__)

PAGE_FIRST_SEC = 1.5  # a waiting browser gets the page before PyTorch and the model take the cores
CLOSE_PAGES_SEC = 1  # uvicorn would wait for every page that is still open
GOODBYE_SEC = 2.0  # for visitors to be told the end and to hang up
END_WITHIN_SEC = 4.5  # then the process exits, whatever hangs


def run_page(settings: Settings) -> None:
    """Show the page at once, load the model behind it, and end in order on SIGTERM or Ctrl-C.

    Raises PersonaPlexError before the page is up for settings that cannot work here.
    """
    restart_in_utf8()
    log_to_stderr()
    check_versions()
    check_address(settings)
    if settings.ray is None:  # a cluster's replicas have the model
        check_model_and_device(settings)
    folder = RunFolder.create()
    os.environ["GRADIO_TEMP_DIR"] = str(folder.path)  # Gradio reads it while it is imported, too
    leave_stubs_alone()
    from personaplex.cli.clients import Clients
    from personaplex.protocols.port import limit_websockets
    from personaplex.web.page import build_page, launch_options

    host = host_for(settings)
    page, clients = build_page(host, folder.path), Clients(host)
    if host.lends_gpu:  # ZeroGPU packs what the GPU gets at launch, so the model must be loaded before
        host.start()
        host.wait()
    _, address, public_address = page.blocks.launch(**launch_options(host, page, clients.routes))
    limit_websockets(page.blocks.server.config)
    clients.start()
    keep_log_private()  # uvicorn sets up its own handlers at launch
    if not host.lends_gpu:
        host.start(after_sec=PAGE_FIRST_SEC)
    log.info("the page is at %s", public_address or address)
    stop = threading.Event()
    _take_signals(stop)
    while not stop.wait(1.0):  # an endless wait ignores Ctrl-C on Windows, up to Python 3.13
        if settings.ray is not None:  # joining a cluster, in a thread of its own, puts Ray's handlers in place of ours
            _take_signals(stop)
    _end(host, page, clients, folder)


def _take_signals(stop: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())


def host_for(settings: Settings) -> Host:
    """Where conversations run: here, or on a cluster."""
    if settings.ray is None:
        from personaplex.serving.host import ModelHost
        from personaplex.web.edge_cost import edge_ms

        return ModelHost(settings, edge_ms=edge_ms)
    from personaplex.cluster.host import ClusterHost

    if settings.ray == LOCAL:
        from personaplex.cluster.local import start_here

        return ClusterHost(settings, functools.partial(start_here, settings))
    from personaplex.cluster.connect import join

    return ClusterHost(settings, functools.partial(join, settings.ray))


def restart_in_utf8() -> None:
    """Start the program again in Python's UTF-8 mode where file names would be ASCII (``LC_ALL=C``).

    Visitors' files keep their names, which may hold any letter; an upload of such a file would fail.
    """
    if sys.getfilesystemencoding().lower() not in ("utf-8", "utf8"):
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def check_model_and_device(settings: Settings) -> None:
    """Raise PersonaPlexError for a model that cannot exist or a GPU that is not here.

    PyTorch is imported only where a GPU was asked for: the page is to be up before.
    """
    if settings.model != AUTO:
        found = named_model(settings.model)
        if not isinstance(found, HubModel):
            model_config(found)
    if settings.device.startswith("cuda") and not on_zerogpu():
        from personaplex.weights.load import usable_device

        usable_device(settings.device)


def _end(host: Host, page: Page, clients: Clients, folder: RunFolder) -> None:
    """End every conversation, delete visitors' files, close the page; exits after END_WITHIN_SEC in any case."""
    last_resort = threading.Timer(END_WITHIN_SEC, _cut_off, [folder])
    last_resort.daemon = True
    last_resort.start()
    host.close()
    page.visits.end_all()
    told_by = time.monotonic() + GOODBYE_SEC
    while page.connections + clients.connections and time.monotonic() < told_by:
        time.sleep(0.05)
    # Open connections are closed on purpose; uvicorn would log a traceback for each.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    page.blocks.server.config.timeout_graceful_shutdown = CLOSE_PAGES_SEC
    clients.close()
    page.blocks.close(verbose=False)
    folder.delete()


def _cut_off(folder: RunFolder) -> None:
    log.warning("not everything ended in time; the rest is cut off")
    folder.delete()
    logging.shutdown()
    os._exit(0)
