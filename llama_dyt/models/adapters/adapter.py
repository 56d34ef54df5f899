"""What an adapter is, as one value: where it sits, how large it is there, what is trained beside; no torch in it.

A module that it sits in, of weight W (out, in), gives

    W x + s·B A x                           LoRA (Hu et al., arXiv 2106.09685)
    m · (W x + s·B A x) / ‖W + s·B A‖       DoRA (Liu et al., arXiv 2402.09353), the norm of each row, taken as constant

with A (rank, in), B (out, rank), m (out,) and s = alpha / rank, or alpha / √rank (rsLoRA, arXiv 2312.03732). Parameters
have the names that peft writes, behind its prefix:

    model.layers.0.self_attn.q_proj.lora_A.weight, ….lora_B.weight, ….lora_magnitude_vector
    model.embed_tokens.lora_embedding_A (rank, vocabulary), ….lora_embedding_B (hidden, rank), ….lora_magnitude_vector
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llama_dyt.models.model_spec import Cut, ModelSpec

LOW = ("lora_A.weight", "lora_embedding_A")
HIGH = ("lora_B.weight", "lora_embedding_B")
MAGNITUDE = "lora_magnitude_vector"


@dataclass(frozen=True)
class Place:
    """How an adapter sits in one module.

    Attributes:
        rank: of the product B A.
        scaling: s.
        dropout: share of the numbers going into A that training leaves out; an embedding has none.
        use_dora: the module has a magnitude.
    """

    rank: int
    scaling: float
    dropout: float = 0.0
    use_dora: bool = False


@dataclass(frozen=True)
class Adapter:
    """
    Attributes:
        places: name of a module, whole → how the adapter sits in it.
        whole: names of parameters of the model itself that are trained beside, and saved with the adapter.
        config: what stands in its adapter_config.json, but for its base.
    """

    places: Mapping[str, Place]
    whole: frozenset[str] = frozenset()
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_words(self) -> str:
        ranks = sorted({place.rank for place in self.places.values()})
        kind = "DoRA" if any(place.use_dora for place in self.places.values()) else "LoRA"
        many = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        return f"{kind} of rank {many} in {len(self.places)} module{'s' if len(self.places) > 1 else ''}"


def owner_of(name: str) -> tuple[str, str] | None:
    """(module, part) of an adapter's parameter, by its name; None for a parameter of the model itself."""
    for part in (*LOW, *HIGH, MAGNITUDE):
        if name.endswith(f".{part}"):
            return name.removesuffix(f".{part}"), part
    return None


def cut_of(name: str, family: ModelSpec) -> tuple[Cut | None, int]:
    """How tensor parallelism cuts any parameter, an adapter's too, and along which dimension; (None, 0): not at all.

    B has the weight's outputs and is cut with them, A its inputs; what remains is the same on all ranks.
    """
    found = owner_of(name)
    if found is None:
        cut = family.cut_of(name)
        return cut, family.cut_dimension(name)
    owner, part = found
    cut = family.cut_of(f"{owner}.weight")
    if part.startswith("lora_embedding"):  # its inputs are the vocabulary
        return (cut, 1) if part in LOW and cut is not None else (None, 0)
    if cut == "row":
        return (cut, 1) if part in LOW else (None, 0)
    # By outputs; a head's are the vocabulary. A weight's own magnitude goes with them, unless it is an embedding's.
    of_embedding = part == MAGNITUDE and owner == f"{family.decoder}.{family.embedding}"
    return (cut, 0) if part not in LOW and cut is not None and not of_embedding else (None, 0)
