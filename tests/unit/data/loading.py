"""Loaders made with few words, for the tests of the data layer."""

from llama_dyt.data.formats.sources import ReadOptions, TextSource
from llama_dyt.data.loaders.instructions import InstructionBatches
from llama_dyt.data.loaders.packed import StepCount, TokenBatches, count_steps
from llama_dyt.data.loaders.step import BatchShape
from llama_dyt.data.opening import LoaderOptions, open_data
from llama_dyt.data.tokenizing.encode import encode_batch

PAIR = ReadOptions(fields=("prompt", "completion"))


def loader_options(skip_bad_lines=False, text_field="text", **options) -> LoaderOptions:
    return LoaderOptions(read=ReadOptions(fields=(text_field,), skip_bad_lines=skip_bad_lines), **options)


def token_batches(
    dataset,
    tokenizer,
    max_length,
    batch_size,
    accumulation=1,
    dp_rank=0,
    dp_size=1,
    num_epochs=1,
    state=None,
    *,
    prefetch=2,
    **options,
) -> TokenBatches:
    shape = BatchShape(batch_size, accumulation, dp_rank, dp_size)
    options = loader_options(num_epochs=num_epochs, **options)
    return TokenBatches(dataset, tokenizer, max_length, shape, options, state, prefetch)


def counted(
    dataset, tokenizer, max_length, batch_size, accumulation=1, dp_size=1, num_epochs=1, **options
) -> StepCount:
    options = loader_options(num_epochs=num_epochs, **options)
    return count_steps(dataset, tokenizer, max_length, batch_size * accumulation * dp_size, options)


def instruction_batches(
    source, tokenizer, max_length, batch_size, accumulation=1, dp_rank=0, dp_size=1, num_epochs=1, state=None, **more
) -> InstructionBatches:
    shape = BatchShape(batch_size, accumulation, dp_rank, dp_size)
    return InstructionBatches(source, tokenizer, max_length, shape, num_epochs, state, **more)


class ListSource(TextSource):
    """Documents in memory; None is a bad line."""

    def __init__(self, texts):
        self.texts = texts
        self.fingerprint = f"list:{hash(tuple(texts))}"

    def iterate(self, position=None):
        start, self.bad_lines = (position["row"], position["bad_lines"]) if position else (0, 0)
        for row in range(start, len(self.texts)):
            if self.texts[row] is None:
                self.bad_lines += 1
            else:
                yield (self.texts[row],), {"row": row + 1, "bad_lines": self.bad_lines}


def open_text(dataset, skip_bad_lines=False, fields=("text",), **options) -> TextSource:
    return open_data(dataset, ReadOptions(fields=tuple(fields), skip_bad_lines=skip_bad_lines, **options))


def expected_stream(texts, tokenizer, num_epochs):
    """The definition: [BOS] + ids + [EOS] of every document that has text, epoch after epoch."""
    stream = []
    for text in texts:
        if text:
            ids = encode_batch(tokenizer, [text])[0].tolist()
            stream += [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return stream * num_epochs


def steps_of_all_ranks(source, tokenizer, max_length, batch_size, accumulation, dp_size, num_epochs, state=None):
    loaders = [
        token_batches(source, tokenizer, max_length, batch_size, accumulation, rank, dp_size, num_epochs, state)
        for rank in range(dp_size)
    ]
    # One rank after the other: each has a walk of its own, but this source's counter is one.
    return [list(loader) for loader in loaders]


def tokens_in_order(steps):
    """(input ids that are not filling, in the order of global sequences) of the steps of all ranks."""
    tokens = []
    for step in zip(*steps, strict=True):
        for rank in step:
            for batch in rank.micro_batches:
                real = batch["labels"] != -100
                assert (batch["labels"][real] == batch["input_ids"][real]).all()
                tokens += batch["input_ids"][real].tolist()
    return tokens
