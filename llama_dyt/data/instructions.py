"""Fine-tuning batches: prompt and completion pairs, loss on the completion and its EOS only, one example a sequence.

Its own file because examples, unlike packed text, are read whole, shuffled each epoch, and padded.
Prompt and completion are tokenized apart, so the prompt's tokens are exactly what a user's prompt gives at generation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llama_dyt.data.loader import check_lengths
from llama_dyt.data.sources import Source, open_source
from llama_dyt.data.step import IGNORED, BatchShape, Prefetcher, Step, make_micro_batch
from llama_dyt.data.tokenizer import encode_batch, tokenizer_fingerprint
from llama_dyt.errors import DataError

FIELDS = ("prompt", "completion")
_PAD_MULTIPLE = 8  # tensor cores like lengths that are multiples of 8
_BATCH_EXAMPLES = 512


@dataclass(frozen=True)
class Example:
    """[BOS] + prompt + completion + [EOS], cut at max_length; the first `num_prompt` tokens carry no loss."""

    tokens: np.ndarray
    num_prompt: int

    @property
    def num_label_tokens(self) -> int:
        """Targets: the completion's tokens, except one that nothing precedes."""
        return len(self.tokens) - max(self.num_prompt, 1)


@dataclass(frozen=True)
class Examples:
    """All examples that can be learned from, and how many were cut, dropped (no completion left) or unusable lines."""

    examples: list[Example]
    num_truncated: int
    num_dropped: int
    num_bad_lines: int


def read_examples(source: Source, tokenizer, max_length: int) -> Examples:
    """Reads and tokenizes every example of a source.

    One longer than max_length loses its end (then there is no EOS: the model shall not learn to stop there). If nothing
    of its completion is left it is dropped.

    Raises:
        DataError: unusable records (see `sources`), or no example that can be learned from.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    head = np.array([] if bos is None else [bos], np.int32)
    kept: list[Example] = []
    truncated = dropped = 0
    pairs = [values for values, _ in source.iterate()]
    for first in range(0, len(pairs), _BATCH_EXAMPLES):
        batch = pairs[first : first + _BATCH_EXAMPLES]
        prompts = encode_batch(tokenizer, [prompt for prompt, _ in batch])
        completions = encode_batch(tokenizer, [completion for _, completion in batch])
        for prompt, completion in zip(prompts, completions, strict=True):
            tokens = np.concatenate((head, prompt, completion, np.array([eos], np.int32)))
            example = Example(tokens[:max_length], len(head) + len(prompt))
            if not len(completion) or example.num_label_tokens <= 0:
                dropped += 1
                continue
            truncated += len(tokens) > max_length
            kept.append(example)
    if not kept:
        raise DataError(
            f"no example to learn from: of {len(pairs)}, {dropped} have no completion within "
            f"--max_length {max_length}; raise it, or check the dataset"
        )
    return Examples(kept, truncated, dropped, source.bad_lines)


class InstructionBatches(Prefetcher):
    """Iterates the steps of a fine-tuning run for one data-parallel rank; interface of `loader.TokenBatches`.

    Each epoch walks a permutation of the examples that depends on the seed and the epoch only; epochs run on into each
    other, and the very last global batch is filled up with rows that carry no loss.

    Args:
        dataset: what `-d` names (fields `prompt` and `completion`), or an open Source with these fields.
        task: configuration of a hub dataset (`--task_name`).
        pad_to_max_length: pad every row to max_length (pipelines want one shape), not to the micro batch's longest.

    Attributes:
        examples: what was read (`Examples`), for reporting what was cut and dropped.
        num_steps: optimizer steps of the whole run from its start.
    """

    def __init__(
        self,
        dataset: str | Source,
        tokenizer,
        max_length: int,
        batch_size: int,
        accumulation: int = 1,
        dp_rank: int = 0,
        dp_size: int = 1,
        num_epochs: int = 1,
        state: dict | None = None,
        *,
        seed: int = 42,
        task: str | None = None,
        pad_to_max_length: bool = False,
        skip_bad_lines: bool = False,
        prefetch: int = 2,
    ):
        check_lengths(tokenizer, max_length)
        source = dataset
        if not hasattr(dataset, "iterate"):
            source = open_source(dataset, FIELDS, task=task, skip_bad_lines=skip_bad_lines)
        marks = {
            "dataset": source.fingerprint,
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "seed": seed,
            "max_length": max_length,
        }
        _check_marks(state, marks)
        self.examples = read_examples(source, tokenizer, max_length)
        shape = BatchShape(batch_size, accumulation, dp_rank, dp_size)
        self.num_steps = -(-len(self.examples.examples) * num_epochs // shape.global_rows)
        fixed_length = max_length if pad_to_max_length else None
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        maker = _Maker(self.examples, shape, max_length, fixed_length, pad, marks)
        start = state or {"examples": 0, "tokens": 0}
        super().__init__(lambda: maker.steps(num_epochs, start), prefetch)


def _check_marks(state: dict | None, marks: dict) -> None:
    changed = [name for name, value in marks.items() if state is not None and state[name] != value]
    if changed:
        raise DataError(
            f"the data position in the checkpoint belongs to another {' and '.join(changed)}; restore what the run "
            "began with to resume, or start a new run with --model_path"
        )


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
        count = len(self.examples.examples)
        tokens_seen = start["tokens"]
        first, end = start["examples"], count * num_epochs
        while first < end:
            last = min(first + self.shape.global_rows, end)
            chosen = self._choose(first, last)
            rows: list[Example | None] = [*chosen, *[None] * (self.shape.global_rows - len(chosen))]
            own = rows[self.shape.own_rows]
            size = self.shape.batch_size
            batches = [self._collate(own[i : i + size]) for i in range(0, len(own), size)]
            num_tokens = sum(len(example.tokens) for example in chosen)
            tokens_seen += num_tokens
            first = last
            position = {"examples": first, "epoch": first // count, "tokens": tokens_seen, **self.marks}
            labelled = sum(example.num_label_tokens for example in chosen)
            yield Step(batches, labelled, num_tokens, position, self.examples.num_bad_lines)

    def _choose(self, first: int, last: int) -> list[Example]:
        """Examples number first to last - 1 of the endless sequence of shuffled epochs."""
        count = len(self.examples.examples)
        chosen = []
        while first < last:
            epoch, place = divmod(first, count)
            # RandomState, because numpy promises that its streams never change between versions.
            order = np.random.RandomState([self.marks["seed"], epoch]).permutation(count)
            part = order[place : place + last - first]
            chosen += [self.examples.examples[index] for index in part]
            first += len(part)
        return chosen

    def _collate(self, rows: list[Example | None]) -> dict:
        longest = max((len(example.tokens) for example in rows if example), default=1)
        length = self.fixed_length or min(-(-longest // _PAD_MULTIPLE) * _PAD_MULTIPLE, self.max_length)
        input_ids = np.full((len(rows), length), self.pad, np.int64)
        labels = np.full((len(rows), length), IGNORED, np.int64)
        for row, example in enumerate(rows):
            if example is not None:
                size = len(example.tokens)
                input_ids[row, :size] = example.tokens
                labels[row, example.num_prompt : size] = example.tokens[example.num_prompt :]
        return make_micro_batch(input_ids, labels)
