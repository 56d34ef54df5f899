"""The LLaMA decoder with norms by name, as transformers classes.

A saved model carries it along, with the few modules it imports from this package, so that
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` works where this package is not installed.
Module names are LLaMA's own. A family that differs in a part derives from these classes and names its own for the part.
There is nothing about parallelism here: head counts follow from the projections' width, attention comes from
transformers' registry and the loss is an attribute, so a policy replaces those alone.
"""

# Annotations are evaluated here, for transformers reads those of `forward`.
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaMLP, eager_attention_forward
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from llama_dyt.models.initial_weights import draw_seed, initial_tensor
from llama_dyt.models.llama.configuration_llama_dyt import LlamaDytConfig
from llama_dyt.models.ops.document_attention import attention_within_documents, causal_mask
from llama_dyt.models.ops.loss import CausalLmLoss, causal_lm_loss
from llama_dyt.models.ops.rope import RotaryEmbedding, rotate
from llama_dyt.norms.by_name import norm_of


def _norm(config: LlamaDytConfig, site: str) -> nn.Module:
    return norm_of(config).build(config, config.norm_places[site])


class ScaledEmbedding(nn.Embedding):
    """Token embedding whose output is multiplied by one learnable scalar, `scale` (1,).

    DyT does not bring activations to unit size as a norm does, so the embedding must; see the paper's section on
    LLaMA. A tied head shares `weight` and not `scale`.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int):
        super().__init__(num_embeddings, embedding_dim)
        self.scale = nn.Parameter(torch.full((1,), embedding_dim**0.5))

    @property
    def embed_scale(self) -> Tensor:
        """`scale`, by the name under which peft looks for what an embedding multiplies its rows by."""
        return self.scale

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, sequence) ids to (batch, sequence, hidden_size) in the weight's dtype."""
        return scaled(super().forward(input_ids), self.scale)


class MultipliedEmbedding(nn.Embedding):
    """Token embedding whose output is multiplied by a constant, `scale`.

    It is rounded to the weight's dtype first, as transformers' Gemma does.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, scale: float):
        super().__init__(num_embeddings, embedding_dim)
        # Neither parameter nor buffer, which would be cast and saved; a number, whatever the model's device.
        self.scale = torch.tensor(scale, device="cpu")

    @property
    def embed_scale(self) -> Tensor:
        """As `ScaledEmbedding`'s."""
        return self.scale

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, sequence) ids to (batch, sequence, hidden_size) in the weight's dtype."""
        return scaled(super().forward(input_ids), self.scale)


def scaled(embedded: Tensor, scale: Tensor) -> Tensor:
    """An embedding's output times its scale, learnable or constant, in the output's dtype."""
    return embedded * scale.to(embedded.dtype)


def _embedding(config: LlamaDytConfig) -> nn.Embedding:
    # No padding_idx: it would stop the gradient of that token, which is a real one where padding is EOS.
    if config.embedding_scale:
        return ScaledEmbedding(config.vocab_size, config.hidden_size)
    if config.embedding_multiplier is not None:
        return MultipliedEmbedding(config.vocab_size, config.hidden_size, config.embedding_multiplier)
    return nn.Embedding(config.vocab_size, config.hidden_size)


class LlamaDytAttention(nn.Module):
    """Grouped-query attention with rotary positions applied in fp32.

    Class attribute, for families that have another:
        output_projection: the name of the last projection.
    """

    output_projection = "o_proj"

    def __init__(self, config: LlamaDytConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        # transformers' attention functions read these three.
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        query_width = config.num_attention_heads * self.head_dim
        key_width = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        output = nn.Linear(query_width, config.hidden_size, bias=config.attention_bias)
        self.add_module(self.output_projection, output)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(batch, sequence, hidden_size) to the same, and the attention weights where the function gives them."""
        # -1, not a head count: under tensor parallelism the projections are narrower.
        by_head = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(by_head).transpose(1, 2)
        key = self.k_proj(hidden_states).view(by_head).transpose(1, 2)
        value = self.v_proj(hidden_states).view(by_head).transpose(1, 2)
        query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        attended, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=self.scaling,
            sliding_window=self.config.sliding_window,
            **kwargs,
        )
        project = getattr(self, self.output_projection)
        return project(attended.reshape(*hidden_states.shape[:-1], -1)), weights


class LlamaDytDecoderLayer(GradientCheckpointingLayer):
    """Norm, attention, residual; norm, MLP, residual.

    Class attributes, for families that have others:
        attention_class: made of (config, layer_idx), called as `LlamaDytAttention` is.
        mlp_class: made of (config), (batch, sequence, hidden_size) to the same. LLaMA's is SwiGLU.
        norms: the names of a layer's norms.

    A layer may have a loss of its own (`models.ops.auxiliary_loss`).

    Attributes:
        auxiliary_weight: what the gradient of such a loss is multiplied by, beside its coefficient: set by whoever
            averages over micro batches or scales losses.
    """

    auxiliary_weight: float = 1.0

    attention_class: type[nn.Module] = LlamaDytAttention
    mlp_class: type[nn.Module] = LlamaMLP
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")

    def __init__(self, config: LlamaDytConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.self_attn = self.attention_class(config, layer_idx)
        self.mlp = self.mlp_class(config)
        for name in self.norms:
            self.add_module(name, _norm(config, name))

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        mlp_arguments: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(batch, sequence, hidden_size) to the same. `position_embeddings`: cos and sin of `RotaryEmbedding`;
        `mlp_arguments`: what `feed_forward` is called with besides, where a family's decoder has something for it."""
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = hidden_states + attended
        return hidden_states + self.feed_forward(self.post_attention_layernorm(hidden_states), **(mlp_arguments or {}))

    def feed_forward(self, normed: Tensor) -> Tensor:
        """(batch, sequence, hidden_size) to the same. A family whose MLP is called with more takes that here."""
        return self.mlp(normed)


class LlamaDytPreTrainedModel(PreTrainedModel):
    """What transformers asks of a model class, and weights initialised by name."""

    config: LlamaDytConfig
    config_class = LlamaDytConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDytDecoderLayer"]  # a decoder of other layers says so itself
    _skip_keys_device_placement = ["past_key_values"]
    # Llama folders of before transformers 4.32 hold a copy a layer; here they are computed.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": LlamaDytDecoderLayer, "attentions": LlamaDytAttention}

    # Writes this file and those it needs into a saved folder. Set by the package; None in a copy that came out of a
    # folder, for which transformers does the same by itself.
    export_modeling_files: Callable[[str], None] | None = None

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Give every parameter that was not loaded its starting value, by its name, from one seed.

        transformers hands `_init_weights` a module without its name, hence the walk here. The seed comes from torch's
        global generator; `build_model` takes one from its caller.
        """
        seed = draw_seed()
        # The decoder alone has names without the causal LM's prefix; a parameter's start must not depend on that.
        prefix = "" if hasattr(self, self.base_model_prefix) else f"{self.base_model_prefix}."
        for module_name, module in self.named_modules(prefix=prefix.rstrip(".")):
            if getattr(module, "_is_hf_initialized", False):
                continue
            for name, parameter in module.named_parameters(prefix=module_name, recurse=False):
                if not getattr(parameter, "_is_hf_initialized", False):
                    parameter.copy_(initial_tensor(name, parameter.shape, self.config, seed))
            module._is_hf_initialized = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Start one module that is in no model yet: what transformers asks for when the vocabulary is resized."""
        for name, parameter in module.named_parameters(prefix="embed_tokens", recurse=False):
            if not getattr(parameter, "_is_hf_initialized", False):
                parameter.copy_(initial_tensor(name, parameter.shape, self.config, draw_seed()))

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """transformers' `save_pretrained`, and the files that make the folder load without this package."""
        super().save_pretrained(save_directory, **kwargs)
        if self.export_modeling_files is not None and kwargs.get("is_main_process", True):
            self.export_modeling_files(save_directory)


class LlamaDytModel(LlamaDytPreTrainedModel):
    """The decoder without its head.

    Class attributes, for families that have others:
        layer_class: made of (config, layer_idx), called as `LlamaDytDecoderLayer` is.
        final_norm: the name of the last norm.
    """

    layer_class: type[nn.Module] = LlamaDytDecoderLayer
    final_norm: str = "norm"

    def __init__(self, config: LlamaDytConfig):
        super().__init__(config)
        self._no_split_modules = [self.layer_class.__name__]
        self.embed_tokens = _embedding(config)
        self.layers = nn.ModuleList(self.layer_class(config, index) for index in range(config.num_hidden_layers))
        self.add_module(self.final_norm, _norm(config, self.final_norm))
        self.rotary_emb = RotaryEmbedding(config)
        if (gate := norm_of(config).gate) is not None:
            of_layers = [getattr(layer, name) for layer in self.layers for name in layer.norms]
            gate.open(config, [*of_layers, getattr(self, self.final_norm)])
        self.gradient_checkpointing = False
        self.post_init()

    def through_layers(
        self, attention_mask: Tensor | None, first_layer: int = 0
    ) -> AbstractContextManager[dict[str, Any]]:
        """What one pass through the layers, from `first_layer` on, runs in; gives what each of them is called with
        beside. Nothing here: for families whose layers have something together.

        Args:
            attention_mask: as of `forward`.
        """
        return nullcontext({})

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        document_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids: (batch, sequence); or inputs_embeds: (batch, sequence, hidden_size), already scaled.
            attention_mask: (batch, past + sequence), 0 at padding. None: plain causal attention, with no mask made.
            position_ids: (batch, sequence). None: counted on from the cache. Where they start anew within a row
                and there is no cache, attention does too, unless document_ids are given.
            use_cache: None: as the config says, but never in training.
            document_ids: (batch, sequence), the same number for neighbours that see each other, whatever positions
                say. Without padding and cache.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds, and not both")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and document_ids is None
        if document_ids is not None and (attention_mask is not None or use_cache or past_key_values is not None):
            raise ValueError("document_ids are for packed sequences, without attention_mask and without cache")
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        # Only positions the caller gave go to the mask: looking for starts in our own count would be for nothing,
        # and under torch.compile, which cannot look at values, it would cost the causal fast path.
        if document_ids is None:
            mask = causal_mask(
                self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
            attention = {"attention_mask": mask, "position_ids": position_ids}
        else:
            attention = attention_within_documents(self.config, document_ids, inputs_embeds.dtype)
        positions = position_ids
        if positions is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            positions = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen).unsqueeze(0)
        position_embeddings = self.rotary_emb(inputs_embeds, positions)

        hidden_states = inputs_embeds
        with self.through_layers(attention_mask) as beside:
            for layer in self.layers:
                hidden_states = layer(
                    hidden_states,
                    position_embeddings=position_embeddings,
                    past_key_values=past_key_values,
                    use_cache=use_cache,
                    **attention,
                    **beside,
                    **kwargs,
                )
        hidden_states = getattr(self, self.final_norm)(hidden_states)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)


class LlamaDytForCausalLM(LlamaDytPreTrainedModel, GenerationMixin):
    """The decoder with its head and loss.

    `loss_function(logits, labels, num_items_in_batch)` is an attribute of the instance, meant to be replaced where
    logits are split over ranks. A `CausalLmLoss` can also do without whole logits; any other function gets them.

    Class attribute, for families that have another:
        decoder_class: made of (config), called as `LlamaDytModel` is.
    """

    decoder_class: type[nn.Module] = LlamaDytModel

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: LlamaDytConfig):
        super().__init__(config)
        self.model = self.decoder_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.loss_function = causal_lm_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: float | Tensor | None = None,
        shift_labels: Tensor | None = None,
        skip_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """
        Args (beside `LlamaDytModel.forward`'s):
            labels: (batch, sequence) ids, shifted here; -100 where there is nothing to learn.
            num_items_in_batch: what the summed loss is divided by, see `CausalLmLoss`.
            shift_labels: (batch, sequence) ids shifted already, which the loss takes in the stead of labels, for
                trainers that cut sequences into slices. As with transformers' models, labels must be there too.
            logits_to_keep: logits of the last so many positions only; 0 for all.
            skip_logits: only the loss is wanted, so no whole logits need be made. None: so it is in train mode with
                labels; pass False to have logits there too.

        Returns:
            loss (fp32 scalar, with labels), logits (batch, sequence, vocabulary) in the model's dtype, the cache.
            logits is None where they were skipped.
        """
        if labels is not None and use_cache is None:
            use_cache = False
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        loss = logits = None
        targets = {} if shift_labels is None else {"shift_labels": shift_labels}
        skip = self.training if skip_logits is None else skip_logits
        whole = isinstance(logits_to_keep, int) and logits_to_keep == 0
        fits = isinstance(self.loss_function, CausalLmLoss) and self.loss_function.takes(self.lm_head)
        if labels is not None and skip and whole and fits:
            loss = self.loss_function.of_hidden_states(
                self.lm_head, outputs.last_hidden_state, labels, num_items_in_batch, **targets
            )
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
            if labels is not None:
                loss = self.loss_function(logits, labels, num_items_in_batch, **targets)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
