"""The DyT authors' LLaMA checkpoints: fms-fsdp's, with `alpha` beside each norm's weight and `shared_scale` behind the
embedding (`other_tasks/LLaMA/fms_fsdp/models/llama.py` of github.com/jiachenzhu/DyT). `--config` takes the run's
`--model_variant`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llama_dyt.convert.formats.fms import Fms, Reading, State

if TYPE_CHECKING:
    from torch import Tensor

_SCALE = "shared_scale"


class DytAuthors(Fms):
    name, in_words, order = "dyt_authors", "a checkpoint of the DyT authors' program", 4
    norm = "dyt"
    norm_parameters = ("weight", "alpha")
    variants: Mapping[str, Any] = {}

    def recognises(self, names: Mapping[str, Any]) -> bool:
        return _SCALE in names and super().recognises(names)

    def reading(self, model: Any, state: State) -> Reading:
        from llama_dyt.convert.decoder import llama, parts_of

        reading = super().reading(model, state)
        reading.add(parts_of(llama()).scale, _SCALE, (1,))
        return reading

    def norm_of(self, model: Any, reading: Reading, dtype: Any, x: Tensor, name: str) -> Tensor:
        import torch

        alpha, weight = (reading.unturned(f"{name}.{part}").to(dtype).float() for part in ("alpha", "weight"))
        return weight * torch.tanh(alpha * x)

    def scale_of(self, reading: Reading, name: str, dtype: Any) -> float:
        return float(reading.unturned(name).to(dtype))


SOURCE = DytAuthors()
