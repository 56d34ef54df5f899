"""What a pipeline stage computes: the layers it holds, between the hidden states it receives and those it sends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from llama_dyt.models.ops.document_attention import attention_within_documents, causal_mask
from llama_dyt.models.spec import ModelSpec


def stage_forward(
    model: nn.Module,
    family: ModelSpec,
    stage_manager: Any,
    input_ids: torch.Tensor,
    hidden_states: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
    stage_index: Sequence[int] | None = None,
    **_: Any,
) -> dict[str, torch.Tensor]:
    """Forward of one stage of a causal decoder.

    Args:
        model: the causal language model, of which only this stage's layers hold tensors.
        family: where its parts are.
        stage_manager: the engine's PipelineStageManager, with `stage_indices` set by the policy.
        input_ids: (B, S) int64; every stage gets the micro batch, only the first embeds it.
        hidden_states: (B, S, H), what the previous stage sent; None on the first stage. Under split_gather it is a
            slice of S, between stages too.
        position_ids: (B, S); None counts from 0.
        document_ids: (B, S) of whole sequences, as the model takes them; None is plain causal attention.
        stage_index: first and last + 1 of the layers to run, for the chunk whose turn it is; None where a stage has but
            one chunk. The stage manager then also tells of that chunk whether it is the first or the last.

    Returns:
        {"hidden_states": as above} to send on. On the last stage {"hidden_states": what goes into the head}, of which
        `micro_batch_loss` makes the loss, or {"logits": (B, S, vocabulary or this rank's part)} where the loss needs
        them.

    No attention mask crosses the stages: batches are packed or padded on the right, where causal attention needs none,
    and where documents are kept apart each stage makes its own.
    """
    decoder = family.decoder_of(model)
    if stage_manager.is_first_stage():
        hidden_states = getattr(decoder, family.embedding)(input_ids)
    if position_ids is None:
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
    position_embeddings = getattr(decoder, family.rotary)(hidden_states, position_ids)
    if document_ids is not None:
        attention = attention_within_documents(model.config, document_ids, hidden_states.dtype)
    else:
        shape = hidden_states.new_empty((*input_ids.shape, 0))  # hidden states may be a slice of the sequences
        mask = causal_mask(model.config, inputs_embeds=shape, attention_mask=None, past_key_values=None)
        attention = {"attention_mask": mask, "position_ids": position_ids}
    start, end = stage_index if stage_index is not None else stage_manager.stage_indices
    with decoder.through_layers(None, first_layer=start) as beside:
        for layer in family.layers_of(model)[start:end]:
            hidden_states = layer(hidden_states, position_embeddings=position_embeddings, **attention, **beside)
    if not stage_manager.is_last_stage():
        return {"hidden_states": hidden_states}
    hidden_states = getattr(decoder, family.final_norm)(hidden_states)
    head = getattr(model, family.head)
    if model.loss_function.takes(head):
        return {"hidden_states": hidden_states}
    return {"logits": head(hidden_states)}


def micro_batch_loss(model: nn.Module, family: ModelSpec, num_items_in_batch: float):
    """The criterion of the engine's schedule: (outputs, micro batch) → fp32 loss of one micro batch.

    The schedule divides each micro batch's loss by their number, so `num_items_in_batch` must be the label tokens of
    the global batch divided by (data-parallel size × number of micro batches).
    """

    def criterion(outputs: dict[str, torch.Tensor], micro_batch: dict[str, torch.Tensor]) -> torch.Tensor:
        labels = micro_batch["labels"]
        if "logits" in outputs:
            return model.loss_function(outputs["logits"], labels, num_items_in_batch)
        head = getattr(model, family.head)
        return model.loss_function.of_hidden_states(head, outputs["hidden_states"], labels, num_items_in_batch)

    return criterion
