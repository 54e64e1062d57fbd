"""What visitors can do to the log: neither forge lines nor fill it."""

import io
import logging

import pytest

from personaplex.web.log_lines import MOST_A_MINUTE, MOST_CHARS, MOST_TRACEBACKS_A_MINUTE, TidyLines, one_line, tidy_log


@pytest.fixture
def log():
    """A logger with a handler of its own, and its text."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("test.log_lines")
    logger.propagate = False
    logger.handlers[:] = [handler]
    tidy_log([handler])
    return logger, text


@pytest.mark.parametrize(
    "forged", ["a\nERROR forged", "a\r\nERROR forged", "a\x1b[31mred", "a\u2028ERROR", "a\x85b", "a\x00"]
)
def test_a_forged_line_stays_within_its_own(log, forged):
    logger, text = log
    logger.warning("Received ICE candidate for unknown connection: %s", forged)
    logger.warning(f"the same without arguments, 100 %: {forged}")
    first, second = text.getvalue().splitlines()
    assert first.startswith("WARNING Received") and second.startswith("WARNING the same")
    assert "\\" in first and "\x1b" not in first


def test_ordinary_lines_are_as_they_were(log):
    logger, text = log
    logger.info("not shown")
    logger.warning("%d %% of Grüße … are %s", 5, "fine")
    assert text.getvalue() == "WARNING 5 % of Grüße … are fine\n"


def test_a_long_message_is_cut():
    assert len(one_line("x" * 10**6)) < MOST_CHARS + 50 and "1000000 characters" in one_line("x" * 10**6)


def test_each_place_writes_so_much_a_minute_and_others_go_on(log):
    logger, text = log
    for number in range(1000):
        logger.error("flood %d", number)
        try:
            raise ValueError("flood")
        except ValueError:
            logger.exception("traceback")
    logger.error("another place")
    lines = text.getvalue()
    assert lines.count("flood ") == MOST_A_MINUTE and lines.count("Traceback") == MOST_TRACEBACKS_A_MINUTE
    assert lines.count("left out") == 2 and "another place" in lines


def test_after_a_minute_it_may_write_again():
    now = [0.0]
    tidy = TidyLines(clock=lambda: now[0])
    record = logging.LogRecord("x", logging.INFO, "file.py", 1, "text", None, None)
    for _ in range(MOST_A_MINUTE):
        assert tidy.filter(record)
    assert not tidy.filter(record)
    now[0] = 61.0
    assert tidy.filter(record)


def test_it_is_added_once(log):
    logger, _ = log
    tidy_log()
    tidy_log()
    assert sum(isinstance(each, TidyLines) for each in logger.handlers[0].filters) == 1
