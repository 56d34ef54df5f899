"""The story of a conversion: open and judge, change, write aside, compare, publish."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from llama_dyt.convert import hub
from llama_dyt.convert.calibrate import calibrate
from llama_dyt.convert.fold import fold
from llama_dyt.convert.settings import ConvertSettings
from llama_dyt.convert.source import Opened, source_of
from llama_dyt.convert.tapered import finish
from llama_dyt.convert.target import TARGETS, Job, Target
from llama_dyt.convert.upcycle import upcycle
from llama_dyt.convert.verify import compare
from llama_dyt.convert.weights import DTYPES, Weights, check
from llama_dyt.core import files
from llama_dyt.core.errors import CheckpointError, ConfigurationError, DataError
from llama_dyt.core.marker import MARKER, Written, marker_of, sha256_of
from llama_dyt.core.problem import Problem
from llama_dyt.core.store import at, store_of
from llama_dyt.data.loaders.packed import TokenBatches
from llama_dyt.data.loaders.step import IGNORE_INDEX, BatchShape
from llama_dyt.data.opening import check_data
from llama_dyt.data.tokenizing.tokenizer import check_vocabulary, load_tokenizer

Say = Callable[[str], None]
_CALIBRATION_LENGTH, _CALIBRATION_ROWS = 512, 8


def convert(settings: ConvertSettings, say: Say) -> Path:
    """Convert a checkpoint; returns the folder of the result, which is there whole or not at all.

    Args:
        say: takes a line of what was found and done.

    Raises:
        ConfigurationError, CheckpointError, DataError: it cannot be; nothing is left of it.
    """
    output = Path(settings.output_path)
    target = TARGETS.get(settings.target)
    if settings.push_to_hub is not None and (problem := hub.why_no_push(settings.push_to_hub)) is not None:
        raise ConfigurationError(problem)
    if settings.calibrate is not None and (problems := check_data(settings.calibrate, flag="calibrate")):
        raise ConfigurationError(problems)
    path = _input(settings)
    source = source_of(path, settings.source)
    if settings.config is not None and not source.takes_config:
        reason = f"--from {source.name} tells all figures itself"
        raise ConfigurationError(Problem("config", settings.config, reason, "leave it out"))
    with source.open(path, settings.config) as opened:
        found = check(opened.weights, path)
        weights, changes = _changed(found, settings, opened)
        dtype = settings.dtype or target.dtype
        if dtype is not None:
            weights = weights.cast(DTYPES[dtype])
        if problems := target.problems(weights, settings.shards):
            raise ConfigurationError(problems)
        tokenizer, tokenizer_files = _tokenizer(settings, opened, weights.config)
        say(f"{path}: {source.in_words}, {found.num_parameters:,} parameters")
        for note in (*opened.notes, *changes):
            say(f"note: {note}")
        if tokenizer is None:
            say("note: there is no tokenizer in the input, so none is in the result; --tokenizer gives it one")
        job = Job(
            weights=weights,
            opened=opened,
            source=source.in_words,
            input_path=settings.input_path,
            tokenizer=tokenizer,
            tokenizer_files=tokenizer_files,
            max_shard_bytes=settings.max_shard_bytes,
            num_shards=settings.shards,
            changes=changes,
        )
        _write(job, target, output, say, settings.verify)
    kind = str(weights.dtype).removeprefix("torch.")
    say(f"{weights.num_parameters:,} parameters, {weights.num_bytes / 1e6:,.1f} MB of {kind} weights in {output}")
    if settings.push_to_hub is not None:
        say(f"uploaded to {hub.push(output, settings.push_to_hub)}")
    return output


def _input(settings: ConvertSettings) -> Path:
    location = at(settings.input_path, "input_path").expanduser()
    if location.exists():
        return Path(store_of(location).local(location))
    name = settings.input_path
    # "name" or "owner/name" may be a hub name; anything else can only be a path.
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ConfigurationError(Problem("input_path", name, "no such file or folder"))
    return hub.fetch(name)


def _changed(weights: Weights, settings: ConvertSettings, opened: Opened) -> tuple[Weights, tuple[str, ...]]:
    """The weights as they shall be, and a sentence on each change. Further changes of a model belong here: each takes
    weights and gives weights, read one by one."""
    changes: list[str] = []
    if settings.norm is not None and settings.calibrate is None:
        finished = finish(weights, settings.norm)
        weights = finished.weights
        changes.append(str(finished))
    elif settings.norm is not None:
        tokenizer, _ = _tokenizer(settings, opened, weights.config)
        calibrated = calibrate(weights, settings.norm, _calibration_text(settings, tokenizer, weights.config))
        weights = calibrated.weights
        changes.append(str(calibrated))
    if settings.upcycle is not None:
        upcycled = upcycle(weights, settings.upcycle)
        weights = upcycled.weights
        changes.append(str(upcycled))
    if settings.fold_dyt:
        folded = fold(weights)
        weights = folded.weights
        changes.append(str(folded))
    return weights, tuple(changes)


def _calibration_text(settings: ConvertSettings, tokenizer: Any, config: Any) -> list[Tensor]:
    """Token ids, (rows, length) each, documents end to end.

    Raises:
        ConfigurationError: there is no tokenizer.
        DataError: there is no text.
    """
    if tokenizer is None:
        raise ConfigurationError(Problem("calibrate", settings.calibrate, "needs a tokenizer", "give --tokenizer"))
    length = min(_CALIBRATION_LENGTH, config.max_position_embeddings, settings.calibration_tokens)
    batches, taken = [], 0
    with TokenBatches(settings.calibrate, tokenizer, length, BatchShape(_CALIBRATION_ROWS)) as steps:
        for step in steps:
            (batch,) = step.micro_batches
            whole = batch["input_ids"][(batch["labels"] != IGNORE_INDEX).any(1)]
            whole = whole[: -(-(settings.calibration_tokens - taken) // length)]
            batches.append(whole)
            taken += whole.numel()
            if taken >= settings.calibration_tokens:
                break
    return batches


def _tokenizer(settings: ConvertSettings, opened: Opened, config: Any) -> tuple[Any, Path | None]:
    """(the tokenizer, the folder or file it is from)."""
    if settings.tokenizer is not None:
        tokenizer, path = load_tokenizer(settings.tokenizer), Path(settings.tokenizer)
    elif opened.tokenizer is not None:
        try:
            load = opened.load_tokenizer or partial(load_tokenizer, opened.tokenizer, flag="--input_path")
            tokenizer, path = load(), opened.tokenizer
        except (DataError, ConfigurationError) as error:
            raise type(error)(f"{error} (--tokenizer gives the result another)") from error
    else:
        return None, None
    check_vocabulary(tokenizer, config.vocab_size)
    return tokenizer, path if path.exists() else None


def _write(job: Job, target: Target, output: Path, say: Say, verify: bool) -> None:
    from tqdm import tqdm

    output.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output.parent).free
    if free < job.weights.num_bytes:
        raise CheckpointError(
            f"--output_path {output}: {job.weights.num_bytes / 1e9:.1f} GB are to be written and {free / 1e9:.1f} GB "
            "are free"
        )
    try:
        with files.made_whole(output) as folder:
            folder.mkdir()
            with tqdm(total=job.weights.num_bytes, unit="B", unit_scale=True, disable=None, leave=False) as bar:
                sums = target.write(replace(job, weights=_counted(job.weights, bar.update)), folder)
            if verify:
                say(_verified(job, target, folder))
            written = {
                path.relative_to(folder).as_posix(): Written(
                    path.stat().st_size, sums.get(path.name) or sha256_of(path)
                )
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            files.write_text(folder / MARKER, marker_of(written))
    except OSError as error:
        raise CheckpointError(f"--output_path {output}: it cannot be written ({error.strerror or error})") from error


def _counted(weights: Weights, count: Callable[[int], Any]) -> Weights:
    def read(name: str) -> Any:
        tensor = weights.read(name)
        count(tensor.numel() * tensor.element_size())
        return tensor

    return replace(weights, read=read)


def _verified(job: Job, target: Target, folder: Path) -> str:
    """Raises CheckpointError where the result says something else than the source."""
    config, dtype = job.weights.config, job.weights.dtype
    found = compare(
        job.opened.logits, lambda ids, dtype: target.logits(folder, ids, dtype), config, dtype, bool(job.changes)
    )
    if not found.fits:
        raise CheckpointError(f"--verify: the result is not what its source is: {found}; nothing was kept of it")
    return f"verified: {found}"
