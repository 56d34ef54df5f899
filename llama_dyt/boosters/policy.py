"""One Shardformer policy for the HuggingFace decoder shape, driven by `models/families.py`.

Transformers 5 decoders infer head counts from the projections' width, so tensor parallelism only replaces linears, the
embedding, the head and the loss; the pipeline only replaces the top-level forward. What must hold under every booster
(fp32 loss, fp32 RoPE, DyT itself) lives in the model classes, because the engine runs policies only where it shards.
"""

from __future__ import annotations

from typing import Any

import torch
from colossalai.accelerator import get_accelerator
from colossalai.shardformer.layer import Linear1D_Col, Linear1D_Row, VocabParallelEmbedding1D, VocabParallelLMHead1D
from colossalai.shardformer.layer.loss import cross_entropy_1d
from colossalai.shardformer.policies.base_policy import ModulePolicyDescription, Policy, SubModuleReplacementDescription
from torch import nn

from llama_dyt.models.families import Family
from llama_dyt.models.loss import IGNORE_INDEX, shift_labels
from llama_dyt.models.partition import VOCABULARY_MULTIPLE, padded_vocabulary

from .materialize import materialize
from .pipeline import stage_forward


class VocabParallelScaledEmbedding(VocabParallelEmbedding1D):
    """Vocabulary-parallel embedding that keeps the learnable scale.

    Upstream `VocabParallelEmbedding1D.from_native_module` keeps `weight` alone and would drop the scale without a word.
    The scale is replicated: it multiplies the already summed embedding, so every rank computes its whole gradient.
    """

    @staticmethod
    def from_native_module(module: nn.Embedding, process_group: Any, *args: Any, **kwargs: Any) -> nn.Module:
        parallel = VocabParallelEmbedding1D.from_native_module(module, process_group, *args, **kwargs)
        if getattr(module, "scale", None) is not None:
            parallel.__class__ = VocabParallelScaledEmbedding
            parallel.scale = module.scale
        return parallel

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids) * self.scale


class DecoderPolicy(Policy):
    """Sharding of one family of decoders, from its row in the table of families."""

    def __init__(self, family: Family, dtype: torch.dtype, device: torch.device | None = None) -> None:
        """`dtype`, `device`: of the memory that a model from the meta device is given once it has been cut; None: the
        accelerator's."""
        super().__init__()
        self.family = family
        self.dtype = dtype
        self.device = device

    def config_sanity_check(self) -> None:
        """Nothing left to check here: `config/check.py` refused impossible layouts before any process group existed."""

    def preprocess(self) -> nn.Module:
        return self.model

    def postprocess(self) -> nn.Module:
        device = self.device or get_accelerator().get_current_device()
        materialize(self.model, device, self.dtype)
        return self.model

    def module_policy(self) -> dict[type[nn.Module], ModulePolicyDescription]:
        policy: dict[type[nn.Module], ModulePolicyDescription] = {}
        decoder, model_class = self._decoder(), type(self.model)
        if self.shard_config.enable_tensor_parallelism:
            linears = [(name, Linear1D_Col) for name in self.family.column_parallel]
            linears += [(name, Linear1D_Row) for name in self.family.row_parallel]
            vocabulary = {"make_vocab_size_divisible_by": VOCABULARY_MULTIPLE}
            policy[type(self._layers()[0])] = ModulePolicyDescription(
                sub_module_replacement=[SubModuleReplacementDescription(name, kind) for name, kind in linears]
            )
            policy[type(decoder)] = ModulePolicyDescription(
                sub_module_replacement=[
                    SubModuleReplacementDescription(self.family.embedding, VocabParallelScaledEmbedding, vocabulary)
                ]
            )
            policy[model_class] = ModulePolicyDescription(
                attribute_replacement={"loss_function": self._vocabulary_parallel_loss()},
                sub_module_replacement=[
                    SubModuleReplacementDescription(self.family.head, VocabParallelLMHead1D, vocabulary)
                ],
            )
        if self.pipeline_stage_manager is not None:
            family, manager = self.family, self.pipeline_stage_manager
            layers = manager.distribute_layers(len(self._layers()))
            manager.stage_indices = manager.get_stage_index(layers)  # the schedules read it from there

            def forward(model: nn.Module, **inputs: Any) -> dict[str, torch.Tensor]:
                return stage_forward(model, family, manager, **inputs)

            description = policy.setdefault(model_class, ModulePolicyDescription())
            description.method_replacement = {"forward": forward}
        return policy

    def _vocabulary_parallel_loss(self):
        """The model's loss over logits of which this rank holds a slice of the vocabulary; fp32 throughout."""
        group = self.shard_config.tensor_parallel_process_group
        vocabulary = padded_vocabulary(self.model.config.vocab_size, self.shard_config.tensor_parallel_size)

        def loss(logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: float | None = None):
            targets = shift_labels(labels).contiguous()
            total = cross_entropy_1d(
                logits.float(), targets, process_group=group, vocab_size=vocabulary, dtype=torch.float32, mode="sum"
            )
            if num_items_in_batch is None:
                num_items_in_batch = (targets != IGNORE_INDEX).sum().clamp(min=1)
            return total / num_items_in_batch  # > 0: the trainer counts at least one

        return loss

    def _decoder(self) -> nn.Module:
        return getattr(self.model, self.family.decoder)

    def _layers(self) -> nn.ModuleList:
        return getattr(self._decoder(), self.family.layers)

    def get_held_layers(self) -> list[nn.Module]:
        manager, decoder, layers = self.pipeline_stage_manager, self._decoder(), self._layers()
        start, end = manager.get_stage_index(manager.distribute_layers(len(layers)))
        held = list(layers[start:end])
        if manager.is_first_stage():
            held.append(getattr(decoder, self.family.embedding))
        if manager.is_last_stage():
            held += [getattr(decoder, self.family.final_norm), getattr(self.model, self.family.head)]
        return held
