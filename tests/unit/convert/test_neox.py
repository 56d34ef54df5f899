"""GPT-NeoX' tensor-parallel shards, laid out here as its model cuts them, from numbers in Meta's form."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from conversions import TOKENS, converted, hf_logits
from meta_files import SEVEN_B, SEVENTY_B, logits, whole_weights

from llama_dyt.core.errors import CheckpointError, ConfigurationError

SETTINGS = {
    "pipe_parallel_size": 1,
    "max-position-embeddings": 4096,
    "pos_emb": "rotary",
    "rotary-pct": 1,
    "rotary_emb_base": 10000,
    "no_weight_tying": True,
    "gpt_j_residual": False,
    "norm": "rmsnorm",
    "rms_norm_epsilon": 1.0e-5,
    "use_bias_in_norms": False,
    "use_bias_in_attn_linear": False,
    "mlp_type": "llama",
}


def halves(rows, head_dim):
    """Neighbours 0 1 2 3 … of each head to 0 2 4 … 1 3 5 …, by index."""
    order = [*range(0, head_dim, 2), *range(1, head_dim, 2)]
    return torch.cat([head[order] for head in rows.split(head_dim)])


def write_checkpoint(release, ranks, folder, sequential=False):
    """The files of a run with so many tensor-parallel ranks, and its YML."""
    weights, params = whole_weights(release), release.params
    heads, head_dim = params["n_heads"], release.head_dim
    share = head_dim * release.key_value_heads // heads
    layers = {0: {"word_embeddings.weight": list(weights["tok_embeddings.weight"].chunk(ranks))}}
    for number in range(params["n_layers"]):
        at = f"layers.{number}."
        query, key = (halves(weights[f"{at}attention.{name}.weight"], head_dim) for name in ("wq", "wk"))
        value = weights[f"{at}attention.wv.weight"]
        rows = []
        for head in range(heads):  # the model's forward pass sees the outputs as (heads, head_dim + 2 * share)
            rows += [query[head * head_dim :][:head_dim], key[head * share :][:share], value[head * share :][:share]]
        layers[number + 2] = {
            "attention.query_key_value.weight": list(torch.cat(rows).chunk(ranks)),
            "attention.dense.weight": list(weights[f"{at}attention.wo.weight"].chunk(ranks, 1)),
            "mlp.w1.weight": list(weights[f"{at}feed_forward.w1.weight"].chunk(ranks)),
            "mlp.w3.weight": list(weights[f"{at}feed_forward.w3.weight"].chunk(ranks)),
            "mlp.w2.weight": list(weights[f"{at}feed_forward.w2.weight"].chunk(ranks, 1)),
            "input_layernorm.scale": [weights[f"{at}attention_norm.weight"]] * ranks,
            "post_attention_layernorm.scale": [weights[f"{at}ffn_norm.weight"]] * ranks,
            "attention.rotary_emb.inv_freq": [torch.ones(head_dim // 2)] * ranks,
        }
    layers[params["n_layers"] + 3] = {"norm.scale": [weights["norm.weight"]] * ranks}
    layers[params["n_layers"] + 4] = {"final_linear.weight": list(weights["output.weight"].chunk(ranks))}
    step = folder / "global_step10"
    (step / "configs").mkdir(parents=True)
    (folder / "latest").write_text("global_step10")
    for rank in range(ranks):
        own = {layer: {name: parts[rank].clone() for name, parts in held.items()} for layer, held in layers.items()}
        if sequential:
            module = {f"sequential.{layer}.{name}": t for layer, held in own.items() for name, t in held.items()}
            state = {"module": module, "iteration": 10, "random_rng_state": (3, (1, 2), None), "args": {"seed": 1}}
            torch.save(state, step / f"mp_rank_{rank:02d}_model_states.pt")
            continue
        for layer, held in own.items():
            torch.save(held, step / f"layer_{layer:02d}-model_{rank:02d}-model_states.pt")
    settings = SETTINGS | {"num_layers": params["n_layers"], "hidden_size": params["dim"], "num-attention-heads": heads}
    settings |= {"model_parallel_size": ranks}
    if release.key_value_heads != heads:
        settings |= {"attention_type": "groupedquery", "num_kv_heads": release.key_value_heads}
    (step / "configs/llemma.yml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.mark.parametrize("sequential", [False, True], ids=["layers", "ranks"])
@pytest.mark.parametrize(("release", "ranks"), [(SEVEN_B, 2), (SEVENTY_B, 8), (SEVENTY_B, 1)], ids=["7b", "70b", "one"])
def test_logits_are_those_of_the_numbers_it_was_made_of(release, ranks, sequential, tmp_path):
    source = write_checkpoint(release, ranks, tmp_path / "neox", sequential)
    result = converted(source, tmp_path / "hf", "--verify")
    expected = logits(release, whole_weights(release), TOKENS[0]).float()
    torch.testing.assert_close(hf_logits(result), expected, rtol=0, atol=1e-4)


def test_figures_come_from_the_yml(tmp_path):
    source = write_checkpoint(SEVENTY_B, 8, tmp_path / "neox")
    yml = source / "global_step10/configs/llemma.yml"
    settings = yaml.safe_load(yml.read_text()) | {"rotary_emb_base": 1000000}
    yml.write_text(yaml.safe_dump(settings))
    config = json.loads((converted(source / "global_step10", tmp_path / "hf") / "config.json").read_text())
    assert config["rope_parameters"]["rope_theta"] == 1e6 and config["rms_norm_eps"] == 1e-5
    assert config["num_key_value_heads"] == 8 and config["max_position_embeddings"] == 4096
    elsewhere = tmp_path / "other.yml"
    elsewhere.write_text(yaml.safe_dump(settings | {"rotary_emb_base": 10000}))
    again = converted(source, tmp_path / "again", "--config", elsewhere)
    assert json.loads((again / "config.json").read_text())["rope_parameters"]["rope_theta"] == 1e4


def test_bad_input_is_named_and_nothing_is_left(tmp_path):
    source = write_checkpoint(SEVENTY_B, 8, tmp_path / "neox")
    step = source / "global_step10"
    yml = step / "configs/llemma.yml"
    settings = yaml.safe_load(yml.read_text())

    def refused(error, message, *flags):
        with pytest.raises(error, match=message):
            converted(source, tmp_path / "hf", *flags)
        assert not (tmp_path / "hf").exists()

    def with_settings(**changes):
        yml.write_text(yaml.safe_dump(settings | changes))

    with_settings(norm="layernorm")
    refused(CheckpointError, "llemma.yml: norm is 'layernorm', and a LLaMA has 'rmsnorm'; only LLaMAs are read")
    with_settings(gpt_j_residual=True)
    refused(CheckpointError, "gpt_j_residual is True, and a LLaMA has False")
    with_settings(num_kv_heads=4)
    refused(CheckpointError, "16 heads, 4 of keys and values, on 8 ranks")
    with_settings(model_parallel_size=4)
    refused(CheckpointError, "model_parallel_size is 4, and there are files of 8 ranks")
    with_settings()
    missing = step / "layer_03-model_05-model_states.pt"
    content = missing.read_bytes()
    missing.unlink()
    refused(CheckpointError, "layer_03-model_05-model_states.pt is missing; copy it again")
    missing.write_bytes(content[:500])
    refused(CheckpointError, "layer_03-model_05-model_states.pt: unreadable or cut short")
    missing.write_bytes(content)
    newer = torch.load(step / "layer_02-model_00-model_states.pt", weights_only=True)
    newer["mlp.linear1.weight"] = newer.pop("mlp.w1.weight")
    torch.save(newer, step / "layer_02-model_00-model_states.pt")
    refused(
        CheckpointError, "mlp.linear1.weight is of GPT-NeoX since September 2024, whose query_key_value has had two"
    )
    yml.unlink()
    refused(ConfigurationError, r"--config is needed: there is no configs/\*.yml beside these files; give the YML")
