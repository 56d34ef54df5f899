"""The model under what a trainer does to it: checkpointing, compiling, meta device, half precision, tying."""

import pytest
import torch
from model_cases import tiny_config, tiny_model, tokens
from transformers.masking_utils import create_causal_mask as hf_create_causal_mask

from llama_dyt.models import LlamaDytForCausalLM, ScaledEmbedding, build_model, empty_model, family_of, norm_sites
from llama_dyt.norms import DynamicTanh


def gradients(model, ids):
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_embedding_output_is_scaled_and_logits_are_not():
    model = tiny_model()
    ids = tokens()
    embedding = model.model.embed_tokens
    assert isinstance(embedding, ScaledEmbedding) and embedding.scale.shape == (1,)
    assert torch.equal(embedding(ids), embedding.weight[ids] * embedding.scale)
    before = model(ids)
    hidden = model.model(ids).last_hidden_state
    torch.testing.assert_close(before.logits, hidden @ model.lm_head.weight.T, rtol=0, atol=1e-5)


def test_every_norm_is_a_site_and_gets_its_own_alpha():
    config = tiny_config(attn_alpha_init_value=0.6, ffn_alpha_init_value=0.4, dec_alpha_init_value=0.2)
    sites = dict(norm_sites(build_model(config, seed=0)))
    assert {name: round(site.alpha.item(), 3) for name, site in sites.items()} == {
        "model.layers.0.input_layernorm": 0.6,
        "model.layers.0.post_attention_layernorm": 0.4,
        "model.layers.1.input_layernorm": 0.6,
        "model.layers.1.post_attention_layernorm": 0.4,
        "model.norm": 0.2,
    }
    assert not list(norm_sites(tiny_model("rmsnorm")))


def test_every_parameter_learns():
    grads = gradients(tiny_model().train(), tokens())
    assert not [name for name, grad in grads.items() if grad.abs().sum() == 0]


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(reentrant):
    model = tiny_model().train()
    ids = tokens()
    plain = gradients(model, ids)
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for name, grad in gradients(model, ids).items():
        assert torch.equal(grad, plain[name]), name
    assert len(calls) == 2, "the layer ran once more in the backward pass"
    model.gradient_checkpointing_disable()
    gradients(model, ids)
    assert len(calls) == 3


def test_compiled_model_equals_eager_without_a_graph_break():
    model = tiny_model(num_hidden_layers=1).train()
    ids = tokens()
    expected = gradients(model, ids)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    model.zero_grad()
    compiled(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_rotary_that_depends_on_the_length_compiles_without_a_graph_break():
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    rotary = tiny_model(rope_parameters=rope, max_position_embeddings=16).model.rotary_emb
    positions = torch.arange(24)[None]
    cos, sin = torch.compile(rotary, backend="eager", fullgraph=True)(torch.empty(1), positions)
    torch.testing.assert_close((cos, sin), rotary(torch.empty(1), positions), rtol=0, atol=1e-6)


def test_no_mask_is_made_where_there_is_no_padding(monkeypatch):
    """Also while tracing, where transformers cannot look at positions and would make one to be safe."""
    masks = []

    def spy(*args, **kwargs):
        masks.append(hf_create_causal_mask(*args, **kwargs))
        return masks[-1]

    monkeypatch.setattr("llama_dyt.models.ops.document_attention.create_causal_mask", spy)
    model, ids = tiny_model(), tokens()
    model(ids)
    model(ids, attention_mask=torch.ones_like(ids))
    assert masks == [None, None]
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    model(ids, attention_mask=mask)
    assert masks[-1] is not None


def test_future_tokens_do_not_reach_the_past():
    model, ids = tiny_model(), tokens()
    changed = ids.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 131
    a, b = model(ids).logits, model(changed).logits
    torch.testing.assert_close(a[:, :12], b[:, :12], rtol=0, atol=1e-6)
    assert not torch.allclose(a[:, 12:], b[:, 12:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_fp32(dtype):
    model, ids = tiny_model(), tokens()
    exact = model(ids).logits
    half = model.to(dtype)(ids).logits
    assert half.dtype == dtype and (half.float() - exact).norm() / exact.norm() < 0.05


def test_meta_model_materialised_by_hand_works():
    """A booster's way: shapes on meta, memory later, weights filled from outside."""
    source = tiny_model()
    model = empty_model(source.config)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    model = model.to_empty(device="cpu").eval()
    model.load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(model(tokens()).logits, source(tokens()).logits)


def test_a_tied_head_shares_the_weight_and_not_the_scale():
    model = tiny_model(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(list(model.parameters())) == len(list(tiny_model().parameters())) - 1
    hidden = model.model(tokens()).last_hidden_state
    torch.testing.assert_close(model(tokens()).logits, hidden @ model.model.embed_tokens.weight.T, rtol=0, atol=1e-5)


def test_an_end_of_text_token_used_as_padding_still_learns():
    model = LlamaDytForCausalLM(tiny_config(pad_token_id=2, eos_token_id=2))
    ids = tokens()
    ids[:, 5] = 2
    assert model.model.embed_tokens.weight[2].abs().sum() > 0
    assert gradients(model, ids)["model.embed_tokens.weight"][2].abs().sum() > 0


def test_family_table_names_every_part_of_the_model():
    model = empty_model(tiny_config())
    family = family_of(model.config)
    decoder = model.get_submodule(family.decoder)
    layer = decoder.get_submodule(family.layers)[0]
    linears = {name for name, part in layer.named_modules() if isinstance(part, torch.nn.Linear)}
    assert linears == {*family.column_parallel, *family.row_parallel}
    norms = {name for name, part in layer.named_modules() if isinstance(part, DynamicTanh)}
    assert norms == set(family.layer_norms)
    assert isinstance(decoder.get_submodule(family.final_norm), DynamicTanh)
    parts = {family.embedding, family.layers, family.final_norm, family.rotary}
    assert {name for name, _ in decoder.named_children()} == parts
    assert {name for name, _ in model.named_children()} == {family.decoder, family.head}
    assert layer.get_submodule(family.attention).q_proj.weight.shape == (64, 64)
