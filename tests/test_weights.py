"""Loading models: checked before use, the same in every way of storing them; and packed copies."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from personaplex.config import ModelConfig
from personaplex.errors import ConfigError, InputError, OutputError, UnknownNameError, WeightsError
from personaplex.models.language_model import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.nn.linear import Linear
from personaplex.nn.packing import PackedWeight, WeightFormat
from personaplex.weights.checkpoint import Checkpoint
from personaplex.weights.entries import scale_key
from personaplex.weights.folder import ModelFiles
from personaplex.weights.load import LoadedModel, load_model, save_quantized
from personaplex.weights.names import nano_folder

GOLDEN = Path(__file__).parent / "golden"
LM, CODEC = "model.safetensors", "tokenizer-e351c8d8-checkpoint125.safetensors"
IN_PROJ = "depformer.layers.{}.self_attn.in_proj_weight"
FORMATS = [format.value for format in WeightFormat]


@pytest.fixture(scope="module")
def stored() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / LM)


@pytest.fixture
def model(tmp_path) -> Path:
    """A model's folder of one's own to spoil."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in GOLDEN.iterdir():
        if path.is_file() and path.name != "expected.safetensors":
            shutil.copyfile(path, folder / path.name)
    return folder


def change_config(folder: Path, section: str, **values: object) -> None:
    data = json.loads((folder / "config.json").read_text())
    data.setdefault(section, {}).update(values)
    (folder / "config.json").write_text(json.dumps(data))


def logits(loaded: LoadedModel, steps: int = 4) -> torch.Tensor:
    """Text logits of a few frames of arbitrary tokens."""
    columns = torch.randint(0, 300, (1, steps, 17), generator=torch.Generator().manual_seed(0))
    temporal, dtype = loaded.lm.temporal, loaded.lm.activation_dtype
    state = temporal.initial_state(1, 8, loaded.cache_dtype, "cpu")
    active = torch.ones(1, dtype=torch.bool)
    with torch.inference_mode():
        return torch.cat(
            [temporal.step(temporal.embed(c, dtype), state, active, 8)[1] for c in columns.split(1, dim=1)]
        )


def error_of(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def same_weights(first: LoadedModel, second: LoadedModel) -> bool:
    pairs = zip(first.lm.state_dict(keep_vars=True).items(), second.lm.state_dict(keep_vars=True).items(), strict=True)
    layers = zip(first.lm.modules(), second.lm.modules(), strict=True)
    linears = [(a, b) for a, b in layers if isinstance(a, Linear) and isinstance(b, Linear)]
    assert linears
    return all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs) and all(
        all(torch.equal(t, b.weight.tensors()[name]) for name, t in a.weight.tensors().items()) for a, b in linears
    )


# --- what is published


def test_the_published_7b_counts_its_parameters():
    assert LanguageModel(ModelConfig.personaplex_7b().lm).parameter_count() == 8_371_408_896


def test_the_published_codec_counts_its_parameters():
    """Codebooks are no parameters: they were gathered, not trained."""
    entries = Mimi(ModelConfig.personaplex_7b().mimi).checkpoint_entries()
    count = sum(torch.Size(entry.shape).numel() for entry in entries if "_codebook" not in entry.key)
    assert round(count / 1e6, 1) == 79.3


def test_no_tensor_is_claimed_twice():
    config = ModelConfig.personaplex_7b()
    for part in (LanguageModel(config.lm), Mimi(config.mimi)):
        keys = [entry.key for entry in part.checkpoint_entries()]
        assert len(keys) == len(set(keys))


# --- number formats


@pytest.mark.parametrize(("format", "most"), list(zip(FORMATS, (1e-6, 0.03, 0.05, 0.4), strict=True)))
def test_every_format_answers_nearly_the_same(golden, format, most):
    loaded = load_model(GOLDEN, format=format)
    assert loaded.format.value == format
    assert loaded.cache_dtype == (torch.float32 if format == "float32" else torch.bfloat16)
    assert error_of(logits(loaded), logits(golden)) < most


def test_formats_take_less_memory(golden):
    sizes = [load_model(GOLDEN, format=format).linear_bytes for format in FORMATS]
    assert sizes[0] == golden.linear_bytes
    assert sizes[1] == sizes[0] / 2
    assert sizes[2] < sizes[1]  # the tiny layers are padded, so not half
    assert sizes[3] < sizes[2]


def test_embeddings_norms_and_the_codec_keep_their_precision(golden, stored):
    loaded = load_model(GOLDEN, format="int4")
    assert torch.equal(loaded.lm.temporal.text_emb.weight, stored["text_emb.weight"])
    assert torch.equal(loaded.lm.depth.emb[3].weight, stored["depformer_emb.3.weight"])
    assert torch.equal(loaded.lm.temporal.out_norm.alpha, stored["out_norm.alpha"])
    for (name, value), (_, wanted) in zip(loaded.mimi.named_parameters(), golden.mimi.named_parameters(), strict=True):
        assert torch.equal(value, wanted), name


def test_every_step_of_a_stacked_weight_gets_its_rows(golden, stored):
    layer = golden.lm.depth.layers[1]
    for step in range(8):
        assert torch.equal(layer.in_proj[step].weight.data, stored[IN_PROJ.format(1)][48 * step : 48 * (step + 1)])


def test_nothing_stays_without_memory(golden):
    for part in (golden.lm, golden.mimi):
        assert not [name for name, value in part.named_parameters() if value.is_meta]
        assert all(module.weight for module in part.modules() if isinstance(module, Linear))


def test_bfloat16_files(model, stored):
    save_file({key: value.bfloat16() for key, value in stored.items()}, model / LM)
    save_file({key: value.bfloat16() for key, value in load_file(model / CODEC).items()}, model / CODEC)
    loaded = load_model(model)
    assert loaded.format is WeightFormat.BFLOAT16
    assert loaded.lm.temporal.text_emb.weight.dtype == torch.bfloat16
    assert {value.dtype for value in loaded.mimi.parameters()} == {torch.float32}
    wide = load_model(model, format="float32")
    assert torch.equal(wide.lm.temporal.text_linear.weight.data, stored["text_linear.weight"].bfloat16().float())


def test_auto_packs_a_large_model_for_the_cpu_only(model, stored, monkeypatch):
    save_file({key: value.bfloat16() for key, value in stored.items()}, model / LM)
    files = ModelFiles.open(model)
    monkeypatch.setattr("personaplex.weights.folder.LARGE_MODEL_BYTES", 1000)
    assert files.auto_format("cpu") is WeightFormat.INT4
    assert files.auto_format("cuda") is WeightFormat.BFLOAT16


def test_progress_tells_all_bytes():
    told = []
    load_model(GOLDEN, format="int8", progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] == Checkpoint.open(GOLDEN, LM).nbytes + Checkpoint.open(GOLDEN, CODEC).nbytes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"format": "int3"}, "no number format 'int3'; allowed: auto, float32, bfloat16, int8, int4"),
        ({"format": "int4", "group_size": 48}, "allowed: 32, 64, 128"),
        ({"device": "tpu"}, "no device 'tpu'"),
        ({"device": "cuda:x"}, "no device"),
        ({"device": "cuda:99"}, "finds no such GPU"),
    ],
)
def test_impossible_wishes(arguments, says):
    with pytest.raises(InputError, match=says):
        load_model(GOLDEN, **arguments)


# --- checking


def test_what_does_not_fit_is_listed(model, stored):
    changed = dict(stored)
    del changed["out_norm.alpha"], changed["emb.3.weight"]
    changed["extra.weight"] = torch.zeros(1)
    changed["text_emb.weight"] = torch.zeros(7, 32)
    changed["linears.2.weight"] = stored["linears.2.weight"].to(torch.int8)
    save_file(changed, model / LM)
    with pytest.raises(WeightsError) as caught:
        load_model(model)
    message = str(caught.value)
    assert "2 missing: emb.3.weight, out_norm.alpha" in message
    assert "1 unexpected: extra.weight" in message
    assert "text_emb.weight is F32 [7, 32] instead of F32/BF16/F16 [401, 32]" in message
    assert "linears.2.weight is I8" in message
    assert "\n" not in message


def test_long_lists_are_cut(model, stored):
    save_file({key: value for key, value in stored.items() if not key.startswith("transformer")}, model / LM)
    with pytest.raises(WeightsError, match=r"18 missing: (\S+, ){8}…") as caught:
        load_model(model)
    assert len(str(caught.value)) < 1000


def test_the_unused_must_be_there_too(model, stored):
    save_file({key: value for key, value in stored.items() if key != "linears.12.weight"}, model / LM)
    with pytest.raises(WeightsError, match="1 missing: linears.12.weight"):
        load_model(model)


def test_a_codec_that_does_not_fit(model):
    tensors = load_file(model / CODEC)
    del tensors["downsample.conv.conv.conv.weight"]
    save_file(tensors, model / CODEC)
    with pytest.raises(WeightsError, match="1 missing: downsample.conv.conv.conv.weight"):
        load_model(model)


def test_nothing_is_read_before_all_is_checked(model, stored, monkeypatch):
    save_file({**stored, "extra": torch.zeros(1)}, model / LM)
    monkeypatch.setattr(Checkpoint, "get", None)
    with pytest.raises(WeightsError, match="unexpected"):
        load_model(model)


@pytest.mark.parametrize("name", [LM, CODEC])
def test_a_cut_off_file(model, name):
    path = model / name
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=f"{name} is cut off"):
        load_model(model)


def test_a_folder_that_lacks_a_file(model):
    (model / "tokenizer_spm_32k_3.model").unlink()
    with pytest.raises(WeightsError, match="has no tokenizer_spm_32k_3.model"):
        load_model(model)


def test_no_config_means_the_7b(model):
    (model / "config.json").unlink()
    with pytest.raises(WeightsError, match="has no config.json, and its weights are not the published 7B's"):
        load_model(model)


def test_an_unknown_model():
    with pytest.raises(UnknownNameError, match="did you mean nano"):
        load_model("nanno")


# --- checkpoints of 8 depth steps


def eight_steps(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same model as an older checkpoint carries it."""

    def later(key: str) -> bool:
        parts = key.split(".")
        index = {"depformer_emb": 1, "depformer_in": 1, "linears": 1}.get(parts[0])
        if index is not None:
            return int(parts[index]) >= (7 if parts[0] == "depformer_emb" else 8)
        return parts[0] == "depformer" and "gating" in parts and int(parts[parts.index("gating") + 1]) >= 8

    kept = {key: value for key, value in stored.items() if not later(key)}
    for key in [key for key in kept if key.startswith("depformer.") and "self_attn" in key]:
        kept[key] = kept[key][: len(kept[key]) // 2].clone()
    return kept


@pytest.mark.parametrize("dep_q", [8, 16])
def test_eight_depth_steps_do(model, stored, golden, dep_q, caplog):
    save_file(eight_steps(stored), model / LM)
    change_config(model, "lm", dep_q=dep_q)
    with caplog.at_level("INFO"):
        loaded = load_model(model)
    assert same_weights(loaded, golden)
    assert ("8 of 16 depth steps" in caplog.text) == (dep_q == 16)


def test_twelve_depth_steps_do_not(model, stored):
    save_file({key: value for key, value in stored.items() if not key.startswith("linears.15")}, model / LM)
    with pytest.raises(WeightsError, match="linears.15.weight"):
        load_model(model)


# --- packed copies


@pytest.fixture(scope="module", params=["int8", "int4"])
def packed(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("packed") / request.param
    save_quantized(GOLDEN, folder, request.param)
    return request.param, folder


def test_a_packed_copy_is_what_packing_on_loading_gives(packed):
    format, folder = packed
    assert same_weights(load_model(folder), load_model(GOLDEN, format=format))


def test_a_packed_copy_is_smaller_and_says_what_it_is(packed):
    format, folder = packed
    assert (folder / LM).stat().st_size < (GOLDEN / LM).stat().st_size
    config = ModelConfig.from_json(folder / "config.json")
    golden = ModelConfig.from_json(GOLDEN / "config.json")
    assert config.quantization is not None
    assert (config.quantization.format, config.lm) == (format, replace(golden.lm, dep_q=8))
    assert not list(folder.parent.glob(".personaplex-*"))


def test_a_packed_copy_runs_from_its_memory_map(packed, monkeypatch):
    _, folder = packed
    monkeypatch.setattr(PackedWeight, "quantized", None)
    files = ModelFiles.open(folder)
    monkeypatch.setattr(ModelFiles, "open", lambda _: files)
    released = []
    monkeypatch.setattr(files.lm, "release", released.append)
    weight = load_model(folder).lm.temporal.layers[0].gating.linear_in.weight
    key = "transformer.layers.0.gating.linear_in.weight"
    assert files.lm.holds(key, weight.data) and key not in released
    # What was copied into another order need not stay in memory twice.
    key = scale_key(key, files.config.quantization)
    assert files.lm.holds(key, weight.scale) is (key not in released)


@pytest.mark.parametrize("format", FORMATS)
def test_a_packed_copy_loads_in_every_format(packed, golden, format):
    loaded = load_model(packed[1], format=format)
    assert loaded.format.value == format
    assert error_of(logits(loaded), logits(golden)) < (0.4 if "int4" in (format, packed[0]) else 0.06)


def test_a_packed_copy_of_a_packed_copy_is_the_same(packed, tmp_path):
    format, folder = packed
    save_quantized(folder, tmp_path / "again", format)
    assert (tmp_path / "again" / LM).read_bytes() == (folder / LM).read_bytes()


def test_groups_of_another_size(tmp_path, golden):
    save_quantized(GOLDEN, tmp_path / "q", "int4", group_size=128)
    loaded = load_model(tmp_path / "q")
    assert loaded.config.quantization.group_size == 128
    assert error_of(logits(loaded), logits(golden)) < 0.4
    assert loaded.fingerprint != load_model(tmp_path / "q", group_size=32).fingerprint


def test_shards_of_a_packed_copy_stay_below_their_size(tmp_path):
    save_quantized(GOLDEN, tmp_path / "q", "int8", max_shard_bytes=2_000_000)
    assert len(list((tmp_path / "q").glob("model-*.safetensors"))) == 3
    assert all(path.stat().st_size <= 2_000_000 for path in (tmp_path / "q").glob("*.safetensors"))
    assert same_weights(load_model(tmp_path / "q"), load_model(GOLDEN, format="int8"))


def test_a_packed_file_that_does_not_fit(packed, tmp_path):
    _, source = packed
    folder = tmp_path / "q"
    shutil.copytree(source, folder)
    tensors = load_file(folder / LM)
    key = next(key for key in tensors if key.startswith("text_linear.weight."))
    del tensors[key]
    tensors["text_linear.weight"] = tensors["text_linear.weight"][:16].clone()
    save_file(tensors, folder / LM)
    with pytest.raises(WeightsError, match=rf"1 missing: {key}.*text_linear.weight is .8 \[16"):
        load_model(folder)


def test_a_group_size_that_no_kernel_knows(model):
    change_config(model, "quantization", format="int4", group_size=48)
    with pytest.raises((ConfigError, InputError), match="allowed: 32, 64, 128"):
        load_model(model)


def test_places_that_cannot_become_a_packed_copy(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for place, says in (("full", "is there already"), ("full/file", "is there already"), ("no/where", "no folder")):
        with pytest.raises(OutputError, match=says):
            save_quantized(GOLDEN, tmp_path / place, "int8")
    with pytest.raises(InputError, match="int8 or int4; float32 was asked for"):
        save_quantized(GOLDEN, tmp_path / "q", "float32")


def test_a_broken_off_copy_leaves_nothing(tmp_path):
    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_quantized(GOLDEN, tmp_path / "q", "int8", progress=stop)
    assert not list(tmp_path.iterdir())


def test_a_disk_too_small_is_found_before(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "personaplex.weights.packed_copy.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})
    )
    with pytest.raises(OutputError, match="its disk has 1.0 kB free"):
        save_quantized(GOLDEN, tmp_path / "q", "int8")
    assert not list(tmp_path.iterdir())


# --- identity


def test_the_fingerprint_is_of_the_weights_not_of_the_place(model, stored):
    assert load_model(model).fingerprint == load_model(GOLDEN).fingerprint
    assert load_model(model, format="int8").fingerprint != load_model(GOLDEN).fingerprint
    changed = dict(stored)
    changed["transformer.layers.1.norm1.alpha"] = stored["transformer.layers.1.norm1.alpha"] + 1
    save_file(changed, model / LM)
    assert load_model(model).fingerprint != load_model(GOLDEN).fingerprint


def test_a_voice_of_the_archive_is_unpacked_below_the_users_folder(model, tmp_path, monkeypatch):
    import tarfile

    with tarfile.open(model / "voices.tgz", "w:gz") as tar:
        tar.add(GOLDEN / "voices" / "VOICE.pt", "voices/NATF0.pt")
    monkeypatch.setenv("PERSONAPLEX_HOME", str(tmp_path / "home"))
    path = load_model(model).unpack_voice("voices/NATF0.pt")
    assert path.read_bytes() == (GOLDEN / "voices" / "VOICE.pt").read_bytes()
    assert path.is_relative_to(tmp_path / "home")


def test_a_tokenizer_with_more_pieces_than_the_model_has_tokens_is_refused(model):
    """Its ids would be looked up beyond the end of the embeddings."""
    (model / "tokenizer_spm_32k_3.model").write_bytes((nano_folder() / "tokenizer_spm_32k_3.model").read_bytes())
    with pytest.raises(WeightsError, match=r"has 600 pieces, but the model's lm.text_card is 400") as caught:
        load_model(model)
    assert "\n" not in str(caught.value)
