"""What each attention function has to be told: how far back a token sees, and which document it is in.

The model and a pipeline's stages both ask for it. A saved model carries it along.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask


def causal_mask(config: PreTrainedConfig, **of_what: Any) -> Any:
    """A mask by which a token sees itself and what comes before it, no further back than `config.sliding_window`
    tokens, itself among them, where that is not None; None where the attention function needs none.

    Args:
        of_what: transformers' `create_causal_mask`'s.
    """
    make = create_causal_mask if config.sliding_window is None else create_sliding_window_causal_mask
    return make(config=config, **of_what)


def attention_within_documents(config: PreTrainedConfig, document_ids: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of a decoder layer by which a token sees itself and what comes before it in its document.

    Args:
        config: names the attention function, and the window.
        document_ids: (batch, sequence), one number for all tokens of a document, which are neighbours; of whole
            sequences, also where a layer sees a slice of them and attention all.
        dtype: of the hidden states.

    Returns:
        `attention_mask` (None where each row is one document and the function needs none for causal attention), and for
        flash-attn where documents begin in the batch as one row: transformers would look for that in positions, which
        need not start anew, and only in batches of one row.
    """
    batch, length = document_ids.shape
    if "flash" in config._attn_implementation:
        return {"attention_mask": None, **_cumulative_lengths(document_ids)}
    places = torch.arange(length, device=document_ids.device)
    mask = causal_mask(
        config,
        inputs_embeds=torch.empty((batch, length, 0), dtype=dtype, device=document_ids.device),  # for its shape alone
        attention_mask=None,
        past_key_values=None,
        position_ids=places + document_ids,  # a step of 1 within a document, of any other size into the next
    )
    return {"attention_mask": mask}


def _cumulative_lengths(document_ids: Tensor) -> dict[str, Any]:
    """transformers' FlashAttentionKwargs; none where each row is one document."""
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    starts = begins.flatten().nonzero().flatten()
    if len(starts) == len(document_ids):
        return {}
    ends = torch.cat((starts, starts.new_tensor([document_ids.numel()]))).to(torch.int32)
    longest = int(ends.diff().max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
