"""What a DyT LLaMA is: transformers' LlamaConfig and five fields.

Its own file because a saved model carries it along, so that the folder loads where this package is not installed.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig

from llama_dyt.norms.alphas import default_alphas
from llama_dyt.norms.registry import NORMS

# The last part of a norm's name → the field that says where its alpha starts.
ALPHA_FIELDS: dict[str, str] = {
    "input_layernorm": "attn_alpha_init_value",
    "post_attention_layernorm": "ffn_alpha_init_value",
    "norm": "dec_alpha_init_value",
}


@strict
class LlamaDytConfig(LlamaConfig):
    """A LLaMA whose norms are chosen by name.

    Args (beside LlamaConfig's):
        norm_type: "dyt", or "rmsnorm" for the plain LLaMA, whose state dict is then LlamaForCausalLM's.
        attn_alpha_init_value: where alpha starts in every `input_layernorm`. None: by width, from the paper's table.
        ffn_alpha_init_value: the same for every `post_attention_layernorm`.
        dec_alpha_init_value: the same for the last norm.
        embedding_scale: multiply the embedding's output by a learnable scalar that starts at sqrt(hidden_size).
            None: as norm_type asks, True with dyt (without it training stalls) and False with rmsnorm.

    What was None is a value once the config is made, so that config.json says what the model started from. With
    rmsnorm the alphas stay None.

    Raises:
        StrictDataclassError (huggingface_hub's): a field is of a wrong type, norm_type is unknown, or an alpha is not
            above 0.
    """

    model_type = "llama_dyt"

    norm_type: str = "dyt"
    attn_alpha_init_value: float | int | None = None
    ffn_alpha_init_value: float | int | None = None
    dec_alpha_init_value: float | int | None = None
    embedding_scale: bool | None = None

    def __post_init__(self, **kwargs):
        if self.embedding_scale is None:
            self.embedding_scale = self.norm_type == "dyt"
        attention, others = default_alphas(self.hidden_size)
        for field, default in zip(ALPHA_FIELDS.values(), (attention, others, others), strict=True):
            if self.norm_type != "dyt":
                setattr(self, field, None)
            elif getattr(self, field) is None:
                setattr(self, field, default)
        super().__post_init__(**kwargs)

    def validate_norm(self):
        """Run by transformers once the config is made, as every `validate_…` of a strict config."""
        if self.norm_type not in NORMS:
            raise ValueError(f"norm_type is {self.norm_type!r}; there are: {', '.join(sorted(NORMS))}")
        for field in ALPHA_FIELDS.values():
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise ValueError(f"{field} is {value}; alpha starts above 0 (at 0 the layer's output is 0)")
