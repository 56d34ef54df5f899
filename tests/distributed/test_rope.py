"""Rotary positions survive half precision: boosters cast every parameter and buffer of a model to it."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.distributed import cases, small_run
from tests.distributed.small_run import Layout, hybrid

pytestmark = pytest.mark.distributed

LAST = 4095
LAYOUTS = [
    Layout("zero2", 2),
    Layout("gemini", 2),
    Layout("fsdp", 2),
    Layout("gemini", 2, tp=2),
    hybrid(2, zero=1),
    hybrid(2, tp=2),
    hybrid(2, pp=2),
    hybrid(2, sp=2),
    hybrid(2, tp=2, sp_mode="split_gather"),
]


@pytest.fixture(scope="module")
def reference() -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of the last position by transformers' own rotary embedding, in fp32."""
    rotary = LlamaRotaryEmbedding(small_run.model_config())
    cos, sin = rotary(torch.zeros(1), torch.tensor([[LAST]]))
    assert cos.dtype == torch.float32
    return cos[0, 0], sin[0, 0]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_attention_gets_the_last_position_in_fp32(pool, layout: Layout, reference):
    """What arrives at the attention of every layer, in a bf16 training step of 4096 tokens."""
    expected = dict(zip(("cos", "sin"), reference))
    results = pool(layout.world_size).run(cases.rope_at, layout=layout, position=LAST)
    assert sum(map(bool, results)) == layout.world_size // layout.slices
    for arrived in results:
        for tensors in arrived:
            for name, tensor in tensors.items():
                assert tensor.dtype == torch.float32
                torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


def test_rounded_frequencies_would_be_noticed(reference):
    """What a cast of the inverse frequencies to bf16 would do at this position."""
    head_dim = len(reference[0])
    frequencies = 1.0 / 10_000.0 ** (torch.arange(0, head_dim, 2).float() / head_dim)
    rounded = (LAST * frequencies.bfloat16().float()).repeat(2)
    assert (rounded.cos() - reference[0]).abs().max() > 0.1
