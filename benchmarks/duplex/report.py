"""The report of a run: tables beside published figures, pictures and sounds, as Markdown and as HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.duplex.bootstrap import Estimate, estimate
from benchmarks.duplex.layout import LEAD_IN, Kind, is_lead_in
from benchmarks.duplex.page import Page, as_html
from benchmarks.duplex.plots import latency_png, write_example
from benchmarks.duplex.published import BENCH, MODEL_CARD, MODEL_CARD_NOTE, Published
from benchmarks.duplex.roles import FACT_KINDS
from benchmarks.duplex.runner import Take
from benchmarks.duplex.scoring import ASR, SOON_SEC, TEXT, Record, VoiceFigures
from personaplex.files import write_atomically, write_text

SYNTHETIC_NOTE = (
    "**These items are not the public set.** They were spoken by machines, about a small world, and made for this "
    "project; the published figures are of other recordings, people among them. The definitions are the same, the "
    "difficulty is not: figures that stand side by side here tell how a measure is read, not who is better."
)
GIVEN_NOTE = (
    "The items were given as a folder in the public layout. Published figures compare only if it is the public set, "
    "and then roughly: they rest on the words of another recogniser."
)
EXAMPLES_A_TASK = 2


@dataclass(frozen=True)
class Results:
    """The report's contents."""

    settings: dict  # what the run was made with
    records: list[Record]
    voices: VoiceFigures | None = None
    notes: list[str] = field(default_factory=list)  # what was left out, and why
    cost: dict = field(default_factory=dict)  # minutes of sound and of work

    @property
    def sources(self) -> list[str]:
        return [source for source in (TEXT, ASR) if any(source in record.words for record in self.records)]

    @property
    def conditions(self) -> list[str]:
        return list(dict.fromkeys(record.condition for record in self.records))

    @property
    def base(self) -> str:
        """The condition that the main tables are of."""
        return "clean" if "clean" in self.conditions else self.conditions[0]


@dataclass(frozen=True)
class Measure:
    """A line of the tables."""

    name: str  # as published.py names it
    kind: Kind
    figure: str
    better: str
    statistic: Callable[..., np.ndarray] = np.mean
    from_sound: bool = False

    def of(self, records: Sequence[Record], source: str = TEXT) -> Estimate:
        given = (record.sound if self.from_sound else record.words.get(source, {}) for record in records)
        return estimate([figures[self.figure] for figures in given if self.figure in figures], self.statistic)


MEASURES = (
    Measure("pause takeover", Kind.PAUSE, "takeover", "lower"),
    Measure("backchannel takeover", Kind.BACKCHANNEL, "takeover", "lower"),
    Measure("… in any stretch, not the last alone", Kind.BACKCHANNEL, "any_takeover", "lower"),
    Measure("backchannels a second", Kind.BACKCHANNEL, "rate_hz", "higher"),
    Measure("words aside a second", Kind.BACKCHANNEL, "nods_hz", "higher"),
    Measure("backchannel distance", Kind.BACKCHANNEL, "distance", "lower"),
    Measure("turn takeover", Kind.TURN, "takeover", "higher"),
    Measure("turn latency, s", Kind.TURN, "latency_sec", "lower"),
    Measure("turn latency, median, s", Kind.TURN, "latency_sec", "lower", np.median),
    Measure("… begun before the turn's end", Kind.TURN, "early", "lower"),
    Measure("interruption takeover", Kind.INTERRUPTION, "takeover", "higher"),
    Measure("interruption latency, s", Kind.INTERRUPTION, "latency_sec", "lower"),
    Measure("agent was speaking when interrupted", Kind.INTERRUPTION, "speaking", "", from_sound=True),
    Measure("agent silent after, s", Kind.INTERRUPTION, "stop_sec", "lower", from_sound=True),
    Measure("agent silent after, median, s", Kind.INTERRUPTION, "stop_sec", "lower", np.median, from_sound=True),
    Measure("agent silent within 0.5 s", Kind.INTERRUPTION, "stopped_soon", "higher", from_sound=True),
    Measure("greeting whole", Kind.GREETING, "greeting_whole", "higher", from_sound=True),
    Measure("… words after it, nobody spoke", Kind.GREETING, "unasked_words", "lower", from_sound=True),
    Measure("… utterances broken off, nobody spoke", Kind.GREETING, "broken_off", "lower", from_sound=True),
    Measure("answers broken off, nobody spoke", Kind.TURN, "broken_off", "lower", from_sound=True),
    Measure("overlap: agent silent after, s", Kind.OVERLAP, "stop_sec", "lower", from_sound=True),
    Measure("overlap: agent answers after, s", Kind.OVERLAP, "response_sec", "lower", from_sound=True),
)
_IN_CONDITIONS = (
    "pause takeover", "backchannel takeover", "backchannels a second", "turn takeover", "turn latency, median, s",
    "interruption takeover", "agent silent after, median, s", "agent silent within 0.5 s", "greeting whole",
    "… words after it, nobody spoke", "… utterances broken off, nobody spoke", "answers broken off, nobody spoke",
)  # fmt: skip
_SOURCE_NAMES = {TEXT: "text stream", ASR: "words heard"}
_BETTER = {"lower": "↓", "higher": "↑", "": ""}


def write_report(results: Results, takes: Sequence[Take], folder: Path) -> Path:
    """``report.md`` and ``report.html`` with their pictures and sounds; → the Markdown's path."""
    folder.mkdir(parents=True, exist_ok=True)
    page = Page()
    _head(page, results)
    _main_table(page, results)
    _card_table(page, results)
    _conditions_table(page, results)
    _greetings(page, results)
    _roles_table(page, results)
    _words(page, results)
    _voices(page, results)
    _latencies(page, results, folder)
    _examples(page, results, takes, folder)
    _left_out(page, results)
    write_text(folder / "report.md", page.markdown)
    write_text(folder / "report.html", as_html(page.markdown, results.settings["model"]))
    return folder / "report.md"


# ---------------------------------------------------------------------------------- sections


def _head(page: Page, results: Results) -> None:
    settings = results.settings
    page.add(f"# Behaviour of {settings['model']}", SYNTHETIC_NOTE if settings["synthetic"] else GIVEN_NOTE)
    told = ", ".join(f"{name} = {value}" for name, value in settings.items() if value not in (None, ""))
    page.add(f"{len(results.records)} items. Made with {told}.")
    if results.cost.get("sound_min"):
        cost = results.cost
        page.add(
            f"{cost['sound_min']:.1f} minutes of conversation took {cost['talking_min']:.1f} minutes of talking and "
            f"{cost['listening_min']:.1f} of listening."
        )


def _main_table(page: Page, results: Results) -> None:
    page.add("## The benchmark's measures")
    page.add(
        "Each with its 95 % bootstrap interval over items and their number. *Text stream*: words and times as the "
        "model wrote them; *words heard*: as a recogniser heard them in its speech."
    )
    head = ["", "", *(_SOURCE_NAMES[source] for source in results.sources), *BENCH.systems]
    rows = []
    for measure in MEASURES:
        for label, records in _by_task(results, measure):
            own = _own(measure, records, results.sources)
            rows.append([label, _BETTER[measure.better], *own, *_published(BENCH, label, measure.name)])
        if measure.name == "interruption takeover":
            rows += _judge_row(results)
    page.table(head, rows)
    page.add(f"Published: {BENCH.source}.")


def _own(measure: Measure, records: Sequence[Record], sources: Sequence[str]) -> list[str]:
    """A cell for each source; what comes from the sound alone is the same for all."""
    cells = [_told(measure.of(records, source)) for source in sources]
    return [cells[0], *("the same" for _ in cells[1:])] if measure.from_sound else cells


def _by_task(results: Results, measure: Measure) -> list[tuple[str, list[Record]]]:
    """A line for each task of the measure's kind; the task's name only where it is needed."""
    records = [r for r in results.records if r.condition == results.base and r.kind == measure.kind.value]
    tasks = list(dict.fromkeys(record.task for record in records))
    named = len(tasks) > 1 or measure.kind in (Kind.PAUSE, Kind.OVERLAP)
    return [
        (f"{measure.name} ({_short(task)})" if named else measure.name, [r for r in records if r.task == task])
        for task in tasks
    ]


def _short(task: str) -> str:
    prefix = task.split("_")[0]
    return {"synthetic": "synthetic", "candor": "Candor", "icc": "ICC"}.get(prefix, task)


def _published(table: Published, *names: str) -> list[str]:
    found = next((table.figures[name] for name in names if name in table.figures), [None] * len(table.systems))
    percent = table is MODEL_CARD and not any("latency" in name for name in names)
    return ["–" if value is None else f"{value:.1f}" if percent else f"{value:.3f}" for value in found]


def _judge_row(results: Results) -> list[list[str]]:
    ratings = [r.rating for r in results.records if r.condition == results.base and r.rating is not None]
    if not ratings:
        return []
    own = [_told(estimate(ratings)), *[""] * (len(results.sources) - 1)]
    return [["interruption judge", "↑", *own, *_published(BENCH, "interruption judge")]]


def _card_table(page: Page, results: Results) -> None:
    """The model card's measures: shares in percent, and its two latencies."""
    source = results.sources[-1]
    own = {}
    for name, wanted, flipped in (
        ("smooth turn taking", "turn takeover", False),
        ("… latency, s", "turn latency, s", None),
        ("user interruption", "interruption takeover", False),
        ("… latency, s (agent silent)", "agent silent after, s", None),
        ("pause handling", "pause takeover", True),
    ):
        measure = next(measure for measure in MEASURES if measure.name == wanted)
        records = [r for r in results.records if r.condition == results.base and r.kind == measure.kind.value]
        found = measure.of(records, source)
        own[name] = _told(found) if flipped is None else _told(_percent(found, flipped), "{:.1f}")
    page.add("## The model card's measures")
    page.add(
        f"From the {_SOURCE_NAMES[source]}. *Success* is taken to be the takeover rate, and for pauses 100 less it; "
        f"the card does not say. {MODEL_CARD_NOTE}"
    )
    rows = [[name, own[name], *_published(MODEL_CARD, name)] for name in MODEL_CARD.figures]
    page.table(["", "this run", *MODEL_CARD.systems], rows)


def _percent(found: Estimate, flipped: bool) -> Estimate:
    if flipped:
        return Estimate(100 - 100 * found.value, 100 - 100 * found.high, 100 - 100 * found.low, found.count)
    return Estimate(100 * found.value, 100 * found.low, 100 * found.high, found.count)


def _conditions_table(page: Page, results: Results) -> None:
    if len(results.conditions) < 2:
        return
    source = results.sources[-1]
    page.add("## Under other conditions", f"From the {_SOURCE_NAMES[source]}.")
    rows = []
    for measure in (measure for measure in MEASURES if measure.name in _IN_CONDITIONS):
        cells = []
        for condition in results.conditions:
            records = [r for r in results.records if r.condition == condition and r.kind == measure.kind.value]
            cells.append(_told(measure.of(records, source)))
        rows.append([measure.name, _BETTER[measure.better], *cells])
    page.table(["", "", *(condition or "as given" for condition in results.conditions)], rows)


def _greetings(page: Page, results: Results) -> None:
    late = [record for record in results.records if is_lead_in(record.condition)]
    greeted = [record.sound["over_user_sec"] for record in late if "over_user_sec" in record.sound]
    if not greeted:
        return
    over = [seconds for seconds in greeted if seconds > SOON_SEC]
    told = f" (median {np.median(over):.1f} s)" if over else ""
    page.add(
        f"In *{LEAD_IN}* the agent may greet before the user begins. What it began before is left out: the definitions "
        f"count every word. It had begun something in {len(greeted)} of {len(late)} items, and in {len(over)} of them "
        f"went on for more than {SOON_SEC} s after the user began{told}."
    )


def _roles_table(page: Page, results: Results) -> None:
    asked = [record for record in results.records if record.kind == Kind.ROLE.value]
    if not asked:
        return
    page.add("## Roles")
    page.add(
        "An answer is right when it contains the words that are wanted: the name, the price, the hour; of the other "
        "questions, words of declining or of politeness, which is easier. *Seen*: names and places that training "
        "knows, in combinations it does not."
    )
    head = ["question", *(f"{part}, {_SOURCE_NAMES[s]}" for s in results.sources for part in ("seen", "unseen"))]
    rows = []
    for kind in dict.fromkeys(record.role["kind"] for record in asked):
        chosen = [record for record in asked if record.role["kind"] == kind]
        rows.append([kind, *_right(chosen, results.sources)])
    facts = [record for record in asked if record.role["kind"] in FACT_KINDS]
    rows.append([f"facts: {', '.join(FACT_KINDS)}", *_right(facts, results.sources)])
    page.table(head, [*rows, ["all", *_right(asked, results.sources)]])


def _right(records: Sequence[Record], sources: Sequence[str]) -> list[str]:
    return [
        _told(estimate([r.words[source]["right"] for r in records if source in r.words and r.role["seen"] == seen]))
        for source in sources
        for seen in (True, False)
    ]


def _words(page: Page, results: Results) -> None:
    counted = [record.sound for record in results.records if "words" in record.sound]
    if not counted:
        return
    meant = sum(figures["words"] for figures in counted)
    errors = sum(figures["word_errors"] for figures in counted)
    page.add("## Words understood")
    page.add(
        f"Of {meant:.0f} words of the text stream the recogniser had {1 - errors / meant:.1%} right "
        f"(1 − word error rate, {len(counted)} items), and of the agents' own names "
        f"{sum(f['names_heard'] for f in counted):.0f} of {sum(f['names'] for f in counted):.0f}."
    )
    named = [r for r in results.records if r.role.get("kind") == "name" and ASR in r.words and r.words[TEXT]["right"]]
    if named:
        heard = estimate([record.words[ASR]["right"] for record in named])
        page.add(f"Where the text stream had the right name, the recogniser heard it too: {_told(heard)}.")


def _voices(page: Page, results: Results) -> None:
    voices = results.voices
    if voices is None or not voices.answers:
        return
    page.add("## Voice", "Cosine similarity of speaker embeddings; PersonaPlex's card has 0.650, by another embedding.")
    rows = [
        ["answer and its voice prompt", _told(estimate(list(voices.answers.values())))],
        ["two recordings of one voice", _told(estimate(voices.same))],
        ["recordings of two voices", _told(estimate(voices.other))],
        ["of answers with each prompt of another voice, nearer to their own", _told(estimate(voices.nearer))],
    ]
    page.table(["", "mean"], rows)


def _latencies(page: Page, results: Results, folder: Path) -> None:
    source = results.sources[-1]
    records = [record for record in results.records if record.condition == results.base]
    turns, broken = (
        [r.words[source]["latency_sec"] for r in records if r.kind == kind and "latency_sec" in r.words.get(source, {})]
        for kind in (Kind.TURN.value, Kind.INTERRUPTION.value)
    )
    stops = [r.sound["stop_sec"] for r in records if r.kind == Kind.INTERRUPTION.value and "stop_sec" in r.sound]
    spread = {
        "first word after the turn": turns,
        "first word after the interruption": broken,
        "silent after being interrupted": stops,
    }
    if not any(spread.values()):
        return
    card = MODEL_CARD.figures
    published = {
        "first word after the turn": card["… latency, s"][0],
        "silent after being interrupted": card["… latency, s (agent silent)"][0],
    }
    png = latency_png(spread, {name: value for name, value in published.items() if value is not None})
    write_atomically(folder / "latencies.png", lambda file: file.write(png))
    page.add(
        "## Latencies",
        "Of the items in which there is one; dashed: what PersonaPlex's card has on the public set.",
        "![Cumulative distribution of latencies](latencies.png)",
    )


def _examples(page: Page, results: Results, takes: Sequence[Take], folder: Path) -> None:
    """Of each task one item that went well and one that did not, where there are both."""
    by_key = {take.item.key: take for take in takes if take.stem == "output"}
    source = results.sources[-1]
    page.add("## Listen", "Agent left, user right.")
    for kind in (Kind.PAUSE, Kind.TURN, Kind.BACKCHANNEL, Kind.INTERRUPTION, Kind.ROLE):
        records = [r for r in results.records if r.condition == results.base and r.kind == kind.value]
        for record in _well_and_badly(records, kind, source):
            take = by_key.get(record.key)
            if take is None:
                continue
            stem = f"{record.task}-{Path(record.key).name}"
            write_example(take, folder, stem)
            told = ", ".join(f"{name} {value:.2f}" for name, value in (record.words[source] | record.sound).items())
            page.add(f"**{record.key}**: {told}", f"![Who spoke when]({stem}.png)")
            page.add(f"[{stem}.mp3]({stem}.mp3)")


def _well_and_badly(records: Sequence[Record], kind: Kind, source: str) -> list[Record]:
    figure = "right" if kind is Kind.ROLE else "takeover"
    wanted = 0.0 if kind in (Kind.PAUSE, Kind.BACKCHANNEL) else 1.0
    scored = [record for record in records if figure in record.words.get(source, {})]
    well = [record for record in scored if record.words[source][figure] == wanted][:1]
    return well + [record for record in scored if record.words[source][figure] != wanted][: EXAMPLES_A_TASK - len(well)]


def _left_out(page: Page, results: Results) -> None:
    if results.notes:
        page.add("## Left out", "\n".join(f"* {note}" for note in results.notes))


# ---------------------------------------------------------------------------------- cells


def _told(found: Estimate, number: str = "{:.3f}") -> str:
    if not found.count:
        return "–"
    value, low, high = (number.format(part) for part in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}] {found.count}"
