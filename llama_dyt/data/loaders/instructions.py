"""Fine-tuning batches: prompt and completion pairs, loss on the completion and its EOS only, one example a sequence.

Examples, unlike packed text, are read once, shuffled each epoch, and padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.sources import TextSource
from llama_dyt.data.loaders.example_store import Example, ExampleStore
from llama_dyt.data.loaders.packed import check_lengths
from llama_dyt.data.loaders.step import IGNORE_INDEX, BatchShape, Prefetcher, Step, make_micro_batch
from llama_dyt.data.order.permutation import Permutation
from llama_dyt.data.tokenizing.prompt_encoding import PromptEncoder, recognises_special_tokens
from llama_dyt.data.tokenizing.tokenizer import tokenizer_fingerprint

_PAD_MULTIPLE = 8  # tensor cores like lengths that are multiples of 8
_BATCH_EXAMPLES = 512
_PERMUTATION, _NUMPY = "permutation", "numpy"
"""What orders an epoch, as a position names it; one without a name was made when numpy did."""


@dataclass(frozen=True)
class Examples:
    """All examples that can be learned from, and how many were cut, dropped (no completion left) or unusable lines."""

    examples: ExampleStore
    num_truncated: int
    num_dropped: int
    num_bad_lines: int


def read_examples(source: TextSource, tokenizer, max_length: int) -> Examples:
    """Reads and tokenizes every example of a source.

    One longer than max_length loses its end (then there is no EOS: the model shall not learn to stop there). If nothing
    of its completion is left it is dropped.

    Raises:
        DataError: unusable records (see `sources`), or no example that can be learned from.
    """
    encoder = PromptEncoder(tokenizer)
    kept = ExampleStore()
    read = truncated = dropped = 0
    pairs = (values for values, _ in source.iterate())
    while batch := list(islice(pairs, _BATCH_EXAMPLES)):
        read += len(batch)
        prompts = encoder.prompts([prompt for prompt, _ in batch])
        completions = encoder.completions([completion for _, completion in batch], prompts)
        for prompt, completion in zip(prompts, completions, strict=True):
            tokens = np.concatenate((prompt, completion))
            example = Example(tokens[:max_length], len(prompt))
            if len(completion) == 1 or example.num_label_tokens <= 0:  # EOS alone is nothing to learn
                dropped += 1
                continue
            truncated += len(tokens) > max_length
            kept.append(example)
    if not kept:
        raise DataError(
            f"no example to learn from: of {read}, {dropped} have no completion within "
            f"--max_length {max_length}; raise it, or check the dataset"
        )
    kept.finish()
    return Examples(kept, truncated, dropped, source.bad_lines)


class InstructionBatches(Prefetcher):
    """Iterates the steps of a fine-tuning run for one data-parallel rank; interface of `loader.TokenBatches`.

    Each epoch walks a permutation of the examples that depends on the seed and the epoch only; epochs run on into each
    other, and the very last global batch is filled up with rows that carry no loss. A run whose position was made when
    numpy shuffled the epochs goes on in that order.

    Args:
        source: records of two fields, the prompt and its completion.
        pad_to_max_length: pad every row to max_length (pipelines want one shape), not to the micro batch's longest.

    Attributes:
        examples: what was read (`Examples`), for reporting what was cut and dropped.
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
        }
        if state is not None and state["dataset"] == source.former_fingerprint:
            raise DataError(
                "the checkpoint was trained on what --validation_fraction left when single examples were held out; now "
                "all examples of a prompt are, which leaves others: start a new run with --model_path"
            )
        _check_marks(state, marks)
        self.examples = read_examples(source, tokenizer, max_length)
        self.num_steps = -(-len(self.examples.examples) * num_epochs // shape.global_rows)
        fixed_length = max_length if pad_to_max_length else None
        # Not the pad token: one that a config adds can lie behind the model's vocabulary. Nothing looks at padding.
        maker = _Maker(self.examples, shape, max_length, fixed_length, tokenizer.eos_token_id, marks)
        start = {"order": _NUMPY, **state} if state else {"order": _PERMUTATION, "examples": 0, "tokens": 0}
        super().__init__(lambda: maker.steps(num_epochs, start), prefetch)


def _check_marks(state: dict | None, marks: dict) -> None:
    if state is None:
        return
    state = {"rule for special tokens": "text"} | state  # positions of before it could be chosen say nothing of it
    changed = [name for name, value in marks.items() if state[name] != value]
    if changed:
        raise DataError(
            f"the data position in the checkpoint belongs to another {' and '.join(changed)}; restore what the run "
            "began with to resume, or start a new run with --model_path"
        )


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

    def steps(self, num_epochs: int, start: dict) -> Iterator[Step]:
        examples = self.examples.examples
        count, order = len(examples), _ExampleOrder(start["order"], len(examples), self.marks["seed"])
        tokens_seen = start["tokens"]
        first, end = start["examples"], count * num_epochs
        size, own = self.shape.batch_size, self.shape.own_rows
        while first < end:
            last = min(first + self.shape.global_rows, end)
            chosen = order.examples(first, last)
            rows: list[Example | None] = [examples[number] for number in chosen[own].tolist()]
            rows += [None] * (self.shape.rows - len(rows))
            batches = [self._collate(rows[i : i + size]) for i in range(0, len(rows), size)]
            num_tokens, labelled = examples.sizes(chosen)
            tokens_seen += num_tokens
            first = last
            position = {"order": start["order"], "examples": first, "epoch": first // count, "tokens": tokens_seen}
            yield Step(batches, labelled, num_tokens, position | self.marks, self.examples.num_bad_lines)

    def _collate(self, rows: list[Example | None]) -> dict:
        longest = max((len(example.tokens) for example in rows if example), default=1)
        length = self.fixed_length or min(-(-longest // _PAD_MULTIPLE) * _PAD_MULTIPLE, self.max_length)
        input_ids = np.full((len(rows), length), self.pad, np.int64)
        labels = np.full((len(rows), length), IGNORE_INDEX, np.int64)
        for row, example in enumerate(rows):
            if example is not None:
                size = len(example.tokens)
                input_ids[row, :size] = example.tokens
                labels[row, example.num_prompt : size] = example.tokens[example.num_prompt :]
        return make_micro_batch(input_ids, labels)
