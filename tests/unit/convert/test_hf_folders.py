"""HuggingFace folders, plain and patched: the same logits, what travels, and that nothing half is left."""

from __future__ import annotations

import json

import pytest
import torch
from conversions import TOKENS, converted, hf_logits, tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from llama_dyt.core.errors import CheckpointError, ConfigurationError
from llama_dyt.core.marker import damaged_files, read_marker, why_incomplete
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer, save_tokenizer
from llama_dyt.models import load_pretrained
from tests.forks import run
from tests.sentencepiece_models import write_model

PLAIN = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 128,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PLAIN_MODELS = {
    "grouped heads": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "scaled rope": {"rope_parameters": LLAMA3_ROPE},
    "wide heads": {"head_dim": 32},
}


def plain_model(seed=0, **changes):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**PLAIN, "initializer_range": 0.2, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.rand_like(parameter) * 0.5)
    return model


@pytest.fixture(scope="module")
def tokenizer_model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("sentencepiece") / "tokenizer.model")


@pytest.mark.parametrize("kind", PLAIN_MODELS)
def test_a_plain_model_becomes_ours_and_plain_again(kind, tmp_path):
    model = plain_model(**PLAIN_MODELS[kind])
    model.save_pretrained(tmp_path / "hf")
    ours = converted(tmp_path / "hf", tmp_path / "ours", "--to", "ours")
    with torch.no_grad():
        expected = model(TOKENS).logits[0]
        torch.testing.assert_close(load_pretrained(ours).eval()(TOKENS).logits[0], expected, rtol=0, atol=1e-5)
    again = converted(ours, tmp_path / "again", "--verify")
    assert torch.equal(hf_logits(again), expected), "the same bits through the same classes"
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "hf", again))
    assert after["model_type"] == "llama" and not list(again.glob("*.py"))
    kept = ("rope_parameters", "tie_word_embeddings", "attention_bias", "mlp_bias", "head_dim", "num_key_value_heads")
    assert {key: after.get(key) for key in kept} == {key: before.get(key) for key in kept}
    tensors = load_file(again / "model.safetensors")
    assert tensors.keys() == load_file(tmp_path / "hf/model.safetensors").keys(), "a tied head is not written twice"


def test_a_config_of_before_is_carried_with_what_it_says_beside(tmp_path):
    plain_model().save_pretrained(tmp_path / "hf")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "float32"}
    (tmp_path / "hf/config.json").write_text(json.dumps(config | {"a_field_of_theirs": 3}))
    result = converted(tmp_path / "hf", tmp_path / "result", "--verify")
    after = json.loads((result / "config.json").read_text())
    assert after["model_type"] == "llama" and not list(result.glob("*.py"))
    rope = after["rope_parameters"]
    assert (rope["rope_type"], rope["rope_theta"], rope["factor"]) == ("linear", 1e6, 2.0)


def test_a_patched_model_is_written_with_its_files(tmp_path):
    model = tiny_model("dyt")
    model.save_pretrained(tmp_path / "source")
    result = converted(
        tmp_path / "source", tmp_path / "result", "--dtype", "bf16", "--max_shard_size", "60KB", "--verify"
    )
    assert json.loads((result / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((result / "model.safetensors.index.json").read_text())["metadata"]["total_size"] == sum(
        2 * parameter.numel() for parameter in model.parameters()
    )
    assert max(file.stat().st_size for file in result.glob("*.safetensors")) < 70_000
    card = (result / "README.md").read_text()
    assert "trust_remote_code=True" in card and "norm dyt" in card


def test_older_files_of_torch_are_read_too(tmp_path):
    model = plain_model()
    model.save_pretrained(tmp_path / "hf")
    tensors = load_file(tmp_path / "hf/model.safetensors")
    (tmp_path / "hf/model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, held in shards.items():
        torch.save({name: tensors[name] for name in held}, tmp_path / "hf" / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    (tmp_path / "hf/pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    result = converted(tmp_path / "hf", tmp_path / "result")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(result / "model.safetensors").items())
    (tmp_path / "hf/pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match="pytorch_model-00002-of-00002.bin is missing"):
        converted(tmp_path / "hf", tmp_path / "other")


def test_the_tokenizer_goes_with_the_model(tmp_path, tokenizer_model, capsys):
    rows = 640
    model = plain_model(vocab_size=rows)
    model.save_pretrained(tmp_path / "hf")
    result = converted(tmp_path / "hf", tmp_path / "result", "--tokenizer", tokenizer_model)
    original, text = load_tokenizer(tokenizer_model), "def f(x):\n        return  x\n"
    for folder in (result, converted(result, tmp_path / "again"), converted(result, tmp_path / "ours", "--to", "ours")):
        assert load_tokenizer(folder).encode(text) == original.encode(text)
        assert (folder / "tokenizer.model").read_bytes() == tokenizer_model.read_bytes()
    assert json.loads((result / "config.json").read_text())["eos_token_id"] == original.eos_token_id
    assert json.loads((result / "generation_config.json").read_text())["bos_token_id"] == original.bos_token_id
    meta = converted(result, tmp_path / "meta", "--to", "meta")
    assert (meta / "tokenizer.model").read_bytes() == tokenizer_model.read_bytes()
    back = converted(meta, tmp_path / "back", "--verify")
    assert load_tokenizer(back).encode(text) == original.encode(text)
    plain_model(vocab_size=97).save_pretrained(tmp_path / "small")
    with pytest.raises(ConfigurationError, match="the tokenizer has 600 pieces but the model's vocabulary is 97"):
        converted(tmp_path / "small", tmp_path / "refused", "--tokenizer", tokenizer_model)
    assert not (tmp_path / "refused").exists()


def test_a_tokenizers_own_files_travel_letter_for_letter(tmp_path, tokenizer_model):
    plain_model(vocab_size=640).save_pretrained(tmp_path / "hf")
    save_tokenizer(load_tokenizer(tokenizer_model), tmp_path / "hf")
    (tmp_path / "hf/chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "hf/generation_config.json").write_text('{"max_new_tokens": 7}')
    result = converted(tmp_path / "hf", tmp_path / "result")
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
    assert all((result / name).read_bytes() == (tmp_path / "hf" / name).read_bytes() for name in names)


def test_the_marker_has_every_file_with_its_checksum(tmp_path):
    plain_model().save_pretrained(tmp_path / "hf")
    result = converted(tmp_path / "hf", tmp_path / "result", "--max_shard_size", "100KB")
    names = {path.name for path in result.iterdir()} - {"COMPLETE"}
    assert set(read_marker(result)) == names and len(names) > 4
    assert why_incomplete(result) is None and damaged_files(result, names) == []
    with safe_open(next(result.glob("*.safetensors")), "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_numbers_too_large_for_half_precision_are_named(tmp_path):
    model = plain_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 7e4
    model.save_pretrained(tmp_path / "hf")
    with pytest.raises(
        CheckpointError, match=r"model.layers.1.mlp.up_proj.weight: its largest number, 70000, is beyond"
    ):
        converted(tmp_path / "hf", tmp_path / "result", "--dtype", "fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


FULL_DISK = """
import resource, sys
import convert
from llama_dyt.core.errors import LlamaDytError
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))  # a file that may not grow is as a disk that is full
try:
    convert.main(["-i", sys.argv[1], "-o", sys.argv[2], "--to", sys.argv[3]])
except LlamaDytError as error:
    print("error:", error)
"""


@pytest.mark.parametrize("target", ["hf", "meta"])
def test_a_disk_that_is_full_is_told_and_nothing_is_left(target, tmp_path):
    plain_model().save_pretrained(tmp_path / "hf")
    ended = run(["-c", FULL_DISK, str(tmp_path / "hf"), str(tmp_path / "result"), target])
    assert f"error: --output_path {tmp_path}/result: it cannot be written (File too large)" in ended.stdout, (
        ended.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_bad_input_is_named_and_nothing_is_left(tmp_path):
    model = plain_model()
    folder = tmp_path / "hf"
    model.save_pretrained(folder, max_shard_size="100KB")
    config = json.loads((folder / "config.json").read_text())

    def refused(error, message, *flags):
        with pytest.raises(error, match=message):
            converted(folder, tmp_path / "result", *flags)
        assert [path.name for path in tmp_path.iterdir()] == ["hf"]

    def with_config(**changes):
        (folder / "config.json").write_text(json.dumps(config | changes))

    with_config(model_type="gpt2")
    refused(ConfigurationError, "model_type is 'gpt2'")
    with_config(num_hidden_layers=3)
    refused(CheckpointError, r"model.layers.2.self_attn.q_proj.weight and 8 more is missing")
    with_config(num_hidden_layers=1)
    refused(CheckpointError, r"model.layers.1.input_layernorm.weight and 8 more has no place")
    with_config(vocab_size=96)
    refused(CheckpointError, r"model.embed_tokens.weight has shape \[97, 64\] where the model has \[96, 64\]")
    with_config()
    last = sorted(folder.glob("*.safetensors"))[-1]
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    refused(CheckpointError, f"{last.name}: unreadable or cut short")
    last.unlink()
    refused(CheckpointError, f"{last.name} is missing")
    last.write_bytes(content)
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(last).items()}, last)
    refused(CheckpointError, f"{last.name}: .* is stored as I8; give weights that are not quantized")
    last.write_bytes(content)
    refused(CheckpointError, "no consolidated.NN.pth in it", "--from", "meta")
    refused(ConfigurationError, "--config 7b: --from hf tells all figures itself", "--config", "7b")
    refused(ConfigurationError, "--fold_dyt: the model has norm rmsnorm, which cannot do without", "--fold_dyt")
    with pytest.raises(ConfigurationError, match="--input_path .*nowhere: no such file or folder"):
        converted(tmp_path / "nowhere", tmp_path / "result")
    with pytest.raises(ConfigurationError, match="--input_path .*: it looks like none of the formats .* give --from"):
        converted(tmp_path, tmp_path / "result")


def test_flags_are_judged_together_and_a_folder_that_exists_is_left_alone(tmp_path):
    (tmp_path / "result").mkdir()
    (tmp_path / "result/precious").write_text("")
    with pytest.raises(ConfigurationError) as caught:
        converted(tmp_path / "hf", tmp_path / "result", "--max_shard_size", "big", "--shards", "2", "--dtype", "int8")
    assert len(caught.value.problems) == 4, caught.value
    assert "is there already, and nothing is written over" in str(caught.value)
    assert (tmp_path / "result/precious").exists()


def test_without_the_hub_a_name_and_an_upload_are_refused_in_one_line(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigurationError, match="--input_path someone/model: no such folder, and the hub did not give it"
    ):
        converted("someone/model", tmp_path / "result")
    plain_model().save_pretrained(tmp_path / "hf")
    with pytest.raises(
        ConfigurationError, match="--push_to_hub someone/model: (nobody is logged in|the hub cannot be asked)"
    ):
        converted(tmp_path / "hf", tmp_path / "result", "--push_to_hub", "someone/model")
    with pytest.raises(ConfigurationError, match="--push_to_hub a/b/c: .*; give a name as OWNER/MODEL"):
        converted(tmp_path / "hf", tmp_path / "result", "--push_to_hub", "a/b/c")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
