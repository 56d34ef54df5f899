"""The parts that a LLaMA-shaped decoder has, by what they do: other programs have the same under other names."""

from __future__ import annotations

from dataclasses import dataclass

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models.spec import FAMILIES, ModelSpec

PLAIN = "llama"
"""The model type whose files Meta, GPT-NeoX and fms write."""


@dataclass(frozen=True)
class Parts:
    """Names in the causal LM's state dict.

    Attributes, of the model:
        embedding, head, final_norm: modules.
        scale: the embedding's scalar, a parameter.
    Attributes, in a layer:
        query, key, value, output, gate, up, down, attention_norm, feed_forward_norm: modules.
    """

    embedding: str
    head: str
    final_norm: str
    scale: str
    layer_prefix: str
    query: str
    key: str
    value: str
    output: str
    gate: str
    up: str
    down: str
    attention_norm: str
    feed_forward_norm: str

    def layer(self, number: int, part: str) -> str:
        """The whole name of a module in a layer."""
        return f"{self.layer_prefix}{number}.{part}"


def parts_of(family: ModelSpec) -> Parts:
    """The parts of a family's decoder.

    Raises:
        ConfigurationError: it has others than a LLaMA's.
    """
    try:
        attention_norm, feed_forward_norm = family.layer_norms
        query, key, value = family.read_by(attention_norm)
        gate, up = family.read_by(feed_forward_norm)
        output, down = family.row_parallel
    except ValueError:
        raise ConfigurationError(
            f"a {family.in_words} has other parts than a LLaMA, and this format has a LLaMA's"
        ) from None
    return Parts(
        embedding=f"{family.decoder}.{family.embedding}",
        head=family.head,
        final_norm=f"{family.decoder}.{family.final_norm}",
        scale=family.embedding_scale,
        layer_prefix=family.layer_prefix,
        query=query,
        key=key,
        value=value,
        output=output,
        gate=gate,
        up=up,
        down=down,
        attention_norm=attention_norm,
        feed_forward_norm=feed_forward_norm,
    )


def llama() -> ModelSpec:
    """The family that reads plain LLaMAs."""
    return FAMILIES.get(PLAIN)
