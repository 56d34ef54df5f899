"""What a family of decoders is to everything else, as one value. Plain Python: with a user's family a copy lies in the
folders of saved models.

An entry names HuggingFace classes and never imports them itself, so that sizes, help and flags are there before torch
is. Everything has the answer of the shape that most HuggingFace decoders share; a family says where it differs, by a
field or, for arithmetic, by a method of a subclass. What a saved model must know by itself, without this program,
stands in its classes: where its norms are and from which numbers each parameter starts, in the config's.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llama_dyt.models.size import Size

Cut = Literal["column", "row", "vocabulary"]
"""How tensor parallelism cuts a weight (outputs, inputs): by outputs, by inputs, or by entries of the vocabulary."""


@dataclass(frozen=True)
class FilePart:
    """A tensor of the hub's files, as part of one of ours.

    Attributes:
        name: there.
        of: the whole one's.
        index: where it lies along the first dimension of that, which it has not itself; None: it has all of them.
        half: which half of the rows (of the second dimension, with `index`) it is; None: all of them.
    """

    name: str
    of: str
    index: int | None = None
    half: int | None = None


@dataclass(frozen=True)
class ModelSpec:
    """One family of decoders.

    Names of modules are relative to what holds them; the model classes keep to them. `config` below is an HF config of
    the family, `model` a causal LM.

    Attributes:
        name: the `model_type` of the family's HF config.
        in_words: what a person calls it.
        config_class, decoder_class, causal_lm_class: HF classes as "module:Class". The modules that define them travel
            with saved models, so they may import torch, transformers, the standard library, `llama_dyt.models` and
            `llama_dyt.norms` alone. The config is a `models.llama.configuration_llama_dyt.LlamaDytConfig` or has its
            fields, `norm_places`, `starting_value` and `starting_std`.
        plain_type: the model type of transformers' own classes, whose configs and weights these classes read as they
            are, and which compute the same where the norm is `plain_norm` and nothing else of ours is in the config:
            such a model is saved as one of theirs. None: there are none.
        plain_norm: the norm that those have.
        aliases: model types that are read likewise, that of `plain_type` among them.
        settings: dataclass of options, flags of the family's own, each named like the field of the config that it
            gives a value; None is none.
        presets: name → size, what `--config` takes.
        preset_aliases: short name → preset, listed beside the presets.
        preset_spellings: other names for presets, understood and not listed.
        decoder: the decoder stack in the causal LM.
        embedding, layers, final_norm, rotary: in the decoder.
        head: in the causal LM; its rows are vocabulary entries, as the embedding's are.
        attention: the attention module, in a layer.
        column_parallel: projections in a layer split by output rows: each rank makes some heads, or some MLP units.
        row_parallel: projections in a layer split by input columns, whose outputs are summed over the ranks.
        layer_norms: in a layer; replicated over tensor-parallel ranks, as the final norm is.
        experts: the block in a layer that has a router, `gate`, and `experts`, as `models.mixtral` has them; None:
            there are none.
        auxiliary_losses: layers have losses of their own beside the cross entropy (`models.ops.auxiliary_loss`).
    """

    name: str
    in_words: str
    config_class: str
    decoder_class: str
    causal_lm_class: str
    plain_type: str | None = None
    plain_norm: str = "rmsnorm"
    aliases: tuple[str, ...] = ()
    settings: type | None = None
    presets: Mapping[str, Size] = field(default_factory=dict)
    preset_aliases: Mapping[str, str] = field(default_factory=dict)
    preset_spellings: Mapping[str, str] = field(default_factory=dict)
    decoder: str = "model"
    embedding: str = "embed_tokens"
    layers: str = "layers"
    final_norm: str = "norm"
    rotary: str = "rotary_emb"
    head: str = "lm_head"
    attention: str = "self_attn"
    column_parallel: tuple[str, ...] = (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
    )
    row_parallel: tuple[str, ...] = ("self_attn.o_proj", "mlp.down_proj")
    layer_norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    experts: str | None = None
    auxiliary_losses: bool = False

    # --- the HF classes ----------------------------------------------------------------------------------------------

    def load_config_class(self) -> type:
        """The HF config's class; imports it, and with it torch."""
        return _named(self.config_class)

    def load_decoder_class(self) -> type:
        """The class of the decoder without its head; imports it, and with it torch."""
        return _named(self.decoder_class)

    def load_causal_lm_class(self) -> type:
        """The causal LM's class; imports it, and with it torch."""
        return _named(self.causal_lm_class)

    # --- parts of a model --------------------------------------------------------------------------------------------

    def decoder_of(self, model: Any) -> Any:
        return getattr(model, self.decoder)

    def layers_of(self, model: Any) -> Any:
        """The decoder layers of a causal LM, an `nn.ModuleList`."""
        return getattr(self.decoder_of(model), self.layers)

    @property
    def layer_prefix(self) -> str:
        """What the name of a parameter in a decoder layer begins with; the layer's number follows."""
        return f"{self.decoder}.{self.layers}."

    @property
    def embedding_scale(self) -> str:
        """The name of the scalar that the embedding's output is multiplied by, where the norms need one."""
        return f"{self.decoder}.{self.embedding}.scale"

    def read_by(self, norm: str) -> tuple[str, ...]:
        """The projections in a layer that read the output of one of its norms, all that do: modules, or tensors whose
        last dimension is what is read. A family with other readers (a router, experts) says its own, or none where a
        norm's weight cannot be put into them."""
        of_attention = tuple(name for name in self.column_parallel if name.startswith(f"{self.attention}."))
        of_feed_forward = tuple(name for name in self.column_parallel if name not in of_attention)
        first, last = self.layer_norms[0], self.layer_norms[-1]
        return (of_attention if norm == first else ()) + (of_feed_forward if norm == last else ())

    def cut_of(self, name: str) -> Cut | None:
        """How tensor parallelism cuts the parameter `name`; None: every rank holds it whole."""
        owner, kind = name.rsplit(".", 1)
        if (kind == "weight" and owner == f"{self.decoder}.{self.embedding}") or owner == self.head:
            return "vocabulary"
        if owner.endswith(self.column_parallel):
            return "column"
        # A bias is added to the sum over the ranks.
        return "row" if kind == "weight" and owner.endswith(self.row_parallel) else None

    def cut_dimension(self, name: str) -> int:
        """Along which dimension tensor parallelism cuts the parameter `name`, where it does."""
        return 1 if self.cut_of(name) == "row" else 0

    # --- files of the hub --------------------------------------------------------------------------------------------

    def part_in_files(self, name: str) -> FilePart | None:
        """What a tensor of the hub's files is a part of, by its name there; None: it is one of ours itself."""
        return None

    def parts_for_files(self, name: str, shape: tuple[int, ...]) -> list[FilePart]:
        """The tensors that the hub's files have for one of ours; none: itself."""
        return []

    # --- sizes -------------------------------------------------------------------------------------------------------

    def preset(self, name: str) -> Size | None:
        """The size that `name` stands for, in small letters and with `_` for `-`; None where there is none."""
        name = self.preset_aliases.get(name, self.preset_spellings.get(name, name))
        return self.presets.get(name)

    def config_fields(self, size: Size) -> dict[str, Any]:
        """What a size sets in the HF config."""
        return {
            "hidden_size": size.hidden_size,
            "num_hidden_layers": size.num_layers,
            "num_attention_heads": size.num_heads,
            "num_key_value_heads": size.num_key_value_heads,
            "intermediate_size": size.intermediate_size,
            "vocab_size": size.vocab_size,
            "max_position_embeddings": size.max_length,
            "rope_parameters": {"rope_type": "default", "rope_theta": size.rope_theta},
            "rms_norm_eps": size.rms_norm_eps,
            **size.others,
        }

    def size_in(self, fields: Mapping[str, Any]) -> Size:
        """The size that stands in a config.json.

        Raises:
            ValueError: a figure that has no usual value is not there, or no whole number.
        """
        needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        if wrong := [key for key in needed if not isinstance(fields.get(key), int)]:
            raise ValueError(f"no whole number for {', '.join(wrong)}; is it the config of a {self.in_words}?")
        # transformers 5 writes rope_theta inside rope_parameters; before, it stood at the top.
        rope = fields.get("rope_parameters") or {}
        head_dim, usual = fields.get("head_dim"), fields["hidden_size"] / fields["num_attention_heads"]
        return Size(
            hidden_size=fields["hidden_size"],
            num_layers=fields["num_hidden_layers"],
            num_heads=fields["num_attention_heads"],
            num_key_value_heads=fields.get("num_key_value_heads") or fields["num_attention_heads"],
            intermediate_size=fields["intermediate_size"],
            vocab_size=fields.get("vocab_size", 32000),
            max_length=fields.get("max_position_embeddings", 2048),
            rope_theta=float(rope.get("rope_theta", fields.get("rope_theta", 10_000.0))),
            rms_norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
            others={} if head_dim in (None, usual) else {"head_dim": head_dim},
        )

    def tensor_parallel_counts(self, size: Size) -> dict[str, int]:
        """What tensor parallelism deals out evenly, in words → how many there are; each must be divisible by --tp."""
        return {
            "attention heads": size.num_heads,
            "key and value heads": size.num_key_value_heads,
            "feed-forward units": size.intermediate_size,
        }

    def is_of_experts(self, name: str) -> bool:
        """Whether the first dimension of the parameter `name` is the experts of a layer."""
        return False

    def num_experts(self, size: Size, given: Mapping[str, Any]) -> int:
        """Experts of a layer; 0 where there are none.

        Args:
            given: values of the family's own flags, None where they are open.
        """
        return 0

    # --- work and memory of a token ----------------------------------------------------------------------------------

    def head_dim(self, config: Any) -> int:
        return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def mlp_matmul_parameters(self, config: Any) -> int:
        """Weights of one layer's MLP that a token is multiplied with: gate, up and down of a gated one."""
        return 3 * config.hidden_size * config.intermediate_size

    def matmul_parameters(self, config: Any) -> int:
        """Weights a token is multiplied with: projections and head, not the embedding table or norms."""
        heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
        attention = config.hidden_size * self.head_dim(config) * heads
        layer = attention + self.mlp_matmul_parameters(config)
        return config.num_hidden_layers * layer + config.hidden_size * config.vocab_size

    def idle_parameters(self, config: Any) -> int:
        """How many of a model's parameters no single token is computed with: experts that it is not sent to."""
        return 0

    def flops_per_token(self, config: Any, sequence_length: int) -> float:
        """Forward and backward FLOPs of one token, without recomputation.

        6 for each matmul weight plus 12·L·H·S for attention's two batched products, counted whole (not halved for the
        causal mask), as PaLM's appendix B and the published MFU figures do. LLaMA-2-7B at 4096: 46.08 GFLOP.
        """
        width = self.head_dim(config) * config.num_attention_heads
        return 6.0 * self.matmul_parameters(config) + 12.0 * config.num_hidden_layers * width * sequence_length

    def recomputed_flops_per_token(self, config: Any, sequence_length: int) -> float:
        """FLOPs of one token that a layer which recomputes its activations adds: its forward pass once more."""
        head = 6.0 * config.hidden_size * config.vocab_size  # no layer's
        return (self.flops_per_token(config, sequence_length) - head) / 3.0 / config.num_hidden_layers

    def mlp_activations(self, config: Any) -> int:
        """Numbers a token that one layer's MLP keeps for the backward pass: gate, its activation, up, their product."""
        return 4 * config.intermediate_size

    def layer_activations(self, config: Any) -> int:
        """Numbers a token that one layer keeps for the backward pass, where attention never makes its scores."""
        norms = 2 * len(self.layer_norms) * config.hidden_size  # inputs and outputs
        # Queries and attention's output; keys and values.
        attention = 2 * self.head_dim(config) * (config.num_attention_heads + config.num_key_value_heads)
        return norms + attention + self.mlp_activations(config)


def _named(path: str) -> type:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
