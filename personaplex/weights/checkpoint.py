"""Files of tensors in the safetensors format: checked before use, read by memory map, written as a stream.

A checkpoint is one file, or shards named by an index (``NAME.safetensors.index.json``). Everything the
header claims is checked against the file's real size, so a damaged or hostile file ends in one clear
``WeightsError`` and never in a huge allocation.
"""

from __future__ import annotations

import json
import math
import mmap
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from personaplex.config import is_file_name
from personaplex.errors import WeightsError

DTYPES = {
    "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16,
    "I8": torch.int8, "U8": torch.uint8, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_HEADER_BYTES = 16 * 2**20
"""The published 7B's header has less than 100 kB."""

MAX_DIMENSIONS = 8
LENGTH_BYTES = 8
HEADER_ALIGNMENT = 64
INDEX_SUFFIX = ".index.json"
METADATA = "__metadata__"

FETCH_AGAIN = "fetch the file again"


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of one tensor of a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor(TensorInfo):
    """A tensor and its place: ``start`` is in bytes from the start of the file."""

    path: Path
    start: int


# ---------------------------------------------------------------------------------- headers


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, every claim checked; raises WeightsError."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if size < LENGTH_BYTES or length > min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
                raise WeightsError(f"{path} is not a safetensors file, or cut off in its header; {FETCH_AGAIN}")
            text = file.read(length)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    header = parse_json(text, path)
    header.pop(METADATA, None)
    data_start = LENGTH_BYTES + length
    tensors = {key: _stored_tensor(path, key, claim, data_start) for key, claim in header.items()}
    _check_places(path, tensors, data_start, size)
    return tensors


def parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """A JSON object without repeated names; raises WeightsError for anything else."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name is there twice")
        return found

    try:
        data = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged: its header is not valid JSON ({error}); {FETCH_AGAIN}") from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path} is damaged: its header is a {type(data).__name__}, no object; {FETCH_AGAIN}")
    return data


def _stored_tensor(path: Path, key: str, claim: Any, data_start: int) -> StoredTensor:
    def is_sizes(value: Any, most: int) -> bool:
        return isinstance(value, list) and len(value) <= most and all(type(v) is int and v >= 0 for v in value)

    if not isinstance(claim, dict) or claim.keys() != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"{path} is damaged: {key!r} has no proper entry in the header; {FETCH_AGAIN}")
    offsets = claim["data_offsets"]
    if not is_sizes(claim["shape"], MAX_DIMENSIONS) or not is_sizes(offsets, 2) or len(offsets) != 2:
        raise WeightsError(f"{path} is damaged: {key!r} has an impossible shape or place; {FETCH_AGAIN}")
    if not isinstance(claim["dtype"], str) or claim["dtype"] not in DTYPES:
        raise WeightsError(f"{path}: {key!r} has the type {claim['dtype']!r}; allowed are {', '.join(DTYPES)}")
    tensor = StoredTensor(DTYPES[claim["dtype"]], tuple(claim["shape"]), path, data_start + offsets[0])
    if tensor.nbytes != offsets[1] - offsets[0]:
        raise WeightsError(f"{path} is damaged: {key!r} does not fill its place; {FETCH_AGAIN}")
    return tensor


def _check_places(path: Path, tensors: dict[str, StoredTensor], data_start: int, size: int) -> None:
    """Tensors must follow one another without a gap, from the header to the end of the file."""
    end = data_start
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if tensor.start != end:
            raise WeightsError(f"{path} is damaged: {key!r} overlaps another tensor or leaves a gap; {FETCH_AGAIN}")
        end += tensor.nbytes
    if size != end:
        what = "cut off" if size < end else "too long"
        raise WeightsError(f"{path} is {what}: {size} bytes instead of {end}; {FETCH_AGAIN}")


def read_headers(folder: Path, name: str) -> dict[str, StoredTensor]:
    """The tensors of ``name`` in a folder: one file, or the shards of its index."""
    index = folder / (name + INDEX_SUFFIX)
    if (folder / name).is_file() or not index.is_file():
        if not (folder / name).is_file():
            raise WeightsError(f"{folder} has no {name} (nor {index.name}); it is not a whole model")
        return read_header(folder / name)
    weight_map = read_index(index)
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        for key, tensor in read_header(folder / shard).items():
            if weight_map.get(key) != shard:
                raise WeightsError(f"{folder / shard} holds {key!r}, which {index.name} does not place there")
            tensors[key] = tensor
    lost = sorted(weight_map.keys() - tensors.keys())
    if lost:
        raise WeightsError(f"{index} names {len(lost)} tensors that its shards lack, as {lost[0]!r}")
    return tensors


def read_index(path: Path) -> dict[str, str]:
    """Tensor → shard in the same folder; raises WeightsError, also for a name that leaves the folder."""
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise WeightsError(f"{path} is too large for an index: {path.stat().st_size} bytes")
    weight_map = parse_json(path.read_bytes(), path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{path} has no weight_map; {FETCH_AGAIN}")
    for shard in set(map(str, weight_map.values())):
        if not shard.endswith(".safetensors") or not is_file_name(shard):
            raise WeightsError(f"{path} names the shard {shard!r}; a file name in the same folder is needed")
    return weight_map


# ---------------------------------------------------------------------------------- reading


class Checkpoint:
    """Tensors of a model's files as views of memory maps; nothing is read until it is used.

    The maps live as long as a view of them does.
    """

    def __init__(self, tensors: dict[str, StoredTensor]) -> None:
        self.tensors = tensors
        self._maps: dict[Path, tuple[mmap.mmap, Tensor]] = {}

    @classmethod
    def open(cls, folder: Path, name: str) -> Checkpoint:
        return cls(read_headers(folder, name))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def get(self, key: str) -> Tensor:
        """The tensor, read-only, sharing memory with the file (a copy only if it is not aligned)."""
        stored = self.tensors[key]
        if stored.nbytes == 0:
            return torch.empty(stored.shape, dtype=stored.dtype)
        data = self._map(stored.path)[1][stored.start : stored.start + stored.nbytes]
        if stored.start % stored.dtype.itemsize:
            data = data.clone()
        return data.view(stored.dtype).view(stored.shape)

    def samples(self, count: int, nbytes: int) -> Iterator[bytes]:
        """``count`` short stretches of every tensor, read without mapping anything."""
        with ExitStack() as stack:
            paths = {tensor.path for tensor in self.tensors.values()}
            opened = {path: stack.enter_context(path.open("rb")) for path in paths}
            for _, tensor in sorted(self.tensors.items()):
                for index in range(count):
                    offset = (tensor.nbytes - nbytes) * index // count if tensor.nbytes > nbytes else 0
                    opened[tensor.path].seek(tensor.start + offset)
                    yield opened[tensor.path].read(min(nbytes, tensor.nbytes))

    def holds(self, key: str, tensor: Tensor) -> bool:
        """Whether the first number of a tensor on the CPU lies in the map, where the file has ``key``."""
        stored = self.tensors[key]
        start = self._map(stored.path)[1].data_ptr() + stored.start
        return start <= tensor.data_ptr() < start + stored.nbytes

    def release(self, key: str) -> None:
        """Drop a tensor's pages from memory; they are read again if it is used again."""
        self._advise(key, "MADV_DONTNEED")

    def prefetch(self, key: str) -> None:
        """Ask the system to read a tensor's pages soon."""
        self._advise(key, "MADV_WILLNEED")

    def _advise(self, key: str, advice: str) -> None:
        stored = self.tensors[key]
        if not hasattr(mmap, advice) or stored.nbytes == 0:
            return
        start = stored.start // mmap.PAGESIZE * mmap.PAGESIZE
        self._map(stored.path)[0].madvise(getattr(mmap, advice), start, stored.start + stored.nbytes - start)

    def _map(self, path: Path) -> tuple[mmap.mmap, Tensor]:
        if path not in self._maps:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            with warnings.catch_warnings():
                # PyTorch warns of memory that cannot be written; weights never are.
                warnings.filterwarnings("ignore", message="The given buffer is not writable")
                self._maps[path] = mapped, torch.frombuffer(mapped, dtype=torch.uint8)
        return self._maps[path]


# ---------------------------------------------------------------------------------- writing


def write_tensors(
    folder: Path,
    name: str,
    infos: dict[str, TensorInfo],
    make: Callable[[str], Iterable[Tensor]],
    max_shard_bytes: int | None = None,
) -> None:
    """Write tensors as one file, or as shards with an index, holding one piece at a time in memory.

    ``make(key)`` gives the pieces of a tensor, in order; together they have its bytes.
    """  # fmt: skip
    shards = split_shards(infos, max_shard_bytes)
    stem = name.removesuffix(".safetensors")
    names = [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for shard, shard_name in zip(shards, [name] if len(shards) == 1 else names, strict=True):
        with (folder / shard_name).open("wb") as file:
            _write_shard(file, {key: infos[key] for key in shard}, make)
    if len(shards) > 1:
        weight_map = {key: shard_name for shard, shard_name in zip(shards, names, strict=True) for key in shard}
        total = sum(info.nbytes for info in infos.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / (name + INDEX_SUFFIX)).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def split_shards(infos: dict[str, TensorInfo], max_shard_bytes: int | None) -> list[list[str]]:
    """Keys by shard, in their order; raises ValueError if a tensor alone is too large."""
    shards: list[list[str]] = [[]]
    filled = 0
    for key in infos:
        cost = infos[key].nbytes + 256 + len(key)  # its line in the header
        if max_shard_bytes is not None and shards[-1] and filled + cost > max_shard_bytes:
            shards.append([])
            filled = 0
        if max_shard_bytes is not None and cost > max_shard_bytes:
            raise ValueError(f"{key} has {infos[key].nbytes} bytes; a shard of {max_shard_bytes} cannot hold it")
        shards[-1].append(key)
        filled += cost
    return shards


def _write_shard(file: BinaryIO, infos: dict[str, TensorInfo], make: Callable[[str], Iterable[Tensor]]) -> None:
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    offset = 0
    for key, info in infos.items():
        header[key] = {
            "dtype": DTYPE_NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [offset, offset + info.nbytes],
        }  # fmt: skip
        offset += info.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % HEADER_ALIGNMENT)
    file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
    for key, info in infos.items():
        written = 0
        for piece in make(key):
            assert piece.dtype == info.dtype, (key, piece.dtype)
            data: Any = piece.contiguous().view(-1).view(torch.uint8).numpy()  # a buffer, which its stubs do not say
            written += file.write(data)
        assert written == info.nbytes, f"{key}: {written} bytes instead of {info.nbytes}"


def checkpoint_files(folder: Path, name: str) -> Iterator[Path]:
    """The files a checkpoint consists of: itself, or its index and shards."""
    if (folder / name).is_file():
        yield folder / name
        return
    index = folder / (name + INDEX_SUFFIX)
    yield index
    yield from (folder / shard for shard in sorted(set(read_index(index).values())))
