"""What a policy must know of a decoder's shape, as a table.

Its own file because it is data: one row a family, read by the tensor- and pipeline-parallel policy, which names no
module itself. Names are relative to what holds them; the model classes keep to these.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Where a family's parts are.

    Attributes:
        decoder: the decoder stack in the causal LM.
        embedding, layers, final_norm, rotary: in the decoder.
        head: in the causal LM; its rows are vocabulary entries, as the embedding's are.
        attention: the attention module, in a layer.
        column_parallel: projections in a layer split by output rows: each rank makes some heads, or some MLP units.
        row_parallel: projections in a layer split by input columns, whose outputs are summed over the ranks.
        layer_norms: in a layer; replicated over tensor-parallel ranks, as the final norm is.
    """

    decoder: str
    embedding: str
    layers: str
    final_norm: str
    rotary: str
    head: str
    attention: str
    column_parallel: tuple[str, ...]
    row_parallel: tuple[str, ...]
    layer_norms: tuple[str, ...]


LLAMA = Family(
    decoder="model",
    embedding="embed_tokens",
    layers="layers",
    final_norm="norm",
    rotary="rotary_emb",
    head="lm_head",
    attention="self_attn",
    column_parallel=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"),
    row_parallel=("self_attn.o_proj", "mlp.down_proj"),
    layer_norms=("input_layernorm", "post_attention_layernorm"),
)

# HF model_type → family. A plain llama checkpoint has the same shape.
FAMILIES: dict[str, Family] = {"llama_dyt": LLAMA, "llama": LLAMA}
