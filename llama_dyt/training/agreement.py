"""What all ranks of a run must have resolved alike before it starts: everything that changes numbers.

Each rank reads flags, checkpoint, data and code for itself, on a machine of its own. A rank with an older checkpoint (a
folder on the node's own disk, a stale network cache) or another file of text would train along and be wrong in silence.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llama_dyt.config.run import all_options
from llama_dyt.core import extensions
from llama_dyt.core.code import FOLDER, code_digest
from llama_dyt.core.ranks import Fact
from llama_dyt.core.store import at
from llama_dyt.data.opening import open_sources
from llama_dyt.data.tokenizing.tokenizer import tokenizer_fingerprint
from llama_dyt.data.validation_sets import open_training
from llama_dyt.training.checkpoint.marker import MARKER
from llama_dyt.training.plan import Plan

_OF_ONE_RANK = ("dry_run", "dry_run_processes", "num_workers", "timeout", "import")
"""Flags that change no numbers; what paths lead to, and what imported modules hold, is compared instead."""
_PACKAGES = ("torch", "transformers", "colossalai")


def facts_of(plan: Plan) -> dict[str, Fact]:
    """Name → what this rank resolved; for `ranks.agree`. It reads no data: names, sizes and manifests only."""
    left_out = {*_OF_ONE_RANK, *(option.name for option in all_options() if option.path)}
    return {
        "the checkpoint": _checkpoint(plan),
        **{f"--{name}": Fact(repr(value)) for name, value in plan.run.flags().items() if name not in left_out},
        **{f"--import {module.name}": Fact(module.sha256[:16], module.file) for module in extensions.loaded()},
        **{
            f"the model's {name}": Fact(json.dumps(value, sort_keys=True, default=str))
            for name, value in plan.model_config.to_dict().items()
            if name != "_name_or_path"
        },
        "the attention function": Fact(str(plan.model_config._attn_implementation)),
        "the weights": _weights(plan.weights_folder),
        "the teacher": _weights(plan.teacher_folder),
        "the adapter": _adapter(plan),
        "the tokenizer": Fact(tokenizer_fingerprint(plan.tokenizer) if plan.tokenizer is not None else "none"),
        **_data(plan),
        **_code(),
    }


def _checkpoint(plan: Plan) -> Fact:
    checkpoint = plan.checkpoint
    if checkpoint is None:
        return Fact("none, a start at step 0", f"--save_dir {_absolute(plan.run.run.save_dir)}")
    marker = _digest((checkpoint.path / MARKER).read_bytes())
    return Fact(f"step {checkpoint.step}, marker {marker}", _absolute(checkpoint.path))


def _weights(folder: Path | None) -> Fact:
    if folder is None:
        return Fact("none")
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json") and path.is_file())
    listing = [
        (path.name, path.stat().st_size, _digest(path.read_bytes()) if path.suffix == ".json" else "") for path in files
    ]
    return Fact(_digest(repr(listing).encode()), _absolute(folder))


def _adapter(plan: Plan) -> Fact:
    if plan.adapter is None:
        return Fact("none")
    asked = repr((sorted(plan.adapter.places.items()), sorted(plan.adapter.whole)))
    folder, content = plan.adapter_folder, b""
    if folder is not None:
        content = b"".join(file.read_bytes() for file in sorted(folder.glob("adapter_*")))
    return Fact(_digest(asked.encode() + content), _absolute(folder))


def _data(plan: Plan) -> dict[str, Fact]:
    """The sources that are trained and validated on, each by its fingerprint."""
    if plan.dataset is None:
        return {}
    facts, where = {}, _absolute(plan.dataset) if os.path.exists(plan.dataset) else plan.dataset
    if plan.run.kind == "finetune":
        source = open_training(plan.dataset, plan.run.validation.validation_fraction, plan.read_options)
        facts["the data"] = Fact(source.fingerprint, where)
    else:
        for source in open_sources(plan.dataset, plan.tokenizer, plan.loader_options):
            course = (
                f"{source.fingerprint}, weight {source.weight}, epochs {source.num_epochs}, shuffle {source.shuffle}"
            )
            facts[f"the data {source.name}".rstrip()] = Fact(course, where)
    for chosen in plan.validation:
        facts[f"the validation set {chosen.name}"] = Fact(chosen.open(plan.read_options).fingerprint, chosen.dataset)
    return facts


def _code() -> dict[str, Fact]:
    versions = {f"the version of {package}": Fact(version(package)) for package in _PACKAGES}
    return {"the code of llama_dyt": Fact(code_digest(), str(FOLDER)), **versions}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _absolute(path: Any) -> str:
    return str(at(str(path)).absolute()) if path is not None else "none"
