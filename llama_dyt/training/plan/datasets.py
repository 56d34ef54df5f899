"""Which datasets a run names, how they are opened, and what is wrong with them; asked before torch is imported, too."""

from __future__ import annotations

import re
from typing import Any

from llama_dyt.config.run import RunConfig
from llama_dyt.core.problem import Problem
from llama_dyt.data.formats.format import format_of, settings_in
from llama_dyt.data.formats.sources import SAMPLE, ReadOptions
from llama_dyt.data.opening import LoaderOptions, Order, check_data
from llama_dyt.data.records.reader import ShapedRecords, column_names, column_problems
from llama_dyt.data.tokenizing.chat_template import LazyTemplate
from llama_dyt.training.plan.check import Checked

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def look_at_datasets(checked: Checked) -> list[Problem]:
    """What would stop the run on the datasets it names, kept with what else is wrong; looked at once."""
    if checked.missing is None:
        checked.missing = dataset_problems(checked.run)
        for problem in checked.missing:
            checked.found.add(problem)
    return checked.missing


def dataset_problems(run: RunConfig) -> list[Problem]:
    """What would stop the run on the datasets it names, found quickly; it follows from what is on this machine."""
    problems = []
    for flag, named in datasets(run).items():
        num_epochs = run.data.num_epochs if flag == "dataset" else 1
        problems += check_data(named, read_options(run), num_epochs=num_epochs, flag=flag)
        if run.kind == "finetune" and named == SAMPLE:
            reason, remedy = "is plain text without prompts", "give a file of prompt/completion JSON lines"
            problems.append(Problem(flag, SAMPLE, reason, remedy, clause=True, local=True))
    return problems


def datasets(run: RunConfig) -> dict[str, str]:
    """Flag → dataset, of those the run names."""
    named = {"dataset": run.data.dataset}
    if run.validation.validation_freq:
        named["validation_dataset"] = run.validation.validation_dataset
    return {flag: dataset for flag, dataset in named.items() if dataset is not None}


def read_options(run: RunConfig, tokenizer: Any = None) -> ReadOptions:
    """How the run's datasets are read.

    Args:
        tokenizer: whose chat template makes tokens of conversations; None only looks at them.
    """
    instructions, columns = run.kind == "finetune", run.columns
    return ReadOptions(
        fields=(columns.prompt_field, columns.completion_field) if instructions else (columns.text_field,),
        task=run.data.task_name,
        skip_bad_lines=run.data.skip_bad_lines,
        settings=settings_in(run.groups),
        records=_shaped_records(run, tokenizer) if instructions else None,
    )


def _shaped_records(run: RunConfig, tokenizer: Any) -> ShapedRecords:
    columns = run.columns
    named = {"prompt": columns.prompt_field, "completion": columns.completion_field}
    given = [column for column in columns.columns if not column_problems([column])]  # they are told with the others
    template = LazyTemplate(tokenizer) if tokenizer is not None else None
    return ShapedRecords(columns.record_shape, named | column_names(given), template)


def loader_options(run: RunConfig) -> LoaderOptions:
    """How pretraining reads its dataset."""
    return LoaderOptions(
        read=read_options(run),
        num_epochs=run.data.num_epochs,
        order=Order(run.run.seed, run.data.shuffle, run.data.shuffle_buffer, run.data.stream_shares),
        held_out_fraction=run.validation.validation_fraction,
        num_workers=run.data.num_workers,
    )


def may_be_of_the_hub(dataset: str) -> bool:
    """Whether looking at it may take a while."""
    return format_of(dataset).is_remote and _HUB_NAME.fullmatch(dataset) is not None
