"""Meta's own files: `consolidated.NN.pth`, one a tensor-parallel rank, `params.json` and `tokenizer.model`.

Conventions read from Meta's released code (`llama/model.py` of LLaMA-2, Code Llama and Llama 3): outputs of wq, wk, wv,
w1, w3 and the head are divided by rows, inputs of wo and w2 by columns, norms are the same in every file. The
embedding is divided by columns up to Code Llama (ParallelEmbedding) and by rows since Llama 3
(VocabParallelEmbedding), which the shapes tell. Rotary positions pair neighbours (`convert.rotary`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_dyt.core.errors import CheckpointError, ConfigurationError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llama_dyt.convert.pieces import File, Recipe
    from llama_dyt.convert.source import Opened
    from llama_dyt.convert.target import Job
    from llama_dyt.convert.weights import Weights

_PARAMS = "params.json"
_TOKENIZER = "tokenizer.model"
_CHECKSUMS = "checklist.chk"
_FILE = re.compile(r"consolidated\.(\d\d)\.pth")
_COMPUTED = ("rope.freqs",)
"""Stands in LLaMA-1's files, and is computed."""
_LAYER = {
    "query": "attention.wq",
    "key": "attention.wk",
    "value": "attention.wv",
    "output": "attention.wo",
    "gate": "feed_forward.w1",
    "up": "feed_forward.w3",
    "down": "feed_forward.w2",
    "attention_norm": "attention_norm",
    "feed_forward_norm": "ffn_norm",
}
_MODEL = {"embedding": "tok_embeddings", "head": "output", "final_norm": "norm"}
_BY_COLUMNS = ("output", "down")
_TIKTOKEN_VOCABULARY = 100_000
"""Meta's vocabularies above it are Llama 3's, whose code divides the embedding by rows."""


def _files(folder: Path) -> list[File]:
    from llama_dyt.convert.pickles import tensors_in
    from llama_dyt.convert.pieces import File

    numbers = sorted(int(match[1]) for path in folder.iterdir() if (match := _FILE.fullmatch(path.name)))
    if not numbers:
        raise CheckpointError(f"{folder}: no consolidated.NN.pth in it; copy it again")
    # One that is missing in the middle; a missing last one shows in the shapes.
    paths = [folder / f"consolidated.{number:02d}.pth" for number in range(numbers[-1] + 1)]
    return [File(str(path), tensors_in(path)) for path in paths]


def _compare_checksums(folder: Path) -> str | None:
    """Compare the files with the MD5 sums that Meta's download has beside them; returns what was done, in words.

    Raises:
        CheckpointError: a file holds other bytes.
    """
    import hashlib

    sums = folder / _CHECKSUMS
    if not sums.is_file():
        return None
    listed = [line.split() for line in sums.read_text(encoding="utf-8").splitlines() if line.strip()]
    compared = 0
    for expected, name in (line for line in listed if len(line) == 2 and (folder / line[1]).is_file()):
        with open(folder / name, "rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != expected.lower():
            raise CheckpointError(
                f"{folder / name} holds other bytes than {sums} says (MD5 {found}, not {expected}); copy it again"
            )
        compared += 1
    return f"{compared} files are as {_CHECKSUMS} says"


def _recipes(config: Any, files: list[File], tied: bool) -> dict[str, Recipe]:
    from llama_dyt.convert.decoder import llama, parts_of
    from llama_dyt.convert.pieces import Recipe
    from llama_dyt.convert.rotary import halves_from_neighbours

    parts, head_dim = parts_of(llama()), config.head_dim
    hidden, wide = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    turned = partial(halves_from_neighbours, head_dim=head_dim)
    shapes = {
        "query": (queries, hidden),
        "key": (keys, hidden),
        "value": (keys, hidden),
        "output": (hidden, queries),
        "gate": (wide, hidden),
        "up": (wide, hidden),
        "down": (hidden, wide),
    }
    if keys // head_dim % len(files):
        raise CheckpointError(
            f"{files[0].name}: {config.num_key_value_heads} key and value heads do not divide among {len(files)} "
            "files; are all files there, and no others?"
        )
    vocabulary = (config.vocab_size, hidden)
    recipes = {
        f"{parts.embedding}.weight": Recipe(f"{_MODEL['embedding']}.weight", vocabulary, _embedding_dim(files, hidden)),
        f"{parts.final_norm}.weight": Recipe(f"{_MODEL['final_norm']}.weight", (hidden,), None),
    }
    if not tied:
        recipes[f"{parts.head}.weight"] = Recipe(f"{_MODEL['head']}.weight", vocabulary, 0)
    for number in range(config.num_hidden_layers):
        for part, name in _LAYER.items():
            source, ours = f"layers.{number}.{name}.weight", f"{parts.layer(number, getattr(parts, part))}.weight"
            if part not in shapes:
                recipes[ours] = Recipe(source, (hidden,), None)
            elif part in ("query", "key"):
                recipes[ours] = Recipe(source, shapes[part], 0, turned)
            else:
                recipes[ours] = Recipe(source, shapes[part], 1 if part in _BY_COLUMNS else 0)
    return recipes


def _embedding_dim(files: list[File], hidden: int) -> int:
    found = files[0].tensors.get(f"{_MODEL['embedding']}.weight")
    return 0 if found is not None and found.dim() == 2 and found.shape[1] == hidden else 1


def _rows(files: list[File]) -> tuple[int, bool]:
    """(rows of the vocabulary, whether the head is the embedding)."""
    import torch

    embedding, head = (files[0].tensors.get(f"{_MODEL[part]}.weight") for part in ("embedding", "head"))
    if head is not None:
        # Llama 3.2's small models, in one file, have it twice.
        tied = len(files) == 1 and embedding is not None and torch.equal(embedding, head)
        return head.shape[0] * len(files), tied
    if embedding is None:
        raise CheckpointError(f"{files[0].name}: {_MODEL['embedding']}.weight is missing; is it a LLaMA of Meta's?")
    if len(files) > 1:
        raise CheckpointError(f"{files[0].name}: {_MODEL['head']}.weight is missing; copy it again")
    return embedding.shape[0], True


def _logits(config: Any, files: list[File], embedding_dim: int, tied: bool, input_ids: Tensor, dtype: Any) -> Tensor:
    import torch

    from llama_dyt.convert.reference import Reference, root_mean_square, turn_neighbours

    columns = tuple(f"{_LAYER[part]}.weight" for part in _BY_COLUMNS)

    def read(name: str) -> Tensor:
        pieces = [file.tensors[f"{name}.weight"] for file in files]
        if pieces[0].dim() == 1:
            return pieces[0].to(dtype)
        dim = embedding_dim if name == _MODEL["embedding"] else 1 if f"{name}.weight".endswith(columns) else 0
        return torch.cat(pieces, dim).to(dtype)

    names = _LAYER | _MODEL
    if tied:
        names["head"] = names["embedding"]
    return Reference(
        config,
        read,
        names,
        layer=lambda number: f"layers.{number}.",
        rotate=turn_neighbours,
        norm=lambda x, name: root_mean_square(x, read(name), config.rms_norm_eps),
    ).logits(input_ids)


class Meta:
    name, in_words, order = "meta", "a model in Meta's own files", 1
    files = "consolidated.NN.pth, params.json and tokenizer.model"
    takes_config = False
    dtype, divided = None, True

    # --- read --------------------------------------------------------------------------------------------------------

    def matches(self, path: Path) -> bool:
        return path.is_dir() and (path / _PARAMS).is_file() and any(map(_FILE.fullmatch, _names(path)))

    @contextmanager
    def open(self, path: Path, config: str | None) -> Iterator[Opened]:
        from llama_dyt.convert.hf_config import config_of
        from llama_dyt.convert.meta_figures import figures
        from llama_dyt.convert.pieces import put_together
        from llama_dyt.convert.source import Opened
        from llama_dyt.convert.tiktoken_file import is_tiktoken, load_tiktoken

        files = _files(path)
        rows, tied = _rows(files)
        try:
            model = config_of(figures(path / _PARAMS, rows))
        except ConfigurationError as error:
            raise CheckpointError(f"{path / _PARAMS}: {'; '.join(error.problems)}") from error
        compared = _compare_checksums(path)
        notes = [] if compared is None else [compared]
        notes += [f"{_PARAMS} tells no length: taken as trained on {model.max_position_embeddings} positions"]
        if tied:
            model.tie_word_embeddings = True
            notes.append("the head is the embedding (tied)")
        recipes = _recipes(model, files, tied)
        ignored = (*_COMPUTED, f"{_MODEL['head']}.weight") if tied else _COMPUTED
        weights = put_together(model, recipes, files, _PARAMS, ignored=lambda name: name in ignored)
        dim = _embedding_dim(files, model.hidden_size)
        # Meta's downloads have the tokenizer beside the folders of the sizes.
        tokenizer = next((p / _TOKENIZER for p in (path, path.parent) if (p / _TOKENIZER).is_file()), None)
        load = None
        if tokenizer is not None and is_tiktoken(tokenizer):
            load = partial(load_tiktoken, tokenizer, model.rope_parameters["rope_type"] != "default")
        yield Opened(
            weights, partial(_logits, model, files, dim, tied), tokenizer, load_tokenizer=load, notes=tuple(notes)
        )

    # --- write -------------------------------------------------------------------------------------------------------

    def problems(self, weights: Weights, num_shards: int) -> list[str]:
        from llama_dyt.convert.decoder import llama
        from llama_dyt.convert.meta_figures import SCALED_ROPE
        from llama_dyt.models import family_of
        from llama_dyt.models.saved_config import plain_config

        config = weights.config
        if family_of(config) is not llama() or plain_config(config) is None:
            what = f"a {family_of(config).in_words} with norm {config.norm_type}"
            return [f"--to meta: Meta's code knows plain LLaMAs alone, and this is {what}"]
        found = []
        if any(name.endswith(".bias") for name in weights.stored):
            found.append("--to meta: Meta's code has no biases, and this model has some")
        if config.head_dim * config.num_attention_heads != config.hidden_size:
            found.append(f"--to meta: heads of {config.head_dim} are not hidden_size by num_attention_heads there")
        if config.hidden_act != "silu":
            found.append(f"--to meta: Meta's code has SiLU alone, and this model {config.hidden_act}")
        rope = config.rope_parameters
        if rope["rope_type"] not in ("default", "llama3"):
            found.append(f"--to meta: Meta's code has no rotary scaling of the kind {rope['rope_type']}")
        if rope["rope_type"] == "llama3" and any(rope[key] != value for key, value in SCALED_ROPE.items()):
            known = ", ".join(f"{key} {value:g}" for key, value in SCALED_ROPE.items())
            found.append(f"--to meta: Meta's code has one rotary scaling, of {known}")
        counts = {
            "key and value heads": config.num_key_value_heads,
            "feed-forward units": config.intermediate_size,
            "entries of the vocabulary": config.vocab_size,
        }
        found += [
            f"--shards {num_shards} does not divide the {count} {what}"
            for what, count in counts.items()
            if count % num_shards
        ]
        return found

    def write(self, job: Job, folder: Path) -> dict[str, str]:
        import shutil

        from llama_dyt.convert.meta_figures import params_of
        from llama_dyt.convert.pth_writer import write_pth
        from llama_dyt.core import files

        config, sums = job.weights.config, {}
        files.write_json(folder / _PARAMS, params_of(config))
        pieces = _pieces(job.weights, job.num_shards)
        for rank in range(job.num_shards):
            layout = {name: (piece.shape, piece.dtype) for name, piece in pieces.items()}
            name = f"consolidated.{rank:02d}.pth"
            sums[name] = write_pth(layout, lambda name, rank=rank: pieces[name].read(rank), folder / name)
        if (tokenizer := _own_tokenizer(job.tokenizer_files)) is not None:
            shutil.copyfile(tokenizer, folder / _TOKENIZER)
        return sums

    def logits(self, folder: Path, input_ids: Tensor, dtype: torch.dtype) -> Tensor:
        with self.open(folder, None) as written:
            return written.logits(input_ids, dtype)


def _names(path: Path) -> list[str]:
    return [file.name for file in path.iterdir()]


def _own_tokenizer(tokenizer: Path | None) -> Path | None:
    """The tokenizer's own model file, which is all that Meta's code reads."""
    if tokenizer is None:
        return None
    from llama_dyt.convert.hf_model import ORIGINAL

    places = (tokenizer / _TOKENIZER, tokenizer / ORIGINAL) if tokenizer.is_dir() else (tokenizer,)
    return next((place for place in places if place.is_file() and place.suffix == ".model"), None)


class _Piece:
    """A tensor of which every file has a part, by Meta's name."""

    def __init__(self, weights: Weights, ours: str, dim: int | None, num_shards: int, head_dim: int | None) -> None:
        self._weights, self._ours, self._dim, self._head_dim = weights, ours, dim, head_dim
        stored = weights.stored[ours]
        self.dtype, shape = stored.dtype, list(stored.shape)
        if dim is not None:
            shape[dim] //= num_shards
        self.shape = tuple(shape)

    def read(self, rank: int) -> Tensor:
        from llama_dyt.convert.rotary import neighbours_from_halves

        whole = self._weights.read(self._ours)
        part = (
            whole if self._dim is None else whole.narrow(self._dim, rank * self.shape[self._dim], self.shape[self._dim])
        )
        return part if self._head_dim is None else neighbours_from_halves(part, self._head_dim)


def _pieces(weights: Weights, num_shards: int) -> dict[str, _Piece]:
    from llama_dyt.convert.decoder import llama, parts_of

    config, parts = weights.config, parts_of(llama())
    by_rows = config.vocab_size > _TIKTOKEN_VOCABULARY
    head = parts.embedding if config.tie_word_embeddings else parts.head
    of_model = {
        "embedding": (parts.embedding, 0 if by_rows else 1),
        "final_norm": (parts.final_norm, None),
        "head": (head, 0),
    }
    found = {
        f"{_MODEL[part]}.weight": _Piece(weights, f"{ours}.weight", dim, num_shards, None)
        for part, (ours, dim) in of_model.items()
    }
    for number in range(config.num_hidden_layers):
        for part, name in _LAYER.items():
            dim = None if part.endswith("norm") else 1 if part in _BY_COLUMNS else 0
            ours = f"{parts.layer(number, getattr(parts, part))}.weight"
            head_dim = config.head_dim if part in ("query", "key") else None
            found[f"layers.{number}.{name}.weight"] = _Piece(weights, ours, dim, num_shards, head_dim)
    return found


SOURCE = TARGET = Meta()
