"""The page: ``python app.py`` here, or a Hugging Face Space. All it does is wire the parts together."""

import logging
import os
import signal
import sys
import threading
import time

if os.environ.get("SPACES_ZERO_GPU"):
    import spaces  # noqa: F401 - there it must come before PyTorch; elsewhere it only costs time

from personaplex.errors import PersonaPlexError
from personaplex.settings import Settings
from personaplex.web.address import check_address
from personaplex.web.workarounds.gradio_import import leave_stubs_alone

log = logging.getLogger("app")

EXIT_BAD_INPUT = 2
PAGE_FIRST_SEC = 1.5  # a browser that waits for the page gets it before PyTorch and the model take the cores
CLOSE_PAGES_SEC = 1  # a page that is still open somewhere would be waited for
GOODBYE_SEC = 2.0  # so long at most for visitors to be told the end and to hang up
END_WITHIN_SEC = 4.5  # whatever hangs then is cut off


def main(arguments: list[str]) -> int:
    """Show the page at once, load the model behind it, and end in order when asked to."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "aioice"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("aiortc").setLevel(logging.ERROR)  # it warns, at length, whenever FastRTC ends a track
    try:
        settings = Settings.from_flags(arguments)
        check_address(settings)
    except PersonaPlexError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    leave_stubs_alone()
    from personaplex.serving.host import ModelHost
    from personaplex.web.page import build_page, launch_options

    host = ModelHost(settings)
    page = build_page(host)
    if host.lends_gpu:  # what a lent GPU gets is packed at launch, so the model comes first
        host.start()
        host.wait()
    _, address, public_address = page.launch(**launch_options(host))
    if not host.lends_gpu:
        host.start(after_sec=PAGE_FIRST_SEC)
    log.info("the page is at %s", public_address or address)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(1.0):  # an endless wait ignores Ctrl-C on Windows, up to Python 3.13
        pass
    end(host, page)
    return 0


def end(host, page) -> None:
    """Tell everybody, delete what visitors left, close the page; within END_WITHIN_SEC, whatever hangs."""
    last_resort = threading.Timer(END_WITHIN_SEC, cut_off, [page])
    last_resort.daemon = True
    last_resort.start()
    host.close()
    page.visits.end_all()
    told_by = time.monotonic() + GOODBYE_SEC
    while page.connections() and time.monotonic() < told_by:
        time.sleep(0.05)
    # What is still open is cut off on purpose; the server would log a traceback of each.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    page.server.config.timeout_graceful_shutdown = CLOSE_PAGES_SEC
    page.close(verbose=False)
    page.visits.end_all()  # of conversations that were put away since


def cut_off(page) -> None:
    log.warning("not everything ended in time; the rest is cut off")
    page.visits.end_all()
    logging.shutdown()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
