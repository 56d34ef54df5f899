"""Where in the shared memory of a writing rank each tensor of a checkpoint lies: as it lies in its file."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from llama_dyt.boosters.training_state import MOMENTS
from llama_dyt.models.tensor_writer import file_order, header_of
from llama_dyt.training.checkpoint.contents import Contents
from llama_dyt.training.checkpoint.messages import TensorFile
from llama_dyt.training.checkpoint.shards import shard_name
from llama_dyt.training.checkpoint.shared_memory import SharedMemory

_Key = tuple[str, str]  # parameter, "param" or a moment


class MemoryPlan:
    """
    Attributes:
        size: bytes in all.
        all_shards: the parameters of every shard of every stage.
    """

    def __init__(
        self,
        contents: Contents,
        sizes: Mapping[str, int],
        shards: Sequence[Sequence[str]],
        first: int,
        all_shards: list[list[str]],
    ) -> None:
        """
        Args:
            sizes: of the parameters in fp32.
            shards: those that this rank writes, from number `first` of all.
        """
        self.all_shards = all_shards
        self._files: list[tuple[str, str, dict[_Key, str]]] = []
        for number, names in enumerate(shards, start=first):
            weights = {(name, "param"): contents.prefix + name for name in names}
            moments = {(name, moment): f"{moment}.{name}" for moment in MOMENTS for name in names}
            for folder, stem, tensors in (
                (contents.folder, contents.stem, weights),
                ("optimizer", "optimizer", moments),
            ):
                self._files.append((folder, shard_name(stem, number, len(all_shards)), tensors))
        self._begins: dict[_Key, int] = {}
        self._shapes: dict[_Key, torch.Size] = {}
        self._whole: torch.Tensor | None = None
        self.size = 0
        for _, _, tensors in self._files:
            for key in sorted(tensors, key=tensors.__getitem__):  # of one type: `file_order` is that of the names
                self._begins[key] = self.size
                self.size += sizes[key[0]]
        self._sizes = sizes

    def whole(self, memory: SharedMemory) -> torch.Tensor:
        """All of the memory, as bytes."""
        if self._whole is None:
            self._whole = torch.frombuffer(memory.view, dtype=torch.uint8)
        return self._whole

    def place_of(self, memory: SharedMemory, name: str, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """Where a tensor belongs, rounded to nothing: it is fp32, on any device."""
        assert tensor.dtype == torch.float32, f"{name}: {tensor.dtype}"
        begin = self._begins[name, key]
        place = self.whole(memory)[begin : begin + 4 * math.prod(tensor.shape)].view(torch.float32)
        assert 4 * place.numel() == self._sizes[name], name
        self._shapes[name, key] = tensor.shape
        return place.view(tensor.shape)

    def first_not_finite(self, memory: SharedMemory) -> str | None:
        """The first tensor put there with a value that is nan or infinite, in words."""
        for (name, key), shape in self._shapes.items():
            begin = self._begins[name, key]
            values = np.frombuffer(memory.view[begin : begin + self._sizes[name]], dtype=np.float32)
            if math.prod(shape) and not np.isfinite([values.min(), values.max()]).all():  # nan is both
                return name if key == "param" else f"{key} of {name}"
        return None

    def files(self) -> list[TensorFile]:
        """What is to be written, once every tensor has its place."""
        found = []
        for folder, name, tensors in self._files:
            layout = {tensor: (self._shapes[key], torch.float32) for key, tensor in tensors.items()}
            keys = {tensor: key for key, tensor in tensors.items()}
            order = [keys[tensor] for tensor in file_order(layout)]
            begin, last = self._begins[order[0]], order[-1]
            end = self._begins[last] + self._sizes[last[0]]
            head = base64.b64encode(header_of(layout)).decode()
            found.append(TensorFile(folder, name, head, begin, end))
        return found
