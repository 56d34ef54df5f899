"""Fine-tuning batches: loss on completions, or the assistant's turns, alone; one example a sequence, or several.

Examples, unlike pretraining's text, are read once, shuffled each epoch, and padded. Of several in one sequence each
sees itself alone and has the positions that it would have by itself, so they learn as they would one by one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.sources import TextSource
from llama_dyt.data.loaders.example_store import Example
from llama_dyt.data.loaders.examples import Examples, TooLong, read_examples
from llama_dyt.data.loaders.packed import check_lengths
from llama_dyt.data.loaders.packing import Packs
from llama_dyt.data.loaders.step import IGNORE_INDEX, BatchShape, MicroBatch, Prefetcher, Step, make_micro_batch
from llama_dyt.data.order.permutation import Permutation
from llama_dyt.data.tokenizing.prompt_encoding import recognises_special_tokens
from llama_dyt.data.tokenizing.tokenizer import tokenizer_fingerprint

_PAD_MULTIPLE = 8  # tensor cores like lengths that are multiples of 8
_PERMUTATION, _NUMPY = "permutation", "numpy"
"""What orders an epoch, as a position names it; one without a name was made when numpy did."""
_FORMER_MARKS = {"rule for special tokens": "text", "rule for too long examples": str(TooLong()), "packing": "none"}
"""Of positions of before these could be chosen."""


class InstructionBatches(Prefetcher):
    """Iterates the steps of a fine-tuning run for one data-parallel rank; interface of `loader.TokenBatches`.

    Each epoch walks a permutation of the examples that depends on the seed and the epoch only; epochs run on into each
    other, and the very last global batch is filled up with rows that carry no loss. A run whose position was made when
    numpy shuffled the epochs goes on in that order.

    Args:
        source: records as `read_examples` takes them.
        too_long: what becomes of examples longer than max_length; None cuts them at the right.
        pack: put several examples into one sequence.
        pad_to_max_length: pad every row to max_length (pipelines want one shape), not to the micro batch's longest.

    Attributes:
        examples: what was read (`Examples`), for reporting what was cut and dropped.
        num_sequences: of an epoch; as many as examples, fewer where they are packed.
        num_steps: optimizer steps of the whole run from its start.
    """

    def __init__(
        self,
        source: TextSource,
        tokenizer,
        max_length: int,
        shape: BatchShape,
        num_epochs: int = 1,
        state: dict | None = None,
        *,
        seed: int = 42,
        too_long: TooLong | None = None,
        pack: bool = False,
        pad_to_max_length: bool = False,
        prefetch: int = 2,
    ):
        check_lengths(tokenizer, max_length)
        marks = {
            "dataset": source.fingerprint,
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "rule for special tokens": "recognised" if recognises_special_tokens(tokenizer) else "text",
            "seed": seed,
            "max_length": max_length,
            "rule for too long examples": str(too_long or TooLong()),
            "packing": "best fit" if pack else "none",
            "chat template": _digest(tokenizer),
        }
        if state is not None and state["dataset"] == source.former_fingerprint:
            raise DataError(
                "the checkpoint was trained on what --validation_fraction left when single examples were held out; now "
                "all examples of a prompt are, which leaves others: start a new run with --model_path"
            )
        _check_marks(state, marks)
        self.examples = read_examples(source, tokenizer, max_length, too_long)
        packs = Packs(self.examples.examples.lengths(), max_length) if pack else None
        self.num_sequences = len(packs if packs is not None else self.examples.examples)
        self.num_steps = -(-self.num_sequences * num_epochs // shape.global_rows)
        fixed_length = max_length if pad_to_max_length else None
        # Not the pad token: one that a config adds can lie behind the model's vocabulary. Nothing looks at padding.
        maker = _Maker(self.examples, shape, max_length, fixed_length, tokenizer.eos_token_id, marks, packs)
        start = {"order": _NUMPY, **state} if state else {"order": _PERMUTATION, "examples": 0, "tokens": 0}
        super().__init__(lambda: maker.steps(num_epochs, start), prefetch)


def _check_marks(state: dict | None, marks: dict) -> None:
    if state is None:
        return
    state = {"chat template": marks["chat template"]} | _FORMER_MARKS | state
    changed = [name for name, value in marks.items() if state[name] != value]
    if changed:
        raise DataError(
            f"the data position in the checkpoint belongs to another {' and '.join(changed)}; restore what the run "
            "began with to resume, or start a new run with --model_path"
        )


def _digest(tokenizer: Any) -> str:
    """Of its chat template."""
    template = getattr(tokenizer, "chat_template", None)
    return "none" if template is None else hashlib.sha256(repr(template).encode()).hexdigest()[:16]


class _ExampleOrder:
    """Which example comes when in the endless sequence of shuffled epochs.

    Args:
        kind: _PERMUTATION, or _NUMPY for a run that began with it.
        count: examples of an epoch.
    """

    def __init__(self, kind: str, count: int, seed: int):
        self._kind, self._count, self._seed = kind, count, seed
        self._epoch: tuple[int, Callable[[np.ndarray], np.ndarray]] | None = None

    def examples(self, first: int, last: int) -> np.ndarray:
        """The numbers, int64, of the examples that come as number first to last - 1."""
        chosen = []
        while first < last:
            epoch, place = divmod(first, self._count)
            stop = min(place + last - first, self._count)
            chosen.append(self._order_of(epoch)(np.arange(place, stop)))
            first += stop - place
        return np.concatenate(chosen)

    def _order_of(self, epoch: int) -> Callable[[np.ndarray], np.ndarray]:
        if self._epoch is None or self._epoch[0] != epoch:
            if self._kind == _NUMPY:
                # RandomState, because numpy promises that its streams never change between versions.
                order = np.random.RandomState([self._seed, epoch]).permutation(self._count).__getitem__
            else:
                order = Permutation(self._count, self._seed, "examples", epoch)
            self._epoch = epoch, order
        return self._epoch[1]


@dataclass(frozen=True)
class _Maker:
    """Makes steps; holds no reference to the loader, whose thread must not keep it alive."""

    examples: Examples
    shape: BatchShape
    max_length: int
    fixed_length: int | None
    pad: int
    marks: dict
    packs: Packs | None = None

    def steps(self, num_epochs: int, start: dict) -> Iterator[Step]:
        count = len(self.examples.examples if self.packs is None else self.packs)
        order = _ExampleOrder(start["order"], count, self.marks["seed"])
        tokens_seen = start["tokens"]
        first, end = start["examples"], count * num_epochs
        size, own = self.shape.batch_size, self.shape.own_rows
        while first < end:
            last = min(first + self.shape.global_rows, end)
            chosen = order.examples(first, last)
            rows = [self._examples_of(number) for number in chosen[own].tolist()]
            rows += [[]] * (self.shape.rows - len(rows))
            batches = [self._collate(rows[i : i + size]) for i in range(0, len(rows), size)]
            packed = chosen if self.packs is None else np.concatenate([self.packs[number] for number in chosen])
            num_tokens, labelled = self.examples.examples.sizes(packed)
            tokens_seen += num_tokens
            first = last
            position = {"order": start["order"], "examples": first, "epoch": first // count, "tokens": tokens_seen}
            yield Step(batches, labelled, num_tokens, position | self.marks, self.examples.num_bad_lines)

    def _examples_of(self, number: int) -> list[Example]:
        """What is in a sequence."""
        examples = self.examples.examples
        return [examples[one] for one in ([number] if self.packs is None else self.packs[number].tolist())]

    def _collate(self, rows: list[list[Example]]) -> MicroBatch:
        longest = max(1, *(sum(len(example.tokens) for example in row) for row in rows))
        length = self.fixed_length or min(-(-longest // _PAD_MULTIPLE) * _PAD_MULTIPLE, self.max_length)
        input_ids = np.full((len(rows), length), self.pad, np.int64)
        labels = np.full((len(rows), length), IGNORE_INDEX, np.int64)
        documents = np.zeros((len(rows), length), np.int64)
        positions = np.tile(np.arange(length), (len(rows), 1))
        for row, examples in enumerate(rows):
            start = 0
            for number, example in enumerate(examples):
                stop = start + len(example.tokens)
                input_ids[row, start:stop] = example.tokens
                labels[row, start:stop] = np.where(example.learned, example.tokens, IGNORE_INDEX)
                if number:  # nothing of its own comes before its first token
                    labels[row, start] = IGNORE_INDEX
                # Padding behind the last counts as one more document.
                documents[row, stop:] = number + 1
                positions[row, stop:] = np.arange(length - stop)
                start = stop
        batch = make_micro_batch(input_ids, labels)
        if self.packs is not None:
            batch |= {"document_ids": torch.from_numpy(documents), "position_ids": torch.from_numpy(positions)}
        return batch
