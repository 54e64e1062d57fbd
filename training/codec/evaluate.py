"""Words understood before and after the codec: `python -m training.codec.evaluate FOLDER`.

pocketsphinx listens to recordings and to what the streaming codec makes of them, (1) to sentences
that training never saw, with its own free language model, and (2) to template sentences, with a
grammar. The last line is one JSON object with the share of words that were understood.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import random
import re
from pathlib import Path

import jiwer
import numpy as np
import soxr
from pocketsphinx import Decoder

from training.codec.streaming import StreamingCodec
from training.listen import hear
from training.tts import FLITE_VOICES, SAMPLE_RATE_HZ, speak

log = logging.getLogger(__name__)

_LISTENER_HZ = 16_000
_CHUNK_FRAMES = 12
VOICES = tuple(FLITE_VOICES)
FREE, GRAMMAR = "free", "grammar"

# from the Harvard sentences (IEEE 1969), lists 1 to 6
NOVEL_SENTENCES = (
    "the birch canoe slid on the smooth planks",
    "glue the sheet to the dark blue background",
    "it is easy to tell the depth of a well",
    "these days a chicken leg is a rare dish",
    "rice is often served in round bowls",
    "the juice of lemons makes fine punch",
    "the box was thrown beside the parked truck",
    "the hogs were fed chopped corn and garbage",
    "four hours of steady work faced us",
    "a large size in stockings is hard to sell",
    "the boy was there when the sun rose",
    "a rod is used to catch pink salmon",
    "the source of the huge river is the clear spring",
    "kick the ball straight and follow through",
    "help the woman get back to her feet",
    "a pot of tea helps to pass the evening",
    "smoky fires lack flame and heat",
    "the soft cushion broke the man's fall",
    "the salt breeze came across from the sea",
    "the girl at the booth sold fifty bonds",
    "the small pup gnawed a hole in the sock",
    "the fish twisted and turned on the bent hook",
    "press the pants and sew a button on the vest",
    "the swan dive was far short of perfect",
    "the beauty of the view stunned the young boy",
    "two blue fish swam in the tank",
    "her purse was full of useless trash",
    "the colt reared and threw the tall rider",
    "it snowed rained and hailed the same morning",
    "read verse out loud for pleasure",
    "hoist the load to your left shoulder",
    "take the winding path to reach the lake",
    "note closely the size of the gas tank",
    "wipe the grease off his dirty face",
    "mend the coat before you go out",
    "the wrist was badly strained and hung limp",
    "the stray cat gave birth to kittens",
    "the young girl gave no clear response",
    "the meal was cooked before the bell rang",
    "what joy there is in living",
    "a king ruled the state in the early days",
    "the ship was torn apart on the sharp reef",
    "sickness kept him home the third week",
    "the wide road shimmered in the hot sun",
    "the lazy cow lay in the cool grass",
    "lift the square stone over the fence",
    "the rope will bind the seven books at once",
    "hop over the fence and plunge in",
    "the friendly gang left the drug store",
    "mesh wire keeps chicks inside",
    "the frosty air passed through the coat",
    "the crooked maze failed to fool the mouse",
    "adding fast leads to wrong sums",
    "the show was a flop from the very start",
    "a saw is a tool used for making boards",
    "the wagon moved on well oiled wheels",
    "march the soldiers past the next hill",
    "a cup of sugar makes sweet fudge",
    "place a rosebush near the porch steps",
    "both lost their lives in the raging storm",
)

_NAMES = "anna peter maria david susan thomas laura kevin emma martin julia robert helen oscar nina victor".split()
_PLACES = (
    "the city bank", "the garden hotel", "the old library", "the harbor hospital", "the green market",
    "the central station", "the music school", "the river bakery", "the national museum", "the corner pharmacy",
)  # fmt: skip
_DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
_HOURS = "one two three four five six seven eight nine ten eleven twelve".split()
_SLOTS = {"name": _NAMES, "place": _PLACES, "day": _DAYS, "hour": _HOURS}
TEMPLATES = (
    "you work for <place> and your name is <name>",
    "hello this is <name> from <place> how can i help you",
    "what is your name",
    "my name is <name>",
    "where do you work",
    "i work for <place>",
    "are you open on <day>",
    "yes we are open on <day> until <hour> in the evening",
    "i am sorry we are closed on <day>",
    "can i speak to <name> on <day> at <hour> please",
)


def _grammar() -> str:
    rules = [f"<{slot}> = {' | '.join(values)};" for slot, values in _SLOTS.items()]
    return "\n".join(["#JSGF V1.0;", "grammar codec;", f"public <said> = {' | '.join(TEMPLATES)};", *rules])


def _template_sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [
        re.sub(r"<(\w+)>", lambda match: draw.choice(_SLOTS[match.group(1)]), TEMPLATES[index % len(TEMPLATES)])
        for index in range(count)
    ]


def _decoder(kind: str) -> Decoder:
    if kind == FREE:
        return Decoder(samprate=_LISTENER_HZ, loglevel="FATAL")
    decoder = Decoder(samprate=_LISTENER_HZ, loglevel="FATAL", lm=None)
    decoder.add_jsgf_string("codec", _grammar())
    decoder.activate_search("codec")
    return decoder


def listen(decoder: Decoder, wave: np.ndarray) -> str:
    """wave: [T] float32 at 24 kHz -> the words pocketsphinx hears."""
    pcm = soxr.resample(wave, SAMPLE_RATE_HZ, _LISTENER_HZ)
    return decoder.hyp().hypstr if hear(decoder, pcm) else ""


def _judge(task: tuple[Path, str, str, list[str]]) -> dict[str, list[str]]:
    """Word accuracy of the sentences in one voice, before and after the codec."""
    folder, kind, voice, sentences = task
    codec, decoder = StreamingCodec(folder, chunk_frames=_CHUNK_FRAMES), _decoder(kind)
    result: dict[str, list[str]] = {"said": [], "original": [], "decoded": []}
    for sentence in sentences:
        pcm = speak(sentence, voice).pcm
        result["said"].append(sentence)
        result["original"].append(listen(decoder, pcm))
        result["decoded"].append(listen(decoder, codec.decode(codec.encode(pcm))[: len(pcm)]))
    return result


def evaluate(folder: Path, *, sentences: int, voices: tuple[str, ...], processes: int, seed: int = 7) -> dict:
    """Word accuracy of both tests, before and after the codec, and their ratio."""
    novel = NOVEL_SENTENCES[:sentences]
    tasks = [(folder, FREE, voice, list(novel)) for voice in voices]
    tasks += [
        (folder, GRAMMAR, voice, _template_sentences(sentences, seed + index)) for index, voice in enumerate(voices)
    ]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        results = pool.map(_judge, tasks, chunksize=1)
    report: dict = {"sentences": sentences, "voices": list(voices)}
    for kind in (FREE, GRAMMAR):
        heard = [result for task, result in zip(tasks, results, strict=True) if task[1] == kind]
        said = [sentence for result in heard for sentence in result["said"]]
        scores = {
            which: 1 - jiwer.wer(said, [sentence for result in heard for sentence in result[which]])
            for which in ("original", "decoded")
        }
        report[kind] = {which: round(score, 4) for which, score in scores.items()}
        report[kind]["kept"] = round(scores["decoded"] / scores["original"], 4)
        for result, voice in zip(heard, voices, strict=True):
            report[kind][voice] = round(1 - jiwer.wer(result["said"], result["decoded"]), 4)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="an exported codec")
    parser.add_argument("--sentences", type=int, default=len(NOVEL_SENTENCES))
    parser.add_argument("--voices", nargs="+", default=list(VOICES))
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    report = evaluate(
        arguments.folder,
        sentences=arguments.sentences,
        voices=tuple(arguments.voices),
        processes=arguments.processes,
    )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
