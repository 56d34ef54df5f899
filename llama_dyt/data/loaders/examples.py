"""The examples of a fine-tuning run: read once, tokenized, and cut or left out where they are too long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.sources import TextSource
from llama_dyt.data.loaders.example_store import Example, ExampleStore
from llama_dyt.data.tokenizing.prompt_encoding import PromptEncoder

_BATCH_EXAMPLES = 512


@dataclass(frozen=True)
class TooLong:
    """What becomes of examples longer than a sequence.

    Attributes:
        drop: they are left out; otherwise they are cut.
        left: they lose their beginning, but for BOS; otherwise their end.
    """

    drop: bool = False
    left: bool = False

    def cut(self, example: Example, max_length: int, bos: int | None) -> Example:
        """What is kept of an example; at the right it loses its EOS: the model shall not learn to stop there."""
        size = len(example.tokens)
        if size <= max_length:
            return example
        kept = np.arange(size - max_length, size) if self.left else np.arange(max_length)
        if self.left and bos is not None and example.tokens[0] == bos:
            kept[0] = 0
        return Example(example.tokens[kept], example.learned[kept])

    def __str__(self) -> str:
        return "dropped" if self.drop else f"cut at the {'left' if self.left else 'right'}"


@dataclass(frozen=True)
class Examples:
    """All examples that can be learned from, and how many were cut, dropped (no completion left), unusable lines, or
    left out as too long."""

    examples: ExampleStore
    num_truncated: int
    num_dropped: int
    num_bad_lines: int
    num_too_long: int = 0


def read_examples(source: TextSource, tokenizer: Any, max_length: int, too_long: TooLong | None = None) -> Examples:
    """Reads and tokenizes every example of a source.

    One of whose targets nothing is left within max_length is dropped.

    Args:
        source: records of (prompt, completion), or of these and the `Tokens` of a conversation.

    Raises:
        DataError: unusable records (see `sources`), or no example that can be learned from.
    """
    encoder, rule = PromptEncoder(tokenizer), too_long or TooLong()
    kept = ExampleStore()
    read = truncated = dropped = left_out = 0
    records = (values for values, _ in source.iterate())
    while batch := list(islice(records, _BATCH_EXAMPLES)):
        read += len(batch)
        for example in _tokenized(encoder, batch):
            is_long = len(example.tokens) > max_length
            if is_long and rule.drop:
                left_out += 1
                continue
            example = rule.cut(example, max_length, tokenizer.bos_token_id)
            if example.num_label_tokens == 0:
                dropped += 1
                continue
            truncated += is_long
            kept.append(example)
    if not kept:
        what = f"{dropped} have no completion within --max_length {max_length}"
        what += f" and {left_out} are longer than that" if left_out else ""
        raise DataError(f"no example to learn from: of {read}, {what}; raise it, or check the dataset")
    kept.finish()
    return Examples(kept, truncated, dropped, source.bad_lines, left_out)


def _tokenized(encoder: PromptEncoder, batch: list[tuple[Any, ...]]) -> Iterator[Example]:
    """The examples of some records, in their order; one without a completion has no target."""
    texts = [values for values in batch if len(values) == 2]
    prompts = encoder.prompts([prompt for prompt, _ in texts])
    pairs = zip(prompts, encoder.completions([completion for _, completion in texts], prompts), strict=True)
    for values in batch:
        if len(values) > 2:
            yield Example(values[2].tokens, values[2].learned)
            continue
        prompt, completion = next(pairs)
        # EOS alone is nothing to learn.
        targets_from = len(prompt) if len(completion) > 1 else len(prompt) + 1
        yield Example.behind(np.concatenate((prompt, completion)), targets_from)
