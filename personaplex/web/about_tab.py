"""The tab "About": the running model, its limits, privacy, how to run the 7B, licences."""

from __future__ import annotations

import os

import gradio as gr

from personaplex.config import NANO, PERSONA_WINDOW, PUBLISHED
from personaplex.messages import minutes
from personaplex.serving.hosted import Host, Hosted
from personaplex.web.html import table_html

REPO = f"https://huggingface.co/{PUBLISHED}"

LIMITS = """
### What it can and cannot do
* It speaks and understands **English only**.
* It has **not been tested for safety in production**. It says wrong things with confidence: believe no figure, no
  medical, legal or financial advice of it.
* A voice is a person's own. Use a recording only of someone who agrees, and tell listeners that they hear a machine.
* The small model, nano, knows only a small world: sixty names, thirty-two workplaces, prices, closing hours and a few
  polite exchanges. It shows how the conversation works, on any computer.
"""

PRIVACY = """
### What happens to your voice
What you say stays in this machine's memory while you talk and is gone afterwards. If you ask for a recording, it is
written to files that only your page knows, and deleted some minutes after you closed it. Nothing you say or type is
written to logs.
"""

STEPS = f"""
### The 7B in three steps
1. **Accept the licence** on [{REPO.removeprefix("https://")}]({REPO}), signed in to Hugging Face.
2. **Make a read token** at [huggingface.co/settings/tokens](https://huggingface.co/settings/tokens) and set it where
   this program runs: `export HF_TOKEN=hf_…` (in a Space: *Settings → Variables and secrets*).
3. **Start it again**: `python app.py` takes the 7B where it keeps up: on an NVIDIA GPU with 24 GB in bfloat16, with
   less (from Ampere on) in int8 or int4. With `--model nvidia/personaplex-7b-v1 --dtype int4 --context 1000` a
   processor with 8 GB of memory answers recorded questions, though not live. A Space restarts by itself when its secret
   is set.
"""

LICENCES = f"""
### Licences
The program is under the MIT licence. The weights have their own: nano's are part of the program; those of the 7B come
from NVIDIA under the terms on [its page]({REPO}), and its codec and architecture are Kyutai's Moshi (CC-BY 4.0).
"""


def build_about_tab() -> tuple[gr.Markdown, gr.HTML]:
    """Lay the tab out; returns the two components that are filled once the model is loaded."""
    running = gr.Markdown("### What runs here\nThe model is still loading.", elem_id="about-model")
    findings = gr.HTML("", elem_id="about-machine", padding=False)
    gr.Markdown(LIMITS)
    gr.Markdown(PRIVACY)
    gr.Markdown(STEPS)
    on_a_space = bool(os.environ.get("SPACE_ID"))
    gr.DuplicateButton("Duplicate this Space", elem_id="duplicate", interactive=on_a_space)
    if not on_a_space:
        gr.Markdown("The button works on Hugging Face, where it makes a copy of this page of your own.",
                    elem_classes="help")  # fmt: skip
    gr.Markdown(LICENCES)
    return running, findings


def running_markdown(host: Host) -> str:
    """Which model runs, in which format, on which device, and why."""
    hosted = host.hosted
    if hosted is None:
        return f"### What runs here\n{host.loading.sentence}"
    limit = minutes(host.limits.conversation_sec)
    at_once = "one conversation" if host.limits.slots == 1 else f"{host.limits.slots} conversations"
    why_so_many = dict(host.findings).get("conversations", "")
    kept = ", never forgets the persona" if host.settings.window == PERSONA_WINDOW else ""
    return (
        f"### What runs here\n**{hosted.name}** as {hosted.format} on {_device_name(hosted)}, because "
        f"{_as_clause(hosted.reason)}.\n\n"
        f"It remembers {hosted.context_frames * hosted.frame_sec:.0f} s{kept}, takes personas of up to "
        f"{hosted.max_prompt_tokens} tokens, and holds {at_once} at a time of up to {limit}"
        + (f" ({why_so_many})." if why_so_many else ".")
        + ("\n\nnano is the small model that ships with the program." if hosted.family == NANO else "")
    )


def findings_html(host: Host) -> str:
    """The findings of ``python -m personaplex doctor`` as a table."""
    return table_html(host.findings) if host.findings else ""


def _device_name(hosted: Hosted) -> str:
    return "the CPU" if hosted.device.startswith("cpu") else "the GPU"


def _as_clause(reason: str) -> str:
    return reason.rstrip(".")
