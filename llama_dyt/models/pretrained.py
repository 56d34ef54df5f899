"""A model from existing weights, or one sentence on why not.

Its own file because checking a folder before reading it is its own subject: transformers fills in what a checkpoint
lacks and warns about what it has too much, which for a run of weeks is an error found at the wrong end.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from llama_dyt.errors import CheckpointError, ConfigurationError
from llama_dyt.models.build import build_config, empty_model
from llama_dyt.models.configuration_llama_dyt import LlamaDytConfig
from llama_dyt.models.modeling_llama_dyt import LlamaDytForCausalLM

SWAP_WARNING = "swapping norms in a pretrained checkpoint is an experiment"


def load_pretrained(
    path: str | Path,
    config: LlamaDytConfig | None = None,
    *,
    norm: str | None = None,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> LlamaDytForCausalLM:
    """A model with the weights in a HF folder, on the CPU.

    Args:
        path: a folder with config.json and safetensors: one of ours, or a plain llama.
        config: the model to make; None: `build_config(path, norm, **overrides)`.
        norm: "dyt" or "rmsnorm", None: the folder's own. Another than the folder's loads what the two have in common
            and starts the alphas (and the embedding scale) anew, with a warning.
        dtype: of the model, fp32 for training whatever the folder holds.

    Raises:
        CheckpointError: no such folder, a file missing, cut short or unreadable, a tensor missing, too many, or of
            another shape. The message names the file and the tensor.
    """
    path = Path(path).expanduser()
    _require_folder(path)
    try:
        own_norm = build_config(path).norm_type
        if config is None:
            config = build_config(path, norm, **overrides)
    except ConfigurationError as error:
        raise CheckpointError(str(error)) from error
    swapped = own_norm != config.norm_type
    _compare(path, read_shapes(path), config, swapped=swapped)
    if swapped:
        warnings.warn(f"{path}: {SWAP_WARNING} ({own_norm} to {config.norm_type})", UserWarning, stacklevel=2)
    try:
        return LlamaDytForCausalLM.from_pretrained(path, config=config, dtype=dtype)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: the weights cannot be loaded: {error}") from error


def read_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], Path]]:
    """Tensor name → (shape, file) of a HF folder, from the files' headers; no weights are read.

    Raises:
        CheckpointError: there are no safetensors, one named in the index is missing, or one is cut short.
    """
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: not an index of safetensors ({error}); copy it again") from error
        files = [path / name for name in names]
    else:
        files = [path / "model.safetensors"]
    for file in files:
        if not file.is_file():
            older = any(path.glob("pytorch_model*.bin"))
            remedy = "it holds pytorch_model.bin only: convert it to safetensors first" if older else "copy it again"
            raise CheckpointError(f"{path}: {file.name} is missing; {remedy}")
    shapes: dict[str, tuple[tuple[int, ...], Path]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (it is no dict and has no __iter__)
                    shapes[name] = (tuple(tensors.get_slice(name).get_shape()), file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: unreadable or cut short ({file.stat().st_size} bytes: {error}); copy it again, or use an "
                "earlier checkpoint"
            ) from error
    return shapes


def _require_folder(path: Path) -> None:
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder; give one that holds config.json and model.safetensors")
    if not path.is_dir():
        raise CheckpointError(f"{path}: not a folder; give the one that holds config.json and model.safetensors")
    if not (path / "config.json").is_file():
        inner = path / "model" / "config.json"
        hint = f"did you mean {inner.parent}?" if inner.is_file() else "is it a HuggingFace model?"
        raise CheckpointError(f"{path}: no config.json in it; {hint}")


def _compare(
    path: Path, shapes: dict[str, tuple[tuple[int, ...], Path]], config: LlamaDytConfig, *, swapped: bool
) -> None:
    """Compare what the files hold with what the model needs."""
    model = empty_model(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in wanted.items():
        if name in shapes and shapes[name][0] != shape:
            found, file = shapes[name]
            raise CheckpointError(
                f"{file}: {name} has shape {found} where the model has {shape}; it is a checkpoint of another size: "
                "give the config it was made with"
            )
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    missing = [name for name in wanted if name not in shapes and name not in tied]
    surplus = [name for name in shapes if name not in wanted and not name.endswith("rotary_emb.inv_freq")]
    if swapped:
        missing = [name for name in missing if not _of_dyt_alone(name)]
        surplus = [name for name in surplus if not _of_dyt_alone(name)]
    if config.tie_word_embeddings:
        surplus = [name for name in surplus if name not in tied]
    for problem, names in (("the checkpoint lacks", missing), ("the model has no place for", surplus)):
        if names:
            rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"{path}: {problem} {names[0]}{rest}; config.json and the weights are not of one model (layers, "
                "biases, norm or embedding scale differ)"
            )


def _of_dyt_alone(name: str) -> bool:
    return name.endswith((".alpha", "embed_tokens.scale"))
