"""What a DyT LLaMA is: transformers' LlamaConfig and six fields.

A saved model carries it along, so that the folder loads where this package is not installed.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig

from llama_dyt.norms.by_name import norm_of
from llama_dyt.norms.norm_spec import ATTENTION, FEED_FORWARD, FINAL


@strict
class LlamaDytConfig(LlamaConfig):
    """A LLaMA whose norms are chosen by name.

    Args (beside LlamaConfig's):
        norm_type: "dyt", or "rmsnorm" for the plain LLaMA, whose state dict is then LlamaForCausalLM's, or a norm of
            the user's own.
        attn_alpha_init_value: where alpha starts in every `input_layernorm`. None: by width, from the paper's table.
        ffn_alpha_init_value: the same for every `post_attention_layernorm`.
        dec_alpha_init_value: the same for the last norm.
        embedding_scale: multiply the embedding's output by a learnable scalar that starts at sqrt(hidden_size).
            None: as norm_type asks, True with dyt (without it training stalls) and False with rmsnorm.
        folded_norms: places whose norm has its weight in the projections behind it (`convert.py --fold_dyt`).

    What was None is a value once the config is made, so that config.json says what the model started from. With
    another norm than dyt the alphas stay None.

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
    folded_norms: list[str] | None = None

    plain_norm_type: ClassVar[str] = "rmsnorm"
    """The norm that a config of transformers' own type means. Of the family; no field."""
    norm_places = {"input_layernorm": ATTENTION, "post_attention_layernorm": FEED_FORWARD, "norm": FINAL}
    """The last part of a norm's name → its place; no field."""
    norm_bias: ClassVar[bool] = False
    """Whether norms that can have a bias have one. Of the family, as the next; no fields."""
    head_bias: ClassVar[bool] = False
    """Whether the head has one."""
    embedding_multiplier: ClassVar[float | None] = None
    """A constant that the embedding's output is multiplied by; None: nothing. A property of families that have it."""
    sliding_window = None
    """How many tokens back attention sees, the token itself among them; None: all. A field of families that have it."""

    def __post_init__(self, **kwargs):
        kwargs.pop("sliding_window", None)  # where it is no field, transformers' own class has none either
        norm_module = kwargs.get("norm_module")
        if norm_module is not None:  # where a user's norm is, for the message where it is missing
            self.norm_module = norm_module
        norm = norm_of(self)
        if self.embedding_scale is None:
            self.embedding_scale = norm.embedding_scale
        for field in ("attn_alpha_init_value", "ffn_alpha_init_value", "dec_alpha_init_value"):
            if field not in norm.config_fields:
                setattr(self, field, None)
        super().__post_init__(**kwargs)
        norm.settle(self)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """transformers' `from_dict`; a config of their own type has the norm of that, not DyT."""
        if "norm_type" not in config_dict and config_dict.get("model_type") not in (None, cls.model_type):
            config_dict = {**config_dict, "norm_type": cls.plain_norm_type}
        return super().from_dict(config_dict, **kwargs)

    @property
    def eps_of_norms(self) -> float:
        """What a norm adds to what it takes the root of."""
        return self.rms_norm_eps

    def starting_value(self, name: str) -> float | None:
        """The number that fills a parameter of a new model: norms as they say, biases 0, the embedding's scale
        sqrt(hidden_size); None where it is drawn at random.

        Args:
            name: the full one, as in the causal LM's state dict.
        """
        *_, owner, kind = ("", *name.split("."))
        if owner in self.norm_places:
            return norm_of(self).starting_value(kind, self, self.norm_places[owner])
        if owner == "embed_tokens" and kind == "scale":
            return math.sqrt(self.hidden_size)
        return 0.0 if kind == "bias" else None

    def starting_std(self, name: str) -> float:
        """Standard deviation of the normal of mean 0 that a parameter is drawn from: the same for every projection, the
        embedding and the head, whatever the depth, as the DyT authors have it."""
        return self.initializer_range
