"""fms-fsdp's checkpoints and the DyT authors', both kinds of files, from numbers whose logits are known otherwise."""

from __future__ import annotations

import io
import json
import pickle

import pytest
import torch
from conversions import TOKENS, converted, hf_logits, tiny_model
from meta_files import LLAMA_3, SEVEN_B, logits, whole_weights
from torch.distributed.checkpoint import FileSystemWriter, save
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from llama_dyt.convert.formats.fms import SOURCE, _config
from llama_dyt.core.errors import CheckpointError, ConfigurationError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # which is how they are written here


def fms_weights(release, fused=True, old=False):
    """A release's numbers by fms' names; its rows are in the order of Meta's code."""
    weights, base = whole_weights(release), "" if old else "base_model."
    embedding, head = (
        ("shared.emb.weight", "shared.head.weight") if old else ("base_model.embedding.weight", "head.weight")
    )
    found = {embedding: weights["tok_embeddings.weight"], head: weights["output.weight"]}
    found[f"{base}dec_norm.weight"] = weights["norm.weight"]
    for number in range(release.params["n_layers"]):
        at, to = f"layers.{number}.", f"{base}layers.{number}."
        query, key, value = (weights[f"{at}attention.w{part}.weight"] for part in "qkv")
        gate, up = (weights[f"{at}feed_forward.w{part}.weight"] for part in "13")
        if fused:
            found[f"{to}attn.in_proj.qkv_fused.weight"] = torch.cat([query, key, value])
            found[f"{to}ff_sub_layer.wg1_fused.weight"] = torch.cat([gate, up])
        else:
            inner = "" if old else "in_proj."
            found |= {f"{to}attn.{inner}query.weight": query, f"{to}attn.{inner}key.weight": key}
            found |= {f"{to}attn.{inner}value.weight": value}
            found |= {f"{to}ff_sub_layer.wg.weight": gate, f"{to}ff_sub_layer.w1.weight": up}
        found[f"{to}attn.dense.weight"] = weights[f"{at}attention.wo.weight"]
        found[f"{to}ff_sub_layer.w2.weight"] = weights[f"{at}feed_forward.w2.weight"]
        found[f"{to}ln.weight"], found[f"{to}ff_ln.weight"] = (
            weights[f"{at}{norm}.weight"] for norm in ("attention_norm", "ffn_norm")
        )
    return found


def figures(release, folder):
    """A config.json with a release's figures, as `--config` takes them."""
    params = release.params
    fields = {"model_type": "llama", "hidden_size": params["dim"], "num_hidden_layers": params["n_layers"]}
    fields |= {"num_attention_heads": params["n_heads"], "num_key_value_heads": release.key_value_heads}
    fields |= {"intermediate_size": release.width, "vocab_size": release.vocabulary, "rms_norm_eps": 1e-5}
    fields |= {"rope_theta": params.get("rope_theta", 1e4), "max_position_embeddings": 4096}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def dyt_weights(model):
    """A DyT model of ours by the authors' names, rows of queries and keys in the order of neighbours."""
    head_dim = model.config.head_dim
    order = [row for pair in range(head_dim // 2) for row in (pair, pair + head_dim // 2)]

    def neighbours(rows):
        return torch.cat([head[order] for head in rows.split(head_dim)])

    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    found = {"shared.emb.weight": state["model.embed_tokens.weight"], "shared.head.weight": state["lm_head.weight"]}
    found["shared_scale"] = state["model.embed_tokens.scale"]
    norms = {"dec_norm": "model.norm"}
    for number in range(model.config.num_hidden_layers):
        at, to = f"model.layers.{number}.", f"layers.{number}."
        norms |= {f"{to}ln": f"{at}input_layernorm", f"{to}ff_ln": f"{at}post_attention_layernorm"}
        query, key, value = (state[f"{at}self_attn.{part}_proj.weight"] for part in "qkv")
        found[f"{to}attn.in_proj.qkv_fused.weight"] = torch.cat([neighbours(query), neighbours(key), value])
        found[f"{to}attn.dense.weight"] = state[f"{at}self_attn.o_proj.weight"]
        gate_up = [state[f"{at}mlp.{part}_proj.weight"] for part in ("gate", "up")]
        found[f"{to}ff_sub_layer.wg1_fused.weight"] = torch.cat(gate_up)
        found[f"{to}ff_sub_layer.w2.weight"] = state[f"{at}mlp.down_proj.weight"]
    for theirs, ours in norms.items():
        found |= {f"{theirs}.{part}": state[f"{ours}.{part}"] for part in ("alpha", "weight")}
    return found


def write_file(weights, folder, prefix=""):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "step_7_ckp.pth"
    torch.save({"model_state": {f"{prefix}{name}": tensor for name, tensor in weights.items()}, "step": 7}, path)
    return path


def write_folder(weights, folder, prefix=""):
    """As their Checkpointer writes it, by torch's own writer."""
    path = folder / "checkpoints/step_7_ckp"
    state = {"model_state": {f"{prefix}{name}": tensor.clone() for name, tensor in weights.items()}}
    state["optimizer_state"] = {"exp_avg": torch.ones(3), "step": 7}
    save(state, storage_writer=FileSystemWriter(path, single_file_per_rank=True), no_dist=True)
    torch.save({"step": 7, "tokens_seen": 99}, path / "metadata.pth")
    return path


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "apart"])
@pytest.mark.parametrize("old", [True, False], ids=["old", "new"])
def test_fms_logits_are_those_of_the_numbers_it_was_made_of(old, fused, tmp_path):
    source = write_file(fms_weights(LLAMA_3, fused, old), tmp_path / "fms")
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="step_7_ckp.pth: unreadable or cut short"):
        converted(source, tmp_path / "hf")
    source.write_bytes(content)
    result = converted(source, tmp_path / "hf", "--config", figures(LLAMA_3, tmp_path / "figures"), "--verify")
    expected = logits(LLAMA_3, whole_weights(LLAMA_3), TOKENS[0]).float()
    torch.testing.assert_close(hf_logits(result), expected, rtol=0, atol=1e-4)
    config = json.loads((result / "config.json").read_text())
    assert config["model_type"] == "llama" and config["rope_parameters"]["rope_theta"] == 5e5


def test_folders_of_sharded_checkpoints_are_read_of_compiled_models_too(tmp_path):
    write_folder(fms_weights(SEVEN_B), tmp_path / "fms", prefix="_orig_mod.")
    result = converted(
        tmp_path / "fms", tmp_path / "hf", "--config", figures(SEVEN_B, tmp_path / "figures"), "--verify"
    )
    expected = logits(SEVEN_B, whole_weights(SEVEN_B), TOKENS[0]).float()
    torch.testing.assert_close(hf_logits(result), expected, rtol=0, atol=1e-4)


def write_pieces(weights, folder):
    """A folder as several ranks leave it: every tensor in two pieces, each in a rank's file."""
    folder.mkdir(parents=True)
    tensors, storage, files = {}, {}, [io.BytesIO() for rank in range(2)]
    for name, tensor in weights.items():
        name, chunks, begin = f"model_state.{name}", [], 0
        for rank, piece in enumerate(tensor.tensor_split(2)):
            offsets = torch.Size([begin, *[0] * (tensor.dim() - 1)])
            place = files[rank].tell()
            torch.save(piece.clone(), files[rank])
            chunks.append(ChunkStorageMetadata(offsets, piece.shape))
            length = files[rank].tell() - place
            storage[MetadataIndex(name, offsets)] = _StorageInfo(f"__{rank}_0.distcp", place, length)
            begin += piece.shape[0]
        tensors[name] = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), tensor.shape, chunks)
    for rank, file in enumerate(files):
        (folder / f"__{rank}_0.distcp").write_bytes(file.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(tensors, storage_data=storage)))
    return folder


def test_pieces_of_several_ranks_are_put_together(tmp_path):
    model = tiny_model("dyt")
    weights = dyt_weights(model)
    source = write_pieces({name: t for name, t in weights.items() if t.numel() > 1}, tmp_path / "step_7_ckp")
    model.config.save_pretrained(tmp_path / "figures")
    with pytest.raises(CheckpointError, match="alpha is missing"):
        converted(source, tmp_path / "hf", "--from", "dyt_authors", "--config", tmp_path / "figures")
    source = write_pieces(weights, tmp_path / "step_8_ckp")
    result = converted(source, tmp_path / "hf", "--config", tmp_path / "figures", "--verify")
    with torch.no_grad():
        torch.testing.assert_close(hf_logits(result), model(TOKENS).logits[0], rtol=0, atol=1e-5)
    (source / "__1_0.distcp").write_bytes((source / "__1_0.distcp").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"__1_0.distcp: cut short \(\d+ bytes; model_state.*weight ends at"):
        converted(source, tmp_path / "again", "--from", "dyt_authors", "--config", tmp_path / "figures")


class Code:
    def __reduce__(self):
        return print, ("code of the file ran",)


def test_a_table_with_code_in_it_is_refused_and_not_run(tmp_path, capsys):
    source = write_pieces(dyt_weights(tiny_model("dyt")), tmp_path / "step_7_ckp")
    (source / ".metadata").write_bytes(pickle.dumps({"a": Code()}))
    with pytest.raises(CheckpointError, match=".metadata names builtins.print, which is none of a checkpoint's own"):
        converted(source, tmp_path / "hf", "--from", "fms", "--config", "7b")
    assert "code of the file ran" not in capsys.readouterr().out


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_the_dyt_authors_checkpoints_become_ours(write, tmp_path):
    model = tiny_model("dyt")
    write(dyt_weights(model), tmp_path / "authors")
    model.config.save_pretrained(tmp_path / "figures")
    result = converted(tmp_path / "authors", tmp_path / "hf", "--config", tmp_path / "figures", "--verify")
    with torch.no_grad():
        torch.testing.assert_close(hf_logits(result), model(TOKENS).logits[0], rtol=0, atol=1e-5)
    config = json.loads((result / "config.json").read_text())
    assert config["norm_type"] == "dyt" and config["embedding_scale"] is True


def test_figures_are_asked_for_and_held_against_the_files(tmp_path):
    source = write_file(fms_weights(SEVEN_B), tmp_path / "fms")
    with pytest.raises(ConfigurationError, match="--config is needed: these files do not tell the number of heads"):
        converted(source, tmp_path / "hf")
    with pytest.raises(
        CheckpointError, match=r"embedding.weight has shape \[96, 64\] where the figures of --config make"
    ):
        converted(source, tmp_path / "hf", "--config", "llama2_7b")
    with pytest.raises(CheckpointError, match="dec_norm.alpha is missing"):
        figures(SEVEN_B, tmp_path / "figures")
        converted(source, tmp_path / "hf", "--from", "dyt_authors", "--config", tmp_path / "figures")
    weights = fms_weights(SEVEN_B) | {"base_model.layers.0.attn.dense.bias": torch.zeros(64)}
    write_file(weights, tmp_path / "fms")
    with pytest.raises(CheckpointError, match="layers.0.attn.dense.bias has no place in the model"):
        converted(source, tmp_path / "hf", "--config", tmp_path / "figures")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("name", "theta", "positions"),
    [("llama2_34b", 1e6, 16384), ("llama3_8b_4k", 5e5, 4096), ("llama2_7b", 1e4, 4096)],
)
def test_variants_are_fms_fsdps_own(name, theta, positions):
    config = _config(name, SOURCE.norm, SOURCE.variants)
    assert (config.rope_parameters["rope_theta"], config.max_position_embeddings) == (theta, positions)
