"""A model family in one file of a user's own: LLaMA with a feed-forward block of two matrices and GELU.

What the block adds to the residual stream starts smaller the deeper the model is, as in GPT-2, and a loss of each layer
keeps the stream itself small.
"""

from dataclasses import dataclass

from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F

from llama_dyt.config.options import option
from llama_dyt.models.llama.configuration_llama_dyt import LlamaDytConfig
from llama_dyt.models.llama.modeling_llama_dyt import LlamaDytDecoderLayer, LlamaDytForCausalLM, LlamaDytModel
from llama_dyt.models.ops.auxiliary_loss import with_loss
from llama_dyt.models.size import Size
from llama_dyt.models.spec import FAMILIES, ModelSpec


@strict
class TwoMatrixConfig(LlamaDytConfig):
    model_type = "two_matrix"

    stream_loss: float = 5.0

    def starting_std(self, name):
        std = super().starting_std(name)
        return std / (2 * self.num_hidden_layers) ** 0.5 if name.endswith("mlp.down_proj.weight") else std


class TwoMatrixMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x)))


class TwoMatrixDecoderLayer(LlamaDytDecoderLayer):
    mlp_class = TwoMatrixMLP

    def forward(self, hidden_states, *args, **kwargs):
        hidden_states = super().forward(hidden_states, *args, **kwargs)
        size = hidden_states.float().square().mean()
        return with_loss(hidden_states, self.config.stream_loss * size, self.auxiliary_weight)


class TwoMatrixModel(LlamaDytModel):
    config_class = TwoMatrixConfig
    layer_class = TwoMatrixDecoderLayer


class TwoMatrixForCausalLM(LlamaDytForCausalLM):
    config_class = TwoMatrixConfig
    decoder_class = TwoMatrixModel


@dataclass(frozen=True)
class TwoMatrixSettings:
    """A flag of the family's own; it becomes the field of the config that has its name."""

    stream_loss: float | None = option(None, "two_matrix: coefficient of the loss on the stream's size.", at_least=0)


class TwoMatrix(ModelSpec):
    def mlp_matmul_parameters(self, config):
        return 2 * config.hidden_size * config.intermediate_size

    def mlp_activations(self, config):
        return 2 * config.intermediate_size  # before GELU and after it


FAMILIES.register(
    TwoMatrix(
        name="two_matrix",
        in_words="two-matrix LLaMA",
        config_class=f"{__name__}:TwoMatrixConfig",
        decoder_class=f"{__name__}:TwoMatrixModel",
        causal_lm_class=f"{__name__}:TwoMatrixForCausalLM",
        presets={
            "two_matrix_tiny": Size(32, 2, 4, 2, 64, max_length=64),
            "two_matrix_7b": Size(4096, 32, 32, 32, 16512),
        },
        column_parallel=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"),
        row_parallel=("self_attn.o_proj", "mlp.down_proj"),
        settings=TwoMatrixSettings,
        auxiliary_losses=True,
    )
)
