"""Which adapter a run trains, and what the path of one leads to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import CheckpointError, ConfigurationError
from llama_dyt.core.problem import Problem
from llama_dyt.core.store import Location, at, store_of
from llama_dyt.models.adapters import Adapter, adapter_asked_for, read_adapter
from llama_dyt.models.adapters.peft_files import CONFIG_FILE
from llama_dyt.models.spec import family_of
from llama_dyt.training.checkpoint.contents import ADAPTER
from llama_dyt.training.checkpoint.marker import step_of
from llama_dyt.training.checkpoint.publishing import find_steps
from llama_dyt.training.checkpoint.reader import Checkpoint, find_checkpoint


def adapter_folder(path: str, flag: str = "adapter") -> Path:
    """The folder in peft's format that a path means: itself, a checkpoint's, or that of a --save_dir's newest one.

    Raises:
        CheckpointError, ConfigurationError: there is none.
    """
    folder = at(path, flag).expanduser()
    if (folder / CONFIG_FILE).is_file():
        return store_of(folder).local(folder)
    if any((folder / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")):
        raise CheckpointError(f"{folder}: no {CONFIG_FILE} in it; give a folder that peft or this program saved")
    if not folder.exists():
        raise CheckpointError(f"--{flag} {path}: no such folder; give one with an {CONFIG_FILE}, or an adapter's run")
    if step_of(folder.resolve()) is None and not find_steps(folder):
        reason = f"no {CONFIG_FILE} and no checkpoint in it"
        raise ConfigurationError(Problem(flag, path, reason, "give a folder that peft or this program saved"))
    found = find_checkpoint(path, folder, flag=f"--{flag}")
    if not holds_adapter(found):
        reason, remedy = f"{found} is a checkpoint of a whole model", "give it as --model_path"
        raise ConfigurationError(Problem(flag, path, reason, remedy))
    return store_of(found).local(found, f"{ADAPTER.folder}/") / ADAPTER.folder


def holds_adapter(folder: Location) -> bool:
    """Whether a folder is a checkpoint of an adapter's run, or one of peft's."""
    return any((folder / inner / CONFIG_FILE).is_file() for inner in (".", ADAPTER.folder))


def resolve_adapter(run: RunConfig, model: nn.Module) -> tuple[Adapter, Path | None]:
    """(the adapter that a run trains, the folder that it starts from), found to fit the model.

    Args:
        model: of the run, without it, on any device.

    Raises:
        CheckpointError, ConfigurationError: it cannot be.
    """
    settings = run.adapter
    folder = None if settings.adapter is None else adapter_folder(settings.adapter)
    if folder is None:
        adapter = adapter_asked_for(settings, model)
    else:
        adapter = read_adapter(folder, model, settings.lora_dropout)
    if run.booster.pp > 1:
        _require_every_layer(run, adapter, model)
    return adapter, folder


def _require_every_layer(run: RunConfig, adapter: Adapter, model: nn.Module) -> None:
    """Raises ConfigurationError unless every decoder layer has a part of the adapter: a pipeline's stage has to train
    something, and to give the ones before it a gradient."""
    family = family_of(model.config)
    for number in range(len(family.layers_of(model))):
        if not any(name.startswith(f"{family.layer_prefix}{number}.") for name in adapter.places):
            reason = f"a stage has to train something, and the adapter has nothing in layer {number}"
            remedy = "give --pp 1, or target modules of every layer"
            raise ConfigurationError(Problem("pp", run.booster.pp, reason, remedy, also=("lora_targets", "adapter")))


def require_same_adapter(checkpoint: Checkpoint, adapter: Adapter | None, model: nn.Module) -> None:
    """Raises CheckpointError unless a checkpoint that a run resumes from has the run's adapter, or both have none."""
    path = checkpoint.path
    if adapter is None and checkpoint.holds_adapter:
        raise CheckpointError(
            f"checkpoint {path} holds an adapter alone: give the --lora_rank or --adapter it was trained with"
        )
    if adapter is not None and not checkpoint.holds_adapter:
        raise CheckpointError(
            f"checkpoint {path} holds a whole model, and this run trains an adapter: to train one beside its weights "
            f"give --model_path {path} and a --save_dir of its own"
        )
    if adapter is None:
        return
    saved = read_adapter(store_of(path).local(path, f"{ADAPTER.folder}/") / ADAPTER.folder, model)
    plain = [{name: replace(place, dropout=0.0) for name, place in one.places.items()} for one in (saved, adapter)]
    if plain[0] != plain[1] or saved.whole != adapter.whole:
        raise CheckpointError(
            f"checkpoint {path} holds {saved.in_words}, this run asks for {adapter.in_words}; give the flags it was "
            "trained with (config.yaml beside it)"
        )
