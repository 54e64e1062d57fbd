"""The structs and numbers of ``cpp/interface.h``, mirrored field by field.

``library.py`` compares every size and every kind with the compiled code's before anything is called.
"""

from __future__ import annotations

from ctypes import POINTER, Structure, c_int32, c_void_p
from enum import IntEnum

import torch

STEPS, STREAMS = 8, 17
"""Agent codes of a frame, and rows of a token column."""


class MatrixKind(IntEnum):
    """Number formats of weights, tables, caches and activations."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2
    INT4 = 3
    INT24 = 4


FLOAT_KINDS = {torch.float32: MatrixKind.FLOAT32, torch.bfloat16: MatrixKind.BFLOAT16}
"""Kinds of plain floats, which tables and activations have."""

CACHE_KINDS = {**FLOAT_KINDS, torch.int8: MatrixKind.INT8}
"""Kinds of the rows of a key/value cache."""


def _numbers(names: str) -> list[tuple[str, type]]:
    return [(name, c_int32) for name in names.split()]


def _pointers(names: str) -> list[tuple[str, type]]:
    return [(name, c_void_p) for name in names.split()]


class Matrix(Structure):
    """A weight [rows, columns] of any kind."""

    _fields_ = [*_pointers("data scale"), *_numbers("rows columns stride kind group padded_rows")]


# -- the language model


class Table(Structure):
    """An embedding table of a float kind."""

    _fields_ = [*_pointers("data"), *_numbers("kind")]


class Layer(Structure):
    """A transformer layer; the depth transformer's have no cache."""

    _fields_ = [
        *_pointers("norm1 norm2"),
        ("in_proj", Matrix),
        ("out_proj", Matrix),
        ("linear_in", Matrix),
        ("linear_out", Matrix),
        *_pointers("keys values"),
    ]


class LanguageModelSpec(Structure):
    """A language model and one state."""

    _fields_ = [
        *_numbers("slots dim heads layers hidden capacity cache_kind text_card card"),
        *_numbers("depth_dim depth_heads depth_layers depth_hidden rounded"),
        *_pointers("frequencies out_norm position kept held"),
        ("text_linear", Matrix),
        ("text_table", Table),
        ("tables", Table * (STREAMS - 1)),
        ("depth_text_table", Table),
        ("depth_tables", Table * (STEPS - 1)),
        ("inputs", Matrix * STEPS),
        ("linears", Matrix * STEPS),
        ("temporal", POINTER(Layer)),
        ("depth", POINTER(Layer)),
    ]


class FrameArguments(Structure):
    """Inputs and outputs of one frame of the language model."""

    _fields_ = [
        *_pointers("read forced uniform temperature top_k greedy moves"),
        *_pointers("text codes text_logits audio_logits"),
    ]


# -- the codec


class Convolution(Structure):
    """A streaming convolution and its state."""

    _fields_ = [
        *_pointers("weight bias state started"),
        *_numbers("channels_in channels_out kernel stride transposed depthwise repeat_first kind"),
    ]


class Stage(Structure):
    """A convolution of the SEANet, or a residual block of two."""

    _fields_ = [("first", Convolution), ("second", Convolution), *_numbers("residual activated")]


CODEC_NORMS = ("norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias")
CODEC_PRODUCTS = ("in_proj_weight", "out_proj_weight", "linear1_weight", "linear2_weight")
CODEC_SCALES = ("scale_1", "scale_2")
"""Tensors of a layer of the codec's transformers, in the order of ``CodecLayer``."""


class CodecLayer(Structure):
    """A layer of the codec's transformers and its cache."""

    _fields_ = [(name, c_void_p) for name in (*CODEC_NORMS, *CODEC_PRODUCTS, *CODEC_SCALES, "keys", "values")]


class Codebook(Structure):
    """Vectors of a codebook and their squared lengths."""

    _fields_ = _pointers("vectors norms")


class CodecSpec(Structure):
    """One direction of a codec and one state."""

    _fields_ = [
        *_numbers("slots samples dim heads hidden capacity steps layers stages codebooks codebook_size codebook_dim"),
        *_numbers("kind"),
        ("stage_list", POINTER(Stage)),
        ("resample", Convolution),
        ("layer_list", POINTER(CodecLayer)),
        *_pointers("frequencies position"),
        ("books", POINTER(Codebook)),
        *_pointers("projection_first projection_rest"),
    ]


STRUCTURES = (
    Matrix, Table, Layer, LanguageModelSpec, FrameArguments, Convolution, Stage, CodecLayer, Codebook, CodecSpec,
)  # fmt: skip
