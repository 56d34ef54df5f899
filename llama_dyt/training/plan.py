"""From a command line to a plan: everything a run needs that can be known, and refused, before processes talk.

Nothing is started, written or downloaded twice here; all problems found are reported together in one error.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from llama_dyt.boosters.launch import ProcessEnvironment, device_type, read_environment
from llama_dyt.config import check, cli
from llama_dyt.config.options import Kind
from llama_dyt.config.run import RunConfig
from llama_dyt.config.settings import DEFAULT_TOKENIZER
from llama_dyt.config.speed import attention_function
from llama_dyt.data.opening import check_data, is_countable, open_feeds, tokenizer_beside
from llama_dyt.data.sample import build_sample_corpus
from llama_dyt.data.sources import SAMPLE
from llama_dyt.data.tokenizer import check_vocabulary, load_tokenizer
from llama_dyt.data.validation import ValidationSet, choose_sets
from llama_dyt.errors import ConfigurationError, LlamaDytError
from llama_dyt.models import build_config, empty_model, use_float8, why_no_float8

from .recompute_share import ChosenShare, choose_share
from .restore import Checkpoint, complete_steps, find_checkpoint
from .tracking import METRICS_FILE, read_metrics

SAMPLE_FOLDER = Path("data/sample")
INSTRUCTION_FIELDS = ("prompt", "completion")


@dataclass
class Plan:
    """A checked run.

    Attributes:
        environment: which process this is.
        device: "cuda" or "cpu".
        model_config: HF config of the model to train.
        weights_folder: HF folder the weights start from; None for fresh ones.
        checkpoint: what the run resumes from; None for a start at step 0.
        dataset: the path or hub name to read (the built corpus's for `sample`); None for the benchmark.
        held_out: text that `sample` keeps out of training; None for other datasets.
        validation: the sets to validate on; empty without validation.
        recomputing: what --auto_checkpointing chose; `run` has it as --selective_checkpointing.
    """

    run: RunConfig
    environment: ProcessEnvironment
    device: str
    model_config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None = None
    weights_folder: Path | None = None
    checkpoint: Checkpoint | None = None
    dataset: str | None = None
    held_out: str | None = None
    validation: list[ValidationSet] = field(default_factory=list)
    recomputing: ChosenShare | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def is_first_process(self) -> bool:
        return self.environment.rank == 0

    @property
    def source_options(self) -> dict[str, Any]:
        """How this run's datasets are opened, `open_source`'s arguments."""
        return _source_options(self.run)


def make_plan(kind: Kind, argv: Sequence[str] | None = None) -> Plan:
    """Read flags and environment, and check all that can be checked in one process.

    Raises:
        ConfigurationError: every problem found, one a line.
    """
    environment, device = read_environment(), device_type()
    run, problems = cli.read(kind, argv)
    if run.run.dry_run and run.run.dry_run_processes is not None:
        environment = replace(environment, world_size=run.run.dry_run_processes)
    # A flag that cannot be read has its default from here on; what follows from a default was not asked for.
    unread = [f"{problem.split(':')[0]} " for problem in problems if problem.startswith("--")]
    for problem in check.collect_problems(run, environment.world_size, device):
        if problem not in problems and not any(flag in problem for flag in unread):
            problems.append(problem)
    found = _Problems(problems)

    for flag, named in _datasets(run).items():
        num_epochs = run.data.num_epochs if flag == "--dataset" else 1
        for problem in check_data(named, num_epochs=num_epochs, **_source_options(run)):
            found.add(_about_dataset(flag, named, problem))
        if kind == "finetune" and named == SAMPLE:
            found.add(f"{flag} sample is plain text without prompts; give a file of prompt/completion JSON lines")
    weights_folder = found.attempt(lambda: _weights_folder(run))
    caught: list[warnings.WarningMessage] = []
    checkpoint = None
    if run.run.save_dir is not None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            checkpoint = found.attempt(lambda: _checkpoint(run))
    found.raise_if_any()

    # What follows reads files and may build the corpus, so it waits until the rest is known to be right.
    dataset, held_out, tokenizer = run.data.dataset, None, None
    validation: list[ValidationSet] = []
    notes: list[str] = []
    if dataset is not None:
        corpus = build_sample_corpus(SAMPLE_FOLDER) if dataset == SAMPLE else None
        if corpus:
            dataset, held_out = corpus.train_glob, corpus.validation_file
        validation = found.attempt(lambda: choose_sets(run.data.dataset, run.validation, SAMPLE_FOLDER)) or []
        for chosen in validation:
            found.attempt(partial(chosen.check, **_source_options(run)))
        tokenizer = found.attempt(lambda: load_tokenizer(_tokenizer_name(run, weights_folder, corpus)))
        if kind == "pretrain" and run.run.max_steps is None and not is_countable(dataset):
            found.add(
                f"--dataset {dataset} has no end or is streamed, so its length is unknown: give --max_steps, the "
                "schedule needs it"
            )
        if kind == "pretrain" and tokenizer is not None:
            fraction = run.validation.validation_fraction
            feeds = found.attempt(
                lambda: open_feeds(dataset, tokenizer, shuffle=run.data.shuffle, held_out_fraction=fraction)
            )
            notes = [note for feed in feeds or [] if (note := feed.warning(tokenizer))]
    found.raise_if_any()  # without a tokenizer the vocabulary, and so the model, is not known
    model_config = found.attempt(lambda: _model_config(run, tokenizer, weights_folder))
    if model_config is not None and tokenizer is not None:
        found.attempt(lambda: _check_vocabulary(run, tokenizer, model_config, weights_folder))
    if tokenizer is not None and tokenizer.bos_token_id == tokenizer.eos_token_id:
        for flag in ("reset_position_ids", "reset_attention_mask"):
            if getattr(run.data, flag):
                found.add(
                    f"--{flag}: the tokenizer has one token for both ends of a document ({tokenizer.eos_token!r}), so "
                    "its first token would be taken for the end of a document; take a tokenizer with a BOS of its own"
                )
    if run.precision.fp8 is not None and model_config is not None:
        eight = run.precision
        reason = None if eight.fp8_emulate else why_no_float8()
        if reason is not None:
            found.add(f"--fp8 {eight.fp8}: {reason}; leave it out, or add --fp8_emulate")
        empty = empty_model(model_config)
        found.attempt(lambda: use_float8(empty, eight.fp8, eight.fp8_emulate, eight.fp8_keep_layers))
    if model_config is not None and checkpoint is not None:
        shapes = {name: parameter.shape for name, parameter in empty_model(model_config).named_parameters()}
        found.attempt(lambda: checkpoint.check_fits(shapes))
    found.raise_if_any()
    recomputing = None
    if run.speed.auto_checkpointing:
        recomputing = choose_share(run, model_config, environment, device)
        run = run.replace(selective_checkpointing=recomputing.share, auto_checkpointing=False)
        if not recomputing.fits:
            notes.append(
                f"--auto_checkpointing: {recomputing}; take smaller batches, more processes or a plugin that cuts more"
            )
    return Plan(
        run=run,
        environment=environment,
        device=device,
        model_config=model_config,
        tokenizer=tokenizer,
        weights_folder=weights_folder,
        checkpoint=checkpoint,
        dataset=dataset,
        held_out=held_out,
        validation=validation,
        recomputing=recomputing,
        warnings=list(dict.fromkeys(str(w.message) for w in caught))
        + notes
        + check.warnings(run, environment.world_size, device),
    )


class _Problems:
    """Gathers what is wrong instead of stopping at the first of it."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems

    def add(self, problem: str) -> None:
        if problem not in self._problems:
            self._problems.append(problem)

    def attempt(self, action: Callable[[], Any]) -> Any:
        """The action's value, or None after keeping what it complained about."""
        try:
            return action()
        except ConfigurationError as error:
            for problem in error.problems:
                self.add(problem)
        except LlamaDytError as error:
            self.add(str(error))
        return None

    def raise_if_any(self) -> None:
        if self._problems:
            raise ConfigurationError(self._problems)


def _source_options(run: RunConfig) -> dict[str, Any]:
    instructions = run.kind == "finetune"
    return {
        "fields": INSTRUCTION_FIELDS if instructions else ("text",),
        "task": run.data.task_name if instructions else None,
        "skip_bad_lines": run.data.skip_bad_lines,
    }


def _datasets(run: RunConfig) -> dict[str, str]:
    """Flag → dataset, of those the run names."""
    named = {"--dataset": run.data.dataset}
    if run.validation.validation_freq:
        named["--validation_dataset"] = run.validation.validation_dataset
    return {flag: dataset for flag, dataset in named.items() if dataset is not None}


def _about_dataset(flag: str, dataset: str, problem: str) -> str:
    """A problem with the flag it comes from; most name the dataset themselves, and once is enough."""
    problem = problem.removeprefix("dataset ")
    names_it = problem.startswith((dataset, f"'{dataset}'"))
    return f"{flag} {problem}" if names_it else f"{flag} {dataset}: {problem}"


def _weights_folder(run: RunConfig) -> Path | None:
    """The HF folder that --model_path means: one of ours, a checkpoint's, a save_dir's newest, or the hub's."""
    name = run.model.model_path
    if name is None:
        return None
    path = Path(name).expanduser()
    if not path.is_dir():
        return _from_hub(name)
    if (path / "config.json").is_file():
        return path
    if (path / "model" / "config.json").is_file():
        return path / "model"
    steps = complete_steps(path)
    if not steps:
        raise ConfigurationError(
            f"--model_path {name}: no config.json and no complete checkpoint in it; give an HF folder or a checkpoint"
        )
    return steps[-1] / "model"


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "tokenizer*"]))
    except Exception as error:  # the hub's client lets those of whichever HTTP library it uses through
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            f"--model_path {name}: no such folder, and the hub did not give it ({reason}); give a local HF folder"
        ) from None


def _checkpoint(run: RunConfig) -> Checkpoint | None:
    """What to resume from; refuses to start a new run on top of another one's files."""
    save_dir = Path(run.run.save_dir)
    if run.run.load is not None:
        path = find_checkpoint(run.run.load, save_dir)
        if path is None:
            return None
        if path.resolve().parent == save_dir.resolve():
            _warn_of_later_steps(path, save_dir)
            return Checkpoint(path)
        checkpoint = Checkpoint(path)
    else:
        checkpoint = None
    metrics = save_dir / METRICS_FILE
    present = complete_steps(save_dir) or ([metrics] if read_metrics(metrics) else [])
    if present:
        raise ConfigurationError(
            f"--save_dir {save_dir} already holds a run ({present[-1].name}): give --load auto to go on with it, or "
            "another --save_dir to start anew"
        )
    return checkpoint


def _warn_of_later_steps(path: Path, save_dir: Path) -> None:
    steps = complete_steps(save_dir)
    later = [step.name for step in steps if step.name > path.resolve().name]
    if later:
        warnings.warn(
            f"{save_dir} also holds {', '.join(later)}: they belong to the course that this run leaves, and --load "
            "auto takes the newest; remove them, or give another --save_dir",
            stacklevel=2,
        )


def _tokenizer_name(run: RunConfig, weights_folder: Path | None, corpus: Any) -> str:
    if run.model.tokenizer is not None:
        return run.model.tokenizer
    if weights_folder is not None:
        return str(weights_folder)
    if corpus is not None:
        return str(corpus.tokenizer_folder)
    beside = tokenizer_beside(run.data.dataset) if run.kind == "pretrain" else None
    return beside or DEFAULT_TOKENIZER


def _model_config(
    run: RunConfig, tokenizer: PreTrainedTokenizerBase | None, weights_folder: Path | None
) -> PretrainedConfig:
    """The HF config: of the weights, of a config file, or of a named size whose vocabulary is the tokenizer's."""
    model = run.model
    named = weights_folder is None and not Path(str(model.config)).exists()
    size = model.size() if weights_folder is None else None
    ids = {}
    if tokenizer is not None and weights_folder is None:
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return build_config(
        weights_folder or model.config,
        norm=model.norm,
        attn_alpha_init_value=model.attn_alpha_init_value,
        ffn_alpha_init_value=model.ffn_alpha_init_value,
        dec_alpha_init_value=model.dec_alpha_init_value,
        hidden_size=model.hidden_width,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_key_value_heads,
        intermediate_size=model.intermediate_size,
        vocab_size=len(tokenizer) if named and tokenizer is not None else None,
        max_position_embeddings=max(size.max_length, run.data.max_length) if named else None,
        attn_implementation=attention_function(run, device_type()),
        **ids,
    )


def _check_vocabulary(run: RunConfig, tokenizer: Any, model_config: Any, weights_folder: Path | None) -> None:
    """The tokenizer's ids must be the model's: one that fits in the embedding can still be another model's."""
    check_vocabulary(tokenizer, model_config.vocab_size)
    if weights_folder is None or run.model.tokenizer is None or not (weights_folder / "tokenizer_config.json").exists():
        return
    own = load_tokenizer(weights_folder)
    if len(own) != len(tokenizer):
        raise ConfigurationError(
            f"--tokenizer {run.model.tokenizer} has {len(tokenizer)} pieces, the one that {weights_folder} was "
            f"trained with {len(own)}: leave --tokenizer out to take that"
        )


def say(plan: Plan, message: str) -> None:
    """Print a line on the first process alone."""
    if plan.is_first_process:
        print(message, file=sys.stderr, flush=True)
