"""A run of which all is known that one process can know."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from llama_dyt.config.run import RunConfig
from llama_dyt.core.environment import ProcessEnvironment
from llama_dyt.core.store import Location
from llama_dyt.data.formats.sources import ReadOptions
from llama_dyt.data.opening import LoaderOptions
from llama_dyt.data.sample import SampleCorpus
from llama_dyt.data.validation_sets import ValidationSet
from llama_dyt.models.adapters import Adapter
from llama_dyt.training.checkpoint.reader import Checkpoint
from llama_dyt.training.plan.datasets import loader_options, read_options
from llama_dyt.training.sizing.recompute_share import ChosenShare


@dataclass
class Plan:
    """A checked run.

    Attributes:
        environment: which process this is.
        device: "cuda" or "cpu".
        model_config: HF config of the model to train.
        weights_folder: HF folder the weights start from; None for fresh ones.
        adapter: what is trained in place of the weights; None: the weights.
        adapter_folder: in peft's format, that the adapter starts from; None for a new one.
        teacher_folder: HF folder of --distill_from; None without a teacher.
        grown_from: rows of the weights' vocabulary, where the run adds tokens for which it has none; None elsewhere.
        checkpoint: what the run resumes from; None for a start at step 0.
        claims: the folder that the run is to have for itself; None where it writes to none.
        dataset: the path or hub name to read (the built corpus's for `sample`); None for the benchmark, and in a dry
            run whose data or tokenizer are not here.
        sample: the corpus that `sample` means; None for other datasets.
        validation: the sets to validate on; empty without validation.
        files: what the names of datasets match, a line each, for the user to see.
        asked: the run as its flags are; `run` may accumulate otherwise (`global_batch`).
        recomputing: what --auto_checkpointing chose; `run` has it as --selective_checkpointing.
    """

    run: RunConfig
    environment: ProcessEnvironment
    device: str
    model_config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None = None
    weights_folder: Path | None = None
    teacher_folder: Path | None = None
    adapter: Adapter | None = None
    adapter_folder: Path | None = None
    checkpoint: Checkpoint | None = None
    claims: Location | None = None
    dataset: str | None = None
    sample: SampleCorpus | None = None
    validation: list[ValidationSet] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    recomputing: ChosenShare | None = None
    warnings: list[str] = field(default_factory=list)
    grown_from: int | None = None
    asked: RunConfig | None = None

    @property
    def is_first_process(self) -> bool:
        return self.environment.rank == 0

    @property
    def read_options(self) -> ReadOptions:
        """How this run's datasets are read."""
        return read_options(self.run, self.tokenizer)

    @property
    def loader_options(self) -> LoaderOptions:
        """How this run's dataset is loaded, in pretraining."""
        return loader_options(self.run)


def say(plan: Plan, message: str) -> None:
    """Print a line on the first process alone."""
    if plan.is_first_process:
        print(message, file=sys.stderr, flush=True)
