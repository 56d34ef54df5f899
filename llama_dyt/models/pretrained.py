"""A model from existing weights, or one sentence on why not.

A folder is checked before it is read: transformers fills in what a checkpoint lacks and warns about what it has too
much, which for a run of weeks is an error found at the wrong end.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedModel

from llama_dyt.core.errors import CheckpointError, ConfigurationError
from llama_dyt.models.build import build_config, empty_model
from llama_dyt.models.grown_tensor import GrownTensor
from llama_dyt.models.initial_weights import InitialTensor
from llama_dyt.models.joined_tensors import ModelFiles
from llama_dyt.models.spec import family_of
from llama_dyt.norms.by_name import norm_of
from llama_dyt.norms.spec import NormSpec

SWAP_WARNING = "swapping norms in a pretrained checkpoint is an experiment"


def load_pretrained(
    path: str | Path,
    config: PretrainedConfig | None = None,
    *,
    norm: str | None = None,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> PreTrainedModel:
    """A model with the weights in a HF folder, on the CPU.

    Args:
        path: a folder with config.json and safetensors, of a family's own type or of one that it reads (a plain llama).
        config: the model to make; None: `build_config(path, norm, **overrides)`.
        norm: its name, None: the folder's own. Another than the folder's loads what the two have in common and starts
            the rest (alphas, the embedding scale) anew, with a warning.
        dtype: of the model, fp32 for training whatever the folder holds.

    Raises:
        CheckpointError: no such folder, a file missing, cut short or unreadable, a tensor missing, too many, or of
            another shape. The message names the file and the tensor.
    """
    path = Path(path).expanduser()
    with _opened(path, config, norm, overrides) as (config, _, added):
        pass
    try:
        model = family_of(config).load_causal_lm_class().from_pretrained(path, config=config, dtype=dtype)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: the weights cannot be loaded: {error}") from error
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if added and _is_weight_of_a_norm(name, config):
                parameter.add_(added)
    return model


@contextmanager
def read_pretrained(
    path: str | Path, config: PretrainedConfig, *, grown_from: int | None = None
) -> Iterator[Callable[[str], dict[str, Any]]]:
    """The same weights without a model: a context that gives `read(name) -> {"param": …}`, as `boosters.Boosted` takes.

    What it reads is indexed by slices, so a rank reads its own part alone. Raises as `load_pretrained`.

    Args:
        grown_from: rows of the vocabulary in the folder, where the config has more; new ones are their mean.
    """
    with _opened(Path(path).expanduser(), config, None, {}, grown_from) as (_, files, added):
        held = files.shapes()

        def read(name: str) -> dict[str, Any]:
            if added and name in files and _is_weight_of_a_norm(name, config):
                return {"param": _Shifted(files[name], added)}
            if name in files:
                grows = grown_from is not None and _has_grown(held[name][0], tuple(shapes[name]), grown_from)
                return {"param": GrownTensor(files[name], held[name][0], shapes[name][0]) if grows else files[name]}
            # Of a swapped norm, whose starting values are constants: no seed has a part in them.
            return {"param": InitialTensor(name, shapes[name], config, seed=0)}

        shapes = {name: parameter.shape for name, parameter in empty_model(config).named_parameters()}
        yield read


@contextmanager
def _opened(
    path: Path,
    config: PretrainedConfig | None,
    norm: str | None,
    overrides: dict[str, Any],
    grown_from: int | None = None,
) -> Iterator[tuple[PretrainedConfig, ModelFiles, float]]:
    """The config to load with, the open files, after both were found to fit, and what is to be added to the weights of
    norms, so that they multiply as they did."""
    _require_folder(path)
    try:
        own_norm = norm_of(build_config(path))
        if config is None:
            config = build_config(path, norm, **overrides)
    except ConfigurationError as error:
        raise CheckpointError(str(error)) from error
    swapped = own_norm.name != config.norm_type
    if swapped and own_norm.gate is not None:
        way = f"it becomes {own_norm.gate.becomes} by convert.py --norm {own_norm.gate.becomes}"
        raise CheckpointError(f"{path}: its norm is {own_norm.name}, and not to be exchanged; {way}")
    if swapped and norm_of(config).gate is not None:
        way = f"convert.py --norm {config.norm_type} --calibrate TEXT puts it there"
        raise CheckpointError(f"{path}: its norm is {own_norm.name}, and {config.norm_type} needs a fit; {way}")
    with ModelFiles(path, family_of(config)) as files:
        _compare(path, files.shapes(), config, own_norm, grown_from)
        if swapped:
            warnings.warn(f"{path}: {SWAP_WARNING} ({own_norm.name} to {config.norm_type})", UserWarning, stacklevel=4)
        yield config, files, own_norm.weight_offset - norm_of(config).weight_offset


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
    path: Path,
    shapes: dict[str, tuple[tuple[int, ...], Path]],
    config: PretrainedConfig,
    own_norm: NormSpec,
    grown_from: int | None = None,
) -> None:
    """Compare what the files hold with what the model needs.

    Args:
        own_norm: the one that the weights were trained with.
        grown_from: rows of the vocabulary that the files may have in place of the model's.
    """
    swapped = own_norm.name != config.norm_type
    model = empty_model(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in wanted.items():
        if name in shapes and shapes[name][0] != shape and not _has_grown(shapes[name][0], shape, grown_from):
            found, file = shapes[name]
            raise CheckpointError(
                f"{file}: {name} has shape {found} where the model has {shape}; it is a checkpoint of another size: "
                "give the config it was made with"
            )
    rotary = family_of(config).rotary  # folders of before transformers 4.32 hold its frequencies
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    missing = [name for name in wanted if name not in shapes and name not in tied]
    surplus = [name for name in shapes if name not in wanted and not name.endswith(f"{rotary}.inv_freq")]
    if swapped:
        missing = [name for name in missing if not _of_a_norm_alone(name, config, norm_of(config))]
        surplus = [name for name in surplus if not _of_a_norm_alone(name, config, own_norm)]
    if config.tie_word_embeddings:
        surplus = [name for name in surplus if name not in tied]
    for problem, names in (("the checkpoint lacks", missing), ("the model has no place for", surplus)):
        if names:
            rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"{path}: {problem} {names[0]}{rest}; config.json and the weights are not of one model (layers, "
                "biases, norm or embedding scale differ)"
            )


class _Shifted:
    """A tensor of a file, read by slices, with a number added."""

    def __init__(self, values: Any, added: float) -> None:
        self._values, self._added = values, added

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._values[index].float() + self._added


def _is_weight_of_a_norm(name: str, config: PretrainedConfig) -> bool:
    *_, owner, kind = ("", *name.split("."))
    return owner in config.norm_places and kind == "weight"


def _has_grown(held: tuple[int, ...], wanted: tuple[int, ...], grown_from: int | None) -> bool:
    """Whether a tensor has a row for each of a vocabulary, which has more in the model than in the files."""
    return held[:1] == (grown_from,) and held[0] < wanted[0] and held[1:] == wanted[1:]


def _of_a_norm_alone(name: str, config: PretrainedConfig, norm: NormSpec) -> bool:
    """Whether a tensor is the norm's own, or of what it needs: other norms have no such thing."""
    *_, owner, kind = ("", *name.split("."))
    return (owner in config.norm_places and kind in norm.own_parameters) or name == family_of(config).embedding_scale
