"""With RMSNorm the model is transformers' LLaMA: names, logits, loss, gradients, generation."""

import copy

import pytest
import torch
from model_cases import TINY, tiny_config, tiny_model, tokens
from transformers import LlamaConfig, LlamaForCausalLM

from llama_dyt.models import LlamaDytForCausalLM


def hf_twin(model):
    """transformers' own LlamaForCausalLM with the same weights."""
    config = LlamaConfig(
        **TINY,
        rms_norm_eps=model.config.rms_norm_eps,
        rope_parameters=copy.deepcopy(model.config.rope_parameters),
        tie_word_embeddings=model.config.tie_word_embeddings,
    )
    config._attn_implementation = model.config._attn_implementation
    twin = LlamaForCausalLM(config).eval()
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rmsnorm_model_gives_transformers_logits_and_loss(attention):
    ours = tiny_model("rmsnorm", attn_implementation=attention)
    theirs = hf_twin(ours)
    ids = tokens()
    labels = ids.clone()
    labels[:, :5] = -100
    a, b = ours(ids, labels=labels), theirs(ids, labels=labels)
    torch.testing.assert_close(a.logits, b.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(a.loss, b.loss, rtol=0, atol=1e-6)
    a.loss.backward(), b.loss.backward()
    hf_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, hf_gradients[name], rtol=1e-4, atol=1e-6, msg=name)


def test_padding_mask_and_given_positions_do_as_in_transformers():
    ours = tiny_model("rmsnorm")
    theirs = hf_twin(ours)
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    kept = mask.bool()
    left_padded = (mask.cumsum(-1) - 1).clamp(min=0)
    a = ours(ids, attention_mask=mask, position_ids=left_padded).logits
    b = theirs(ids, attention_mask=mask, position_ids=left_padded).logits
    torch.testing.assert_close(a[kept], b[kept], rtol=0, atol=1e-5)
    packed = torch.cat((torch.arange(10), torch.arange(14)))[None].expand(2, -1)
    torch.testing.assert_close(
        ours(ids, position_ids=packed).logits, theirs(ids, position_ids=packed).logits, rtol=0, atol=1e-5
    )


def test_positions_that_start_anew_separate_the_documents_of_a_row():
    model = tiny_model()
    ids = tokens(batch=1)
    packed = torch.cat((torch.arange(10), torch.arange(14)))[None]
    apart = torch.cat((model(ids[:, :10]).logits, model(ids[:, 10:]).logits), dim=1)
    together = model(ids, position_ids=packed, use_cache=False).logits
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)


def test_a_llama_checkpoint_loads_into_the_rmsnorm_model(tmp_path):
    theirs = hf_twin(tiny_model("rmsnorm"))
    theirs.save_pretrained(tmp_path)
    ours, report = LlamaDytForCausalLM.from_pretrained(
        tmp_path, config=tiny_config("rmsnorm"), output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = tokens()
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["dyt", "rmsnorm"])
def test_state_dict_names_are_llamas_and_dyts_additions(norm):
    names = set(tiny_model(norm).state_dict())
    llama = set(LlamaForCausalLM(LlamaConfig(**TINY)).state_dict())
    sites = ["model.norm"] + [
        f"model.layers.{i}.{site}" for i in range(2) for site in ("input_layernorm", "post_attention_layernorm")
    ]
    added = {"model.embed_tokens.scale", *(f"{site}.alpha" for site in sites)} if norm == "dyt" else set()
    assert names == llama | added


@pytest.mark.parametrize("norm", ["dyt", "rmsnorm"])
def test_generation_with_a_cache_equals_generation_without(norm):
    model = tiny_model(norm)
    prompt = tokens(length=6)
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = model.generate(prompt, use_cache=True, **settings)
    plain = model.generate(prompt, use_cache=False, **settings)
    assert cached.shape == (2, 18) and torch.equal(cached, plain)
    assert len(set(cached[0, 6:].tolist())) > 2, "a model that repeats itself proves nothing"


def test_left_padded_generation_equals_each_prompt_alone():
    model = tiny_model()
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    short, long = tokens(batch=1, length=4, seed=1), tokens(batch=1, length=9, seed=2)
    batch = torch.cat((torch.cat((torch.zeros(1, 5, dtype=torch.long), short), dim=1), long))
    mask = torch.ones_like(batch)
    mask[0, :5] = 0
    together = model.generate(batch, attention_mask=mask, **settings)[:, 9:]
    for row, prompt in enumerate((short, long)):
        assert torch.equal(together[row : row + 1], model.generate(prompt, **settings)[:, prompt.shape[1] :])


def test_no_cache_is_made_in_training_or_for_a_loss():
    model = tiny_model()
    ids = tokens()
    assert model(ids).past_key_values is not None
    assert model(ids, labels=ids).past_key_values is None
    assert model.train()(ids).past_key_values is None


def test_hidden_states_and_attentions_can_be_asked_for():
    model = tiny_model(attn_implementation="eager")
    out = model(tokens(), output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 3 and len(out.attentions) == 2
    assert out.attentions[0].shape == (2, 4, 24, 24)
    torch.testing.assert_close(out.attentions[0].sum(-1), torch.ones(2, 4, 24))


def test_logits_can_be_kept_for_the_last_positions_only():
    model = tiny_model()
    ids = tokens()
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, model(ids).logits[:, -3:], rtol=0, atol=1e-5)


def test_heads_are_counted_from_the_projections_width():
    """What tensor parallelism relies on: with half the heads' rows the attention computes half the heads."""
    model = tiny_model()
    attention = model.model.layers[0].self_attn
    x = torch.randn(1, 5, 64)
    angles = model.model.rotary_emb(x, torch.arange(5)[None])
    inputs, outputs = [], []
    attention.o_proj.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    outputs.append(attention(x, angles, None)[0])
    for name, width in (("q_proj", 32), ("k_proj", 16), ("v_proj", 16)):
        projection = getattr(attention, name)
        projection.weight = torch.nn.Parameter(projection.weight[:width].detach().clone())
    attention.o_proj.weight = torch.nn.Parameter(attention.o_proj.weight[:, :32].detach().clone())
    outputs.append(attention(x, angles, None)[0])
    torch.testing.assert_close(inputs[1], inputs[0][..., :32])
    assert outputs[1].shape == outputs[0].shape
