"""ICE candidates as browsers send them, and what else may come in their place."""

import pytest

from personaplex.web.workarounds.fastrtc_candidates import KEPT_SEC, EarlyCandidates, complete_candidate

FIREFOX = "candidate:0 1 UDP 2122187007 192.0.2.2 40487 typ host"
CHROMIUM = "candidate:2393089663 1 udp 2122260223 192.0.2.2 63692 typ host generation 0 ufrag LkZb network-id 1"
REFLEXIVE = "candidate:1 1 UDP 1685987327 198.51.100.7 50000 typ srflx raddr 0.0.0.0 rport 0"


@pytest.mark.parametrize(
    "line", [FIREFOX, CHROMIUM, REFLEXIVE, f"a={FIREFOX}", FIREFOX.replace("192.0.2.2", "a.local")]
)
def test_a_browsers_candidate_has_what_fastrtc_reads(line):
    whole = complete_candidate({"candidate": line, "sdpMid": "0", "sdpMLineIndex": 0, "usernameFragment": "x"})
    assert len(whole["candidate"].split()) >= 10 and whole["candidate"].startswith(line.removeprefix("a="))
    assert whole["sdpMid"] == "0" and whole["sdpMLineIndex"] == 0


@pytest.mark.parametrize("end", [None, {}, {"candidate": ""}, {"candidate": "  ", "sdpMid": "0"}])
def test_the_end_of_gathering_is_no_candidate(end):
    assert complete_candidate(end) is None


@pytest.mark.parametrize(
    "given",
    ["text", 7, {"candidate": 5}, {"candidate": "candidate:"}, {"candidate": FIREFOX.replace("40487", "port")},
     {"candidate": f"{FIREFOX}\nforged line"}, {"candidate": FIREFOX.replace("192.0.2.2", "a b")},
     {"candidate": FIREFOX.replace("192.0.2.2", "example.org")}, {"candidate": FIREFOX.replace("40487", "70000")},
     {"candidate": FIREFOX.replace("192.0.2.2", "192.0.2.999")}],
)  # fmt: skip
def test_other_text_is_no_candidate(given):
    """What aiortc cannot use FastRTC would log with a traceback, each time."""
    with pytest.raises(ValueError, match="candidate"):
        complete_candidate({**given, "sdpMid": "0"} if isinstance(given, dict) else given)


def test_a_candidate_names_its_part_of_the_offer():
    with pytest.raises(ValueError, match="sdpMid"):
        complete_candidate({"candidate": FIREFOX})


def test_early_candidates_are_bounded_in_time_and_number():
    now = [0.0]
    early = EarlyCandidates(clock=lambda: now[0])
    for number in range(200):
        early.keep(f"id{number}", {"candidate": FIREFOX})
    for _ in range(200):
        early.keep("id199", {"candidate": FIREFOX})
    assert early.take("id0") == [] and 1 < len(early.take("id199")) < 100 and early.take("id199") == []
    now[0] = KEPT_SEC + 1
    assert early.take("id198") == []
