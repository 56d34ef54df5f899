"""Tensors of a folder by our names, where the hub's files hold some of them in parts, such as a matrix an expert."""

from __future__ import annotations

from pathlib import Path

import torch

from llama_dyt.core.errors import CheckpointError
from llama_dyt.models.model_spec import FilePart, ModelSpec
from llama_dyt.models.tensor_files import StoredTensor, TensorFiles


class ModelFiles(TensorFiles):
    """The weights of a model in a folder of safetensors, whichever of the two ways they lie there.

    Args:
        family: of the model; says what is a part of what.

    Raises (beside TensorFiles'):
        CheckpointError: a part is missing, or has another shape than those beside it.
    """

    def __init__(self, folder: Path, family: ModelSpec) -> None:
        super().__init__(folder)
        found: dict[str, list[FilePart]] = {}
        for name in self._files:
            if (part := family.part_in_files(name)) is not None:
                found.setdefault(part.of, []).append(part)
        self._parts = {name: self._in_order(name, parts) for name, parts in found.items()}

    def _in_order(self, whole: str, parts: list[FilePart]) -> list[list[FilePart]]:
        """Each index's parts, first rows first."""
        halves = sorted({part.half or 0 for part in parts})
        count = 1 + max(part.index or 0 for part in parts)
        placed = {(part.index or 0, part.half or 0): part for part in parts}
        order = [[placed.get((index, half)) for half in range(1 + halves[-1])] for index in range(count)]
        have, wanted = len(placed), count * len(order[0])
        if have != wanted or whole in self._files:
            reason = f"only {have} of the {wanted} parts" if have != wanted else "both whole and in parts"
            raise CheckpointError(f"{self._folder}: {whole} is there {reason}, such as {parts[0].name}; copy it again")
        shapes = {tuple(self._files[part.name][0].get_slice(part.name).get_shape()) for part in parts}
        if len(shapes) > 1:
            raise CheckpointError(f"{self._folder}: the parts of {whole} have shapes {sorted(shapes)}; copy it again")
        return order

    def shapes(self) -> dict[str, tuple[tuple[int, ...], Path]]:
        own = super().shapes()
        for name, order in self._parts.items():
            (shape, file) = own[order[0][0].name]
            for part in (part for parts in order for part in parts):
                del own[part.name]
            rows = (len(order[0]) * shape[0], *shape[1:])
            own[name] = (rows if order[0][0].index is None else (len(order), *rows), file)
        return own

    def dtype(self, name: str) -> torch.dtype:
        return super().dtype(self._parts[name][0][0].name if name in self._parts else name)

    def __contains__(self, name: str) -> bool:
        return name in self._parts or super().__contains__(name)

    def __getitem__(self, name: str) -> StoredTensor:
        if name not in self._parts:
            return super().__getitem__(name)
        parts = [[super(ModelFiles, self).__getitem__(part.name) for part in parts] for parts in self._parts[name]]
        return parts[0][0] if self._parts[name][0][0].index is None else _Stacked(parts)


class _Stacked(StoredTensor):
    """A tensor of which each index of the first dimension, and each stretch of the second, is one of a file."""

    def __init__(self, parts: list[list[StoredTensor]]) -> None:
        self._parts = parts

    def whole(self) -> torch.Tensor:
        return torch.stack([torch.cat([part.whole() for part in parts]) for parts in self._parts])

    @property
    def dtype(self) -> torch.dtype:
        return self._parts[0][0].dtype

    def __getitem__(self, index: slice | tuple[slice, ...]) -> torch.Tensor:
        first, rows, *others = (*(index if isinstance(index, tuple) else (index,)), slice(None), slice(None))[:3]
        size = self._parts[0][0].num_rows
        begin, end, _ = rows.indices(size * len(self._parts[0]))
        wanted = [
            torch.cat(
                [
                    part[(slice(max(begin - place * size, 0), max(min(end - place * size, size), 0)), *others)]
                    for place, part in enumerate(parts)
                    if begin < (place + 1) * size and end > place * size
                ]
            )
            for parts in self._parts[first]
        ]
        columns = range(self._parts[0][0].num_columns)[others[0]]
        return torch.stack(wanted) if wanted else torch.empty(0, max(end - begin, 0), len(columns))
