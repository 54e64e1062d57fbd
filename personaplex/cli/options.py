"""The options of the commands: their types, help and panels, as typer reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from personaplex.personas.presets import DEFAULT_PERSONA

_MODEL, _SAMPLING, _FILES = "Model", "Sampling", "Files besides the answer"


def _option(help: str, panel: str | None = None, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel)


Question = Annotated[Path, typer.Argument(help="A recording of someone speaking; any usual sound file.")]
AnswerFile = Annotated[Path, _option("The persona's side, WAV, in step with the question.", None, "--output", "-o")]
PersonaName = Annotated[
    str | None, _option(f"A ready-made role (see `personas`); {DEFAULT_PERSONA} if none is given.", None, "--persona")
]
Prompt = Annotated[str | None, _option('A role in your own words; "" for none.')]
Truncate = Annotated[bool, _option("Cut a prompt that is too long.", None, "--truncate")]
VoiceName = Annotated[
    str | None, _option("A name (see `voices`), a recording of 1 to 60 s, or a published .pt file.", None, "--voice")
]
Tail = Annotated[float, _option("Seconds of silence after the question, to let the answer finish.")]
Clean = Annotated[
    bool, _option("Take rumble, and the echo of --loudspeaker, out of the question first.", None, "--clean")
]
UserWords = Annotated[
    bool, _option("Write down the question's words, too: in --transcript, by time.", None, "--user-words")
]
Loudspeaker = Annotated[
    Path | None, _option("What a loudspeaker played beside the microphone meanwhile: a recording, with --clean.")
]
Model = Annotated[str | None, _option("auto, nano, a hub id such as nvidia/personaplex-7b-v1, or a folder.", _MODEL)]
Revision = Annotated[str | None, _option("A hub model's commit or tag.", _MODEL)]
Dtype = Annotated[str | None, _option("auto, float32, bfloat16, int8 or int4.", _MODEL)]
Device = Annotated[str | None, _option("auto, cpu or cuda.", _MODEL)]
Window = Annotated[
    str | None,
    _option(
        "What is forgotten beyond the context: persona (the default) keeps the prompt, published does not.", _MODEL
    ),
]
Context = Annotated[int | None, _option("Frames the model remembers (12.5 a second); its own if not given.", _MODEL)]
KvCache = Annotated[
    str | None, _option("The model's memory: auto, in the type of its activations, or int8, half as large.", _MODEL)
]
Snapshots = Annotated[Path | None, _option("A folder that keeps prompted personas: the next start is instant.", _MODEL)]
Seed = Annotated[
    int | None, _option("The same seed gives the same answer; a new one each time if not given.", _SAMPLING)
]
Greedy = Annotated[bool, _option("Always the likeliest token.", _SAMPLING, "--greedy")]
TemperatureAudio = Annotated[float, _option("How freely it sounds.", _SAMPLING)]
TopKAudio = Annotated[int, _option("Sounds it chooses from.", _SAMPLING)]
TemperatureText = Annotated[float, _option("How freely it words.", _SAMPLING)]
TopKText = Annotated[int, _option("Words it chooses from.", _SAMPLING)]
TranscriptFile = Annotated[
    Path | None, _option("The persona's words and times: .json, .txt or .vtt.", _FILES, "--transcript")
]
StereoFile = Annotated[Path | None, _option("Both sides, WAV: persona left, question right.", _FILES, "--stereo")]
TokensFile = Annotated[Path | None, _option("All tokens, [17, T] int64, .npy.", _FILES, "--tokens")]
AsJson = Annotated[bool, _option("As JSON.", None, "--json")]
