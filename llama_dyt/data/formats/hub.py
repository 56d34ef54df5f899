"""Datasets of the Hugging Face hub, streamed through `datasets`, with positions and with errors that come at once.

The hub is asked first, once and without retries, and told what to stream of repositories that only hold a loading
script, which `datasets` no longer runs (the two default datasets are such).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import count
from pathlib import Path
from typing import Any

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats import json_file, jsonl
from llama_dyt.data.formats.format import Format
from llama_dyt.data.formats.lines import parse_json_line
from llama_dyt.data.formats.record_files import RecordReader, TextFields
from llama_dyt.data.formats.sources import ReadOptions, Source, TextSource, too_few_files

_PROBE_SECONDS = 10
_PROBES = 4
_STATE_EVERY = 256
_RAW_LINE = "text"  # the column of datasets' "text" builder
_PARQUET_REVISION = "refs/convert/parquet"
_LOCAL_REMEDY = "use local .jsonl or .parquet files (-d FOLDER) or `-d sample`"


def probe(
    name: str, *, repo_type: str = "dataset", revision: str | None = None, flag: str = "--tokenizer"
) -> list[str]:
    """Asks the hub which files a repository has: once, but for a hub that is there and throttles or fails.

    Args:
        flag: what a repository of type "model" was given by, for messages.

    Raises:
        DataError: the hub cannot be reached, or the repository is missing or closed.
    """
    from huggingface_hub.errors import GatedRepoError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    remedy = _LOCAL_REMEDY if repo_type == "dataset" else f"give {flag} a local folder or file"
    kind = "dataset" if repo_type == "dataset" else "tokenizer"
    try:
        info = _repository(name, repo_type, revision)
    except GatedRepoError as error:
        raise DataError(
            f"'{name}' needs permission; ask for it on its hub page and run `hf auth login`", about=name, noun=kind
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"'{name}' is neither a local path nor on the hub (or it is private); check the name, or {remedy}",
            about=name,
            noun=kind,
        ) from error
    except HFValidationError as error:
        raise DataError(
            f"'{name}' is neither a local path nor a possible hub name; {remedy}", about=name, noun=kind
        ) from error
    except OfflineModeIsEnabled as error:
        raise DataError(
            f"'{name}' is no local path, and HF_HUB_OFFLINE forbids asking the hub; {remedy}", about=name, noun=kind
        ) from error
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"'{name}' is no local path, and the hub cannot be reached ({reason}); {remedy}", about=name, noun=kind
        ) from error
    return [sibling.rfilename for sibling in info.siblings or []]


def _repository(name: str, repo_type: str, revision: str | None):
    """What the hub tells of it; a throttled answer, such as many ranks get at once, is waited for."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in count(1):
        try:
            return HfApi().repo_info(name, repo_type=repo_type, revision=revision, timeout=_PROBE_SECONDS)
        except HfHubHTTPError as error:
            if attempt == _PROBES or not _may_pass(error):
                raise
            asked = error.response.headers.get("Retry-After", "")
            time.sleep(min(int(asked) if asked.isdigit() else 2**attempt, _PROBE_SECONDS))


def _may_pass(error: BaseException) -> bool:
    """Whether it comes of a hub that is there and throttles or fails for now."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status == 429 or status >= 500
    # Of files that the hub has just told of: asking for their place failed, which `datasets` takes for absence.
    if isinstance(error, FileNotFoundError) and "Unable to find 'hf://" in str(error):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and _may_pass(cause)


def plan(name: str, task: str | None, files: Sequence[str], converted: Sequence[str] | None) -> dict:
    """Chooses the arguments of `load_dataset` for a repository.

    Args:
        name, task: the repository and the configuration asked for, if any.
        files: the repository's files.
        converted: files of its `refs/convert/parquet` revision; asked for only where `needs_conversion` says so.
    Returns:
        keyword arguments for `datasets.load_dataset`; key "raw" (removed by the caller) is True for a stream of
        unparsed JSON lines.
    """
    if not _has_script(name, files):
        return {"path": name, "name": task}
    lines = sorted(file for file in files if _is_json_lines(file))
    if lines:
        # Slices differ in `meta`, which the JSON builder's one schema refuses: read lines and parse them here.
        return {"path": "text", "data_files": [f"hf://datasets/{name}/{file}" for file in lines], "raw": True}
    tasks = sorted({file.split("/")[0] for file in converted or () if file.endswith(".parquet")})
    if task is None and len(tasks) == 1:
        task = tasks[0]
    if task not in tasks:
        raise DataError(
            f"'{name}' has {'no task ' + repr(task) if task else 'several tasks'}; "
            f"choose with --task_name one of: {', '.join(tasks) or '(none can be streamed)'}",
            about=name,
            noun="dataset",
        )
    chosen = sorted(file for file in converted or () if file.startswith(f"{task}/train/"))
    if not chosen:
        raise DataError(
            f"'{name}' holds only a loading script and no complete converted `train` split for {task!r}; "
            f"download it and {_LOCAL_REMEDY}",
            about=name,
            noun="dataset",
        )
    return {"path": "parquet", "data_files": [f"hf://datasets/{name}@{_PARQUET_REVISION}/{file}" for file in chosen]}


def _is_json_lines(name: str) -> bool:
    return name.lower().endswith((*jsonl.FORMAT.suffixes, *json_file.FORMAT.suffixes))


def _has_script(name: str, files: Sequence[str]) -> bool:
    return f"{name.split('/')[-1]}.py" in files


def needs_conversion(name: str, files: Sequence[str]) -> bool:
    return _has_script(name, files) and not any(_is_json_lines(file) for file in files)


class HubSource(TextSource):
    """Records of a hub dataset's `train` split, in its own order.

    Args:
        name: a hub dataset (or anything else that `datasets.load_dataset` takes, such as a local folder).
        fields: the columns to yield; all must be strings.
        task: the dataset's configuration, if it has several.
        skip_bad_lines: count unusable records instead of raising.
        reader: takes what is wanted of a record; None the texts of `fields`.
    """

    is_local = False
    can_be_shared = True

    def __init__(
        self,
        name: str,
        fields: Sequence[str] = ("text",),
        task: str | None = None,
        skip_bad_lines: bool = False,
        reader: RecordReader | None = None,
    ):
        self.name = name
        self.fields = tuple(fields)
        self.task = task
        self.skip_bad_lines = skip_bad_lines
        self.bad_lines = 0
        self._reader = reader or TextFields(self.fields)
        self.fingerprint = f"hub:{name}:{task or ''}:{','.join(self.fields)}{self._reader.mark}"
        self._plan: dict | None = None
        self._share: tuple[int, int] | None = None

    def _open(self):
        from datasets import load_dataset

        if self._plan is None:
            if Path(self.name).exists():
                self._plan = {"path": self.name, "name": self.task}
            else:
                files = probe(self.name)
                converted = probe(self.name, revision=_PARQUET_REVISION) if needs_conversion(self.name, files) else None
                self._plan = plan(self.name, self.task, files, converted)
        arguments = dict(self._plan)
        raw = arguments.pop("raw", False)
        for attempt in count(1):
            try:
                stream = load_dataset(**arguments, streaming=True, split="train")
                break
            except Exception as error:
                if attempt == _PROBES or not _may_pass(error):
                    raise
                time.sleep(2**attempt)
        if self._share is not None:
            number, of = self._share
            if stream.num_shards < of:
                raise too_few_files(f"'{self.name}'", stream.num_shards, of)
            stream = stream.shard(num_shards=of, index=number, contiguous=False)
        return stream, raw

    def share(self, number: int, count: int) -> HubSource:
        part = copy(self)
        part._share, part.bad_lines = (number, count), 0
        return part

    def iterate(self, position: dict | None = None) -> Iterator[tuple[tuple[str, ...], dict]]:
        position = position or {"state": None, "skip": 0, "row": 0, "bad_lines": 0}
        state, skip, row, self.bad_lines = (position[key] for key in ("state", "skip", "row", "bad_lines"))
        try:
            stream, raw = self._open()
            if state is not None:
                stream.load_state_dict(state)
            seen = 0  # records since `state`; asking for the state at every record would cost more than reading it
            for record in stream:
                seen += 1
                if seen > skip:
                    values = self._values(record, raw)
                    row += 1
                    if seen % _STATE_EVERY == 0:
                        state, seen, skip = stream.state_dict(), 0, 0
                    if isinstance(values, str):
                        self._bad(f"'{self.name}', record {row - 1}: {values}")
                    elif values is not None:
                        yield values, {"state": state, "skip": seen, "row": row, "bad_lines": self.bad_lines}
        except DataError:
            raise
        except Exception as error:
            raise self._cannot_be_streamed(error) from error

    def _values(self, record: dict, raw: bool) -> tuple[Any, ...] | str | None:
        """The record's fields, the reason why they cannot be had, or None for a blank line."""
        if raw:
            line = record[_RAW_LINE]
            return parse_json_line(line.encode(), self._reader) if line.strip() else None
        values = self._reader.pick(record)
        if isinstance(values, str) and values.startswith("has no field"):
            return f"{values} (it has {', '.join(record)})"
        return values

    def _bad(self, reason: str) -> None:
        if not self.skip_bad_lines:
            raise DataError(
                f"{reason}; correct it, or pass --skip_bad_lines to leave such records out",
                about=self.name,
                noun="dataset",
            )
        self.bad_lines += 1

    def problems(self) -> list[DataError]:
        """What would stop the run, found by asking the hub once."""
        try:
            self._open()
        except DataError as error:
            return [error]
        except Exception as error:
            return [self._cannot_be_streamed(error)]
        return []

    def _cannot_be_streamed(self, error: Exception) -> DataError:
        lines = str(error).splitlines() or [type(error).__name__]
        reason = lines[0]
        if parts := re.search(r"(?:available configs|Available): \[([^\]]*)\]", " ".join(lines)):
            has = f"has no part {self.task!r}" if self.task else "has several parts"
            names = parts[1].replace("'", "")
            message = f"'{self.name}' {has}; choose with --task_name one of: {names}"
            return DataError(message, about=self.name, noun="dataset")
        message = f"'{self.name}': cannot be streamed ({reason}); check it, or {_LOCAL_REMEDY}"
        return DataError(message, about=self.name, noun="dataset")


class Hub(Format):
    name = "hub"
    order = 90
    is_remote = True

    def matches(self, dataset: str) -> bool:
        return True

    def open(self, dataset: str, options: ReadOptions) -> Source:
        return HubSource(dataset, options.fields, options.task, options.skip_bad_lines, options.reader)


FORMAT = Hub()
