"""Published voices: the real layout read, everything else refused in one line and without harm."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from personaplex.config import ModelConfig
from personaplex.errors import OutputError, PromptError
from personaplex.weights import voice_files
from personaplex.weights.voice_files import read_voice_pt, unpack_voices

GOLDEN = Path(__file__).parent / "golden"
CONFIG = ModelConfig.from_json(GOLDEN / "config.json")
DIM = CONFIG.lm.dim


def good() -> dict:
    return {"embeddings": torch.randn(5, 1, 1, DIM), "cache": torch.full((1, 17, 4), 3)}


# --- .pt


def test_a_published_voice_is_read():
    voice = read_voice_pt(GOLDEN / "voices" / "VOICE.pt", CONFIG)
    assert voice.embeddings.shape == (26, 1, 1, DIM)
    assert voice.cache.shape == (1, 17, 4)
    assert voice.cache[0, 9:, 0].tolist() == list(CONFIG.prompt.sine_codes)


def test_bfloat16_voices_and_further_keys_are_read(tmp_path):
    data = good() | {"note": "more"}
    data["embeddings"] = data["embeddings"].bfloat16()
    torch.save(data, tmp_path / "v.pt")
    assert torch.equal(read_voice_pt(tmp_path / "v.pt", CONFIG).embeddings, data["embeddings"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"embeddings": torch.randn(5, 1, 1, DIM + 2)}, r"its embeddings are \[5, 1, 1, 34\]; \[T, 1, 1, 32\]"),
        ({"embeddings": torch.randn(5, DIM)}, "its embeddings are"),
        ({"embeddings": torch.randn(0, 1, 1, DIM)}, "its embeddings are"),
        ({"embeddings": torch.zeros(1, 1, 1, 1).expand(10**12, 1, 1, DIM)}, "its embeddings are"),
        ({"embeddings": torch.ones(5, 1, 1, DIM, dtype=torch.int64)}, "not a floating-point tensor"),
        ({"embeddings": torch.ones(5, 1, 1, DIM).to_sparse()}, "not a floating-point tensor"),
        ({"embeddings": torch.full((5, 1, 1, DIM), float("nan"))}, "NaN or infinite"),
        ({"embeddings": "text"}, "not a floating-point tensor"),
        ({"cache": torch.zeros(1, 17, 4)}, "not an int64 tensor"),
        ({"cache": torch.zeros(1, 17, 5, dtype=torch.int64)}, r"its cache is \[1, 17, 5\]"),
        ({"cache": torch.full((1, 17, 4), -3)}, "tokens that this model does not know"),
        ({"cache": torch.full((1, 17, 4), 401)}, "tokens that this model does not know"),
        ({"cache": None}, "not an int64 tensor"),
    ],
)  # fmt: skip
def test_a_voice_of_another_model_or_broken(tmp_path, change, says):
    torch.save(good() | change, tmp_path / "v.pt")
    with pytest.raises(PromptError, match=says):
        read_voice_pt(tmp_path / "v.pt", CONFIG)


class Malicious:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_malicious_voice_runs_nothing(tmp_path, legacy):
    torch.save(
        good() | {"x": Malicious(tmp_path / "owned")}, tmp_path / "v.pt", _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(PromptError, match="not a voice file") as caught:
        read_voice_pt(tmp_path / "v.pt", CONFIG)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


def test_plain_pickles_run_nothing(tmp_path):
    (tmp_path / "v.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "owned")))
    with pytest.raises(PromptError):
        read_voice_pt(tmp_path / "v.pt", CONFIG)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04broken", b"\x80\x02}q", bytes(1000)])
def test_no_voice_at_all(tmp_path, data):
    (tmp_path / "v.pt").write_bytes(data)
    with pytest.raises(PromptError) as caught:
        read_voice_pt(tmp_path / "v.pt", CONFIG)
    assert "\n" not in str(caught.value)


def test_a_cut_off_voice(tmp_path):
    whole = (GOLDEN / "voices" / "VOICE.pt").read_bytes()
    (tmp_path / "v.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PromptError, match="not a voice file"):
        read_voice_pt(tmp_path / "v.pt", CONFIG)


def test_not_a_dict_of_a_voice(tmp_path):
    for data in ([1], {"embeddings": torch.zeros(1)}, torch.zeros(3)):
        torch.save(data, tmp_path / "v.pt")
        with pytest.raises(PromptError, match="a dict with 'embeddings' and 'cache' is needed"):
            read_voice_pt(tmp_path / "v.pt", CONFIG)


def test_a_file_that_unpacks_to_far_more_is_not_unpacked(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "v.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("v/data.pkl", bytes(2_000_000))
    monkeypatch.setattr(voice_files, "MAX_VOICE_FILE_BYTES", 1_000_000)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(PromptError, match="unpacks to 2000000 bytes"):
        read_voice_pt(tmp_path / "v.pt", CONFIG)


@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(3, 1, 1, 32, device="meta"),
        torch.zeros(3, 1, 1, 32).to(torch.float8_e4m3fn),
        torch.nested.nested_tensor([torch.zeros(3, 1), torch.zeros(2, 1)]),
    ],
    ids=["meta", "float8", "nested"],
)
def test_odd_tensors_are_no_voice(tmp_path, odd):
    torch.save(good() | {"embeddings": odd}, tmp_path / "v.pt")
    with pytest.raises(PromptError) as caught:
        read_voice_pt(tmp_path / "v.pt", CONFIG)
    assert "\n" not in str(caught.value)


def test_a_missing_voice(tmp_path):
    with pytest.raises(PromptError, match="cannot be read"):
        read_voice_pt(tmp_path / "v.pt", CONFIG)


# --- voices.tgz


def archive(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member, io.BytesIO(bytes(member.size)))
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_voices_are_unpacked_once(tmp_path):
    tgz = archive(
        tmp_path / "voices.tgz", special("voices", tarfile.DIRTYPE), ("voices/A.pt", b"a"), ("./voices/B.pt", b"b")
    )
    place = unpack_voices(tgz, tmp_path / "home")
    assert (place / "voices" / "A.pt").read_bytes() == b"a"
    assert (place / "voices" / "B.pt").read_bytes() == b"b"
    before = (place / "voices" / "A.pt").stat().st_mtime_ns
    assert unpack_voices(tgz, tmp_path / "home") == place
    assert (place / "voices" / "A.pt").stat().st_mtime_ns == before
    assert len(list((tmp_path / "home").iterdir())) == 1


def test_another_archive_gets_another_folder(tmp_path):
    first = unpack_voices(archive(tmp_path / "voices.tgz", ("A.pt", b"a")), tmp_path)
    second = unpack_voices(archive(tmp_path / "voices.tgz", ("A.pt", b"bbbb")), tmp_path)
    assert first != second
    assert (second / "A.pt").read_bytes() == b"bbbb"


@pytest.mark.parametrize(
    "member",
    [
        ("../evil", b"x"),
        ("voices/../../evil", b"x"),
        ("/tmp/evil", b"x"),
        ("voices\\..\\..\\evil", b"x"),
        ("C:evil", b"x"),
        ("", b"x"),
        special("voices/link", tarfile.SYMTYPE, "/etc/passwd"),
        special("voices/link", tarfile.LNKTYPE, "../../evil"),
        special("voices/device", tarfile.CHRTYPE),
        special("voices/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda member: repr(member) if isinstance(member, tuple) else f"{member.name} {member.type!r}",
)
def test_members_that_leave_their_folder_or_are_no_files(tmp_path, member):
    inside = tmp_path / "inside"
    inside.mkdir()
    tgz = archive(inside / "voices.tgz", ("voices/A.pt", b"a"), member)
    with pytest.raises(PromptError, match="is refused"):
        unpack_voices(tgz, inside / "home")
    assert everything(tmp_path) == {"inside", "inside/voices.tgz"}, "something was unpacked"


def test_an_archive_that_unpacks_to_far_more(tmp_path, monkeypatch):
    monkeypatch.setattr(voice_files, "MAX_UNPACKED_BYTES", 1_000_000)
    tgz = archive(tmp_path / "voices.tgz", ("a", bytes(600_000)), ("b", bytes(600_000)))
    with pytest.raises(PromptError, match="unpacks to more than"):
        unpack_voices(tgz, tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_a_header_that_unpacks_to_far_more(tmp_path):
    with tarfile.open(tmp_path / "voices.tgz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("A.pt")
        info.pax_headers = {"comment": "x" * 20_000_000}
        tar.addfile(info)
    with pytest.raises(PromptError, match="unpacks to more than"):
        unpack_voices(tmp_path / "voices.tgz", tmp_path / "home")


def test_a_page_that_says_no_is_no_archive(tmp_path):
    (tmp_path / "voices.tgz").write_text("<html>\n<body>\nlog in first\n")
    with pytest.raises(PromptError, match="is damaged") as caught:
        unpack_voices(tmp_path / "voices.tgz", tmp_path / "home")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 10, 60, -10])
def test_a_damaged_archive_leaves_nothing(tmp_path, kept):
    tgz = archive(tmp_path / "voices.tgz", ("voices/A.pt", os.urandom(50_000)))
    tgz.write_bytes(tgz.read_bytes()[:kept])
    with pytest.raises(PromptError, match=r"damaged|holds no files"):
        unpack_voices(tgz, tmp_path / "home")
    assert not everything(tmp_path) - {"voices.tgz", "home"}


def test_no_archive(tmp_path):
    with pytest.raises(PromptError, match=r"there is no .*voices.tgz"):
        unpack_voices(tmp_path / "voices.tgz", tmp_path)


def test_a_place_that_cannot_be_written(tmp_path):
    tgz = archive(tmp_path / "voices.tgz", ("A.pt", b"a"))
    (tmp_path / "home").write_text("a file")
    with pytest.raises(OutputError, match="cannot be unpacked"):
        unpack_voices(tgz, tmp_path / "home")
