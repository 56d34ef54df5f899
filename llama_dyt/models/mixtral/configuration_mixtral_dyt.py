"""What a DyT Mixtral is: a DyT LLaMA whose feed-forward blocks are experts, some of which each token is sent to.

A saved model carries it along, so that the folder loads where this package is not installed.
"""

from __future__ import annotations

import math

from huggingface_hub.dataclasses import strict

from llama_dyt.models.llama.configuration_llama_dyt import LlamaDytConfig


@strict
class MixtralDytConfig(LlamaDytConfig):
    """A Mixtral (arXiv 2401.04088) whose norms are chosen by name.

    Args (beside LlamaDytConfig's; what is not given is as in transformers' MixtralConfig):
        num_local_experts: of a layer.
        num_experts_per_tok: how many of them each token is sent to.
        router_aux_loss_coef: coefficient of the loss that has routers choose evenly (`models.ops.routing`). It counts
            in training whatever `output_router_logits` says.
        router_z_loss_coef: coefficient of the mean squared logarithm of the denominator of the routers' softmax.
        router_jitter_noise: in training a token is multiplied by numbers from 1 ± this before router and experts.
        expert_capacity_factor: in training an expert takes no more tokens of a micro batch than this times an even
            share (`models.ops.capacity`); those beyond have nothing of it. None: it takes all, as in evaluation.
        output_router_logits: for transformers' own class; nothing here.
        sliding_window: how many tokens back attention sees, the token itself among them; None: all.

    Raises (beside LlamaDytConfig's):
        StrictDataclassError: more experts a token than there are; a capacity that is not above 0.
    """

    model_type = "mixtral_dyt"
    default_theta = 1_000_000.0
    attribute_map = {"num_experts": "num_local_experts"}

    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 4096 * 32
    rms_norm_eps: float = 1e-5
    num_experts_per_tok: int = 2
    num_local_experts: int = 8
    output_router_logits: bool = False
    router_aux_loss_coef: float | int = 0.001
    router_z_loss_coef: float | int = 0.0
    router_jitter_noise: float | int = 0.0
    expert_capacity_factor: float | int | None = None
    sliding_window: int | None = None

    def __post_init__(self, **kwargs):
        if not 1 <= self.num_experts_per_tok <= self.num_local_experts:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} is not from 1 to the {self.num_local_experts} experts "
                "that a layer has (num_local_experts)"
            )
        if self.expert_capacity_factor is not None and not 0 < self.expert_capacity_factor < math.inf:
            raise ValueError(
                f"expert_capacity_factor {self.expert_capacity_factor} is not above 0; 1 is an even share of the tokens"
            )
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Heads may be of a width of their own, which LLaMA's must divide."""
