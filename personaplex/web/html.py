"""HTML of the parts of the page that change. All text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from personaplex.messages import ConversationState, Meter, Phase
from personaplex.text.dialogue import AGENT, Line, lines_of
from personaplex.text.transcript import Word

READY_LINE = "Ready. Give access to the microphone, then press Start."
TRANSCRIPT_HEAD = (
    '<div class="card-head"><h2>Transcript</h2>'
    '<button type="button" class="copy" data-copies="{id}">Copy</button></div>'
)
MICROPHONE = (
    '<div class="level" data-verdict="off"><div class="bar" role="meter" aria-label="Level of your microphone" '
    'aria-valuemin="0" aria-valuemax="100" aria-valuenow="0"><i></i></div>'
    '<span role="status">The microphone is off.</span></div>'
    '<label><input type="checkbox" class="holding"> Talk only while I hold a button (push to talk)</label>'
    '<button type="button" class="hold" aria-pressed="false" hidden>Hold to talk, or the space bar</button>'
)
"""The microphone's level and the button that opens it; ``microphone.js`` brings them to life."""


def clock(seconds: float) -> str:
    """Seconds as m:ss: 0:07, 12:30."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def transcript_html(
    words: Sequence[Word], user: Sequence[Word] | None = None, *, live: bool = False, empty: str = ""
) -> str:
    """A line for each sentence or pause, with its time; the newest word stands out while it is ``live``.

    With the user's words (none yet is not None) each line says who speaks.
    """
    if not words and not user:
        return f'<div class="transcript"><p class="hint">{escape(empty)}</p></div>'
    lines = lines_of(words, user or ())
    body = "".join(
        _line_html(line, named=user is not None, newest=live and number == len(lines) - 1)
        for number, line in enumerate(lines)
    )
    return f'<div class="transcript" role="log" aria-live="off" aria-label="Transcript">{body}</div>'


def _line_html(line: Line, *, named: bool, newest: bool) -> str:
    spans = [f'<span title="{word.start_sec:.2f} s">{escape(word.text)}</span>' for word in line.words]
    if newest:
        spans[-1] = spans[-1].replace("<span ", '<span class="now" ', 1)
    side = "persona" if line.speaker == AGENT else "you"
    who = f'<b class="who">{line.speaker}:</b> ' if named else ""
    time = f"<time>{clock(line.start_sec)}</time>"
    return f'<p class="{side}">{time} {who}<span class="words">{" ".join(spans)}</span></p>'


def state_html(phase: str, line: str, share: float | None = None) -> str:
    """A state as a sentence with a coloured dot; ``share``, 0 to 1, adds a progress bar."""
    bar = "" if share is None else f'<progress max="1" value="{share:.3f}" aria-label="progress"></progress>'
    return (
        f'<div class="state" data-phase="{escape(phase)}" role="status">'
        f'<span class="dot" aria-hidden="true"></span><span class="line">{escape(line)}</span>{bar}</div>'
    )


def is_of_loading(html: str) -> bool:
    """Whether a state line is about the loading of the model, not about a conversation."""
    return 'data-phase="loading"' in html or 'data-phase="ended-failed"' in html


def conversation_state_html(state: ConversationState, line: str) -> str:
    share = state.done / state.total if state.phase is Phase.PREPARING and state.total else None
    phase = state.phase.value
    if state.phase is Phase.ENDED and state.reason is not None:
        phase = f"{phase}-{state.reason.value}"
    return state_html(phase, line, share)


def meter_html(meter: Meter | None, round_trip_ms: float | None = None, budget_ms: float = 80.0) -> str:
    """The meter: step time against its budget, dropped frames, round trip."""
    if meter is None or not meter.frames:
        figures = [("Step", "–", f"of {budget_ms:.0f} ms"), ("Dropped", "–", "frames"), ("Round trip", "–", "ms")]
        share, level = 0.0, "idle"
    else:
        share = meter.step_ms / budget_ms
        level = "good" if share <= 0.8 else "tight" if share <= 1 else "late"
        trip = "–" if round_trip_ms is None else f"{round_trip_ms:.0f}"
        figures = [
            ("Step", f"{meter.step_ms:.0f}", f"of {budget_ms:.0f} ms"),
            ("Dropped", f"{meter.dropped_frames}", "frame" if meter.dropped_frames == 1 else "frames"),
            ("Round trip", trip, "ms"),
        ]
    cells = "".join(
        f"<div><dt>{name}</dt><dd><b>{value}</b> <span>{unit}</span></dd></div>" for name, value, unit in figures
    )
    width = f"{100 * min(share, 1):.0f}"
    return (
        f'<dl class="meter" data-level="{level}">{cells}</dl>'
        f'<div class="bar" data-level="{level}" aria-hidden="true"><i style="width:{width}%"></i></div>'
    )


def count_html(count: int | None, limit: int, problem: str = "") -> str:
    """The number of prompt tokens against the model's limit."""
    if problem:
        return f'<div class="count over" role="alert">{escape(problem)}</div>'
    if count is None:
        return '<div class="count">The text is counted once the model is loaded.</div>'
    if count > limit:
        return (
            f'<div class="count over" role="alert">{count} of {limit} tokens: too long by {count - limit}. '
            "Shorten the text, or it will be refused.</div>"
        )
    return f'<div class="count">{count} of {limit} tokens</div>'


def verdict_html(sentence: str, good: bool) -> str:
    """The verdict on a visitor's voice recording."""
    if not sentence:
        return ""
    role = "status" if good else "alert"
    return f'<div class="verdict {"good" if good else "bad"}" role="{role}">{escape(sentence)}</div>'


def table_html(rows: Iterable[tuple[str, str]]) -> str:
    """(label, value) rows as a table."""
    body = "".join(f'<tr><th scope="row">{escape(what)}</th><td>{escape(found)}</td></tr>' for what, found in rows)
    return f'<div class="wide"><table class="facts"><tbody>{body}</tbody></table></div>'


def picture_html(svg: str, summary: str) -> str:
    """An SVG in a figure that scrolls sideways on narrow screens, captioned with a summary."""
    return (
        f'<figure class="timeline"><div class="wide" role="img" aria-label="{escape(summary)}" tabindex="0">{svg}</div>'
        f"<figcaption>{escape(summary)}</figcaption></figure>"
    )
