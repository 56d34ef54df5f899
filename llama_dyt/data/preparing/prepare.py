"""Preparing text once: the parts of a machine done in parallel by workers, and a manifest when all of them are there.

Here it is only arranged: what a part is, what is done with one and what was finished stand in files of their own.
Given again with the same settings it goes on where it was stopped, at whatever moment that was.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llama_dyt.core.errors import ConfigurationError, DataError, LlamaDytError
from llama_dyt.data.formats.arrow import arrow_file, write_arrow
from llama_dyt.data.formats.manifest import SPLITS, Manifest, differences, manifest_name, read_manifest, write_manifest
from llama_dyt.data.formats.matching import printable
from llama_dyt.data.formats.shard_writer import ASIDE, dtype_of, writing
from llama_dyt.data.formats.shards import TokenShards
from llama_dyt.data.formats.sources import SAMPLE_FOLDER, ReadOptions, TextSource
from llama_dyt.data.opening import open_text
from llama_dyt.data.preparing.journal import SETTINGS, Journal, remove_strays
from llama_dyt.data.preparing.parts import MANY_PARTS, Part, cut_parts, part_bytes_of
from llama_dyt.data.preparing.settings import PrepareSettings
from llama_dyt.data.preparing.tokenizer import settle_tokenizer
from llama_dyt.data.preparing.worker import Job, PartTotal, make_preparer
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer, tokenizer_fingerprint, vocabulary_size
from llama_dyt.data.tokenizing.workers import Workers

SHARD_TOKENS = 1 << 28
_LOOK_SECONDS = 0.5
_AHEAD = 2
"""Parts handed out for each worker before their turn."""


@dataclass(frozen=True)
class Prepared:
    """What a preparation came to, in this call and before.

    Attributes:
        tokens, documents: by split, of this machine.
        new_tokens, seconds: of this call.
    """

    folder: Path
    manifest: Manifest
    tokens: dict[str, int]
    documents: dict[str, int]
    new_tokens: int
    seconds: float

    def __str__(self) -> str:
        lines = [
            f"{split}: {self.tokens[split]:,} tokens, {self.documents[split]:,} documents"
            for split in SPLITS
            if self.documents[split] or split == "train"
        ]
        left_out = self.manifest.num_bad_lines, self.manifest.num_empty_documents
        if any(left_out):
            lines.append(f"left out: {left_out[0]:,} bad lines, {left_out[1]:,} empty documents")
        if self.new_tokens:
            speed = f"{self.new_tokens / self.seconds:,.0f} tokens/s"
            lines.append(f"{self.new_tokens:,} tokens in {self.seconds:,.1f} s ({speed})")
        else:
            lines.append("nothing was left to do")
        return "\n".join(lines)


def prepare(
    settings: PrepareSettings,
    *,
    sample_folder: str | os.PathLike = SAMPLE_FOLDER,
    part_bytes: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    show_progress: bool = True,
) -> Prepared:
    """Prepare this machine's share of the text, or what is left of it.

    Nobody else may do so at the same time: the entry holds a claim on the share.

    Args:
        part_bytes: size of the parts; None is that of `parts.part_bytes_of`.
        shard_tokens: a shard ends after about so many.
    Raises:
        ConfigurationError, DataError: what is wrong with the settings, the text, the folder or the disk. What was
            finished until then is kept.
    """
    options = settings.read_options(sample_folder)
    source = _open(settings, options)
    files = source.sized_files()
    if show_progress and (found := source.in_words()) is not None:
        print(f"{printable(str(settings.dataset))}: {found}", file=sys.stderr)
    part_bytes = part_bytes or part_bytes_of(files)
    num_shares = 0 if files else _num_shares(source, settings, show_progress)
    if files:
        parts = cut_parts(files, part_bytes)
    else:
        parts = [Part(number, (), 0) for number in range(num_shares or settings.world_size)]
    output = Path(settings.output_path)
    journal_folder = output / f".journal_{settings.rank:05d}_of_{settings.world_size:05d}"
    with _made(journal_folder):
        tokenizer, tokenizer_folder = settle_tokenizer(settings, parts, sample_folder)
        plain = settings.format == "arrow"
        bos = None if plain or settings.add_bos is False else tokenizer.bos_token_id
        if settings.add_bos and bos is None:
            raise ConfigurationError(
                "--add_bos: the tokenizer has no BOS token; leave it out, or give another tokenizer"
            )
        vocab_size = vocabulary_size(tokenizer)
        # What a format was told to read by is no part of a file's name and size.
        field = {} if options.fields == ReadOptions().fields else {"field": settings.text_field}
        told = {name: repr(own) for name, own in options.settings.items()}
        field |= {"settings": told} if told else {}
        draft = Manifest(
            written_as=settings.format,
            rank=settings.rank,
            world_size=settings.world_size,
            tokenizer=tokenizer_fingerprint(tokenizer),
            vocab_size=vocab_size,
            dtype=dtype_of(vocab_size),
            bos=bos,
            eos=tokenizer.eos_token_id if settings.add_eos and not plain else None,
            validation_fraction=settings.validation_fraction,
            max_num_tokens=settings.max_num_tokens,
            part_bytes=part_bytes,
            shard_tokens=shard_tokens,
            dataset=str(settings.dataset),
            sources=[{"name": file.name, "bytes": file.size, **field} for file in files]
            or [{"name": source.fingerprint, "parts": len(parts)}],
            num_bad_lines=0,
            num_empty_documents=0,
            shards=[],
        )
        done = _compare_with_what_is_there(output, draft)
        if done is not None:
            _remove_journal(journal_folder)
            return _summary(output, done, 0, 0.0)
        with writing(journal_folder):
            write_manifest(journal_folder, draft, SETTINGS)
        shards_folder = output if settings.format == "shards" else journal_folder
        job = Job(
            output=shards_folder,
            journal=journal_folder,
            tokenizer=tokenizer_folder,
            fingerprint=draft.tokenizer,
            vocab_size=vocab_size,
            bos=draft.bos,
            eos=draft.eos,
            validation_fraction=settings.validation_fraction,
            options=options,
            shard_tokens=shard_tokens,
            rank=settings.rank,
            world_size=settings.world_size,
            dataset=None if files else str(settings.dataset),
            num_shares=num_shares,
            progress=journal_folder / "progress",
        )
        return _finish(output, draft, job, parts, settings, show_progress)


def _open(settings: PrepareSettings, options: ReadOptions) -> TextSource:
    problems = []
    try:
        source = open_text(settings.dataset, options)
        problems = [str(problem) for problem in source.problems()]
    except LlamaDytError as error:
        problems = [str(error)]
    if not problems:
        return source
    if settings.tokenizer is not None:  # its problem is told with the others
        try:
            load_tokenizer(settings.tokenizer)
        except LlamaDytError as error:
            problems.append(str(error))
    raise DataError("\n".join(problems))


def _num_shares(source: TextSource, settings: PrepareSettings, say: bool) -> int:
    """Into how many shares what is no files is divided, each a part that one machine reads alone; the same for any
    number of machines, but 0 where there are more of them: then each reads all, and keeps every so manieth document."""
    count = min(source.num_shares, MANY_PARTS) if source.can_be_shared else 0
    if count >= settings.world_size:
        return count
    if say and settings.world_size > 1:
        has = f"has {count} file{'' if count == 1 else 's'}" if count else "cannot be divided"
        print(f"{settings.dataset} {has}: each of the {settings.world_size} machines reads all of it", file=sys.stderr)
    return 0


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes the journal's folder. One in which nothing was begun goes again."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if not (folder / SETTINGS).exists():
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()


def _compare_with_what_is_there(output: Path, draft: Manifest) -> Manifest | None:
    """This machine's manifest if it is there already.

    Raises:
        ConfigurationError: something in the folder was, or is being, prepared with other settings.
    """
    there = [*output.glob("*manifest_*_of_*.json"), *output.glob(f".journal_*/{SETTINGS}")]
    done = None
    for file in sorted(there):
        try:
            found = read_manifest(file)
        except DataError:
            if file.exists():
                raise
            continue  # another machine has just ended
        if unlike := differences(draft, found):
            raise ConfigurationError(
                f"--output_path {output}: {file.relative_to(output)} was made with another "
                f"{', another '.join(unlike)}; give the same settings to go on, or another folder"
            )
        if found.rank == draft.rank and file.parent == output:
            done = found
    return done


def _finish(
    output: Path, draft: Manifest, job: Job, parts: list[Part], settings: PrepareSettings, show_progress: bool
) -> Prepared:
    begin = time.monotonic()
    with writing(job.progress):
        np.zeros(len(parts), np.int64).tofile(job.progress)
    own = [part for part in parts if part.is_of(settings.rank, settings.world_size)]
    journal = Journal(job.output, job.journal)
    before = sum(entry.tokens for part in own for entry in journal.entries(part.number))
    remove_strays(job.output, own, journal)
    with _Progress(job.progress, own, before, show_progress) as progress:
        _run(job, own, settings.max_num_tokens, settings.workers, journal, progress)
    entries = [entry for part in own for entry in journal.entries(part.number)]
    shards = [shard for entry in entries for shard in entry.shards]
    remove_strays(job.output, own, journal)
    if settings.format == "arrow":
        for split in SPLITS:
            mine = [shard for shard in shards if shard.split == split]
            if mine or split == "train":
                array = TokenShards(job.output, split, draft, mine)
                write_arrow(arrow_file(output, settings.rank, split), array)
    manifest = replace(
        draft,
        shards=shards,
        num_bad_lines=sum(entry.bad_lines for entry in entries),
        num_empty_documents=sum(entry.empty for entry in entries),
    )
    name = manifest_name(settings.rank, settings.world_size, settings.format)
    with writing(output):
        for aside in output.glob(f".{name}.*{ASIDE}"):
            aside.unlink()
        write_manifest(output, manifest, name)
    _remove_journal(job.journal)
    new = sum(entry.tokens for entry in entries) - before
    return _summary(output, manifest, new, time.monotonic() - begin)


def _remove_journal(folder: Path) -> None:
    Journal(folder, folder).remove()


def _summary(output: Path, manifest: Manifest, new_tokens: int, seconds: float) -> Prepared:
    tokens = {split: sum(shard.tokens for shard in manifest.split(split)) for split in SPLITS}
    documents = {split: sum(shard.documents for shard in manifest.split(split)) for split in SPLITS}
    return Prepared(output, manifest, tokens, documents, max(0, new_tokens), seconds)


def _run(job: Job, parts: list[Part], limit: int | None, workers: int, journal: Journal, progress: _Progress) -> None:
    """Prepare the parts; with a limit, as many as it takes, and only as much of the last one as it allows.

    Parts are done several at a time, so that some may be done for nothing: what counts is decided in their order.
    """
    count = max(1, min(workers, len(parts)))
    queue, settled, allowed = deque(parts), 0, limit
    totals: dict[int, PartTotal] = {}
    failures: dict[int, Exception] = {}
    running: dict[Future, Part] = {}
    with Workers(make_preparer, job, count=count, threads=max(1, workers // count)) as pool:
        while settled < len(parts):
            while queue and len(running) < _AHEAD * count:
                part = queue.popleft()
                running[pool.submit((part, allowed))] = part
            for future in wait(running, _LOOK_SECONDS, FIRST_COMPLETED).done:
                part = running.pop(future)
                try:
                    totals[part.number] = future.result()
                    progress.finished(part)
                except Exception as error:
                    if limit is None:
                        raise
                    failures[part.number] = error  # of a part that may not be needed
            progress.look()
            while settled < len(parts) and (number := parts[settled].number) in totals | failures:
                if number in failures:
                    raise failures[number]
                total = totals[number]
                if allowed is not None and total.tokens > allowed:
                    del totals[number]
                    queue.appendleft(parts[settled])
                    break
                settled += 1
                if allowed is not None:
                    allowed -= total.tokens
                if total.truncated:
                    queue.clear()
                    running.clear()
                    pool.close()
                    for part in parts[settled:]:
                        journal.drop(part.number)
                    return


class _Progress:
    """A bar over the bytes of the parts, with tokens and tokens a second beside it."""

    def __init__(self, file: Path, parts: list[Part], before: int, show: bool):
        from tqdm import tqdm

        self._tokens = np.memmap(file, np.int64, "r")
        self._before = before
        self._start = time.monotonic()
        total = sum(part.size for part in parts) or None
        self._bar = tqdm(total=total, unit="B", unit_scale=True, disable=not show, mininterval=_LOOK_SECONDS)

    def finished(self, part: Part) -> None:
        self._bar.update(part.size)

    def look(self) -> None:
        tokens = int(self._tokens.sum())
        speed = max(0, tokens - self._before) / (time.monotonic() - self._start)
        self._bar.set_postfix_str(f"{tokens:,} tokens, {speed:,.0f} tokens/s", refresh=False)
        self._bar.refresh()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.look()
        self._bar.close()
