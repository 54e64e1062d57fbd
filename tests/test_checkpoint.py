"""Files of tensors: the good ones read and written, the damaged and hostile ones refused in one line."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from personaplex.errors import WeightsError
from personaplex.weights.checkpoint import (
    MAX_HEADER_BYTES,
    Checkpoint,
    TensorInfo,
    checkpoint_files,
    read_header,
    read_headers,
    write_tensors,
)

TENSORS = {
    "wide": torch.arange(6, dtype=torch.float32).view(2, 3),
    "half": torch.arange(5).bfloat16(),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "none": torch.zeros(0, 4),
    "scalar": torch.tensor(3.5),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    save_file(TENSORS, tmp_path / "m.safetensors")
    return tmp_path


def write_raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(start: int, end: int, shape: list | None = None, dtype: str = "U8") -> dict:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


# --- reading


def test_tensors_of_others_are_read(folder):
    file = Checkpoint.open(folder, "m.safetensors")
    assert file.tensors.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        found = file.get(key)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)


def test_reading_is_a_view_of_the_file(folder):
    file = Checkpoint.open(folder, "m.safetensors")
    first, again = file.get("wide"), file.get("wide")
    assert first.data_ptr() == again.data_ptr()
    assert file.holds("wide", first[1])
    assert not file.holds("wide", first.clone())
    assert not any(file.holds(key, first) for key in TENSORS if key != "wide")


def test_views_outlive_the_checkpoint_and_dropped_pages_come_back(folder):
    file = Checkpoint.open(folder, "m.safetensors")
    view = file.get("wide")
    for key in TENSORS:
        file.release(key)
        file.prefetch(key)
    del file
    assert torch.equal(view, TENSORS["wide"])


def test_an_unaligned_tensor_is_read(tmp_path):
    data = b"x" + struct.pack("<3f", 1, 2, 3)
    write_raw(tmp_path / "m.safetensors", {"a": entry(0, 1), "b": entry(1, 13, [3], "F32")}, data)
    assert Checkpoint.open(tmp_path, "m.safetensors").get("b").tolist() == [1, 2, 3]


# --- writing


def written(folder: Path, max_shard_bytes: int | None = None) -> None:
    infos = {key: TensorInfo(tensor.dtype, tuple(tensor.shape)) for key, tensor in TENSORS.items()}
    pieces = {key: list(t.split(1)) if t.dim() and len(t) else [t] for key, t in TENSORS.items()}
    write_tensors(folder, "m.safetensors", infos, pieces.__getitem__, max_shard_bytes)


def test_what_is_written_others_read(tmp_path):
    written(tmp_path)
    found = load_file(tmp_path / "m.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in TENSORS.items())
    assert list(checkpoint_files(tmp_path, "m.safetensors")) == [tmp_path / "m.safetensors"]


def test_shards_stay_below_their_size_and_are_read_as_one(tmp_path):
    written(tmp_path, max_shard_bytes=700)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert not (tmp_path / "m.safetensors").exists()
    assert all(shard.stat().st_size <= 700 for shard in shards)
    assert list(checkpoint_files(tmp_path, "m.safetensors")) == [tmp_path / "m.safetensors.index.json", *shards]
    file = Checkpoint.open(tmp_path, "m.safetensors")
    assert all(torch.equal(file.get(key), tensor) for key, tensor in TENSORS.items())
    assert file.nbytes == sum(tensor.nbytes for tensor in TENSORS.values())


def test_a_tensor_larger_than_a_shard_is_refused(tmp_path):
    infos = {"a": TensorInfo(torch.uint8, (1000,))}
    with pytest.raises(ValueError, match="a shard of 900 cannot hold it"):
        write_tensors(tmp_path, "m.safetensors", infos, lambda _: [], 900)


def test_a_tensor_that_is_not_as_announced_is_not_written(tmp_path):
    infos = {"a": TensorInfo(torch.uint8, (4,))}
    with pytest.raises(AssertionError):
        write_tensors(tmp_path, "m.safetensors", infos, lambda _: [torch.zeros(3, dtype=torch.uint8)])


# --- damaged and hostile files


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        (b"{", b"", "not valid JSON"),
        (b"[1]", b"", "is a list, no object"),
        (b"\xff\xfe{}", b"", "not valid JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "not valid JSON"),
        (b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, ' + b"9" * 5000 + b"]}}", b"", "not valid JSON"),
        (b'{"a": 1, "a": 1}', b"", "there twice"),
        ({"a": 7}, b"", "no proper entry"),
        ({"a": {**entry(0, 1), "more": 1}}, b"x", "no proper entry"),
        ({"a": entry(0, 1, dtype="F8_E4M3")}, b"x", "has the type 'F8_E4M3'"),
        ({"a": entry(0, 1, dtype=["U8"])}, b"x", "has the type"),
        ({"a": entry(0, 1, shape=[-1])}, b"x", "impossible shape or place"),
        ({"a": entry(0, 1, shape=[True])}, b"x", "impossible shape or place"),
        ({"a": entry(0, 1, shape=[1.0])}, b"x", "impossible shape or place"),
        ({"a": entry(0, 1, shape="1")}, b"x", "impossible shape or place"),
        ({"a": entry(0, 1, shape=[1] * 9)}, b"x", "impossible shape or place"),
        ({"a": entry(0, 4, shape=[2**40, 2**40])}, b"xxxx", "does not fill its place"),
        ({"a": entry(5, 1, shape=[0])}, b"xxxxx", "does not fill its place"),
        ({"a": entry(0, 4), "b": entry(2, 6)}, b"x" * 6, "overlaps another tensor or leaves a gap"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, b"x" * 4, "overlaps another tensor or leaves a gap"),
        ({"a": entry(1, 4)}, b"x" * 4, "overlaps another tensor or leaves a gap"),
        ({"a": entry(0, 4)}, b"x" * 3, "is cut off"),
        ({"a": entry(0, 2**60)}, b"x" * 3, "is cut off"),
        ({"a": entry(0, 4)}, b"x" * 5, "is too long"),
    ],
)  # fmt: skip
def test_a_bad_header_is_one_clear_line(tmp_path, header, data, says):
    path = write_raw(tmp_path / "m.safetensors", header, data)
    with pytest.raises(WeightsError, match=says) as caught:
        read_header(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("length", [3, 2**16, 2**63])
def test_an_absurd_header_length(tmp_path, length):
    with pytest.raises(WeightsError):
        read_header(write_raw(tmp_path / "m.safetensors", b"{}" if length > 3 else b"{}xy", length=length))


def test_a_header_larger_than_any_model_needs_is_not_parsed(tmp_path, monkeypatch):
    path = write_raw(tmp_path / "m.safetensors", b"{" + b" " * MAX_HEADER_BYTES + b"}")
    monkeypatch.setattr(json, "loads", None)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_header(path)


@pytest.mark.parametrize("size", [0, 5, 8, 100])
def test_a_file_cut_off_anywhere(folder, size):
    path = folder / "m.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(WeightsError, match="fetch the file again"):
        read_header(path)


def test_no_file_at_all(tmp_path):
    with pytest.raises(WeightsError, match="has no m.safetensors"):
        read_headers(tmp_path, "m.safetensors")


@pytest.mark.parametrize(
    "shard", ["../m.safetensors", "/etc/m.safetensors", "a\\m.safetensors", "sub/m.safetensors", "m.bin", 5]
)
def test_an_index_that_leaves_its_folder(folder, shard):
    (folder / "x.safetensors.index.json").write_text(json.dumps({"weight_map": {"wide": shard}}))
    with pytest.raises(WeightsError, match="a file name in the same folder is needed"):
        read_headers(folder, "x.safetensors")


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": [1]}', "nonsense"])
def test_an_index_without_a_map(folder, index):
    (folder / "x.safetensors.index.json").write_text(index)
    with pytest.raises(WeightsError, match=r"has no weight_map|not valid JSON"):
        read_headers(folder, "x.safetensors")


def test_an_index_and_shards_that_disagree(folder):
    index = folder / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"wide": "m.safetensors"}}))
    with pytest.raises(WeightsError, match="does not place there"):
        read_headers(folder, "x.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys([*TENSORS, "lost"], "m.safetensors")}))
    with pytest.raises(WeightsError, match="1 tensors that its shards lack, as 'lost'"):
        read_headers(folder, "x.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, "absent.safetensors")}))
    with pytest.raises(WeightsError, match="cannot be read"):
        read_headers(folder, "x.safetensors")
