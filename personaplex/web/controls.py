"""The settings of a conversation: their components, and their values as a request."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from personaplex.config import NANO
from personaplex.errors import InputError, PersonaPlexError, PromptError
from personaplex.files import shipped_folder
from personaplex.messages import MAX_SEED, MAX_TOP_K, NEW_SEED, ConversationRequest, SamplingOptions
from personaplex.personas.own_voice import MIN_OWN_SEC, own_voice
from personaplex.personas.presets import DEFAULT_PERSONA, persona, personas
from personaplex.personas.voices import MAX_VOICE_SEC, VoiceEntry, default_voice_name
from personaplex.serving.hosted import Host, Hosted
from personaplex.strict import check_range
from personaplex.text.prompt import MAX_PROMPT_CHARACTERS, count_prompt_tokens
from personaplex.web.html import count_html, verdict_html
from personaplex.web.visits import Visits
from personaplex.web.workarounds.gradio_components import accept_any_value

OWN_WORDS = ""  # the persona "in my own words"
DEFAULT_VOICE = "default"  # the model's own choice
TEMPERATURES = (0.1, 1.5)


@dataclass(frozen=True)
class Controls:
    """The components of one tab; ``inputs`` is in the order of ``Choices``."""

    persona: gr.Dropdown
    count: gr.HTML
    sample: gr.Audio
    verdict: gr.HTML
    prompt: gr.Textbox
    voice: gr.Dropdown
    own_voice: gr.Audio
    seed: gr.Number
    temperature_audio: gr.Slider
    top_k_audio: gr.Slider
    temperature_text: gr.Slider
    top_k_text: gr.Slider

    @property
    def inputs(self) -> list[gr.components.Component]:
        return [
            self.prompt, self.voice, self.own_voice, self.seed, self.temperature_audio, self.top_k_audio,
            self.temperature_text, self.top_k_text,
        ]  # fmt: skip


@dataclass(frozen=True)
class Choices:
    """The values of ``Controls.inputs`` as a page or a script sends them."""

    prompt: Any
    voice: Any
    own_voice: str | None
    seed: Any
    temperature_audio: Any
    top_k_audio: Any
    temperature_text: Any
    top_k_text: Any

    def request(self, hosted: Hosted, **more: Any) -> ConversationRequest:
        """The request these values ask for; raises PersonaPlexError with a sentence for the visitor."""
        prompt = words("prompt", self.prompt)
        problem = prompt_problem(hosted, prompt)
        if problem:
            raise PromptError(problem)
        name = words("voice", self.voice)
        named = None if name == DEFAULT_VOICE else name
        voice = own_voice(self.own_voice) if self.own_voice else hosted.finder.find(named)
        sampling = SamplingOptions(
            temperature_audio=number("temperature_audio", self.temperature_audio, *TEMPERATURES),
            top_k_audio=int(number("top_k_audio", self.top_k_audio, 1, MAX_TOP_K)),
            temperature_text=number("temperature_text", self.temperature_text, *TEMPERATURES),
            top_k_text=int(number("top_k_text", self.top_k_text, 1, MAX_TOP_K)),
            seed=self._seed(),
        )
        return ConversationRequest(voice=voice, text=prompt, sampling=sampling, **more)

    def _seed(self) -> int:
        seed = NEW_SEED if self.seed is None else int(number("seed", self.seed, NEW_SEED, MAX_SEED))
        return secrets.randbelow(MAX_SEED) if seed == NEW_SEED else seed


def number(name: str, value: Any, least: float, most: float) -> float:
    """``value`` as a number in a range; raises InputError for anything else that a script may send."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{name} is {_shown(value)}; a number is needed, {least:g} to {most:g}")
    check_range(name, value, least, most, error=InputError)
    return value


def words(name: str, value: Any) -> str:
    """``value`` as text, "" for None; raises InputError for anything else."""
    if value is not None and not isinstance(value, str):
        raise InputError(f"{name} is {_shown(value)}; a text is needed")
    return value or ""


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:39]}…"


# ---------------------------------------------------------------------------------- choices


def persona_choices(family: str) -> list[tuple[str, str]]:
    """(label, name) of each persona; with nano, those outside its domain are marked."""
    choices = []
    for preset in personas():
        beyond = family == NANO and not preset.known_to_nano
        choices.append((preset.title + (" (beyond nano's small world)" if beyond else ""), preset.name))
    return [*choices, ("In my own words", OWN_WORDS)]


def voice_choices(entries: tuple[VoiceEntry, ...]) -> list[tuple[str, str]]:
    """(label, name) of each voice, the group first; a model without named voices has one of its own."""
    return [(_voice_label(entry), entry.name) for entry in entries] or [("The model's own voice", DEFAULT_VOICE)]


def _voice_label(entry: VoiceEntry) -> str:
    group = "Saved here" if entry.kind == "own" else ", ".join(filter(None, (entry.kind.capitalize(), entry.gender)))
    return f"{group} · {entry.name}"


def voice_sample(hosted: Hosted | None, name: str | None) -> str | None:
    """Path of a voice's sample recording, or None."""
    entries = hosted.finder.entries() if hosted else ()
    entry = next((entry for entry in entries if entry.name == name), None)
    if entry is None or not entry.file:
        return None
    path = shipped_folder("voices", "catalogue.json") / entry.file  # an absolute path stays as it is
    return str(path) if path.is_file() else None


def voice_help(hosted: Hosted | None, name: str | None) -> str:
    entries = hosted.finder.entries() if hosted else ()
    return next((entry.description for entry in entries if entry.name == name), "How the persona sounds.")


def prompt_problem(hosted: Hosted | None, text: str) -> str:
    """Why a persona's text will be refused; "" if it will not."""
    if len(text) > MAX_PROMPT_CHARACTERS:
        return f"The text has {len(text)} characters; that is far too long. Shorten it."
    if hosted is None:
        return ""
    try:
        count = count_prompt_tokens(text, hosted.tokenizer)
    except InputError as error:
        return str(error)
    limit = hosted.max_prompt_tokens
    return f"The persona's text has {count} tokens; {limit} are allowed. Shorten it." if count > limit else ""


def count_of(hosted: Hosted | None, text: str) -> str:
    """The token count below the persona's text."""
    if hosted is None:
        return count_html(None, 0)
    if len(text) > MAX_PROMPT_CHARACTERS:
        return count_html(None, 0, prompt_problem(hosted, text))
    try:
        return count_html(count_prompt_tokens(text, hosted.tokenizer), hosted.max_prompt_tokens)
    except InputError as error:
        return count_html(None, 0, str(error))


def judge_recording(path: str | None, family: str) -> str:
    """The verdict on a visitor's voice recording for a model of this family."""
    if not path:
        return ""
    try:
        voice = own_voice(path)
    except PersonaPlexError as error:
        return verdict_html(f"{error}.", good=False)
    length = f"{voice.duration_sec:.1f} s"
    sentence = f"Good: your recording of {length} will be the persona's voice."
    if family == NANO:
        sentence = f"Your recording of {length} will be heard, but nano speaks with one of its own four voices."
    return verdict_html(" ".join([sentence, *(f"But {note}." for note in voice.notes)]), good=True)


# ---------------------------------------------------------------------------------- components


def build_controls(prefix: str = "", more: Callable[[], Any] = lambda: None) -> tuple[Controls, Any]:
    """Lay the settings out; ``prefix`` keeps the ids of a second tab apart, ``more`` adds to the last section."""
    family = NANO
    chosen = persona(DEFAULT_PERSONA)
    persona_box = gr.Dropdown(
        persona_choices(family), value=chosen.name, label="Persona", elem_id=f"{prefix}persona",
        info="A ready-made role; it fills the text below, which you may change.",
    )  # fmt: skip
    prompt = gr.Textbox(
        chosen.prompt_for(family), label="Who the persona is", elem_id=f"{prefix}prompt", lines=6, max_lines=12,
        info="Say whom it works for, its name, and what it should know. English only.",
    )  # fmt: skip
    count = gr.HTML(count_html(None, 0), elem_id=f"{prefix}prompt-count", padding=False)
    voice = gr.Dropdown(
        voice_choices(()), value=DEFAULT_VOICE, label="Voice", elem_id=f"{prefix}voice",
        info="How the persona sounds.",
        allow_custom_value=bool(prefix),  # scripts name a voice without having seen the list
    )  # fmt: skip
    sample = gr.Audio(
        label="Sample of this voice", elem_id=f"{prefix}voice-sample", interactive=False, visible=False,
    )  # fmt: skip
    with gr.Accordion("Your own voice", open=False, elem_id=f"{prefix}own-voice-section"):
        gr.Markdown(
            f"Upload or record {MIN_OWN_SEC:.0f} to {MAX_VOICE_SEC:.0f} s of one person speaking, who agrees to it. "
            "It takes the place of the voice above, and the file is deleted when you have left; what the model made of "
            "it stays in memory until others take its place.",
            elem_classes="help",
        )
        own = gr.Audio(
            label="Recording of the voice", sources=["upload", "microphone"], type="filepath",
            elem_id=f"{prefix}own-voice",
        )  # fmt: skip
        verdict = gr.HTML("", elem_id=f"{prefix}own-voice-verdict", padding=False)
    with gr.Accordion("More settings", open=False, elem_id=f"{prefix}more"):
        added = more()
        sampling = _sampling(prefix)
    for component in (voice, *sampling):
        accept_any_value(component)
    return Controls(persona_box, count, sample, verdict, prompt, voice, own, *sampling), added


def _sampling(prefix: str) -> tuple[gr.Number, gr.Slider, gr.Slider, gr.Slider, gr.Slider]:
    return (
        gr.Number(
            NEW_SEED, label="Seed", precision=0, minimum=NEW_SEED, maximum=MAX_SEED, elem_id=f"{prefix}seed",
            info="The same seed, settings and sound give the same answer; -1 takes a new one each time.",
        ),
        gr.Slider(
            *TEMPERATURES, SamplingOptions.temperature_audio, step=0.05, label="Temperature of the voice",
            elem_id=f"{prefix}temperature-audio",
            info="Lower is steadier, higher is livelier.",
        ),
        gr.Slider(
            1, MAX_TOP_K, SamplingOptions.top_k_audio, step=1, label="Top-k of the voice",
            elem_id=f"{prefix}top-k-audio",
            info="How many of the likeliest sounds it chooses from.",
        ),
        gr.Slider(
            *TEMPERATURES, SamplingOptions.temperature_text, step=0.05, label="Temperature of the words",
            elem_id=f"{prefix}temperature-text",
            info="Lower keeps to the point, higher is more surprising.",
        ),
        gr.Slider(
            1, MAX_TOP_K, SamplingOptions.top_k_text, step=1, label="Top-k of the words", elem_id=f"{prefix}top-k-text",
            info="How many of the likeliest words it chooses from.",
        ),
    )  # fmt: skip


def wire_controls(controls: Controls, host: Host, visits: Visits) -> None:
    """Connect the settings that depend on each other."""

    def pick_persona(name: str) -> tuple[Any, Any, str]:
        if name == OWN_WORDS:
            return gr.skip(), gr.skip(), gr.skip()
        family = host.hosted.family if host.hosted else NANO
        preset = persona(name)
        text = preset.prompt_for(family)
        known = [entry.name for entry in host.hosted.finder.entries()] if host.hosted else []
        suggested = preset.voice_for(family)
        return text, suggested if suggested in known else gr.skip(), count_of(host.hosted, text)

    def pick_voice(name: str) -> tuple[Any, Any]:
        path = voice_sample(host.hosted, name)
        return gr.update(value=path, visible=path is not None), gr.update(info=voice_help(host.hosted, name))

    def judge(path: str | None, request: gr.Request) -> str:
        if path and request.session_hash:
            visits.own_upload(request.session_hash, path)
        return judge_recording(path, host.hosted.family if host.hosted else "")

    quiet: dict[str, Any] = dict(show_progress="hidden", concurrency_limit=None)
    controls.persona.input(pick_persona, controls.persona, [controls.prompt, controls.voice, controls.count], **quiet)
    controls.prompt.input(
        lambda text: count_of(host.hosted, text or ""), controls.prompt, controls.count,
        trigger_mode="always_last", **quiet,
    )  # fmt: skip
    controls.voice.change(pick_voice, controls.voice, [controls.sample, controls.voice], **quiet)
    controls.own_voice.change(judge, controls.own_voice, controls.verdict, **quiet)


def ready_updates(controls: Controls, hosted: Hosted, chosen: str | None, text: str) -> dict[Any, Any]:
    """Updates once the model is loaded; a text that was edited meanwhile stays."""
    family, entries = hosted.family, hosted.finder.entries()
    preset = persona(chosen) if chosen else None
    untouched = preset is not None and text in (preset.prompt, preset.nano_prompt)
    text = preset.prompt_for(family) if preset is not None and untouched else text
    names = [entry.name for entry in entries]
    suggested = preset.voice_for(family) if preset else None
    name = suggested if suggested in names else default_voice_name(family)
    name = name if name in names else (names[0] if names else DEFAULT_VOICE)
    path = voice_sample(hosted, name)
    return {
        controls.persona: gr.update(choices=persona_choices(family)),
        controls.prompt: text if untouched else gr.skip(),  # what is typed meanwhile stays
        controls.count: count_of(hosted, text),
        controls.voice: gr.update(choices=voice_choices(entries), value=name, info=voice_help(hosted, name)),
        controls.sample: gr.update(value=path, visible=path is not None),
    }
