"""What a DyT Phi is: a DyT LLaMA with Phi's figures and biases.

A saved model carries it along, so that the folder loads where this package is not installed.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from llama_dyt.models.llama.configuration_llama_dyt import LlamaDytConfig
from llama_dyt.norms.norm_spec import ATTENTION, FINAL


@strict
class PhiDytConfig(LlamaDytConfig):
    """A Phi (1, 1.5 or 2) whose norms are chosen by name: one norm a layer, before attention and MLP alike, which
    stand side by side; rotary positions on a part of each head; biases everywhere, the norms' included.

    Args (beside LlamaDytConfig's; what is not given is as in transformers' PhiConfig):
        layer_norm_eps: what a norm adds to the variance or the mean square.
        resid_pdrop: dropout of attention's and the MLP's output.
        embd_pdrop: must be 0.
        qk_layernorm: must be False.

    Raises (beside LlamaDytConfig's):
        StrictDataclassError: of the last two, one is asked for.
    """

    model_type = "phi_dyt"

    vocab_size: int = 51200
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    hidden_act: str = "gelu_new"
    layer_norm_eps: float = 1e-5
    resid_pdrop: float | int = 0.0
    embd_pdrop: float | int = 0.0
    qk_layernorm: bool = False
    attention_bias: bool = True

    norm_places = {"input_layernorm": ATTENTION, "final_layernorm": FINAL}
    norm_bias = True
    plain_norm_type = "layernorm"
    head_bias = True

    def __post_init__(self, **kwargs):
        if self.embd_pdrop or self.qk_layernorm:
            raise ValueError("embd_pdrop above 0 and qk_layernorm are not there; no released Phi has them")
        kwargs.setdefault("partial_rotary_factor", 0.5)
        super().__post_init__(**kwargs)

    @property
    def eps_of_norms(self) -> float:
        return self.layer_norm_eps
