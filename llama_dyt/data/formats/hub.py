"""Datasets of the Hugging Face hub, streamed through `datasets`, with positions and with errors that come at once.

The hub is asked first, once and without retries, and told what to stream of repositories that only hold a loading
script, which `datasets` no longer runs (the two default datasets are such). Of one that holds no data but lists of
addresses (`urls/*.txt`, as RedPajama-Data-1T) the lists are read: `url_lists`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from copy import copy
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats import json_file, jsonl, url_lists
from llama_dyt.data.formats.format import Format
from llama_dyt.data.formats.hub_client import LOCAL_REMEDY, PROBES, may_pass, patiently, probe, told
from llama_dyt.data.formats.lines import parse_json_line
from llama_dyt.data.formats.record_files import RecordReader, TextFields
from llama_dyt.data.formats.sources import ReadOptions, Source, TextSource, too_few_files

_STATE_EVERY = 256
_RAW_LINE = "text"  # the column of datasets' "text" builder
_PARQUET_REVISION = "refs/convert/parquet"


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
            f"download it and {LOCAL_REMEDY}",
            about=name,
            noun="dataset",
        )
    return {"path": "parquet", "data_files": [f"hf://datasets/{name}@{_PARQUET_REVISION}/{file}" for file in chosen]}


def _is_json_lines(name: str) -> bool:
    return name.lower().endswith((*jsonl.FORMAT.suffixes, *json_file.FORMAT.suffixes))


def _has_script(name: str, files: Sequence[str]) -> bool:
    return f"{name.split('/')[-1]}.py" in files


def lists_in(files: Sequence[str]) -> list[str]:
    """The lists of addresses of a repository that has no data itself; [] where there are none."""
    is_data = any(file.lower().endswith((".parquet", ".csv")) or _is_json_lines(file) for file in files)
    return [] if is_data else sorted(file for file in files if url_lists.LIST.search(file))


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
        files: that the repository has, where they are known.
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
        files: Sequence[str] | None = None,
    ):
        self.name = name
        self.fields = tuple(fields)
        self.task = task
        self.skip_bad_lines = skip_bad_lines
        self.bad_lines = 0
        self._reader = reader or TextFields(self.fields)
        self.fingerprint = f"hub:{name}:{task or ''}:{','.join(self.fields)}{self._reader.mark}"
        self._files = files
        self._plan: dict | None = None
        self._share: tuple[int, int] | None = None
        self._divided: list[tuple[Any, bool]] = []  # the whole that shares are of: every load asks the hub again

    @property
    def num_shares(self) -> int:
        return self._whole()[0].num_shards

    def _open(self) -> tuple[Any, bool]:
        """(the stream, whether it is of raw lines)."""
        if self._share is None:
            return self._load()
        (number, of), (stream, raw) = self._share, self._whole()
        if stream.num_shards < of:
            raise too_few_files(f"'{self.name}'", stream.num_shards, of)
        return stream.shard(num_shards=of, index=number, contiguous=False), raw

    def _whole(self) -> tuple[Any, bool]:
        if not self._divided:
            self._divided.append(self._load())
        return self._divided[0]

    def _load(self) -> tuple[Any, bool]:
        from datasets import load_dataset

        if self._plan is None:
            if Path(self.name).exists():
                self._plan = {"path": self.name, "name": self.task}
            else:
                files = probe(self.name) if self._files is None else self._files
                converted = probe(self.name, revision=_PARQUET_REVISION) if needs_conversion(self.name, files) else None
                self._plan = plan(self.name, self.task, files, converted)
        arguments = dict(self._plan)
        raw = arguments.pop("raw", False)
        for attempt in count(1):
            try:
                return load_dataset(**arguments, streaming=True, split="train"), raw
            except Exception as error:
                if attempt == PROBES or not may_pass(error):
                    raise
                time.sleep(2**attempt)
        raise AssertionError

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
        message = f"'{self.name}': cannot be streamed ({reason}); check it, or {LOCAL_REMEDY}"
        return DataError(message, about=self.name, noun="dataset")


class Hub(Format):
    name = "hub"
    order = 90
    is_remote = True

    def matches(self, dataset: str) -> bool:
        return True

    def open(self, dataset: str, options: ReadOptions) -> Source:
        if Path(dataset).exists():
            files = None
        else:
            files = _files_of(dataset, os.environ.get("HF_ENDPOINT"))
            if lists := lists_in(files):
                chosen = url_lists.choose(dataset, lists, options)
                texts = {name: _text_of(dataset, name, os.environ.get("HF_ENDPOINT")) for name in chosen}
                return url_lists.ListedSource(dataset, texts, options)
        return HubSource(dataset, options.fields, options.task, options.skip_bad_lines, options.reader, files)


@cache
def _files_of(name: str, endpoint: str | None) -> list[str]:
    """As `probe`, asked once by a process."""
    return probe(name)


@cache
def _text_of(name: str, file: str, endpoint: str | None) -> str:
    """A small file of a repository, in its client's cache.

    Raises:
        DataError: the hub does not give it.
    """
    from huggingface_hub import hf_hub_download

    with told(name, "dataset", LOCAL_REMEDY):
        path = patiently(lambda: hf_hub_download(name, file, repo_type="dataset"))
    return Path(path).read_text(encoding="utf-8", errors="replace")


FORMAT = Hub()
