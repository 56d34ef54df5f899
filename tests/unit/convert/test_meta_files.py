"""Meta's files to HuggingFace's and back: the numbers of three releases, what is refused, and what a wrong order
does."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from conversions import TOKENS, converted, hf_logits, tiny_model
from meta_files import CODE_LLAMA, LLAMA_3, RELEASES, SEVEN_B, SEVENTY_B, Release, logits, whole_weights, write_release

from llama_dyt.convert import rotary
from llama_dyt.core.errors import CheckpointError, ConfigurationError


@pytest.mark.parametrize("name", RELEASES)
def test_logits_are_those_of_metas_code(name, tmp_path):
    release = RELEASES[name]
    source = write_release(release, tmp_path / "meta")
    result = converted(source, tmp_path / "hf")
    expected = logits(release, whole_weights(release), TOKENS[0]).float()
    assert expected.abs().max() > 2, "logits far enough apart for a comparison to mean something"
    torch.testing.assert_close(hf_logits(result), expected, rtol=0, atol=1e-4)
    config = json.loads((result / "config.json").read_text())
    assert config["model_type"] == "llama" and config["architectures"] == ["LlamaForCausalLM"], "of transformers' own"
    assert config["dtype"] == "bfloat16" and config["rope_parameters"]["rope_theta"] == release.params.get(
        "rope_theta", 1e4
    )
    assert config["num_key_value_heads"] == release.key_value_heads


@pytest.mark.parametrize("wrong", [lambda rows, head_dim: rows.clone(), rotary.neighbours_from_halves])
def test_a_wrong_order_of_rows_shows_in_the_logits_and_is_refused_by_verify(wrong, tmp_path, monkeypatch):
    monkeypatch.setattr(rotary, "halves_from_neighbours", wrong)
    source = write_release(SEVENTY_B, tmp_path / "meta")
    result = converted(source, tmp_path / "hf")
    expected = logits(SEVENTY_B, whole_weights(SEVENTY_B), TOKENS[0]).float()
    assert (hf_logits(result) - expected).abs().max() > 0.1
    with pytest.raises(CheckpointError, match="--verify: the result is not what its source is: largest difference"):
        converted(source, tmp_path / "verified", "--verify")
    assert not (tmp_path / "verified").exists()


def test_verify_tells_the_largest_difference(tmp_path, capsys):
    converted(write_release(SEVENTY_B, tmp_path / "meta"), tmp_path / "hf", "--verify")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("verified"))
    assert float(line.split("logits ")[1].split(",")[0]) < 1e-4 and "100% of positions" in line


@pytest.mark.parametrize("name", RELEASES)
def test_back_in_metas_form_the_files_hold_the_same_bits(name, tmp_path):
    release = RELEASES[name]
    source = write_release(release, tmp_path / "meta")
    result = converted(source, tmp_path / "hf", "--max_shard_size", "50KB")
    assert len(list(result.glob("model-*.safetensors"))) > 2
    # A vocabulary as small as these tests' is no Llama 3's, so its embedding is divided as LLaMA-2's.
    shards = 1 if release is LLAMA_3 else release.shards
    again = converted(result, tmp_path / "again", "--to", "meta", "--shards", shards)
    whole = RELEASES[name] if shards > 1 or release.shards == 1 else None
    for rank in range(shards):
        written = torch.load(again / f"consolidated.{rank:02d}.pth", weights_only=True, mmap=True)
        expected = torch.load(source / f"consolidated.{rank:02d}.pth", weights_only=True) if whole else None
        if expected is None:
            expected = whole_weights(release)
        expected.pop("rope.freqs", None)
        assert written.keys() == expected.keys()
        for key, tensor in expected.items():
            assert written[key].dtype == tensor.dtype and torch.equal(written[key], tensor), key
    params, how = json.loads((again / "params.json").read_text()), ("multiple_of", "ffn_dim_multiplier", "vocab_size")
    assert {key: params[key] for key in params if key not in how} == {
        key: release.params[key] for key in release.params if key not in how
    }
    assert replace(release, params=params).width == release.width, "by whichever multiple"


def test_the_dtype_is_kept_or_changed_on_request(tmp_path):
    source = write_release(CODE_LLAMA, tmp_path / "meta")
    wide = converted(source, tmp_path / "wide", "--dtype", "fp32", "--verify")
    assert json.loads((wide / "config.json").read_text())["dtype"] == "float32"
    expected = logits(CODE_LLAMA, whole_weights(CODE_LLAMA), TOKENS[0]).float()
    torch.testing.assert_close(hf_logits(wide), expected, rtol=0, atol=1e-4)
    ours = converted(source, tmp_path / "ours", "--to", "ours", "--verify")
    config = json.loads((ours / "config.json").read_text())
    assert config["model_type"] == "llama" and config["dtype"] == "float32", "as it stands in a checkpoint"
    assert "trust_remote_code" not in (ours / "README.md").read_text()


def damaged(release, folder, rank=0, **changes):
    """A release with tensors of one file changed (None takes one away)."""
    write_release(release, folder)
    path = folder / f"consolidated.{rank:02d}.pth"
    tensors = torch.load(path, weights_only=True)
    for name, change in changes.items():
        if change is None:
            del tensors[name]
        else:
            tensors[name] = change(tensors[name]) if name in tensors else change(None)
    torch.save(tensors, path)
    return folder


def test_a_head_that_is_the_embedding_is_tied_and_written_out_again(tmp_path, capsys):
    weights = whole_weights(CODE_LLAMA)
    weights["output.weight"] = weights["tok_embeddings.weight"].clone()
    source = write_release(CODE_LLAMA, tmp_path / "meta", weights)
    result = converted(source, tmp_path / "hf", "--verify")
    assert "the head is the embedding (tied)" in capsys.readouterr().out
    assert json.loads((result / "config.json").read_text())["tie_word_embeddings"] is True
    torch.testing.assert_close(hf_logits(result), logits(CODE_LLAMA, weights, TOKENS[0]).float(), rtol=0, atol=1e-3)
    again = torch.load(converted(result, tmp_path / "again", "--to", "meta") / "consolidated.00.pth")
    assert torch.equal(again["output.weight"], weights["output.weight"])
    del weights["output.weight"]
    without = converted(write_release(CODE_LLAMA, tmp_path / "without", weights), tmp_path / "hf2")
    assert torch.equal(hf_logits(without), hf_logits(result))


WK = "layers.1.attention.wk.weight"
BAD_TENSORS = {
    "missing": ({WK: None}, rf"consolidated.01.pth: {WK} is missing"),
    "another shape": ({WK: lambda t: t[:, :-1]}, rf"consolidated.01.pth: {WK} has shape \[8, 127\] where .*\[8, 128\]"),
    "another dtype": ({WK: lambda t: t.float()}, rf"consolidated.01.pth: {WK} is torch.float32, and torch.bfloat16"),
    "too many": (
        {"layers.7.attention.wq.weight": lambda t: torch.ones(2)},
        "layers.7.attention.wq.weight has no place",
    ),
    "unequal copies": ({"layers.0.ffn_norm.weight": lambda t: t + 1}, "layers.0.ffn_norm.weight differs from that in"),
    "another vocabulary": ({"output.weight": lambda t: t[:-1]}, r"output.weight has shape \[11, 128\]"),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_a_bad_tensor_is_named_and_nothing_is_left(kind, tmp_path):
    changes, message = BAD_TENSORS[kind]
    source = damaged(SEVENTY_B, tmp_path / "meta", rank=1, **changes)
    with pytest.raises(CheckpointError, match=message):
        converted(source, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["meta"]


def test_bad_files_are_named_and_nothing_is_left(tmp_path):
    source = write_release(SEVENTY_B, tmp_path / "meta")
    last = source / "consolidated.07.pth"
    content = last.read_bytes()

    def refused(message, *flags):
        with pytest.raises(CheckpointError, match=message):
            converted(source, tmp_path / "hf", "--from", "meta", *flags)
        assert [path.name for path in tmp_path.iterdir()] == ["meta"]

    last.write_bytes(content[: len(content) // 2])
    refused("consolidated.07.pth: unreadable or cut short")
    last.unlink()
    refused(r"has shape \[.*\] where params.json makes it|do not divide among 7 files")
    (source / "consolidated.03.pth").rename(source / "kept")
    last.write_bytes(content)
    refused("consolidated.03.pth is missing")
    (source / "kept").rename(source / "consolidated.03.pth")
    params = source / "params.json"
    params.write_text(json.dumps(SEVENTY_B.params | {"vocab_size": 32000}))
    refused("params.json: vocab_size is 32000, and the head in the files has 96 rows")
    params.write_text(json.dumps(SEVENTY_B.params | {"use_scaled_rope": True}))
    refused("params.json: use_scaled_rope is on and the factor is not told")
    params.write_text(json.dumps(SEVENTY_B.params | {"vision_chunk_size": 448}))
    refused("params.json: vision_chunk_size is there, and only plain LLaMAs are read")
    params.write_text(json.dumps(SEVENTY_B.params | {"n_layers": 3}))
    refused("layers.2.attention.wq.weight is missing")
    params.write_text("{")
    refused("params.json cannot be read as JSON")


def test_files_are_held_against_the_checksums_beside_them(tmp_path, capsys):
    source = write_release(SEVEN_B, tmp_path / "meta")
    names = ("consolidated.00.pth", "consolidated.01.pth", "params.json")
    sums = {name: hashlib.md5((source / name).read_bytes()).hexdigest() for name in names}
    (source / "checklist.chk").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    converted(source, tmp_path / "hf")
    assert "note: 3 files are as checklist.chk says" in capsys.readouterr().out
    content = bytearray((source / names[1]).read_bytes())
    content[len(content) // 2] ^= 1
    (source / names[1]).write_bytes(content)
    with pytest.raises(CheckpointError, match="consolidated.01.pth holds other bytes than .*checklist.chk says"):
        converted(source, tmp_path / "other")
    assert not (tmp_path / "other").exists()


class Code:
    def __reduce__(self):
        return print, ("code of the file ran",)


def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path, capsys):
    source = write_release(SEVEN_B, tmp_path / "meta")
    torch.save({"norm.weight": Code()}, source / "consolidated.01.pth")
    with pytest.raises(CheckpointError, match="consolidated.01.pth holds print beside tensors"):
        converted(source, tmp_path / "hf")
    assert "code of the file ran" not in capsys.readouterr().out


def test_what_metas_code_cannot_have_is_not_written_so(tmp_path):
    tiny_model("dyt").save_pretrained(tmp_path / "dyt")
    with pytest.raises(ConfigurationError, match="--to meta: Meta's code knows plain LLaMAs alone, .* norm dyt"):
        converted(tmp_path / "dyt", tmp_path / "meta", "--to", "meta")
    tiny_model("rmsnorm").save_pretrained(tmp_path / "plain")
    with pytest.raises(ConfigurationError) as caught:
        converted(tmp_path / "plain", tmp_path / "meta", "--to", "meta", "--shards", "4")
    assert [str(problem) for problem in caught.value.problems] == [
        "--shards 4 does not divide the 2 key and value heads",
        "--shards 4 does not divide the 97 entries of the vocabulary",
    ]


@pytest.mark.matrix
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize("key_value_heads", [None, 1, 2, 4, 8])
@pytest.mark.parametrize("head_dim", [8, 16])
@pytest.mark.parametrize("embedding_dim", [0, 1])
def test_every_division_goes_there_and_back(shards, key_value_heads, head_dim, embedding_dim, tmp_path):
    params = {"dim": 16 * head_dim, "n_layers": 2, "n_heads": 16, "multiple_of": 8, "norm_eps": 1e-6, "vocab_size": -1}
    if key_value_heads is not None:
        params |= {"n_kv_heads": key_value_heads, "rope_theta": 5e5}
    release = Release(params, shards, embedding_dim, seed=shards)
    source = write_release(release, tmp_path / "meta")
    if (key_value_heads or 16) % shards:
        with pytest.raises(CheckpointError, match="key and value heads do not divide among"):
            converted(source, tmp_path / "hf")
        return
    result = converted(source, tmp_path / "hf", "--verify")
    expected = logits(release, whole_weights(release), TOKENS[0]).float()
    torch.testing.assert_close(hf_logits(result), expected, rtol=0, atol=1e-4)
    again = torch.load(converted(result, tmp_path / "again", "--to", "meta") / "consolidated.00.pth")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole_weights(release).items())
