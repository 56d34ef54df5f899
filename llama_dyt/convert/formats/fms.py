"""fms-fsdp's checkpoints: a folder of torch.distributed.checkpoint (`step_N_ckp`), or one file `step_N_ckp.pth`.

Conventions read from foundation-model-stack (`fms/models/llama.py`, `fms/modules/attention.py`, `feedforward.py`) and
from fms-fsdp's own `fms_to_hf_llama.py`: queries, keys and values are rows of one matrix, one block behind the other,
and so are gate and up; older checkpoints have them apart. Rotary positions pair neighbours, as Meta's. The embedding
and head are `base_model.embedding` and `head`, before that `shared.emb` and `shared.head`. A compiled model's names
begin with `_orig_mod.`. Nothing in the files tells the number of heads, the rotary base or the length: `--config` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_dyt.core.errors import CheckpointError, ConfigurationError
from llama_dyt.core.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor

    from llama_dyt.convert.source import Opened

_STATE = "model_state"
_COMPILED = "_orig_mod."
_VARIANTS = {"llama2_34b": {"rope_theta": 1e6, "max_position_embeddings": 16384}}
"""fms-fsdp's variants that are not the published size of that name (`config_utils.py`)."""
_SHORT = "_4k"
"""Ends the names of variants of Llama 3 that are trained on 4,096 positions."""
_LAYER_NORMS = {"attention_norm": "ln", "feed_forward_norm": "ff_ln"}
_QUERY_KEY_VALUE, _GATE_UP = "attn.in_proj.qkv_fused", "ff_sub_layer.wg1_fused"
_APART = (
    {"query": "attn.in_proj.query", "key": "attn.in_proj.key", "value": "attn.in_proj.value"},
    {"query": "attn.query", "key": "attn.key", "value": "attn.value"},
)
_GATE_UP_APART = {"gate": "ff_sub_layer.wg", "up": "ff_sub_layer.w1"}


@dataclass(frozen=True)
class State:
    """A checkpoint's tensors, by their names without what wrappers put before them."""

    where: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, Any]
    read: Callable[[str], Tensor]
    """(name) → the tensor; mapped, where the file can be: a part of it costs a part."""


def _checkpoint(path: Path) -> Path | None:
    """The folder or file that a path means: itself, or the newest of a folder of checkpoints."""
    if path.is_file():
        return path if path.suffix == ".pth" else None
    if not path.is_dir():
        return None
    if (path / ".metadata").is_file():
        return path
    for folder in (path / "checkpoints", path):
        found = list(folder.glob("step_*_ckp")) + list(folder.glob("step_*_ckp.pth"))
        steps = {entry: int(entry.name.split("_")[1]) for entry in found if entry.name.split("_")[1].isdecimal()}
        if steps:
            return max(steps, key=steps.get)
    return None


def _open_state(path: Path) -> State:
    found = _checkpoint(path)
    if found is None:
        raise CheckpointError(f"{path}: no step_N_ckp folder and no step_N_ckp.pth in it; give one")
    if found.is_file():
        from llama_dyt.convert.pickles import tensors_in

        tensors = tensors_in(found, _STATE)
        names = {name.removeprefix(_COMPILED): name for name in tensors}
        return State(
            str(found),
            {name: tuple(tensors[own].shape) for name, own in names.items()},
            {name: tensors[own].dtype for name, own in names.items()},
            lambda name: tensors[names[name]],
        )
    from llama_dyt.convert.distributed_checkpoint import CheckpointFolder

    folder = CheckpointFolder(found)
    prefix = f"{_STATE}."
    names = {own.removeprefix(prefix).removeprefix(_COMPILED): own for own in folder.shapes if own.startswith(prefix)}
    if not names:
        raise CheckpointError(f"{found} has no {_STATE!r}; is it a checkpoint of fms-fsdp's?")
    return State(
        str(found),
        {name: folder.shapes[own] for name, own in names.items()},
        {name: folder.dtypes[own] for name, own in names.items()},
        lambda name: folder.read(names[name]),
    )


def _config(name: str | None, norm: str, variants: Mapping[str, Any]) -> Any:
    from llama_dyt.convert.decoder import llama
    from llama_dyt.models import build_config, family_of

    if name is None:
        reason = "is needed: these files do not tell the number of heads, the rotary base and the length"
        remedy = "give the run's --model_variant (llama2_7b), or a config.json with the figures"
        raise ConfigurationError(Problem("config", None, reason, remedy, clause=True))
    plain = name.lower().replace("-", "_")
    fields = dict(variants.get(plain.removesuffix(_SHORT), {}))
    if plain.endswith(_SHORT):
        plain, fields["max_position_embeddings"] = plain.removesuffix(_SHORT), 4096
    config = build_config(name if Path(name).exists() else plain, norm, **fields)
    if family_of(config) is not llama():
        raise ConfigurationError(Problem("config", name, f"it is a {family_of(config).in_words}, and these are LLaMAs"))
    return config


class Fms:
    name, in_words, order = "fms", "a checkpoint of fms-fsdp's", 5
    files = "step_N_ckp or step_N_ckp.pth, and --config"
    takes_config = True
    norm = "rmsnorm"
    norm_parameters: tuple[str, ...] = ("weight",)
    variants: Mapping[str, Any] = _VARIANTS

    def matches(self, path: Path) -> bool:
        return _checkpoint(path) is not None and self.recognises(_open_state(path).shapes)

    def recognises(self, names: Mapping[str, Any]) -> bool:
        return any(name.endswith(f".{_LAYER_NORMS['attention_norm']}.weight") for name in names)

    @contextmanager
    def open(self, path: Path, config: str | None) -> Iterator[Opened]:
        from llama_dyt.convert.source import Opened
        from llama_dyt.convert.weights import Weights

        state = _open_state(path)
        model = _config(config, self.norm, self.variants)
        reading = self.reading(model, state)
        stored = {name: reading.stored(name) for name in reading.takes}
        surplus = [name for name in state.shapes if name not in reading.used]
        if surplus:
            raise CheckpointError(f"{state.where}: {surplus[0]} has no place in the model of --config {config}")
        weights = Weights(model, stored, reading.read)
        yield Opened(weights, partial(self.logits_of, model, reading))

    def reading(self, model: Any, state: State) -> Reading:
        """Where in the files each of the model's parameters is."""
        from llama_dyt.convert.decoder import llama, parts_of

        parts, head_dim = parts_of(llama()), model.head_dim
        base = "base_model." if any(name.startswith("base_model.") for name in state.shapes) else ""
        queries, keys = model.num_attention_heads * head_dim, model.num_key_value_heads * head_dim
        wide = model.intermediate_size
        reading = Reading(state, head_dim)
        vocabulary = (model.vocab_size, model.hidden_size)
        embedding, head = ("embedding", "head") if base else ("shared.emb", "shared.head")
        reading.add(f"{parts.embedding}.weight", f"{base}{embedding}.weight", vocabulary)
        if not model.tie_word_embeddings:
            reading.add(f"{parts.head}.weight", f"{head}.weight", vocabulary)
        norms = {parts.final_norm: f"{base}dec_norm"}
        for number in range(model.num_hidden_layers):
            layer = f"{base}layers.{number}."
            at = {part: parts.layer(number, getattr(parts, part)) for part in ("query", "key", "value", "gate", "up")}
            rows = {"query": queries, "key": keys, "value": keys}
            self._add_block(reading, at, rows, layer, _QUERY_KEY_VALUE, _APART, turned=("query", "key"))
            self._add_block(reading, at, {"gate": wide, "up": wide}, layer, _GATE_UP, (_GATE_UP_APART,))
            output, down = parts.layer(number, parts.output), parts.layer(number, parts.down)
            reading.add(f"{output}.weight", f"{layer}attn.dense.weight", (model.hidden_size, queries))
            reading.add(f"{down}.weight", f"{layer}ff_sub_layer.w2.weight", (model.hidden_size, wide))
            norms |= {
                parts.layer(number, getattr(parts, part)): f"{layer}{name}" for part, name in _LAYER_NORMS.items()
            }
        for ours, theirs in norms.items():
            for parameter in self.norm_parameters:
                shape = (model.hidden_size,) if parameter == "weight" else (1,)
                reading.add(f"{ours}.{parameter}", f"{theirs}.{parameter}", shape)
        return reading

    def _add_block(
        self,
        reading: Reading,
        at: Mapping[str, str],
        rows: Mapping[str, int],
        layer: str,
        fused: str,
        apart: tuple[Mapping[str, str], ...],
        turned: tuple[str, ...] = (),
    ) -> None:
        """Matrices that are blocks of rows of one, or stand apart under one of several names."""
        shapes, columns = reading.state.shapes, None
        whole = f"{layer}{fused}.weight"
        own = next((names for names in apart if f"{layer}{next(iter(names.values()))}.weight" in shapes), None)
        begin = 0
        for part, count in rows.items():
            source = whole if own is None else f"{layer}{own[part]}.weight"
            columns = reading.columns(source)
            first = begin if own is None else 0
            shape = (sum(rows.values()), columns) if own is None else (count, columns)
            reading.add(f"{at[part]}.weight", source, shape, slice(first, first + count), turned=part in turned)
            begin += count

    def logits_of(self, model: Any, reading: Reading, input_ids: Tensor, dtype: Any) -> Tensor:
        from llama_dyt.convert.decoder import llama, parts_of
        from llama_dyt.convert.reference import Reference, turn_neighbours

        parts = parts_of(llama())
        in_layer = ("query", "key", "value", "output", "gate", "up", "down", *_LAYER_NORMS)
        names = {part: getattr(parts, part) for part in (*in_layer, "embedding", "head", "final_norm")}
        if model.tie_word_embeddings:
            names["head"] = names["embedding"]
        return Reference(
            model,
            lambda name: reading.unturned(f"{name}.weight").to(dtype),
            names,
            layer=lambda number: f"{parts.layer_prefix}{number}.",
            rotate=turn_neighbours,
            norm=lambda x, name: self.norm_of(model, reading, dtype, x, name),
            scale=lambda: self.scale_of(reading, parts.scale, dtype),
        ).logits(input_ids)

    def norm_of(self, model: Any, reading: Reading, dtype: Any, x: Tensor, name: str) -> Tensor:
        from llama_dyt.convert.reference import root_mean_square

        return root_mean_square(x, reading.unturned(f"{name}.weight").to(dtype), model.rms_norm_eps)

    def scale_of(self, reading: Reading, name: str, dtype: Any) -> float:
        return 1.0


class Reading:
    """Which rows of which tensor in the files each parameter is."""

    def __init__(self, state: State, head_dim: int) -> None:
        self.state = state
        self.takes: dict[str, tuple[str, tuple[int, ...], slice | None, bool]] = {}
        self.used: set[str] = set()
        self._head_dim = head_dim

    def columns(self, source: str) -> int:
        shape = self.state.shapes.get(source)
        if shape is None or len(shape) != 2:
            raise CheckpointError(f"{self.state.where}: {source} is missing; is it of another family, or size?")
        return shape[1]

    def add(
        self, ours: str, source: str, shape: tuple[int, ...], rows: slice | None = None, *, turned: bool = False
    ) -> None:
        """One parameter.

        Args:
            shape: of the tensor in the files.
            rows: of it, that are ours; None: all.
            turned: its rows stand in the order of neighbours.

        Raises:
            CheckpointError: it is not there, or of another shape.
        """
        found = self.state.shapes.get(source)
        if found is None:
            raise CheckpointError(f"{self.state.where}: {source} is missing; is it of another family, or size?")
        if found != shape:
            raise CheckpointError(
                f"{self.state.where}: {source} has shape {list(found)} where the figures of --config make it "
                f"{list(shape)}"
            )
        self.used.add(source)
        self.takes[ours] = (source, shape, rows, turned)

    def stored(self, ours: str) -> Any:
        from llama_dyt.convert.weights import Stored

        source, shape, rows, _ = self.takes[ours]
        if rows is not None:
            shape = (rows.stop - rows.start, *shape[1:])
        return Stored(shape, self.state.dtypes[source], f"{self.state.where}: {source}")

    def unturned(self, ours: str) -> Tensor:
        """A parameter with its rows as they stand in the files."""
        source, _, rows, _ = self.takes[ours]
        whole = self.state.read(source)
        return whole if rows is None else whole[rows]

    def read(self, ours: str) -> Tensor:
        """A parameter as our model has it."""
        from llama_dyt.convert.rotary import halves_from_neighbours

        part = self.unturned(ours)
        return halves_from_neighbours(part, self._head_dim) if self.takes[ours][3] else part.clone()


SOURCE = Fms()
