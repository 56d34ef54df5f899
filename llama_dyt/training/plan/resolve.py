"""The third stage: what the names in a run lead to: weights, checkpoint, datasets, tokenizer, the model's config.

Nothing is started, written or downloaded twice here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from llama_dyt.boosters.compilation import attention_function
from llama_dyt.config import check as flag_checks
from llama_dyt.config.run import RunConfig
from llama_dyt.core.environment import launch_warnings
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem
from llama_dyt.core.store import MARKER, Location, at, store_of
from llama_dyt.data.formats.sources import SAMPLE, SAMPLE_FOLDER
from llama_dyt.data.opening import files_in_words, is_countable, open_sources, tokenizer_beside
from llama_dyt.data.sample import SampleCorpus, build_sample_corpus
from llama_dyt.data.sample_tokens import prepare_sample
from llama_dyt.data.settings import DEFAULT_TOKENIZER
from llama_dyt.data.tokenizing.tokenizer import check_vocabulary, load_tokenizer, vocabulary_size
from llama_dyt.data.validation_sets import ValidationSet, choose_sets, open_training
from llama_dyt.launch.claim import wait_for_writer
from llama_dyt.models import (
    build_config,
    empty_model,
    extend_positions,
    missing_imports,
    require_parts,
    require_travelling,
    use_float8,
    why_no_float8,
)
from llama_dyt.models.adapters import Adapter, attach
from llama_dyt.models.hub_folder import CONFIG_AND_TOKENIZER, WEIGHTS, hub_folder
from llama_dyt.models.presets import get_model, read_model
from llama_dyt.models.settings import family_fields, norm_fields
from llama_dyt.training.checkpoint.marker import step_of
from llama_dyt.training.checkpoint.publishing import home_of
from llama_dyt.training.checkpoint.reader import Checkpoint, complete_steps, find_checkpoint
from llama_dyt.training.distillation.teacher import require_teacher
from llama_dyt.training.plan.adapters import holds_adapter, require_same_adapter, resolve_adapter
from llama_dyt.training.plan.check import Checked, Found
from llama_dyt.training.plan.datasets import datasets, loader_options, look_at_datasets, read_options
from llama_dyt.training.plan.global_batch import overruled, with_batch_of
from llama_dyt.training.plan.plan import Plan
from llama_dyt.training.plan.tokenizer import fit_tokenizer
from llama_dyt.training.tapering.plan import fit_gates, schedule_of
from llama_dyt.training.trackers.jsonl import METRICS_FILE, read_metrics


def resolve(checked: Checked) -> Plan:
    """Find, open and judge what a run names.

    Raises:
        ConfigurationError: every problem found, those of the stages before included.
    """
    run, found = checked.run, checked.found
    missing = look_at_datasets(checked)
    weights_folder = found.attempt(lambda: _folder_of(run, run.model.model_path, "model_path"))
    caught: list[warnings.WarningMessage] = []
    checkpoint = None
    if run.run.save_dir is not None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            checkpoint = found.attempt(lambda: resolve_checkpoint(run))
    of_batch: list[str] = []
    if checkpoint is not None:
        held = found.attempt(lambda: _with_batch_of(checkpoint, checked))
        run, of_batch = held or (run, [])
    for folder in (checkpoint.path / "model" if checkpoint is not None else None, weights_folder):
        for problem in missing_imports(folder) if folder is not None else ():
            found.add(problem)
    found.raise_if_any()
    # What follows reads files and may build the corpus, so it waits until the rest is known to be right.
    data = _without_data(run, found, weights_folder) if missing else _resolve_data(run, found, weights_folder)
    found.raise_if_any()  # without a tokenizer the vocabulary, and so the model, is not known
    if run.kind == "finetune" and data.tokenizer is not None:
        added = found.attempt(lambda: fit_tokenizer(run, data.tokenizer))
        if added is not None:
            data.added = added
            found.attempt(lambda: _look_at_records(run, data))
    model_config, notes = _resolve_model(run, checked.device, found, data, weights_folder, checkpoint)
    found.raise_if_any()
    teacher_folder = found.attempt(lambda: _teacher_folder(run, model_config))
    found.attempt(lambda: schedule_of(run, model_config))
    adapter, adapter_from = _resolve_adapter(run, model_config, found, checkpoint)
    found.raise_if_any()
    return Plan(
        run=run,
        environment=checked.environment,
        device=checked.device,
        model_config=model_config,
        tokenizer=data.tokenizer,
        weights_folder=weights_folder,
        teacher_folder=teacher_folder,
        adapter=adapter,
        adapter_folder=adapter_from,
        checkpoint=checkpoint,
        claims=at(run.run.save_dir) if run.kind != "benchmark" and run.run.save_dir is not None else None,
        dataset=data.dataset,
        sample=data.corpus,
        validation=data.validation,
        files=data.files,
        grown_from=data.grown_from,
        asked=checked.asked,
        warnings=[
            *dict.fromkeys(str(warning.message) for warning in caught),
            *overruled(checked.asked, checked.run),
            *of_batch,
            *data.notes,
            *notes,
            *launch_warnings(checked.environment),
            *(f"a run on this machine would refuse: {problem}" for problem in found.in_passing),
            *flag_checks.warnings(run, checked.environment.world_size, checked.device),
        ],
    )


def _with_batch_of(checkpoint: Checkpoint, checked: Checked) -> tuple[RunConfig, list[str]]:
    """The run with its checkpoint's global batch, judged again where that makes it accumulate otherwise."""
    run, world_size = checked.run, checked.environment.world_size
    held, notes = with_batch_of(checkpoint.trainer_state, checkpoint.path, run, world_size)
    problems = flag_checks.collect_problems(held, world_size, checked.device) if held is not run else []
    if problems and not checked.found.dry:
        raise ConfigurationError(problems)
    return held, notes


@dataclass
class _Data:
    """What the names of datasets and tokenizer led to; attributes as of `Plan`, `corpus` its `sample`.

    Attributes:
        notes: what the run should be told.
        added: tokens that the tokenizer did not have.
        grown_from: as of `Plan`.
    """

    dataset: str | None = None
    corpus: SampleCorpus | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    validation: list[ValidationSet] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    grown_from: int | None = None


def _without_data(run: RunConfig, found: Found, weights_folder: Path | None) -> _Data:
    """Of a dry run whose data are not here: the tokenizer, if that is."""
    tokenizer = found.attempt(lambda: load_tokenizer(_tokenizer_name(run, weights_folder, None)), local=True)
    return _Data(tokenizer=tokenizer)


def _resolve_data(run: RunConfig, found: Found, weights_folder: Path | None) -> _Data:
    """Datasets and tokenizer; the benchmark has none."""
    options = read_options(run)
    named = [name for name in datasets(run).values() if name != SAMPLE]
    data = _Data(run.data.dataset, files=[line for name in named for line in files_in_words(name, options)])
    if data.dataset is None:
        return data
    if data.dataset == SAMPLE:
        data.corpus = build_sample_corpus(SAMPLE_FOLDER)
        # Text is a stream, whose sequences cannot be shuffled; tokens can.
        in_order = run.data.shuffle != "sequences"
        data.dataset = data.corpus.train_glob if in_order else prepare_sample(data.corpus)
    data.validation = found.attempt(lambda: choose_sets(run.data.dataset, run.validation, SAMPLE_FOLDER)) or []
    for chosen in data.validation:
        found.attempt(partial(chosen.check, options))
    tokenizer = found.attempt(lambda: load_tokenizer(_tokenizer_name(run, weights_folder, data.corpus)), local=True)
    data.tokenizer = tokenizer
    if run.kind == "pretrain" and tokenizer is not None:
        sources = found.attempt(lambda: open_sources(data.dataset, tokenizer, loader_options(run))) or []
        data.notes = [note for source in sources if (note := source.data.warning(tokenizer.eos_token_id))]
    if run.kind == "pretrain" and run.run.max_steps is None and not is_countable(data.dataset):
        reason = "has no end or is streamed, so its length is unknown: give --max_steps, the schedule needs it"
        found.add(Problem("dataset", data.dataset, reason, clause=True, local=True))
        data.dataset = None
    if tokenizer is None:
        data.dataset = None
    return data


def _resolve_model(
    run: RunConfig,
    device: str,
    found: Found,
    data: _Data,
    weights_folder: Path | None,
    checkpoint: Checkpoint | None,
) -> tuple[PretrainedConfig | None, list[str]]:
    """(the model's config, what the run should be told); None where something is wrong with it."""
    tokenizer = data.tokenizer
    config, notes = found.attempt(lambda: _model_config(run, device, tokenizer, weights_folder)), []
    if config is not None:
        notes = found.attempt(lambda: _fit_positions(run, config, checkpoint)) or []
        notes += _grow_vocabulary(config, data) if data.added and weights_folder is not None else []
        notes += found.attempt(lambda: fit_gates(run, config, checkpoint)) or []
    if config is not None and tokenizer is not None:
        found.attempt(lambda: _check_vocabulary(run, data, config, weights_folder))
    if tokenizer is not None:
        for problem in _problems_of_ends(run, tokenizer):
            found.add(problem)
    if config is not None:
        found.attempt(lambda: require_parts(config))
    if config is not None and run.run.save_dir is not None:
        found.attempt(lambda: require_travelling(config))
    if config is not None and run.precision.fp8 is not None:
        eight = run.precision
        reason = None if eight.fp8_emulate else why_no_float8()
        if reason is not None:
            found.add(Problem("fp8", eight.fp8, reason, "leave it out, or add --fp8_emulate", local=True))
        empty = empty_model(config)
        found.attempt(lambda: use_float8(empty, eight.fp8, eight.fp8_emulate, eight.fp8_keep_layers))
    return config, notes


def _resolve_adapter(
    run: RunConfig, config: PretrainedConfig, found: Found, checkpoint: Checkpoint | None
) -> tuple[Adapter | None, Path | None]:
    """(the adapter that is trained, the folder it starts from), and that the checkpoint is of the same model."""
    model, adapter, folder = empty_model(config), None, None
    if run.adapter.asked_for:
        adapter, folder = found.attempt(lambda: resolve_adapter(run, model)) or (None, None)
        if adapter is None:
            return None, None
    if checkpoint is None:
        return adapter, folder

    def compare() -> None:
        require_same_adapter(checkpoint, adapter, model)
        if adapter is not None:
            attach(model, adapter)
        trained = {name: held.shape for name, held in model.named_parameters() if held.requires_grad}
        checkpoint.check_fits(trained)

    found.attempt(compare)
    return adapter, folder


def _grow_vocabulary(config: PretrainedConfig, data: _Data) -> list[str]:
    """Have a row for every token of a tokenizer that got new ones; the run is told."""
    needed, there = vocabulary_size(data.tokenizer), config.vocab_size
    if needed <= there:
        return []
    data.grown_from, config.vocab_size = there, needed
    return [f"the vocabulary grows from {there} to {needed} for the tokens that are added"]


def _look_at_records(run: RunConfig, data: _Data) -> None:
    """Have the first record tokenized, so that a chat template that does not work is told before anything starts."""
    if data.dataset is None:
        return
    source = open_training(data.dataset, run.validation.validation_fraction, read_options(run, data.tokenizer))
    if source.is_local:
        next(source.iterate(), None)


def _problems_of_ends(run: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[Problem]:
    """Documents can only be told apart where a tokenizer has a token for each of their ends."""
    if tokenizer.bos_token_id != tokenizer.eos_token_id:
        return
    for flag in ("reset_position_ids", "reset_attention_mask"):
        if getattr(run.data, flag):
            reason = (
                f"the tokenizer has one token for both ends of a document ({tokenizer.eos_token!r}), so its first "
                "token would be taken for the end of a document"
            )
            yield Problem(flag, True, reason, "take a tokenizer with a BOS of its own", also=("tokenizer",))


def _teacher_folder(run: RunConfig, config: PretrainedConfig) -> Path | None:
    folder = _folder_of(run, run.distillation.distill_from, "distill_from")
    if folder is not None:
        require_teacher(folder, run.distillation, config)
    return folder


def _folder_of(run: RunConfig, name: str | None, flag: str) -> Path | None:
    """The HF folder that the name of a model means: one of ours, a checkpoint's, a save_dir's newest, or the hub's."""
    if name is None:
        return None
    path = at(name, flag).expanduser()
    if not path.is_dir():
        patterns = CONFIG_AND_TOKENIZER if run.run.dry_run else (*CONFIG_AND_TOKENIZER, *WEIGHTS)
        return hub_folder(name, patterns, flag)
    if path.name == "model" and (path.parent / MARKER).is_file():
        path = path.parent
    if (path / "config.json").is_file():
        return store_of(path).local(path)
    if not (path / "model" / "config.json").is_file() and not holds_adapter(path):
        steps = complete_steps(path)
        if not steps:
            reason, remedy = "no config.json and no complete checkpoint in it", "give an HF folder or a checkpoint"
            raise ConfigurationError(Problem(flag, name, reason, remedy))
        path = steps[-1]
    if holds_adapter(path):
        reason = f"{path} holds an adapter alone"
        remedy = "give its base, and this as --adapter" if flag == "model_path" else "merge it into its base first"
        raise ConfigurationError(Problem(flag, name, reason, remedy))
    return store_of(path).local(path, "model/") / "model"


def resolve_checkpoint(run: RunConfig) -> Checkpoint | None:
    """What to resume from; refuses to start a new run on top of another one's files."""
    save_dir = at(run.run.save_dir)
    wait_for_writer(save_dir)
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
        reason = (
            f"already holds a run ({present[-1].name}): give --load auto to go on with it, or another --save_dir to "
            "start anew"
        )
        raise ConfigurationError(Problem("save_dir", save_dir, reason, clause=True))
    return checkpoint


def _warn_of_later_steps(path: Location, save_dir: Location) -> None:
    steps = complete_steps(save_dir)
    later = [home_of(step).name for step in steps if step_of(step) > (step_of(path.resolve()) or 0)]
    if later:
        warnings.warn(
            f"{save_dir} also holds {', '.join(later)}: they belong to the course that this run leaves, and --load "
            "auto takes the newest; remove them, or give another --save_dir",
            stacklevel=2,
        )


def _tokenizer_name(run: RunConfig, weights_folder: Path | None, corpus: Any) -> str:
    if run.data.tokenizer is not None:
        return run.data.tokenizer
    if weights_folder is not None:
        return str(weights_folder)
    if corpus is not None:
        return str(corpus.tokenizer_folder)
    beside = tokenizer_beside(run.data.dataset) if run.kind == "pretrain" else None
    return beside or DEFAULT_TOKENIZER


def _model_config(
    run: RunConfig, device: str, tokenizer: PreTrainedTokenizerBase | None, weights_folder: Path | None
) -> PretrainedConfig:
    """The HF config: of the weights, of a config file, or of a named size whose vocabulary is the tokenizer's."""
    model = run.model
    named = weights_folder is None and not Path(str(model.config)).exists()
    family, _ = read_model(weights_folder) if weights_folder is not None else get_model(str(model.config))
    config = build_config(
        weights_folder or model.config,
        norm=model.norm,
        **norm_fields(run),
        **family_fields(run, family),
        hidden_size=model.hidden_width,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_key_value_heads,
        intermediate_size=model.intermediate_size,
        vocab_size=vocabulary_size(tokenizer) if named and tokenizer is not None else None,
        attn_implementation=attention_function(run, device),
    )
    if tokenizer is not None and weights_folder is None:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            id = getattr(tokenizer, name)  # None, too: a BOS that the tokenizer lacks would be one of its pieces
            setattr(config, name, None if id is None or id >= config.vocab_size else id)
    return config


def _fit_positions(run: RunConfig, model_config: Any, checkpoint: Checkpoint | None) -> list[str]:
    """Let the config say the longest sequences of this training, and warn where weights or a config file had less."""
    length, own = run.data.max_length, model_config.max_position_embeddings
    before = own if checkpoint is None else checkpoint.positions
    extend_positions(model_config, max(length, before))
    source = run.model.model_path or run.model.config
    if length <= max(own, before) or (run.model.model_path is None and not Path(str(source)).exists()):
        return []
    return [
        f"--max_length {length} is beyond the {own} positions of {source}: those behind are new to the model, and the "
        f"saved config will say {length}"
    ]


def _check_vocabulary(run: RunConfig, data: _Data, model_config: Any, weights_folder: Path | None) -> None:
    """The tokenizer's ids must be the model's: one that fits in the embedding can still be another model's."""
    tokenizer = data.tokenizer
    check_vocabulary(tokenizer, model_config.vocab_size)
    if weights_folder is None or run.data.tokenizer is None or not (weights_folder / "tokenizer_config.json").exists():
        return
    own = load_tokenizer(weights_folder)
    if len(own) != len(tokenizer) - len(data.added):
        reason = (
            f"has {len(tokenizer)} pieces, the one that {weights_folder} was trained with {len(own)}: leave "
            "--tokenizer out to take that"
        )
        raise ConfigurationError(Problem("tokenizer", run.data.tokenizer, reason, also=("model_path",), clause=True))
