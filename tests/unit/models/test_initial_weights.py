"""Starting weights: the authors' distribution, a function of seed and name alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import tiny_config, tokens

from llama_dyt.models import LlamaDytForCausalLM, LlamaDytModel, build_model, initial_range, initial_tensor
from llama_dyt.models import initial_weights as module


def assert_starts_right(model, prefix=""):
    config = model.config
    for name, parameter in model.named_parameters(prefix=prefix):
        if name.endswith(".alpha"):
            field = {"input_layernorm": "attn", "post_attention_layernorm": "ffn", "norm": "dec"}[name.split(".")[-2]]
            assert parameter.item() == pytest.approx(getattr(config, f"{field}_alpha_init_value")), name
        elif name.endswith("scale"):
            assert parameter.item() == pytest.approx(math.sqrt(config.hidden_size))
        elif "norm" in name:
            assert parameter.eq(1).all(), name
        else:
            # 6 standard errors of the mean and of the standard deviation of so many draws.
            assert abs(parameter.mean()) < 6 * 0.02 / math.sqrt(parameter.numel()), name
            assert abs(parameter.std() - 0.02) < 6 * 0.02 / math.sqrt(2 * parameter.numel()), name


CONFIG = {"attn_alpha_init_value": 0.7, "ffn_alpha_init_value": 0.3, "dec_alpha_init_value": 0.4}


def test_built_model_starts_as_the_authors():
    model = build_model(tiny_config(**CONFIG), seed=3)
    assert_starts_right(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and {p.device.type for p in model.parameters()} == {
        "cpu"
    }


def test_plain_constructor_starts_the_same_way_from_torchs_seed():
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(LlamaDytForCausalLM(tiny_config(**CONFIG)).state_dict())
    assert_starts_right(LlamaDytForCausalLM(tiny_config(**CONFIG)))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["lm_head.weight"], models[2]["lm_head.weight"])
    assert_starts_right(LlamaDytModel(tiny_config(**CONFIG)), prefix="model")


def test_one_seed_is_one_model_and_another_another():
    first, same, other = (build_model(tiny_config(), seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["model.layers.1.mlp.up_proj.weight"], other["model.layers.1.mlp.up_proj.weight"])


def test_a_weight_depends_on_its_name_and_not_on_the_rest_of_the_model():
    small, deep = (build_model(tiny_config(num_hidden_layers=n), seed=5).state_dict() for n in (2, 3))
    assert all(torch.equal(small[name], deep[name]) for name in small)
    torch.manual_seed(99)
    torch.rand(7)
    again = build_model(tiny_config(), seed=5).state_dict()
    assert all(torch.equal(small[name], again[name]) for name in small)


def test_no_two_weights_of_one_shape_are_equal():
    state = build_model(tiny_config(), seed=5).state_dict()
    drawn = [tensor.flatten()[:32] for name, tensor in state.items() if tensor.dim() == 2]
    assert len({tuple(row.tolist()) for row in drawn}) == len(drawn)


def test_building_leaves_torchs_generator_alone_when_given_a_seed():
    state = torch.get_rng_state()
    build_model(tiny_config(), seed=5)
    assert torch.equal(state, torch.get_rng_state())


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 40))
@settings(max_examples=40)
def test_any_slice_is_drawn_as_in_the_whole(start, length, block):
    name, shape, config = "model.layers.0.mlp.up_proj.weight", (10, 10), tiny_config()
    before, module.BLOCK_ELEMENTS = module.BLOCK_ELEMENTS, block
    try:
        stop = min(start + length, 100)
        start = min(start, stop)
        whole = initial_tensor(name, shape, config, 7).flatten()
        assert torch.equal(initial_range(name, shape, config, 7, start, stop), whole[start:stop])
    finally:
        module.BLOCK_ELEMENTS = before


def test_blocks_of_a_large_weight_differ_and_threads_do_not_matter():
    config, shape = tiny_config(), (3, module.BLOCK_ELEMENTS)
    several = initial_tensor("lm_head.weight", shape, config, 7)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(initial_tensor("lm_head.weight", shape, config, 7), several)
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(several[0], several[1]) and abs(several.std() - 0.02) < 1e-4


def test_values_beyond_two_are_drawn_anew():
    """The authors' bounds are absolute, so they are felt only with a very wide distribution."""
    wide = initial_tensor("lm_head.weight", (400, 50), tiny_config(initializer_range=1.0), 7)
    assert wide.abs().max() <= 2 and wide.abs().max() > 1.9
    assert (wide.abs() == 2).sum() == 0, "clamped, not drawn anew"
    # Standard deviation of a unit normal cut at 2.
    assert wide.std().item() == pytest.approx(0.8796, abs=0.02)


def test_loading_starts_only_what_the_checkpoint_lacks(tmp_path):
    plain = build_model(tiny_config("rmsnorm"), seed=5)
    plain.save_pretrained(tmp_path)
    loaded = LlamaDytForCausalLM.from_pretrained(tmp_path, config=tiny_config(**CONFIG))
    own = plain.state_dict()
    for name, tensor in loaded.state_dict().items():
        if name in own:
            assert torch.equal(tensor, own[name]), name
    assert_starts_right(loaded)


def test_a_model_with_biases_starts_them_at_zero():
    model = build_model(tiny_config(attention_bias=True, mlp_bias=True), seed=5)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert len(biases) == 2 * 7 and all(p.eq(0).all() for p in biases)


def test_resizing_the_vocabulary_keeps_the_scale_out_of_it():
    model = build_model(tiny_config(), seed=5)
    old = model.model.embed_tokens.weight[:131].clone()
    model.resize_token_embeddings(140, mean_resizing=False)
    assert torch.equal(model.model.embed_tokens.weight[:131], old)
    assert model.model.embed_tokens.weight[131:].std().item() == pytest.approx(0.02, rel=0.2)
    assert model(tokens()).logits.shape[-1] == 140
