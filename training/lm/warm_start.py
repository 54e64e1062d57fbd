"""Begins a language model with another's weights, whose vocabulary may be another one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from training.lm.export import import_model
from training.lm.model import LanguageModel, Listener, load_model
from training.lm.tokenizer import TOKENIZER, TextIds

_TEXT_TABLES = ("embedding", "depth_text")  # which a row for the initial token, and in the first all codes, follow
_TEXT_HEAD = "text_linear.weight"


def start_from(model: LanguageModel, ids: TextIds, path: Path) -> None:
    """Copies the weights of `path`, a checkpoint of a run or a published folder, into `model`, in place.

    Pieces that both vocabularies have keep their rows; a new piece gets a random one like the others. Of wider
    feed-forwards the strongest neurons are taken. Raises ValueError where anything else differs in size.
    """
    other = import_model(path) if path.is_dir() else load_model(path)
    known = TextIds((path if path.is_dir() else path.parent) / TOKENIZER)
    ours, theirs = model.state_dict(), narrowed(other.state_dict(), model.config.feedforward_dim)
    with torch.no_grad():
        for name, tensor in ours.items():
            source = theirs[name].to(tensor.device)
            if name in _TEXT_TABLES:
                source = torch.cat([_rows_of(source, known, ids), source[len(known) :]])
            elif name == _TEXT_HEAD:
                source = _rows_of(source, known, ids)
            if source.shape != tensor.shape:
                raise ValueError(f"{path}: {name} is {tuple(source.shape)}; {tuple(tensor.shape)} is trained")
            tensor.copy_(source)


def listen_from(listener: Listener, words: list[str], path: Path) -> int:
    """Copies a checkpoint's listener into `listener`, in place; returns how many of `words` it knew.

    Words that it did not know keep their random rows. A published folder, or a checkpoint that does not name
    its words, has no listener to copy.
    """
    if path.is_dir():
        return 0
    state = torch.load(path, map_location=listener.linear.weight.device, weights_only=True)
    theirs = {word: row for row, word in enumerate(state.get("user_words", ()))}
    rows = [row for row, word in enumerate(words) if word in theirs]
    if rows:
        source = state["listener"]
        with torch.no_grad():
            listener.norm.alpha.copy_(source["norm.alpha"])
            listener.linear.weight[rows] = source["linear.weight"][[theirs[words[row]] for row in rows]]
    return len(rows)


def narrowed(state: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """The same state with at most `width` neurons in each temporal feed-forward: those with the largest weights."""
    taken = dict(state)
    for name in [name for name in state if name.startswith("layers.") and name.endswith("linear_out.weight")]:
        out, read = state[name], name.replace("linear_out", "linear_in")
        gate, value = state[read].chunk(2)
        strength = gate.norm(dim=1) * value.norm(dim=1) * out.norm(dim=0)
        kept = strength.topk(min(width, len(strength))).indices.sort().values
        taken[name], taken[read] = out[:, kept], torch.cat([gate[kept], value[kept]])
    return taken


def _rows_of(table: Tensor, known: TextIds, ids: TextIds) -> Tensor:
    """A row for each piece of `ids`, where the first `len(known)` rows of `table` belong to those of `known`."""
    old = {known.processor.id_to_piece(piece): piece for piece in range(len(known))}
    rows = table[: len(known)]
    taken = rows.mean(0) + rows.std(0) * torch.randn(len(ids), table.shape[1])
    for piece in range(len(ids)):
        if (before := old.get(ids.processor.id_to_piece(piece))) is not None:
            taken[piece] = rows[before]
    return taken
