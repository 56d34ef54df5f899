"""Rotary positions: fp32 whatever is done to the model, and transformers' numbers for every scaling type."""

import copy

import pytest
import torch
from model_cases import tiny_config, tiny_model, tokens
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from llama_dyt.models import LlamaDytForCausalLM, RotaryEmbedding, build_config
from llama_dyt.models.ops.rope import rotate

SCALINGS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 2048,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0] * 64,
        "long_factor": [float(i + 1) for i in range(64)],
        "original_max_position_embeddings": 1024,
    },
}


def cast_every_buffer(model, dtype):
    """What Colossal-AI's plugins do to a model before training."""
    for buffer in model.buffers():
        buffer.data = buffer.data.to(dtype)


def reference(theta, head_dim, positions):
    """cos and sin from the definition, in double precision."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = positions.double()[:, None] * frequencies.float().double()
    return torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_stay_exact_after_casting_module_and_buffers(dtype):
    config = tiny_config(hidden_size=512, max_position_embeddings=4096)
    model = LlamaDytForCausalLM(config)
    assert not list(model.model.rotary_emb.buffers()) and not list(model.model.rotary_emb.parameters())
    positions = torch.tensor([[0, 1, 2047, 4095]])
    before = model.model.rotary_emb(torch.empty(1), positions)
    model.to(dtype)
    cast_every_buffer(model, dtype)
    after = model.model.rotary_emb(torch.empty(1, dtype=dtype), positions)
    for old, new, exact in zip(before, after, reference(10_000.0, 128, positions[0]), strict=True):
        assert new.dtype == torch.float32 and torch.equal(old, new)
        # 4095 in fp32 is exact and so is the frequency; their product is rounded to half of 2**-12.
        torch.testing.assert_close(new[0].double(), exact, rtol=0, atol=2.5e-4)
    hf = LlamaRotaryEmbedding(LlamaConfig(hidden_size=512, num_attention_heads=4, max_position_embeddings=4096))
    for new, fp32 in zip(after, hf(torch.empty(1), positions), strict=True):
        torch.testing.assert_close(new, fp32, rtol=0, atol=1e-6)


def test_the_cast_would_ruin_transformers_own_positions():
    """Why the frequencies are not a buffer: the error the test above guards against is not a small one."""
    hf = LlamaRotaryEmbedding(LlamaConfig(hidden_size=512, num_attention_heads=4))
    positions = torch.tensor([[4095]])
    exact = hf(torch.empty(1), positions)[0]
    cast_every_buffer(hf, torch.bfloat16)
    assert (hf(torch.empty(1), positions)[0] - exact).abs().max() > 0.5


def test_queries_and_keys_are_turned_in_fp32_and_rounded_once():
    rotary = RotaryEmbedding(tiny_config(hidden_size=512))
    cos, sin = rotary(torch.empty(1), torch.arange(4000, 4096)[None])
    q = torch.randn(1, 4, 96, 128).bfloat16()
    exact, _ = apply_rotary_pos_emb(q.float(), q.float(), cos, sin)
    assert torch.equal(rotate(q, cos, sin), exact.bfloat16())


def test_positions_cast_on_the_way_are_refused():
    rotary = RotaryEmbedding(tiny_config())
    cos, sin = rotary(torch.empty(1), torch.arange(4)[None])
    with pytest.raises(TypeError, match="cast_forward_inputs"):
        rotate(torch.randn(1, 4, 4, 16), cos.bfloat16(), sin.bfloat16())


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("on_meta", [False, True])
def test_every_scaling_type_gives_transformers_numbers(scaling, on_meta):
    rope = SCALINGS[scaling] | {"rope_theta": 10_000.0}
    config = build_config("7b", rope_parameters=copy.deepcopy(rope), max_position_embeddings=2048)
    theirs = LlamaRotaryEmbedding(LlamaConfig(max_position_embeddings=2048, rope_parameters=copy.deepcopy(rope)))
    with torch.device("meta" if on_meta else "cpu"):
        ours = RotaryEmbedding(config)
    # Rising lengths: within the pretrained one, then beyond it.
    for length in (512, 2048, 4096):
        positions = torch.arange(length - 5, length)[None]
        for a, b in zip(ours(torch.empty(1), positions), theirs(torch.empty(1), positions), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scaling", ["dynamic", "longrope"])
def test_positions_do_not_depend_on_what_was_seen_before(scaling):
    rope = SCALINGS[scaling] | {"rope_theta": 10_000.0}
    rotary = RotaryEmbedding(build_config("7b", rope_parameters=rope, max_position_embeddings=2048))
    short, long = torch.arange(100)[None], torch.arange(5000)[None]
    first = rotary(torch.empty(1), short)
    rotary(torch.empty(1), long)
    assert torch.equal(rotary(torch.empty(1), short)[0], first[0])


def test_autocast_does_not_touch_the_positions():
    rotary = RotaryEmbedding(tiny_config())
    positions = torch.tensor([[4095]])
    plain = rotary(torch.empty(1), positions)
    with torch.autocast("cpu", torch.bfloat16):
        inside = rotary(torch.empty(1), positions)
    assert torch.equal(plain[0], inside[0]) and torch.equal(plain[1], inside[1])


def test_frequencies_survive_copying_and_are_not_saved():
    model = tiny_model()
    assert not [name for name in model.state_dict() if "rotary" in name]
    ids = tokens()
    assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)


def test_long_positions_matter_to_the_bf16_model():
    """The whole model in bf16 stays near fp32 at the end of a long row, because its positions are exact."""
    model = tiny_model(max_position_embeddings=4096)
    ids = tokens(batch=1, length=1024)
    exact = model(ids).logits[:, -32:]
    model.bfloat16()
    cast_every_buffer(model, torch.bfloat16)
    difference = (model(ids).logits[:, -32:].float() - exact).norm() / exact.norm()
    assert difference < 0.05
