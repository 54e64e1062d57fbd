"""Writes a trained language model in the published layout.

    python -m training.lm.export --lm DIR [DIR ...] --codec DIR --speech DIR --out DIR

Of several runs, trained one from another, the mean of their weights is written. The codec's folder is one of
`training.codec.export`; language model and codec together make the folder that `personaplex` loads: float32,
embeddings bfloat16. With `--packed` a second folder is made, as shipped: int8 linear weights, files under 10 MB.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from personaplex.config import FilesConfig, LMConfig, ModelConfig
from personaplex.messages import SamplingOptions
from personaplex.nn.packing import WeightFormat
from personaplex.weights.checkpoint import checkpoint_files
from personaplex.weights.load import load_model as load_published
from personaplex.weights.load import save_quantized
from training.lm.model import DepthLayer, LanguageModel, TemporalLayer, load_model
from training.lm.tokenizer import TOKENIZER
from training.module_lists import of_class

log = logging.getLogger(__name__)

MODEL_NAME = "nano-2.6"
MAX_FILE_BYTES = 9_500_000
CONTEXT_FRAMES, VOICE_SEC = 500, 10.0
"""What is published of a memory, in which few dialogues of training are longer: in a fuller one facts are not found
(docs/behaviour.md). A prompt of 10 s of voice, a role and all that can be told fit into it."""


@dataclass(frozen=True)
class Sharpness:
    """Factors on the exported logits.

    A small model is surer of what is likeliest than of the shares of the rest. Sharpened, it needs no sampling of
    its own: the published temperatures amount to lower ones.
    """

    text: float = 1.0
    audio: float = 1.0

    @classmethod
    def of_temperatures(cls, text: float, audio: float) -> Sharpness:
        """`text`, `audio`: the temperatures that the published ones shall act as."""
        return cls(SamplingOptions.temperature_text / text, SamplingOptions.temperature_audio / audio)


def published_tensors(model: LanguageModel, sharpness: Sharpness = Sharpness()) -> dict[str, Tensor]:
    """Every tensor under its published name, float32."""
    config, dep_q = model.config, model.config.dep_q
    tensors = _embeddings(model, config)
    for index, layer in enumerate(of_class(model.layers, TemporalLayer)):
        tensors.update(_temporal_layer(layer, f"transformer.layers.{index}."))
    tensors["out_norm.alpha"] = _alpha(model.out_norm.alpha)
    tensors["text_linear.weight"] = model.text_linear.weight * sharpness.text
    tensors["depformer_text_emb.weight"] = model.depth_text
    tables = model.depth_codes[:-1].view(dep_q - 1, config.card + 1, -1)
    tensors.update({f"depformer_emb.{k}.weight": tables[k] for k in range(dep_q - 1)})
    for k in range(dep_q):
        tensors[f"depformer_in.{k}.weight"] = model.depth_in[k].T
        tensors[f"linears.{k}.weight"] = model.depth_out[k].T * sharpness.audio
    for index, depth in enumerate(of_class(model.depth_layers, DepthLayer)):
        tensors.update(_depth_layer(depth, f"depformer.layers.{index}."))
    return {name: tensor.detach().float().contiguous().clone() for name, tensor in tensors.items()}


def stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As written to the file: embedding tables in bfloat16, which a packed copy keeps."""
    return {name: t.bfloat16() if "emb." in name else t for name, t in tensors.items()}


def _embeddings(model: LanguageModel, config: LMConfig) -> dict[str, Tensor]:
    sizes = [config.text_card + 1] + [config.card + 1] * config.n_q
    text, *audio = model.embedding[: model.absent].split(sizes)
    return {"text_emb.weight": text, **{f"emb.{i}.weight": table for i, table in enumerate(audio)}}


def _alpha(alpha: Tensor) -> Tensor:
    return alpha[None, None]


def _temporal_layer(layer: TemporalLayer, prefix: str) -> dict[str, Tensor]:
    return {
        f"{prefix}norm1.alpha": _alpha(layer.norm1.alpha),
        f"{prefix}norm2.alpha": _alpha(layer.norm2.alpha),
        f"{prefix}self_attn.in_proj_weight": layer.in_proj.weight,
        f"{prefix}self_attn.out_proj.weight": layer.out_proj.weight,
        f"{prefix}gating.linear_in.weight": layer.linear_in.weight,
        f"{prefix}gating.linear_out.weight": layer.linear_out.weight,
    }


def _depth_layer(layer: DepthLayer, prefix: str) -> dict[str, Tensor]:
    """One layer as published: attention weights of all steps stacked, feed-forward weights one tensor per step."""
    tensors = {
        f"{prefix}norm1.alpha": _alpha(layer.norm1.alpha),
        f"{prefix}norm2.alpha": _alpha(layer.norm2.alpha),
        f"{prefix}self_attn.in_proj_weight": layer.in_proj.transpose(1, 2).flatten(0, 1),
        f"{prefix}self_attn.out_proj.weight": layer.out_proj.transpose(1, 2).flatten(0, 1),
    }
    for k in range(layer.in_proj.shape[0]):
        tensors[f"{prefix}gating.{k}.linear_in.weight"] = layer.linear_in[k].T
        tensors[f"{prefix}gating.{k}.linear_out.weight"] = layer.linear_out[k].T
    return tensors


USUAL_TEXT_TEMPERATURE, USUAL_AUDIO_TEMPERATURE = 0.4, 0.3
"""Effective temperatures of a model exported here when the published ones are asked for, by default."""


def import_model(folder: Path, sharpness: Sharpness | None = None) -> LanguageModel:
    """The trainable language model of a folder in the published layout, packed or not.

    sharpness: what the folder's logits were multiplied with when it was exported, taken back here; the usual one if
    not given.
    """
    sharpness = sharpness or Sharpness.of_temperatures(USUAL_TEXT_TEMPERATURE, USUAL_AUDIO_TEMPERATURE)
    loaded = load_published(str(folder), format=WeightFormat.FLOAT32, device="cpu")
    tensors: dict[str, Tensor] = {}
    for entry in loaded.lm.checkpoint_entries():
        if entry.parameter is not None:
            tensors[entry.key] = getattr(*entry.parameter).detach().float()
        elif entry.used:
            tensors[entry.key] = torch.cat([linear.loaded.data.float() for linear, _ in entry.linears])
    model = LanguageModel(loaded.config.lm)
    with torch.no_grad():
        _read_published(model, tensors)
        model.text_linear.weight.div_(sharpness.text)
        model.depth_out.div_(sharpness.audio)
    return model.eval()


def _read_published(model: LanguageModel, tensors: dict[str, Tensor]) -> None:
    """The inverse of `published_tensors`, in place."""
    config, dep_q = model.config, model.config.dep_q
    tables = [tensors["text_emb.weight"], *(tensors[f"emb.{i}.weight"] for i in range(config.n_q))]
    model.embedding[: model.absent] = torch.cat(tables)
    model.out_norm.alpha.copy_(tensors["out_norm.alpha"].flatten())
    model.text_linear.weight.copy_(tensors["text_linear.weight"])
    model.depth_text.copy_(tensors["depformer_text_emb.weight"])
    model.depth_codes[:-1] = torch.cat([tensors[f"depformer_emb.{k}.weight"] for k in range(dep_q - 1)])
    for k in range(dep_q):
        model.depth_in[k] = tensors[f"depformer_in.{k}.weight"].T
        model.depth_out[k] = tensors[f"linears.{k}.weight"].T
    for index, layer in enumerate(of_class(model.layers, TemporalLayer)):
        for name, ours in _temporal_layer(layer, f"transformer.layers.{index}.").items():
            ours.copy_(tensors[name])
    for index, depth in enumerate(of_class(model.depth_layers, DepthLayer)):
        prefix = f"depformer.layers.{index}."
        for name, norm in (("norm1", depth.norm1), ("norm2", depth.norm2)):
            norm.alpha.copy_(tensors[f"{prefix}{name}.alpha"].flatten())
        for name, projection in (("in_proj_weight", depth.in_proj), ("out_proj.weight", depth.out_proj)):
            projection.copy_(tensors[f"{prefix}self_attn.{name}"].unflatten(0, (dep_q, -1)).transpose(1, 2))
        for k in range(dep_q):
            depth.linear_in[k] = tensors[f"{prefix}gating.{k}.linear_in.weight"].T
            depth.linear_out[k] = tensors[f"{prefix}gating.{k}.linear_out.weight"].T


def mean_model(runs: Sequence[Path]) -> LanguageModel:
    """The mean of what these runs have trained (Wortsman et al. 2022, "Model soups"), from the latest checkpoints.

    Raises ValueError where their sizes or tokenizers differ.
    """
    first, *others = (load_model(run / "final.pt" if (run / "final.pt").exists() else run / "last.pt") for run in runs)
    for run, other in zip(runs[1:], others, strict=True):
        if other.config != first.config or (run / TOKENIZER).read_bytes() != (runs[0] / TOKENIZER).read_bytes():
            raise ValueError(f"{run}: another size or tokenizer than {runs[0]}; only runs of one kind have a mean")
    weights = [model.state_dict() for model in (first, *others)]
    first.load_state_dict({name: torch.stack([w[name] for w in weights]).mean(0) for name in weights[0]})
    return first


def export_model(runs: Sequence[Path], codec: Path, speech: Path, out: Path, sharpness: Sharpness) -> ModelConfig:
    """Writes one model folder from a language model's run (or the mean of several) and an exported codec.

    Returns its configuration.
    """
    out.mkdir(parents=True, exist_ok=True)
    model = mean_model(runs)
    files = FilesConfig()
    save_file(stored(published_tensors(model, sharpness)), out / files.lm)
    shutil.copy(runs[0] / TOKENIZER, out / files.tokenizer)
    for path in checkpoint_files(codec, files.mimi):
        shutil.copy(path, out / path.name)
    config = json.loads((codec / "config.json").read_text())
    lm = asdict(model.config) | {"context": min(CONTEXT_FRAMES, model.config.context)}
    config.update(model_type="personaplex", name=MODEL_NAME, lm=lm)
    config.pop("quantization", None)  # of a published codec's folder; the language model here is in floats
    constants = json.loads((speech / "constants.json").read_text())
    config["prompt"] = {**config.get("prompt", {}), "max_voice_sec": VOICE_SEC, **constants}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return ModelConfig.from_json(out / "config.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm", type=Path, nargs="+", default=[Path("build/nano/lm")], help="runs of training.lm.train")
    parser.add_argument("--codec", type=Path, default=Path("build/nano/export"))
    parser.add_argument("--speech", type=Path, default=Path("build/nano/speech"), help="for the codec's constants")
    parser.add_argument("--out", type=Path, default=Path("build/nano/float"))
    for kind, published, usual in (("text", 0.7, USUAL_TEXT_TEMPERATURE), ("audio", 0.8, USUAL_AUDIO_TEMPERATURE)):
        about = f"that the published {published} amounts to"
        parser.add_argument(f"--{kind}-temperature", type=float, default=usual, help=about)
    parser.add_argument("--packed", type=Path, help="also write the shipped form here")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sharpness = Sharpness.of_temperatures(options.text_temperature, options.audio_temperature)
    export_model(options.lm, options.codec, options.speech, options.out, sharpness)
    if options.packed:
        save_quantized(str(options.out), options.packed, "int8", max_shard_bytes=MAX_FILE_BYTES)
    for folder in filter(None, (options.out, options.packed)):
        log.info("%s: %.2f MB", folder, sum(f.stat().st_size for f in folder.iterdir()) / 1e6)


if __name__ == "__main__":
    main()
