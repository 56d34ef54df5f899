"""What is read, in which portions, and what is held out of it; and what is wrong with that.

What a dataset or a tokenizer holds is judged where it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llama_dyt.config.options import TRAINING, option
from llama_dyt.config.run import Owned, RunConfig
from llama_dyt.core.problem import Problem
from llama_dyt.data.formats.sources import SAMPLE
from llama_dyt.data.records.reader import AUTO, column_problems, shape_names

DEFAULT_TOKENIZER = "hf-internal-testing/llama-tokenizer"
"""The tokenizer where neither the run, its data nor its weights bring one: LLaMA's, as Colossal-AI's program has."""


@dataclass(frozen=True)
class DataSettings:
    """What is read, and in which portions."""

    dataset: str | None = option(
        "togethercomputer/RedPajama-Data-1T-Sample",
        "Text to train on: `sample` (built at once on this machine), a folder or glob of .jsonl, .jsonl.gz, "
        ".jsonl.zst or .parquet, a .csv or .json, the same in a store (s3://BUCKET/…), a list of addresses (.txt), a "
        "hub dataset in the default's form, or a mixture (.yaml).",
        short="-d",
        entries=TRAINING,
        defaults={"finetune": "yizhongw/self_instruct", "benchmark": None},
        metavar="NAME|PATH",
        path=True,
    )
    tokenizer: str | None = option(
        None,
        "Tokenizer: a folder, a SentencePiece .model file or a hub name. None takes the one that comes with "
        f"--model_path or with the sample corpus, else {DEFAULT_TOKENIZER}.",
        entries=TRAINING,
        metavar="PATH|HUB_NAME",
        path=True,
    )
    task_name: str | None = option(
        None,
        "Which part (configuration) of a hub dataset to read, such as en of allenai/c4, where it has several.",
        entries=TRAINING,
        defaults={"finetune": "super_natural_instructions"},
    )
    parse_special_tokens: bool | None = option(
        None,
        "Take special tokens written in the data for tokens, not text; saved with the model. None asks the tokenizer.",
        entries=("finetune",),
    )
    chat_template: str | None = option(
        None,
        "Chat template by which conversations become text, saved with the model: a file of jinja, or a name of one "
        "that is built in (chatml, which brings its tokens). None takes the tokenizer's own.",
        entries=("finetune",),
        metavar="FILE|NAME",
        path=True,
    )
    add_tokens: tuple[str, ...] = option(
        (),
        "A special token to add to the tokenizer, such as <|im_end|>; may be given several times. The embedding gets a "
        "row for each that it has none for, which starts as the mean of the others.",
        entries=("finetune",),
        metavar="TOKEN",
    )
    max_length: int = option(
        4096, "Sequence length, in tokens.", short="-l", spellings=("max_context_width",), metavar="TOKENS", at_least=2
    )
    batch_size: int = option(2, "Sequences a data-parallel rank takes at once.", short="-b", at_least=1)
    reset_position_ids: bool = option(
        False, "Count positions from 0 at each document of a packed sequence.", entries=("pretrain",)
    )
    reset_attention_mask: bool = option(
        False, "Keep attention within each document of a packed sequence.", entries=("pretrain",)
    )
    too_long: str = option(
        "cut",
        "What becomes of an example longer than --max_length: cut at --truncation_side, or drop.",
        choices=("cut", "drop"),
        entries=("finetune",),
    )
    truncation_side: str = option(
        "right",
        "Where a too long example is cut. right: it loses its end; left: its beginning, but for BOS.",
        choices=("right", "left"),
        entries=("finetune",),
    )
    pack: bool = option(
        False,
        "Put several short examples into one sequence, each seeing itself alone and counting positions from 0.",
        entries=("finetune",),
    )
    num_epochs: int = option(1, "Passes over the dataset.", short="-e", entries=TRAINING, at_least=1)
    shuffle: str = option(
        "none",
        "Order of the data. none: that of the files; documents or sequences: shuffled by --seed, anew in each epoch. "
        "Text is shuffled by documents only, --shuffle_buffer of them at a time.",
        choices=("none", "documents", "sequences"),
        entries=("pretrain",),
    )
    shuffle_buffer: int = option(
        2000, "Documents of text that are shuffled together.", entries=("pretrain",), metavar="DOCUMENTS", at_least=1
    )
    stream_shares: int = option(
        1,
        "Divide a dataset's files into so many shares, and have each rank read those alone that its rows come from: "
        "for a large one that is streamed. A divisor of the global batch; part of the data's order, so keep it.",
        entries=("pretrain",),
        metavar="N",
        at_least=1,
    )
    num_workers: int = option(
        1,
        "Processes of each rank that tokenize text ahead of the steps; 0 does it in a thread of the rank. Prepared "
        "tokens need none.",
        entries=("pretrain",),
        at_least=0,
    )
    skip_bad_lines: bool = option(
        False, "Count and skip lines that are not JSON or lack their field, in place of stopping.", entries=TRAINING
    )


@dataclass(frozen=True)
class ColumnSettings:
    """The fields, or columns, of a record that hold what is learned."""

    text_field: str = option(
        "text",
        "The field, or column, that holds the text of a record; a mixture's source may name its own (field: ...).",
        entries=("pretrain",),
        metavar="NAME",
    )
    prompt_field: str = option(
        "prompt", "The field, or column, that holds the prompt of a record.", entries=("finetune",), metavar="NAME"
    )
    completion_field: str = option(
        "completion",
        "The field, or column, that holds the completion of a record.",
        entries=("finetune",),
        metavar="NAME",
    )
    record_shape: str = option(
        AUTO,
        "What a record looks like; auto: found from each record's columns.",
        choices=shape_names,
        entries=("finetune",),
    )
    columns: tuple[str, ...] = option(
        (),
        "What the data call a column of a record's shape, such as instruction=question; may be given several times.",
        entries=("finetune",),
        metavar="COLUMN=NAME",
    )


@dataclass(frozen=True)
class ValidationSettings:
    """Loss and perplexity on text that is not trained on, at intervals."""

    validation_freq: int | None = option(
        None,
        "Steps between validations; there is one at the end too. None or 0 is no validation.",
        entries=TRAINING,
        metavar="STEPS",
        at_least=0,
    )
    validation_batches: int = option(
        16,
        "Global batches to validate on, the same ones each time; a validation set that has fewer is taken whole.",
        entries=TRAINING,
        metavar="N",
        at_least=1,
    )
    validation_dataset: str | None = option(
        None,
        "What to validate on: anything that --dataset takes. None is what --validation_fraction holds out, else what "
        "the sample, prepared data or a mixture's sources have held out already.",
        entries=TRAINING,
        metavar="NAME|PATH",
        path=True,
    )
    validation_fraction: float | None = option(
        None,
        "Share of the documents of --dataset that is left out of training and validated on, chosen by each document's "
        "own hash; in fine-tuning by that of the prompt, so that a prompt is on one side alone.",
        entries=TRAINING,
        above=0,
        at_most=0.5,
        metavar="SHARE",
    )
    score_held_out: bool = option(
        False,
        "With --dataset sample: score the last checkpoint on the text that the sample holds out, in bits per byte, "
        "beside a unigram model and gzip -9.",
        entries=("pretrain",),
    )


def problems(run: RunConfig, world_size: int | None, device: str | None) -> Iterator[Problem]:
    """Problems of the validation flags; what a validation set holds is checked where it is read."""
    settings = run.validation
    if run.kind == "benchmark":
        return
    yield from column_problems(run.columns.columns)
    if settings.validation_dataset is not None and settings.validation_fraction is not None:
        reason = (
            f"and --validation_fraction {settings.validation_fraction:g}: give one of the two, the set or the share of "
            "--dataset to hold out"
        )
        also = ("validation_fraction",)
        yield Problem("validation_dataset", settings.validation_dataset, reason, also=also, clause=True)
    if settings.validation_dataset is not None and not settings.validation_freq:
        reason, remedy = (
            "has no effect without --validation_freq",
            "give the steps between validations, or leave it out",
        )
        also = ("validation_freq",)
        yield Problem("validation_dataset", settings.validation_dataset, reason, remedy, also=also, clause=True)
    if run.kind == "pretrain" and run.data.stream_shares > 1 and run.run.max_steps is None:
        reason = "needs --max_steps: a share that is through begins again, while others go on"
        yield Problem("stream_shares", run.data.stream_shares, reason, also=("max_steps",), clause=True)
    if settings.score_held_out and run.data.dataset != SAMPLE:
        reason = (
            f"is for --dataset sample, and this is {run.data.dataset}: leave it out, and measure other text by "
            "--validation_freq"
        )
        yield Problem("score_held_out", True, reason, also=("dataset",), clause=True)


def path_problems(run: RunConfig) -> Iterator[Problem]:
    """What is wrong with the names of what is read."""
    if run.kind != "benchmark" and run.data.dataset is None:
        yield Problem("dataset", None, "is needed: give sample, a folder, a glob or a hub dataset", clause=True)


OWNED = Owned(
    {"data": DataSettings, "columns": ColumnSettings, "validation": ValidationSettings}, problems, path_problems
)
