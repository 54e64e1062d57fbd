"""The page: ``python app.py`` here, or a Hugging Face Space. All it does is wire the parts together."""

import contextlib
import logging
import signal
import sys
import threading
import time

with contextlib.suppress(ImportError):
    import spaces  # noqa: F401 - on ZeroGPU it must come before PyTorch

from personaplex.errors import PersonaPlexError
from personaplex.settings import Settings

EXIT_BAD_INPUT = 2
CLOSE_PAGES_SEC = 1  # a page that is still open somewhere would be waited for
GOODBYE_SEC = 2.0  # what visitors are told at the end is still on its way


def main(arguments: list[str]) -> int:
    """Show the page at once, load the model behind it, and end in order when asked to."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "aioice"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("aiortc").setLevel(logging.ERROR)  # it warns, at length, whenever FastRTC ends a track
    try:
        settings = Settings.from_flags(arguments)
    except PersonaPlexError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    from personaplex.host import ModelHost
    from personaplex.ui import build_page, launch_options

    host = ModelHost(settings)
    page = build_page(host)
    if host.lends_gpu:  # what a lent GPU gets is packed at launch, so the model comes first
        host.start()
        host.wait()
    _, address, public_address = page.launch(**launch_options(host))
    if not host.lends_gpu:
        host.start()
    logging.getLogger("app").info("the page is at %s", public_address or address)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    somebody_talks = host.hosted is not None and host.hosted.server.status().running > 0
    host.close()
    page.visits.end_all()
    if somebody_talks:
        time.sleep(GOODBYE_SEC)
    # What is still open is cut off on purpose; the server would log a traceback of each.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    page.server.config.timeout_graceful_shutdown = CLOSE_PAGES_SEC
    page.close(verbose=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
