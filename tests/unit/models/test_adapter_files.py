"""Adapters in peft's format: what peft saves is read and gives the same, what is written peft reads, and merged it is
the same again."""

import json
from pathlib import Path

import peft
import pytest
import torch
from model_cases import tiny_config, tiny_model, tokens
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PhiConfig,
)

from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import CheckpointError, ConfigurationError
from llama_dyt.models import build_config, empty_model, load_pretrained
from llama_dyt.models.adapters import (
    AdapterFiles,
    StartingAdapter,
    adapter_asked_for,
    attach,
    count,
    merge,
    merge_into,
    read_adapter,
    write_config,
)
from llama_dyt.models.adapters.peft_files import PREFIX

FROM_PEFT = {
    "LoRA": {"target_modules": ["q_proj", "v_proj"]},
    "all linears, rsLoRA": {"target_modules": "all-linear", "use_rslora": True},
    "ranks and alphas of their own": {
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        "rank_pattern": {"k_proj": 7, "layers.1.mlp.down_proj": 2},
        "alpha_pattern": {"q_proj": 3},
    },
    "some layers": {"target_modules": ["gate_proj"], "layers_to_transform": [1]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head"]},
    "DoRA": {"target_modules": "all-linear", "use_dora": True},
    "DoRA of embedding and head": {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
    "norms too": {"target_modules": ["o_proj"], "modules_to_save": ["input_layernorm", "norm"]},
    "the embedding itself": {"target_modules": ["o_proj"], "modules_to_save": ["embed_tokens"]},
}


def spread(model):
    """Every trainable parameter moved, so that none starts at what would hide a mistake."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save_peft(folder: Path, norm="dyt", **config):
    """peft's model with an adapter, which it saved."""
    model = spread(peft.get_peft_model(tiny_model(norm), peft.LoraConfig(r=4, lora_alpha=8, **config)))
    model.save_pretrained(folder)
    return model


def with_adapter(model, folder: Path):
    """Our model with the adapter in a folder."""
    attach(model, read_adapter(folder, model))
    with AdapterFiles(folder) as stored, torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(stored[name][:])
    return model.eval()


def same(logits, expected):
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", FROM_PEFT)
def test_what_peft_saves_gives_the_same_here_beside_the_weights_and_in_them(tmp_path, case):
    theirs = save_peft(tmp_path / "adapter", **FROM_PEFT[case])
    ids = tokens()
    with torch.no_grad():
        expected = theirs(ids).logits
        assert (expected - tiny_model()(ids).logits).abs().max() > 1e-3
        same(with_adapter(tiny_model(), tmp_path / "adapter")(ids).logits, expected)
        merged = tiny_model()
        merge_into(merged, tmp_path / "adapter")
        same(merged(ids).logits, expected)
        tiny_model().save_pretrained(tmp_path / "base")
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
        same(load_pretrained(tmp_path / "merged").eval()(ids).logits, expected)


def test_dora_leaves_a_bias_alone(tmp_path):
    def biased():
        model = tiny_model(attention_bias=True)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.copy_(torch.linspace(-1, 1, len(parameter)))
        return model

    asked = peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "o_proj"])
    theirs = spread(peft.get_peft_model(biased(), asked))
    theirs.save_pretrained(tmp_path)
    ids = tokens()
    with torch.no_grad():
        expected = theirs(ids).logits
        same(with_adapter(biased(), tmp_path)(ids).logits, expected)
        merged = biased()
        merge_into(merged, tmp_path)
        same(merged(ids).logits, expected)


@pytest.mark.parametrize("use_dora", [False, True])
def test_dropout_is_pefts(tmp_path, use_dora):
    asked = {"target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.5, "use_dora": use_dora}
    theirs = save_peft(tmp_path, **asked).train()
    ours, ids, losses = with_adapter(tiny_model(), tmp_path).train(), tokens(), []
    for model in (theirs, ours):
        torch.manual_seed(7)
        losses.append(model(input_ids=ids, labels=ids).loss)
    torch.testing.assert_close(*losses)
    with torch.no_grad():
        assert (ours(input_ids=ids, labels=ids).loss - losses[1]).abs() > 1e-4  # other numbers are left out


ASKED = {
    "all": {},
    "embedding and head": {"lora_targets": ["embed_tokens,lm_head", "mlp"]},
    "DoRA": {"lora_targets": ["q_proj", "embed_tokens"], "use_dora": True, "use_rslora": True, "lora_alpha": 3.0},
    "one layer": {"lora_targets": ["layers.1.self_attn"]},
    "norms too": {"lora_targets": ["v_proj"], "train_norms": True},
}


@pytest.mark.filterwarnings("error:Found missing adapter keys", "error:Unexpected keyword arguments")
@pytest.mark.parametrize("case", ASKED)
def test_peft_reads_what_is_written_here(tmp_path, case):
    model = tiny_model()
    run = RunConfig.build("finetune", model_path="base", lora_rank=3, **ASKED[case])
    adapter = adapter_asked_for(run.adapter, model)
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    attach(model, adapter)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    start = StartingAdapter(shapes, lambda name: {"param": base[name]}, seed=1)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(start.read(name)["param"][:])
        ids = tokens()
        same(model(ids).logits, tiny_model()(ids).logits)  # an adapter is nothing at first
        spread(model)
        expected = model(ids).logits
        write_config(adapter, tmp_path, "base")
        save_file({PREFIX + name: p.detach() for name, p in trained.items()}, tmp_path / "adapter_model.safetensors")
        theirs = peft.PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
        same(theirs(ids).logits, expected)
        same(with_adapter(tiny_model(), tmp_path)(ids).logits, expected)
    assert count(adapter, model.config).trained == sum(parameter.numel() for parameter in trained.values())


def test_an_adapter_of_a_plain_llama_is_merged_into_its_own_folder(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    plain = LlamaForCausalLM(LlamaConfig(vocab_size=131, num_key_value_heads=2, **sizes))
    plain.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = spread(peft.get_peft_model(plain, peft.LoraConfig(r=4, target_modules="all-linear")))
    theirs.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", torch.float32)
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    same(merged(tokens()).logits, theirs(tokens()).logits)
    assert json.loads((tmp_path / "merged/config.json").read_text())["model_type"] == "llama"
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "small")
    assert {tensor.dtype for tensor in load_file(tmp_path / "small/model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("config", "targets"),
    [
        (MistralConfig, ["q_proj", "down_proj", "embed_tokens"]),
        (GemmaConfig, ["o_proj", "embed_tokens"]),
        (PhiConfig, ["dense", "fc1", "embed_tokens", "lm_head"]),
    ],
)
@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapter_of_another_familys_own_class_gives_the_same_here(tmp_path, config, targets, use_dora):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    width = {} if config is PhiConfig else {"head_dim": 16, "num_key_value_heads": 2}
    plain = AutoModelForCausalLM.from_config(config(vocab_size=131, pad_token_id=0, **sizes, **width))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    plain.save_pretrained(tmp_path / "base")
    asked = peft.LoraConfig(r=4, target_modules=targets, use_dora=use_dora)
    theirs = spread(peft.get_peft_model(plain, asked))
    theirs.save_pretrained(tmp_path / "adapter")
    ids = tokens()
    with torch.no_grad():
        expected = theirs(ids).logits
        same(with_adapter(load_pretrained(tmp_path / "base"), tmp_path / "adapter")(ids).logits, expected)
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
        same(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(ids).logits, expected)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_a_tied_head_parts_from_the_embedding_where_an_adapter_sits_in_one_of_them(tmp_path, target):
    tied = {"tie_word_embeddings": True}
    tiny_model(**tied).save_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning) if target == "lm_head" else _nothing():
        theirs = peft.get_peft_model(tiny_model(**tied), peft.LoraConfig(r=4, target_modules=[target]))
    spread(theirs).save_pretrained(tmp_path / "adapter")
    ids = tokens()
    with torch.no_grad():
        expected = with_adapter(tiny_model(**tied), tmp_path / "adapter")(ids).logits
        same(theirs(ids).logits, expected)
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
        merged = load_pretrained(tmp_path / "merged").eval()
        assert merged.lm_head.weight is not merged.model.embed_tokens.weight
        same(merged(ids).logits, expected)
        within = tiny_model(**tied)
        merge_into(within, tmp_path / "adapter")
        same(within(ids).logits, expected)


def test_large_models_are_merged_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("llama_dyt.models.adapters.merging.MAX_SHARD_BYTES", 40_000)
    theirs = save_peft(tmp_path / "adapter", target_modules="all-linear")
    tiny_model().save_pretrained(tmp_path / "base")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert len(list((tmp_path / "merged").glob("model-*-of-*.safetensors"))) > 2
    same(load_pretrained(tmp_path / "merged").eval()(tokens()).logits, theirs(tokens()).logits)
    with pytest.raises(CheckpointError, match="is there already"):
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")


# --- what cannot be used ------------------------------------------------------------------------------------------


def changed(folder: Path, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def without_tensor(folder: Path, end: str):
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if not name.endswith(end)}, file)


SPOILED = {
    "no config": (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter_config.json in it"),
    "broken config": (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json: cannot"),
    "config of something else": (lambda folder: changed(folder, peft_type=None), "peft_type is None"),
    "no tensors": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is miss"),
    "half a file": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(
            (folder / "adapter_model.safetensors").read_bytes()[:-9]
        ),
        "adapter_model.safetensors: unreadable or cut short",
    ),
    "biases": (lambda folder: changed(folder, bias="all"), 'bias is "all", which cannot be used here'),
    "trained tokens": (lambda folder: changed(folder, trainable_token_indices=[3]), "trainable_token_indices is .3."),
    "a base that was changed": (lambda folder: changed(folder, init_lora_weights="pissa"), 'weights is "pissa", which'),
    "a tensor missing": (
        lambda folder: without_tensor(folder, "layers.1.self_attn.q_proj.lora_B.weight"),
        "lacks model.layers.1.self_attn.q_proj.lora_B.weight",
    ),
    "DoRA without magnitudes": (lambda folder: changed(folder, use_dora=True), "lacks .*lora_magnitude_vector"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_an_adapter_that_cannot_be_used_is_refused_by_what_is_wrong(tmp_path, case):
    spoil, message = SPOILED[case]
    save_peft(tmp_path, target_modules=["q_proj"])
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        read_adapter(tmp_path, empty_model(tiny_config()))


def test_other_kinds_of_adapters_are_refused_by_their_kind(tmp_path):
    peft.get_peft_model(tiny_model(), peft.IA3Config()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="peft_type is IA3; adapters that can be used here are LORA"):
        read_adapter(tmp_path, empty_model(tiny_config()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_size": 48, "num_attention_heads": 6}, r"q_proj.lora_A.weight of shape \[4, 64\] where .* \[4, 48\]"),
        ({"num_hidden_layers": 1}, "an adapter of model.layers.1.self_attn.q_proj, which is no linear layer"),
    ],
)
def test_an_adapter_of_another_base_is_refused_by_the_first_tensor_that_differs(tmp_path, overrides, message):
    save_peft(tmp_path, target_modules=["q_proj"])
    with pytest.raises(CheckpointError, match=f"{message}.*made for another model"):
        read_adapter(tmp_path, empty_model(tiny_config(**overrides)))


def test_unknown_targets_are_told_together_with_those_there_are():
    run = RunConfig.build("finetune", model_path="base", lora_rank=3, lora_targets=["q_prj", "mlp", "norm"])
    with pytest.raises(ConfigurationError) as caught:
        adapter_asked_for(run.adapter, empty_model(build_config("15m")))
    first, second = caught.value.problems
    assert first.startswith("--lora_targets q_prj: unknown module 'q_prj': did you mean 'q_proj'? (known: all, q_proj,")
    assert "embed_tokens" in first and "lm_head" in first
    assert second.startswith("--lora_targets norm: unknown module 'norm'")


def _nothing():
    from contextlib import nullcontext

    return nullcontext()
