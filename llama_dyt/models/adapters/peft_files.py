"""An adapter in a folder, as peft writes and reads it: adapter_config.json and adapter_model.safetensors.

What is in the tensors decides where an adapter sits and how large it is there; the config says the rest, and has to be
one whose every word is understood here: what peft would do and this program would not is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from llama_dyt.core import files
from llama_dyt.core.errors import CheckpointError
from llama_dyt.models.adapters.adapter import HIGH, LOW, MAGNITUDE, Adapter, Place, owner_of
from llama_dyt.models.adapters.choosing import adaptable
from llama_dyt.models.tensor_files import StoredTensor, TensorFiles

CONFIG_FILE = "adapter_config.json"
STEM = "adapter_model"
PREFIX = "base_model.model."
"""Of peft's names: its wrapper, and in it the one of its kind of adapter."""

_HARMLESS = (None, False, "none", {}, [])
_REFUSED = (
    "bias",
    "lora_bias",
    "fan_in_fan_out",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
"""Fields of a LoraConfig that make another adapter of it, where they are set."""
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to start that leave the base's weights as they are; others (pissa, olora, …) change them."""


class AdapterFiles:
    """The open tensors of a folder, by the names of the model's parameters; a context, as `TensorFiles` is."""

    def __init__(self, folder: Path) -> None:
        self._files = TensorFiles(folder, STEM)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape. peft also writes the weights of an embedding that the adapter sits in: those are the base's."""
        found = {name.removeprefix(PREFIX): shape for name, (shape, _) in self._files.shapes().items()}
        return {name: shape for name, shape in found.items() if ".base_layer." not in name}

    def __getitem__(self, name: str) -> StoredTensor:
        return self._files[PREFIX + name]

    def read(self, name: str) -> Mapping[str, StoredTensor]:
        """As `boosters.Boosted` reads."""
        return {"param": self[name]}

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> AdapterFiles:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def read_adapter(folder: Path, model: nn.Module, dropout: float | None = None) -> Adapter:
    """The adapter in a folder, found to fit a model.

    Args:
        model: the causal LM it is to sit in, on any device.
        dropout: of the training to come; None: the folder's own.

    Raises:
        CheckpointError: a file is missing or damaged, the config is of an adapter that cannot be used here, or the
            tensors are of another model; what is wrong is named.
    """
    config = _read_config(folder)
    with AdapterFiles(folder) as stored:
        shapes = stored.shapes()
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    modules = adaptable(model)
    ranks = {owner_of(name)[0]: shape[0] for name, shape in shapes.items() if name.endswith(LOW)}
    if not ranks:
        raise CheckpointError(f"{folder}: {STEM}.safetensors holds no tensor of an adapter; make the adapter anew")
    use_dora, own_dropout = bool(config.get("use_dora")), float(config.get("lora_dropout") or 0.0)
    places = {
        name: Place(rank, _scaling(config, name, rank), own_dropout if dropout is None else dropout, use_dora)
        for name, rank in ranks.items()
    }
    wanted: dict[str, tuple[int, ...]] = {}
    for name, place in places.items():
        if name not in modules:
            raise _of_another(folder, f"an adapter of {name}, which is no linear layer or embedding of this model")
        wanted |= _shapes_in(name, modules[name], place)
    whole = {name for name in shapes if owner_of(name) is None}
    for name in shapes:
        if name not in wanted and name not in own:
            raise _of_another(folder, f"a tensor {name}, which this model has no place for")
    for name, shape in (wanted | {name: own[name] for name in whole}).items():
        if name not in shapes:
            raise CheckpointError(f"{folder}: {STEM}.safetensors lacks {name}; copy it again")
        if shapes[name] != shape:
            raise _of_another(folder, f"{name} of shape {list(shapes[name])} where this model has {list(shape)}")
    config = {**config, "lora_dropout": own_dropout if dropout is None else dropout}
    return Adapter(places, frozenset(whole), config)


def write_config(adapter: Adapter, folder: Path, base: str) -> None:
    """Write adapter_config.json. `base`: the folder or hub name of the weights that the adapter sits beside."""
    config = {**adapter.config, "base_model_name_or_path": base, "inference_mode": True}
    files.write_text(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")


def base_of(folder: Path) -> str | None:
    """The weights that an adapter was trained beside, as its config names them."""
    return _read_config(folder).get("base_model_name_or_path")


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise CheckpointError(f"{folder}: no {CONFIG_FILE} in it; give a folder that peft or this program saved")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = config.get("peft_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); copy it again") from error
    if kind != "LORA":
        raise CheckpointError(
            f"{file}: peft_type is {kind}; adapters that can be used here are LORA, with DoRA or rsLoRA"
        )
    for name in _REFUSED:
        value = config.get(name)
        if value not in _HARMLESS:
            raise CheckpointError(
                f"{file}: {name} is {json.dumps(value)}, which cannot be used here; merge it with peft"
            )
    start = config.get("init_lora_weights", True)
    if start not in _STARTS:
        raise CheckpointError(
            f"{file}: init_lora_weights is {json.dumps(start)}, which changes the base's weights: have peft convert "
            "it (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    return config


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():  # as `peft.utils.get_pattern_key` looks
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _shapes_in(name: str, module: nn.Module, place: Place) -> dict[str, tuple[int, ...]]:
    outputs, inputs = module.weight.shape
    linear = isinstance(module, nn.Linear)
    if not linear:
        outputs, inputs = inputs, outputs
    kind = 0 if linear else 1
    shapes = {f"{name}.{LOW[kind]}": (place.rank, inputs), f"{name}.{HIGH[kind]}": (outputs, place.rank)}
    return shapes | ({f"{name}.{MAGNITUDE}": (outputs,)} if place.use_dora else {})


def _of_another(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{folder} holds {what}: it was made for another model; give the base it was trained with")
