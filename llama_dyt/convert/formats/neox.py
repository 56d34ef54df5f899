"""GPT-NeoX' checkpoints of LLaMAs as Llemma was trained: tensor-parallel shards, merged.

`layer_XX-model_YY-model_states.pt` where the run had pipeline stages, else `mp_rank_YY_model_states.pt`. Conventions
read from GPT-NeoX at the commit that Llemma names (5dd3665) and its converters: layer 0 is the embedding, layers begin
at 2, the final norm and the head stand 3 and 4 behind their number. Queries, keys and values lie in one matrix, head
by head of the queries: its rows, then its share of the keys' and of the values' (with fewer heads of those, a part of
one). Rotary positions pair halves, as HuggingFace's.

GPT-NeoX since September 2024 writes the feed-forward block as `linear1` and has had two layouts of that one matrix
under the same names, which files do not tell apart; such a checkpoint is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_dyt.core.errors import CheckpointError, ConfigurationError
from llama_dyt.core.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor

    from llama_dyt.convert.pieces import File, Recipe
    from llama_dyt.convert.source import Opened

_LAYER_FILE = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
_RANK_FILE = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_SEQUENTIAL = "sequential."
_COMPUTED = (".inv_freq", ".bias_mask", ".masked_bias")
_QUERY_KEY_VALUE = "attention.query_key_value.weight"
_NEWER = "mlp.linear1.weight"
_EMBEDDING, _FINAL_NORM, _HEAD = "0.word_embeddings.weight", "norm.scale", "final_linear.weight"
_LAYER = {
    "output": "attention.dense.weight",
    "gate": "mlp.w1.weight",
    "up": "mlp.w3.weight",
    "down": "mlp.w2.weight",
    "attention_norm": "input_layernorm.scale",
    "feed_forward_norm": "post_attention_layernorm.scale",
}
_FIRST_LAYER = 2


def _folder(path: Path) -> Path:
    """The folder with the files: itself, or the one that `latest` names."""
    latest = path / "latest"
    return path / latest.read_text(encoding="utf-8").strip() if latest.is_file() else path


def _names(path: Path) -> list[str]:
    return sorted(entry.name for entry in _folder(path).iterdir()) if _folder(path).is_dir() else []


def _open_files(path: Path) -> list[File]:
    """What each tensor-parallel rank left, by names with the layer's number before them."""
    from llama_dyt.convert.pickles import tensors_in
    from llama_dyt.convert.pieces import File

    folder, names = _folder(path), _names(path)
    by_layer = [(int(match[2]), int(match[1]), name) for name in names if (match := _LAYER_FILE.fullmatch(name))]
    if by_layer:
        ranks, layers = max(rank for rank, _, _ in by_layer) + 1, sorted({layer for _, layer, _ in by_layer})
        files = []
        for rank in range(ranks):
            tensors = {}
            for layer in layers:
                file = folder / f"layer_{layer:02d}-model_{rank:02d}-model_states.pt"
                tensors |= {f"{layer}.{name}": tensor for name, tensor in tensors_in(file).items()}
            files.append(File(f"{folder}/layer_*-model_{rank:02d}-model_states.pt", tensors))
        return files
    ranks = [int(match[1]) for name in names if (match := _RANK_FILE.fullmatch(name))]
    if not ranks:
        raise CheckpointError(f"{folder}: no layer_XX-model_YY-model_states.pt and no mp_rank_YY_model_states.pt in it")
    files = []
    for rank in range(max(ranks) + 1):
        file = folder / f"mp_rank_{rank:02d}_model_states.pt"
        tensors = {name.removeprefix(_SEQUENTIAL): tensor for name, tensor in tensors_in(file, "module").items()}
        files.append(File(str(file), tensors))
    return files


def _read_yml(path: Path, config: str | None) -> tuple[dict[str, Any], str]:
    """(the run's settings, with `_` in their names; where they stand): of --config, else of the files that GPT-NeoX
    keeps beside its checkpoints."""
    import yaml

    files = [Path(config)] if config is not None else sorted((_folder(path) / "configs").glob("*.yml"))
    if not files:
        reason = "is needed: there is no configs/*.yml beside these files"
        raise ConfigurationError(
            Problem("config", None, reason, "give the YML that the run was started with", clause=True)
        )
    settings: dict[str, Any] = {}
    for file in files:
        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{file} cannot be read as YAML: {reason}") from error
        if not isinstance(found, dict):
            raise CheckpointError(f"{file} holds no settings of GPT-NeoX")
        settings |= {str(key).replace("-", "_"): value for key, value in found.items()}
    return settings, ", ".join(map(str, files))


def _figures(settings: dict[str, Any], where: str, files: list[File]) -> dict[str, Any]:
    """Fields of a plain config.json."""
    from llama_dyt.convert.decoder import PLAIN
    from llama_dyt.convert.json_file import whole_number

    expected = {
        "norm": ("rmsnorm", None),
        "pos_emb": ("rotary", None),
        "rotary_pct": (1, 1),
        "gpt_j_residual": (False, False),
        "use_bias_in_norms": (False, None),
        "use_bias_in_attn_linear": (False, None),
    }
    for key, (needed, default) in expected.items():
        if settings.get(key, default) != needed:
            raise CheckpointError(
                f"{where}: {key} is {settings.get(key, default)!r}, and a LLaMA has {needed!r}; only LLaMAs are read"
            )
    embedding, gate = (files[0].tensors.get(name) for name in (_EMBEDDING, f"{_FIRST_LAYER}.{_LAYER['gate']}"))
    if f"{_FIRST_LAYER}.{_NEWER}" in files[0].tensors:
        raise CheckpointError(
            f"{files[0].name}: {_NEWER} is of GPT-NeoX since September 2024, whose query_key_value has had two layouts "
            "under one name: convert it with its own tools/ckpts/convert_neox_to_hf.py, and give the folder that makes"
        )
    if embedding is None or gate is None:
        missing = _EMBEDDING if embedding is None else f"{_FIRST_LAYER}.{_LAYER['gate']}"
        raise CheckpointError(f"{files[0].name}: {missing} is missing; is it a LLaMA of GPT-NeoX'?")
    path = Path(where)
    heads = whole_number(settings, "num_attention_heads", path)
    ranks = settings.get("model_parallel_size", len(files))
    if ranks != len(files):
        raise CheckpointError(f"{where}: model_parallel_size is {ranks}, and there are files of {len(files)} ranks")
    return {
        "model_type": PLAIN,
        "hidden_size": whole_number(settings, "hidden_size", path),
        "num_hidden_layers": whole_number(settings, "num_layers", path),
        "num_attention_heads": heads,
        "num_key_value_heads": settings.get("num_kv_heads") or heads,
        "intermediate_size": gate.shape[0] * len(files),
        "vocab_size": embedding.shape[0] * len(files),
        "max_position_embeddings": whole_number(settings, "max_position_embeddings", path),
        "rms_norm_eps": float(settings.get("rms_norm_epsilon", 1e-8)),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(settings.get("rotary_emb_base", 10_000))},
        "tie_word_embeddings": not settings.get("no_weight_tying", False),
    }


def _rows_of(config: Any, ranks: int, part: str) -> Callable[[Tensor], Tensor]:
    """What cuts queries, keys or values out of a rank's query_key_value."""
    head_dim, heads = config.head_dim, config.num_attention_heads // ranks
    share = head_dim * config.num_key_value_heads // config.num_attention_heads
    first = {"query": 0, "key": head_dim, "value": head_dim + share}[part]
    count = head_dim if part == "query" else share

    def take(piece: Tensor) -> Tensor:
        by_head = piece.view(heads, head_dim + 2 * share, piece.shape[1])
        return by_head[:, first : first + count].reshape(heads * count, piece.shape[1])

    return take


def _recipes(config: Any, ranks: int) -> dict[str, Recipe]:
    from llama_dyt.convert.decoder import llama, parts_of
    from llama_dyt.convert.pieces import Recipe

    parts = parts_of(llama())
    hidden, wide = config.hidden_size, config.intermediate_size
    queries, keys = (count * config.head_dim for count in (config.num_attention_heads, config.num_key_value_heads))
    vocabulary, last = (config.vocab_size, hidden), config.num_hidden_layers
    shapes = {"output": ((hidden, queries), 1), "gate": ((wide, hidden), 0), "up": ((wide, hidden), 0)}
    shapes |= {"down": ((hidden, wide), 1), "attention_norm": ((hidden,), None), "feed_forward_norm": ((hidden,), None)}
    recipes = {
        f"{parts.embedding}.weight": Recipe(_EMBEDDING, vocabulary, 0),
        f"{parts.final_norm}.weight": Recipe(f"{last + 3}.{_FINAL_NORM}", (hidden,), None),
    }
    if not config.tie_word_embeddings:
        recipes[f"{parts.head}.weight"] = Recipe(f"{last + 4}.{_HEAD}", vocabulary, 0)
    for number in range(config.num_hidden_layers):
        layer = f"{number + _FIRST_LAYER}."
        for part, name in _LAYER.items():
            shape, dim = shapes[part]
            recipes[f"{parts.layer(number, getattr(parts, part))}.weight"] = Recipe(f"{layer}{name}", shape, dim)
        for part in ("query", "key", "value"):
            ours, rows = f"{parts.layer(number, getattr(parts, part))}.weight", queries + 2 * keys
            recipes[ours] = Recipe(f"{layer}{_QUERY_KEY_VALUE}", (rows, hidden), 0, _rows_of(config, ranks, part))
    return recipes


def _logits(config: Any, files: list[File], input_ids: Tensor, dtype: Any) -> Tensor:
    import torch

    from llama_dyt.convert.reference import Reference, root_mean_square, turn_halves

    names = {**_LAYER, "query": "query", "key": "key", "value": "value"}
    names |= {"embedding": _EMBEDDING, "final_norm": f"{config.num_hidden_layers + 3}.{_FINAL_NORM}"}
    names["head"] = _EMBEDDING if config.tie_word_embeddings else f"{config.num_hidden_layers + 4}.{_HEAD}"

    def read(name: str) -> Tensor:
        layer, _, part = name.partition(".")
        if part in ("query", "key", "value"):
            # As the model's forward pass does it: a row of outputs, cut head by head, then seen as heads.
            heads = config.num_attention_heads // len(files)
            share = config.head_dim * config.num_key_value_heads // config.num_attention_heads
            cut = [config.head_dim, share, share]
            pieces = [file.tensors[f"{layer}.{_QUERY_KEY_VALUE}"].view(heads, sum(cut), -1) for file in files]
            place = ("query", "key", "value").index(part)
            return torch.cat([piece.split(cut, 1)[place].flatten(0, 1) for piece in pieces]).to(dtype)
        pieces = [file.tensors[name] for file in files]
        if pieces[0].dim() == 1:
            return pieces[0].to(dtype)
        return torch.cat(pieces, 1 if part in (_LAYER["output"], _LAYER["down"]) else 0).to(dtype)

    return Reference(
        config,
        read,
        names,
        layer=lambda number: f"{number + _FIRST_LAYER}.",
        rotate=turn_halves,
        norm=lambda x, name: root_mean_square(x, read(name), config.rms_norm_eps),
    ).logits(input_ids)


class NeoX:
    name, in_words, order = "neox", "a checkpoint of GPT-NeoX'", 3
    files = "layer_XX-model_YY-model_states.pt or mp_rank_YY_model_states.pt"
    takes_config = True

    def matches(self, path: Path) -> bool:
        return path.is_dir() and any(_LAYER_FILE.fullmatch(name) or _RANK_FILE.fullmatch(name) for name in _names(path))

    @contextmanager
    def open(self, path: Path, config: str | None) -> Iterator[Opened]:
        from llama_dyt.convert.hf_config import config_of
        from llama_dyt.convert.pieces import put_together
        from llama_dyt.convert.source import Opened

        settings, where = _read_yml(path, config)
        files = _open_files(path)
        try:
            model = config_of(_figures(settings, where, files))
        except ConfigurationError as error:
            raise CheckpointError(f"{where}: {'; '.join(error.problems)}") from error
        heads, key_value_heads = model.num_attention_heads, model.num_key_value_heads
        if heads % len(files) or key_value_heads % len(files) or model.head_dim * key_value_heads % heads:
            raise CheckpointError(
                f"{where}: {heads} heads, {key_value_heads} of keys and values, on {len(files)} ranks"
            )
        weights = put_together(model, _recipes(model, len(files)), files, where, lambda name: name.endswith(_COMPUTED))
        note = (
            "GPT-NeoX adds epsilon to the root of the mean square and HuggingFace to the mean square itself: outputs "
            f"of norms can differ by a share of up to {model.rms_norm_eps:g}"
        )
        yield Opened(weights, partial(_logits, model, files), notes=(note,))


SOURCE = NeoX()
