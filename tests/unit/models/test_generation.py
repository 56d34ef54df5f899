"""Every way of transformers' to generate: with RMSNorm plain llama's tokens, with DyT its own whatever the cache."""

import pytest
import torch
from model_cases import TINY, tiny_model, tokens
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

NEW = {"max_new_tokens": 10, "pad_token_id": 0, "eos_token_id": 7}

WAYS = {
    "greedy": {},
    "greedy without a cache": {"use_cache": False},
    "greedy, static cache": {"cache_implementation": "static"},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9},
    "sampling by min_p": {"do_sample": True, "min_p": 0.05, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.8},
    "beams, sampled": {"num_beams": 2, "do_sample": True},
    "processors": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 4, "bad_words_ids": [[5]]},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.fixture(scope="module")
def models():
    ours = {norm: tiny_model(norm) for norm in ("dyt", "rmsnorm")}
    plain = LlamaForCausalLM(LlamaConfig(**TINY, rms_norm_eps=ours["rmsnorm"].config.rms_norm_eps)).eval()
    plain.config.rope_parameters = ours["rmsnorm"].config.rope_parameters
    plain.load_state_dict(ours["rmsnorm"].state_dict())
    return ours | {"plain": plain}


def generate(model, way, batch=2, **more):
    """Tokens of a batch of prompts padded on the left, and the scores of each new token."""
    ids = tokens(batch, 9)
    mask = torch.ones_like(ids)
    mask[1:, :4] = 0
    settings = NEW | WAYS[way] | {"return_dict_in_generate": True, "output_scores": True} | more
    set_seed(3)
    made = model.generate(ids, attention_mask=mask, **settings)
    return made.sequences, torch.stack(made.scores) if made.scores else None


@pytest.mark.parametrize("way", WAYS)
def test_rmsnorm_generates_plain_llamas_tokens(models, way):
    batch = 1 if way == "prompt lookup" else 2
    ours, theirs = (generate(models[name], way, batch) for name in ("rmsnorm", "plain"))
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["greedy, static cache", "greedy without a cache", "prompt lookup"])
def test_dyt_generates_the_same_whatever_the_cache_and_who_guesses(models, way):
    batch = 1 if way == "prompt lookup" else 2
    assert torch.equal(generate(models["dyt"], way, batch)[0], generate(models["dyt"], "greedy", batch)[0])


def test_an_assistant_does_not_change_what_dyt_generates(models):
    alone = generate(models["dyt"], "greedy", 1)[0]
    assert torch.equal(generate(models["dyt"], "greedy", 1, assistant_model=models["rmsnorm"])[0], alone)


def test_embedded_prompts_generate_what_their_ids_do(models):
    ids = tokens(2, 9)
    for name in ("dyt", "rmsnorm"):
        model = models[name]
        embedded = model.generate(inputs_embeds=model.get_input_embeddings()(ids), **NEW)
        assert torch.equal(embedded, model.generate(ids, **NEW)[:, 9:])
