"""A model's weights as every format is read and written: a config, and tensors by HuggingFace's names, read when asked.

Nothing here holds a tensor: what is read is gone when it has been written, so a model of any size goes through the
memory of its largest tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llama_dyt.core.errors import CheckpointError
from llama_dyt.models import empty_model, family_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What `--dtype` takes."""


@dataclass(frozen=True)
class Stored:
    """One tensor, as it will be read.

    Attributes:
        where: which tensor of which file it is made of, for messages.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    where: str


@dataclass(frozen=True)
class Weights:
    """The weights of one model.

    Attributes:
        config: HF config of a family of ours.
        stored: name in the causal LM's state dict → what is there. A head that is tied to the embedding is not.
        read: (name) → the whole tensor, in its dtype; made anew each time and the caller's own.
    """

    config: Any
    stored: Mapping[str, Stored]
    read: Callable[[str], Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """The one that most of its numbers have."""
        counted = Counter()
        for stored in self.stored.values():
            counted[stored.dtype] += torch.Size(stored.shape).numel()
        return counted.most_common(1)[0][0]

    @property
    def num_parameters(self) -> int:
        return sum(torch.Size(stored.shape).numel() for stored in self.stored.values())

    @property
    def num_bytes(self) -> int:
        return sum(torch.Size(stored.shape).numel() * stored.dtype.itemsize for stored in self.stored.values())

    def cast(self, dtype: torch.dtype) -> Weights:
        """The same weights in another dtype, each tensor as it is read.

        Raises, where one is read:
            CheckpointError: a number of it is too large for that dtype.
        """

        def read(name: str) -> Tensor:
            tensor = self.read(name)
            if tensor.dtype == dtype:
                return tensor
            narrow = tensor.to(dtype)
            if torch.finfo(dtype).max < torch.finfo(tensor.dtype).max and _overflows(tensor, narrow):
                raise CheckpointError(
                    f"{name}: its largest number, {tensor.abs().amax():g}, is beyond {dtype}'s "
                    f"{torch.finfo(dtype).max:g}; give --dtype bf16 or fp32"
                )
            return narrow

        return replace(self, stored={name: replace(s, dtype=dtype) for name, s in self.stored.items()}, read=read)


def _overflows(before: Tensor, after: Tensor) -> bool:
    return bool(torch.isinf(after).any()) and not bool(torch.isinf(before).any())


def check(weights: Weights, path: Any) -> Weights:
    """The weights that the model of their config has: a tied head is left out, which a file may hold all the same.

    Raises:
        CheckpointError: one is missing, too many or of another shape; named, with its file.
    """
    config = weights.config
    model = empty_model(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    computed = f"{family_of(config).rotary}.inv_freq"  # folders of before transformers 4.32 hold it
    for name, shape in wanted.items():
        found = weights.stored.get(name)
        if found is not None and found.shape != shape:
            raise CheckpointError(
                f"{_named(found, name)} has shape {list(found.shape)} where the model has {list(shape)}: config and "
                "weights are not of one model; give those that belong together"
            )
    missing = [name for name in wanted if name not in weights.stored and name not in tied]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{path}: {missing[0]}{more} is missing, which the model of its config has; copy it again"
        )
    surplus = [name for name in sorted(weights.stored) if name not in wanted and not name.endswith(computed)]
    if surplus:
        more = f" and {len(surplus) - 1} more" if len(surplus) > 1 else ""
        raise CheckpointError(
            f"{_named(weights.stored[surplus[0]], surplus[0])}{more} has no place in the model of its config (layers, "
            "biases, norm or embedding scale differ); give those that belong together"
        )
    kept = {name: weights.stored[name] for name in wanted if name in weights.stored and name not in tied}
    return replace(weights, stored=kept)


def _named(stored: Stored, name: str) -> str:
    """A tensor by where it is, and by our name where that is another."""
    return stored.where if stored.where.endswith(name) else f"{stored.where} ({name})"
