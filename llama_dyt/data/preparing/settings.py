"""The flags of prepare_data.py, and what is wrong with them: one dataclass, read as the other entries read theirs.

Preparing data is no run: it has no model, no optimizer and no devices.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llama_dyt.config.cli import read_settings
from llama_dyt.config.options import Option, option, options_of
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.files import why_not_writable
from llama_dyt.core.problem import Problem
from llama_dyt.data.formats.format import FORMATS
from llama_dyt.data.formats.sources import SAMPLE_FOLDER, ReadOptions
from llama_dyt.data.settings import DEFAULT_TOKENIZER

PREPARE_DATA = "prepare_data"
WRITTEN_AS = ("shards", "arrow")
_HERE = (PREPARE_DATA,)
_LEAST_PIECES = 300


@dataclass(frozen=True)
class PrepareSettings:
    """Text in, token shards out."""

    dataset: str | None = option(
        None,
        "Text to prepare: `sample`, a folder, file or glob of .jsonl, .jsonl.gz, .jsonl.zst or .parquet, the same in a "
        "store (s3://BUCKET/…), a list of addresses (.txt), or a hub dataset.",
        short="-d",
        spellings=("data_path",),
        entries=_HERE,
        metavar="NAME|PATH",
        path=True,
    )
    text_field: str = option(
        "text", "The field, or column, that holds the text of a record.", entries=_HERE, metavar="NAME"
    )
    output_path: str | None = option(
        None,
        "Folder for the prepared data; all machines write into the same one, or are copied together afterwards. "
        "Given again after a stop, it is finished.",
        short="-o",
        entries=_HERE,
        metavar="FOLDER",
        path=True,
    )
    tokenizer: str | None = option(
        None,
        "Tokenizer: a folder, a SentencePiece .model file or a hub name. None takes the one in the output folder, that "
        f"of the sample corpus, else {DEFAULT_TOKENIZER}. It is saved in the output folder.",
        entries=_HERE,
        metavar="PATH|HUB_NAME",
        path=True,
    )
    train_tokenizer: int | None = option(
        None,
        "Train a SentencePiece tokenizer of so many pieces on the text first.",
        entries=_HERE,
        metavar="PIECES",
        at_least=_LEAST_PIECES,
    )
    add_bos: bool | None = option(
        None, "Put BOS before each document; none does where the tokenizer has one.", entries=_HERE
    )
    add_eos: bool = option(True, "Put EOS behind each document.", entries=_HERE)
    validation_fraction: float = option(
        0.0,
        "Share of the documents that become the split `validation`, chosen by a hash of each document's text.",
        entries=_HERE,
        at_least=0,
        at_most=1,
    )
    max_num_tokens: int | None = option(
        None,
        "Stop before the document that would bring this machine's tokens above so many; none takes all.",
        entries=_HERE,
        metavar="TOKENS",
        at_least=1,
    )
    rank: int = option(0, "Number of this machine among --world_size, from 0.", entries=_HERE, at_least=0)
    world_size: int = option(
        1, "Machines that share the work, each started once with its own --rank.", entries=_HERE, at_least=1
    )
    format: str = option(
        "shards",
        "What is written: our own shards, or the DyT authors' rank_N.arrow, which has no BOS and EOS.",
        choices=WRITTEN_AS,
        entries=_HERE,
    )
    num_workers: int | None = option(
        None,
        "Processes that tokenize; none is one a core. The result does not depend on it.",
        short="-j",
        entries=_HERE,
        at_least=1,
    )
    skip_bad_lines: bool = option(
        False, "Count and skip lines that are not JSON or lack their field, in place of stopping.", entries=_HERE
    )
    task_name: str | None = option(None, "Which part of a hub dataset, if it has several.", entries=_HERE)
    verify: bool = option(False, "Compare the files in --output_path with their checksums, and end.", entries=_HERE)
    config_file: str | None = option(
        None,
        "YAML whose keys are these flags; a flag on the command line wins over it.",
        entries=_HERE,
        metavar="FILE",
        path=True,
    )

    imports: tuple[str, ...] = option(
        (),
        "A module of your own to import before flags are read, such as one with a format, by its dotted name; may be "
        "given several times.",
        name="import",
        entries=_HERE,
        metavar="MODULE",
    )
    formats: Mapping[str, Any] = field(default_factory=dict)
    """Name of a format → its own settings; not a flag."""

    def read_options(self, sample_folder: str = SAMPLE_FOLDER) -> ReadOptions:
        """How the text is read."""
        return ReadOptions(
            fields=(self.text_field,),
            task=self.task_name,
            skip_bad_lines=self.skip_bad_lines,
            sample_folder=str(sample_folder),
            settings=self.formats,
        )

    @property
    def workers(self) -> int:
        return self.num_workers or len(os.sched_getaffinity(0))


def options() -> tuple[Option, ...]:
    return tuple(options_of(PrepareSettings).values())


def format_options() -> dict[str, tuple[Option, ...]]:
    """Name of a format → its flags, of those that have some; they are the same in every program."""
    return {
        format.name: tuple(
            replace(opt, entries=_HERE, default={PREPARE_DATA: opt.default["pretrain"]})
            for opt in options_of(format.settings).values()
        )
        for format in FORMATS
        if format.settings is not None
    }


def read_preparation(argv: Sequence[str] | None = None) -> tuple[PrepareSettings, list[str]]:
    """(settings, problems) of prepare_data.py's command line; a flag that cannot be read has its default.

    What it names by --import is imported first.
    """
    what = "Tokenize text once, in parallel, into shards that training maps into memory."
    (settings, *own), problems = read_settings(PREPARE_DATA, what, _groups, argv)
    settings = replace(settings, formats=dict(zip(format_options(), own, strict=True)))
    return settings, problems + [problem for problem in _problems(settings) if problem not in problems]


def _groups() -> list[tuple[str, type, tuple[Option, ...]]]:
    of_formats = [(name, FORMATS.get(name).settings, flags) for name, flags in format_options().items()]
    return [("preparation", PrepareSettings, options()), *of_formats]


def parse_preparation(argv: Sequence[str] | None = None) -> PrepareSettings:
    """The settings of a command line; None takes sys.argv.

    Raises:
        ConfigurationError: all that is wrong with it, one problem a line.
    """
    settings, problems = read_preparation(argv)
    if problems:
        raise ConfigurationError(problems)
    return settings


def _problems(settings: PrepareSettings) -> list[str]:
    problems: list[str] = []
    if settings.output_path is None:
        problems.append("--output_path: say into which folder the prepared data shall go")
    elif not settings.verify and (reason := why_not_writable(settings.output_path)) is not None:
        problems.append(Problem("output_path", settings.output_path, reason))
    if settings.dataset is None and not settings.verify:
        problems.append("--dataset: say which text to prepare, such as -d sample or -d '/data/*.jsonl.zst'")
    if settings.rank >= settings.world_size:
        problems.append(
            f"--rank {settings.rank}: the ranks of --world_size {settings.world_size} are 0 to "
            f"{settings.world_size - 1}"
        )
    if settings.tokenizer is not None and settings.train_tokenizer is not None:
        problems.append("--train_tokenizer makes a tokenizer and --tokenizer names one; give one of them")
    if settings.format == "arrow" and settings.add_bos:
        problems.append("--add_bos: --format arrow has no BOS, its readers put it; leave one of them out")
    return problems
