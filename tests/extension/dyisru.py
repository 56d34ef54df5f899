"""A norm in one file of a user's own: DyISRU, weight * x / sqrt(beta + x²) with a learnable beta (2503.21708)."""

from dataclasses import dataclass

import torch
from torch import nn

from llama_dyt.config.options import option
from llama_dyt.norms.spec import NORMS, NormSpec


class DyISRU(nn.Module):
    """Parameters: `beta` (1,), `weight` (hidden_size,)."""

    def __init__(self, hidden_size, beta_init):
        super().__init__()
        self.beta = nn.Parameter(torch.full((1,), float(beta_init)))
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x):
        wide = x.float()
        return (self.weight.float() * wide * torch.rsqrt(self.beta.float() + wide * wide)).to(x.dtype)


@dataclass(frozen=True)
class DyISRUSettings:
    """Where the betas of DyISRU start."""

    dyisru_beta: float | None = option(None, "Initial beta; none is 1.", above=0)


def settle(config):
    if getattr(config, "dyisru_beta", None) is None:
        config.dyisru_beta = 1.0


NORMS.register(
    NormSpec(
        name="dyisru",
        module=__name__,
        build=lambda config, place: DyISRU(config.hidden_size, config.dyisru_beta),
        starting_value=lambda parameter, config, place: {"beta": config.dyisru_beta, "weight": 1.0}[parameter],
        own_parameters=("beta",),
        embedding_scale=True,
        config_fields=("dyisru_beta",),
        settle=settle,
        probe=lambda layer, rows: {"beta": layer.beta.detach().float().reshape(())},
        settings=DyISRUSettings,
    )
)
