"""Writes a trained codec in the published layout: `python -m training.codec.export RUN/final.pt FOLDER`.

The folder gets the codec's weights, rounded to bfloat16 and stored so, and a `config.json` whose `mimi`
section describes them (a `config.json` that is already there keeps its other sections).
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from personaplex.errors import WeightsError
from personaplex.weights.checkpoint import Checkpoint
from training.codec.layers import Block, Conv, Residual, TransposedConv, WideConv
from training.codec.model import SAMPLE_RATE_HZ, Codec, CodecShape, load_codec
from training.codec.quantizer import Codebook
from training.module_lists import of_class

log = logging.getLogger(__name__)

CODEC_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
CONFIG_FILE = "config.json"


def mimi_section(shape: CodecShape) -> dict:
    """The `mimi` section of config.json."""
    return {
        "sample_rate": SAMPLE_RATE_HZ,
        "frame_rate": SAMPLE_RATE_HZ / shape.frame_samples,
        "num_codebooks": shape.num_codebooks,
        "num_codebooks_stored": shape.num_codebooks,
        "codebook_size": shape.codebook_size,
        "codebook_dim": shape.codebook_dim,
        "dimension": shape.dimension,
        "n_filters": shape.n_filters,
        "ratios": list(shape.ratios),
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 3,
        "compress": 2,
        "transformer": {
            "d_model": shape.dimension,
            "num_heads": shape.num_heads,
            "num_layers": shape.num_layers,
            "dim_feedforward": shape.dim_feedforward,
            "context": shape.context,
            "max_period": int(shape.max_period),
        },
    }


def shape_of(mimi: dict) -> CodecShape:
    """The inverse of `mimi_section`."""
    transformer = mimi["transformer"]
    return CodecShape(
        n_filters=mimi["n_filters"],
        dimension=mimi["dimension"],
        ratios=tuple(mimi["ratios"]),
        codebook_dim=mimi["codebook_dim"],
        codebook_size=mimi["codebook_size"],
        num_codebooks=mimi["num_codebooks"],
        **{key: transformer[key] for key in ("num_heads", "num_layers", "dim_feedforward", "context", "max_period")},
    )


def _conv(prefix: str, layer: Conv | TransposedConv | WideConv, kind: str = "conv") -> dict[str, Tensor]:
    return {f"{prefix}.{kind}.{kind}.weight": layer.weight, f"{prefix}.{kind}.{kind}.bias": layer.bias}


def _residual(prefix: str, layer: Residual) -> dict[str, Tensor]:
    return {**_conv(f"{prefix}.block.1", layer.wide), **_conv(f"{prefix}.block.3", layer.point)}


def _convolutions(codec: Codec) -> dict[str, Tensor]:
    """The SEANet stacks; an ELU takes an index of its own before each strided and each last layer."""
    encoder, decoder = codec.encoder, codec.decoder
    tensors = {**_conv("encoder.model.0", encoder.first), **_conv("decoder.model.0", decoder.first)}
    downs, ups = of_class(encoder.downs, Conv), of_class(decoder.ups, TransposedConv)
    for stage, (residual, down) in enumerate(zip(of_class(encoder.residuals, Residual), downs, strict=True)):
        tensors |= _residual(f"encoder.model.{1 + 3 * stage}", residual)
        tensors |= _conv(f"encoder.model.{3 + 3 * stage}", down)
    for stage, (up, residual) in enumerate(zip(ups, of_class(decoder.residuals, Residual), strict=True)):
        tensors |= _conv(f"decoder.model.{2 + 3 * stage}", up, "convtr")
        tensors |= _residual(f"decoder.model.{3 + 3 * stage}", residual)
    last = 2 + 3 * len(downs)
    return tensors | _conv(f"encoder.model.{last}", encoder.last) | _conv(f"decoder.model.{last}", decoder.last)


def _layer(prefix: str, layer: Block) -> dict[str, Tensor]:
    return {
        f"{prefix}.norm1.weight": layer.norm1.weight,
        f"{prefix}.norm1.bias": layer.norm1.bias,
        f"{prefix}.norm2.weight": layer.norm2.weight,
        f"{prefix}.norm2.bias": layer.norm2.bias,
        f"{prefix}.self_attn.in_proj_weight": layer.in_proj.weight,
        f"{prefix}.self_attn.out_proj.weight": layer.out_proj.weight,
        f"{prefix}.linear1.weight": layer.linear1.weight,
        f"{prefix}.linear2.weight": layer.linear2.weight,
        f"{prefix}.layer_scale_1.scale": layer.scale1,
        f"{prefix}.layer_scale_2.scale": layer.scale2,
    }


def _codebook(prefix: str, codebook: Codebook) -> dict[str, Tensor]:
    """Stored with a usage of one, so that rounding the sum rounds the vector once."""
    return {
        f"{prefix}._codebook._initialized": torch.ones(1),
        f"{prefix}._codebook.cluster_usage": torch.ones(codebook.size),
        f"{prefix}._codebook.embedding_sum": codebook.vectors(),
    }


def _quantizer(codec: Codec) -> dict[str, Tensor]:
    quantizer = codec.quantizer
    tensors = {}
    for side in ("first", "rest"):
        for end, name in (("in", "input_proj"), ("out", "output_proj")):
            projection = getattr(quantizer, f"{side}_{end}")
            tensors[f"quantizer.rvq_{side}.{name}.weight"] = projection.weight[..., None]
    tensors |= _codebook("quantizer.rvq_first.vq.layers.0", quantizer.first)
    for index, codebook in enumerate(quantizer.books[1:]):
        tensors |= _codebook(f"quantizer.rvq_rest.vq.layers.{index}", codebook)
    return tensors


def published_tensors(codec: Codec) -> dict[str, Tensor]:
    """Every tensor of the published file by its name there, float32, some of them views of the codec's own."""
    tensors = _convolutions(codec) | _quantizer(codec)
    for side in ("encoder", "decoder"):
        for index, layer in enumerate(getattr(codec, f"{side}_transformer").layers):
            tensors |= _layer(f"{side}_transformer.transformer.layers.{index}", layer)
    tensors["downsample.conv.conv.conv.weight"] = codec.downsample
    tensors["upsample.convtr.convtr.convtr.weight"] = codec.upsample[:, None]
    return {name: tensor.detach() for name, tensor in tensors.items()}


def export_codec(codec: Codec, folder: Path) -> Path:
    """Writes the weights and the configuration into `folder`; returns the weights' path."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.to(torch.bfloat16).contiguous() for name, t in published_tensors(codec).items()}
    save_file(tensors, folder / CODEC_FILE)
    (folder / CODEC_FILE).chmod(0o644)  # safetensors keeps its files private
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text()) if path.exists() else {"model_type": "personaplex"}
    config["mimi"] = mimi_section(codec.shape)
    path.write_text(json.dumps(config, indent=1) + "\n")
    log.info("%s: %.1f MB", folder / CODEC_FILE, (folder / CODEC_FILE).stat().st_size / 1e6)
    return folder / CODEC_FILE


def import_codec(folder: Path) -> Codec:
    """The trainable codec of a folder in the published layout.

    Raises WeightsError (a ValueError) where its file is missing or damaged, or names or shapes differ.

    The file may be split, as nano's is. The phone reader is not published: it starts anew.
    """
    mimi = json.loads((folder / CONFIG_FILE).read_text())["mimi"]
    codec = Codec(shape_of(mimi)).eval()
    for book in codec.quantizer.books:
        book.cluster_usage.fill_(1.0)
    ours, stored = published_tensors(codec), Checkpoint.open(folder, CODEC_FILE)
    theirs = {name: stored.get(name) for name in stored.tensors}
    if differing := sorted(ours.keys() ^ theirs.keys()):
        raise WeightsError(f"{folder / CODEC_FILE} lacks or adds tensors: {', '.join(differing)}")
    books = {
        f"quantizer.rvq_{side}.vq.layers.{index}._codebook.embedding_sum": book
        for side, of_side in (("first", codec.quantizer.books[:1]), ("rest", codec.quantizer.books[1:]))
        for index, book in enumerate(of_side)
    }
    for name, tensor in theirs.items():
        if tensor.shape != ours[name].shape:
            raise WeightsError(f"{name} is {tuple(tensor.shape)} in the file; {tuple(ours[name].shape)} is needed")
        if name in books:
            usage = theirs[name.replace("embedding_sum", "cluster_usage")].float()
            books[name].embedding_sum.copy_(tensor.float() / usage.clamp(min=1e-5)[:, None])
        else:
            ours[name].copy_(tensor)
    return codec


def any_codec(path: Path) -> Codec:
    """The codec of a checkpoint, or of a folder in the published layout."""
    return import_codec(path) if path.is_dir() else load_codec(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    codec = load_codec(arguments.checkpoint)
    export_codec(codec, arguments.folder)


if __name__ == "__main__":
    main()
