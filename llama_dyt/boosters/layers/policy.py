"""One Shardformer policy for the HuggingFace decoder shape, driven by the family's `models.spec.ModelSpec`.

Transformers 5 decoders infer head counts from the projections' width, so tensor parallelism only replaces linears, the
embedding, the head and the loss; the pipeline only replaces the top-level forward; sequence parallelism puts hooks at
the edges of attention and MLP. What must hold under every booster (fp32 loss, fp32 RoPE, DyT itself) lives in the model
classes, because the engine runs policies only where it shards.
"""

from __future__ import annotations

import llama_dyt.boosters.engine  # noqa: F401

import functools
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from colossalai.accelerator import get_accelerator
from colossalai.shardformer.layer import (
    Linear1D_Col,
    Linear1D_Row,
    VocabParallelEmbedding1D,
    VocabParallelLMHead1D,
)
from colossalai.shardformer.policies.base_policy import ModulePolicyDescription, Policy, SubModuleReplacementDescription
from torch import nn

from llama_dyt.boosters.layers.adapted import (
    ColumnLora,
    HeadLora,
    RowLora,
    SlicedRowLora,
    VocabularyLora,
    WholeInputColumnLora,
    WholeInputHeadLora,
    keeping_adapter,
)
from llama_dyt.boosters.layers.cut_experts import cut_experts
from llama_dyt.boosters.layers.parallel_linear import (
    FrozenColumnLinear,
    FrozenHead,
    OwnRowLinear,
    WholeInputColumnLinear,
    WholeInputHead,
    gather_input,
    input_of_all,
    sum_input_gradient,
    whole_input,
)
from llama_dyt.boosters.layers.pipeline_stage import stage_forward
from llama_dyt.boosters.layers.sequence_parallel import cut_input, spread_attention, sum_gradients_of_slices
from llama_dyt.boosters.layers.zero_bubble import DeferredGradientLinear
from llama_dyt.boosters.materialize import materialize
from llama_dyt.models.llama.modeling_llama_dyt import scaled
from llama_dyt.models.ops.loss import CausalLmLoss, VocabularyPart
from llama_dyt.models.partition import VOCABULARY_MULTIPLE, padded_vocabulary
from llama_dyt.models.spec import ModelSpec


class VocabParallelScaledEmbedding(VocabParallelEmbedding1D):
    """Vocabulary-parallel embedding that keeps the scale, learnable or constant.

    Upstream `VocabParallelEmbedding1D.from_native_module` keeps `weight` alone and would drop the scale without a word.
    A learnable scale is replicated: it multiplies the already summed embedding, so every rank computes its whole
    gradient.
    """

    @staticmethod
    def from_native_module(module: nn.Embedding, process_group: Any, *args: Any, **kwargs: Any) -> nn.Module:
        parallel = VocabParallelEmbedding1D.from_native_module(module, process_group, *args, **kwargs)
        if getattr(module, "scale", None) is not None:
            parallel.__class__ = VocabParallelScaledEmbedding
            parallel.scale = module.scale
        return parallel

    @property
    def embed_scale(self) -> torch.Tensor:
        """What rows are multiplied by, as the model's own embedding has it."""
        return self.scale

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return scaled(super().forward(input_ids), self.scale)


class DecoderPolicy(Policy):
    """Sharding of one family of decoders, as its spec says."""

    def __init__(self, family: ModelSpec, dtype: torch.dtype, device: torch.device | None = None) -> None:
        """`dtype`, `device`: of the memory that a model from the meta device is given once it has been cut; None: the
        accelerator's."""
        super().__init__()
        self.family = family
        self.dtype = dtype
        self.device = device

    def config_sanity_check(self) -> None:
        """Nothing left to check here: `config/check.py` refused impossible layouts before any process group existed."""

    def preprocess(self) -> nn.Module:
        if self.family.experts is not None and self.shard_config.enable_tensor_parallelism:
            group = self.shard_config.tensor_parallel_process_group
            for layer in self._layers():
                cut_experts(layer.get_submodule(self.family.experts), group, sliced=self._mode == "split_gather")
        return self.model

    def postprocess(self) -> nn.Module:
        device = self.device or get_accelerator().get_current_device()
        materialize(self.model, device, self.dtype)
        if self._blocks_see_to_inputs:
            self._see_to_inputs()
        if self._mode == "split_gather":
            self._cut_between_linears()
        elif self._mode == "all_to_all":
            self._spread_attention()
        return self.model

    def module_policy(self) -> dict[type[nn.Module], ModulePolicyDescription]:
        layer, decoder, model = (ModulePolicyDescription(sub_module_replacement=[]) for _ in range(3))
        if self.shard_config.enable_tensor_parallelism:
            self._cut_weights(layer, decoder, model, use_zbv=self._zero_bubble)
        elif self._zero_bubble:
            # Linear layers that leave their weights' gradients for the schedule's bubbles.
            names = (*self.family.column_parallel, *self.family.row_parallel)
            layer.sub_module_replacement += [_replacement(name, DeferredGradientLinear) for name in names]
            model.sub_module_replacement += [_replacement(self.family.head, DeferredGradientLinear)]
        if self.shard_config.enable_tensor_parallelism or self._mode == "all_to_all" or self._zero_bubble:
            model.attribute_replacement = {"loss_function": self._loss()}
        if self.pipeline_stage_manager is not None:
            model.method_replacement = {"forward": self._stage_forward()}
        return {type(self._layers()[0]): layer, type(self._decoder()): decoder, type(self.model): model}

    # --- tensor parallelism ----------------------------------------------------------------------------------------

    def _cut_weights(
        self,
        layer: ModulePolicyDescription,
        decoder: ModulePolicyDescription,
        model: ModulePolicyDescription,
        use_zbv: bool,
    ) -> None:
        family, mode = self.family, self._mode if self._mode == "split_gather" else None
        frozen = not all(parameter.requires_grad for parameter in self.model.parameters())
        column, head = (FrozenColumnLinear, FrozenHead) if frozen else (Linear1D_Col, VocabParallelLMHead1D)
        row = OwnRowLinear if use_zbv or frozen else Linear1D_Row
        if self._blocks_see_to_inputs:
            column = keeping_adapter(WholeInputColumnLinear, WholeInputColumnLora)
            head = keeping_adapter(WholeInputHead, WholeInputHeadLora)
        else:
            column, head = keeping_adapter(column, ColumnLora), keeping_adapter(head, HeadLora)
        row = keeping_adapter(row, SlicedRowLora if mode else RowLora)
        embedding = keeping_adapter(VocabParallelScaledEmbedding, VocabularyLora)
        layer.sub_module_replacement += [
            *(_replacement(name, column, use_zbv=use_zbv) for name in family.column_parallel),
            *(_replacement(name, row, use_zbv=use_zbv, seq_parallel_mode=mode) for name in family.row_parallel),
        ]
        vocabulary = {"make_vocab_size_divisible_by": VOCABULARY_MULTIPLE}
        decoder.sub_module_replacement += [_replacement(family.embedding, embedding, **vocabulary)]
        model.sub_module_replacement += [_replacement(family.head, head, use_zbv=use_zbv, **vocabulary)]

    @property
    def _zero_bubble(self) -> bool:
        return self.pipeline_stage_manager is not None and self.pipeline_stage_manager.use_zbv

    @property
    def _blocks_see_to_inputs(self) -> bool:
        """Whether attention, MLP and head prepare what their column-parallel layers share, see `parallel_linear.py`."""
        return self.shard_config.enable_tensor_parallelism and (self._mode == "split_gather" or self._zero_bubble)

    def _see_to_inputs(self) -> None:
        group = self.shard_config.tensor_parallel_process_group
        prepare = gather_input if self._mode == "split_gather" else sum_input_gradient
        for layer in self._held_layers():
            for block in {name.partition(".")[0] for name in self.family.column_parallel}:
                prepare(getattr(layer, block), group)
        if self._holds_last:
            prepare(getattr(self.model, self.family.head), group)

    def _loss(self) -> CausalLmLoss:
        """The model's loss over what this rank has of the vocabulary and of the positions.

        Tensor parallelism leaves it a part of the vocabulary; all_to_all a slice of the positions, with labels that
        were shifted before they were cut. Under zbv the head leaves its weight's gradient for later, so it makes
        logits there.
        """
        config, group = self.shard_config, self.shard_config.tensor_parallel_process_group
        part, prepare = None, None
        if config.enable_tensor_parallelism:
            vocabulary = self.model.config.vocab_size
            rows = padded_vocabulary(vocabulary, config.tensor_parallel_size) // config.tensor_parallel_size
            first = rows * dist.get_rank(group)
            part = VocabularyPart(group, first, rows=max(0, min(rows, vocabulary - first)))
            whole = whole_input if self._mode == "split_gather" else input_of_all
            prepare = functools.partial(whole, group=group)
        return replace(
            self.model.loss_function,
            shifted=self._mode == "all_to_all",
            part=part,
            prepare=prepare,
            fused=self.model.loss_function.fused and not self._zero_bubble,
        )

    # --- sequence parallelism --------------------------------------------------------------------------------------

    @property
    def _mode(self) -> str | None:
        """The mode of sequence parallelism; None without."""
        return self.shard_config.sequence_parallelism_mode if self.shard_config.enable_sequence_parallelism else None

    def _cut_between_linears(self) -> None:
        """split_gather: hidden states are whole inside attention, MLP, embedding and head, and slices in between."""
        family, group = self.family, self.shard_config.tensor_parallel_process_group
        if self._holds_first:
            cut_input(self._layers()[0], group)
        for layer in self._held_layers():
            for norm in family.layer_norms:
                sum_gradients_of_slices(getattr(layer, norm))
            for name in family.row_parallel:  # its bias is added to a slice
                bias = layer.get_submodule(name).bias
                if bias is not None:
                    sum_gradients_of_slices(nn.ParameterList([bias]))
        if self._holds_last:
            sum_gradients_of_slices(getattr(self._decoder(), family.final_norm))

    def _spread_attention(self) -> None:
        """all_to_all: slices everywhere, but for attention, which sees whole sequences of some heads."""
        config, tp_size = self.model.config, self.shard_config.tensor_parallel_size
        for layer in self._held_layers():
            spread_attention(
                getattr(layer, self.family.attention),
                self.shard_config.sequence_parallel_process_group,
                query_heads=config.num_attention_heads // tp_size,
                key_heads=config.num_key_value_heads // tp_size,
            )

    # --- pipeline --------------------------------------------------------------------------------------------------

    def _stage_forward(self):
        family, manager = self.family, self.pipeline_stage_manager
        manager.stage_indices = self._stage_indices()  # the schedules read it from there

        def forward(model: nn.Module, **inputs: Any) -> dict[str, torch.Tensor]:
            return stage_forward(model, family, manager, **inputs)

        return forward

    def _stage_indices(self) -> Any:
        """(first, last + 1) of the layers this stage holds, or a list of them where it holds several chunks."""
        manager = self.pipeline_stage_manager
        return manager.get_stage_index(manager.distribute_layers(len(self._layers())))

    @property
    def _holds_first(self) -> bool:
        """Whether this rank holds the embedding and the first layer."""
        manager = self.pipeline_stage_manager
        return manager is None or manager.is_first_stage(ignore_chunk=True)

    @property
    def _holds_last(self) -> bool:
        """Whether this rank holds the final norm and the head: the last stage, or the first at both ends of a V."""
        manager = self.pipeline_stage_manager
        if manager is None:
            return True
        return (
            manager.is_first_stage(ignore_chunk=True) if manager.use_zbv else manager.is_last_stage(ignore_chunk=True)
        )

    def _held_layers(self) -> list[nn.Module]:
        layers = list(self._layers())
        if self.pipeline_stage_manager is None:
            return layers
        indices = self._stage_indices()
        chunks = indices if self.pipeline_stage_manager.is_interleave else [indices]
        return [layer for start, end in chunks for layer in layers[start:end]]

    def get_held_layers(self) -> list[nn.Module]:
        held = self._held_layers()
        if self._holds_first:
            held.append(getattr(self._decoder(), self.family.embedding))
        if self._holds_last:
            held += [getattr(self._decoder(), self.family.final_norm), getattr(self.model, self.family.head)]
        return held

    def get_shared_params(self) -> list[dict[int, torch.Tensor]]:
        """A head tied to the embedding is on two stages: the engine sums its gradients over them."""
        embedding = getattr(self._decoder(), self.family.embedding).weight
        head = getattr(self.model, self.family.head).weight
        manager = self.pipeline_stage_manager
        if manager is None or manager.use_zbv or embedding is not head or not embedding.requires_grad:
            return []
        return [{0: embedding, manager.num_stages - 1: head}]

    def _decoder(self) -> nn.Module:
        return self.family.decoder_of(self.model)

    def _layers(self) -> nn.ModuleList:
        return self.family.layers_of(self.model)


def _replacement(name: str, kind: type[nn.Module], **options: Any) -> SubModuleReplacementDescription:
    return SubModuleReplacementDescription(name, kind, options)
