"""Which tokenizer a preparation uses, and keeping it beside the shards so that a run finds it there.

Its own file because several machines may prepare into one folder at once, and all must come to the same tokenizer.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from llama_dyt.config.preparation import PrepareSettings
from llama_dyt.config.settings import DEFAULT_TOKENIZER
from llama_dyt.data.parts import BadRecords, Part, read_part
from llama_dyt.data.shard_writer import writing
from llama_dyt.data.sources import SAMPLE
from llama_dyt.data.split import is_held_out
from llama_dyt.data.tokenizer import load_tokenizer, tokenizer_fingerprint, train_sentencepiece
from llama_dyt.errors import ConfigurationError, DataError

FOLDER = "tokenizer"
TRAINING_CHARACTERS = 20_000_000
"""Seen by the training of a tokenizer; BPE on more takes long and changes little."""


def settle_tokenizer(settings: PrepareSettings, parts: list[Part], sample_folder: str | os.PathLike):
    """(tokenizer, its folder): the one in the output folder, or the one that was asked for, put there.

    Raises:
        ConfigurationError: the folder holds another one, or training one here is not possible.
        DataError: it cannot be loaded, or not be saved so that it encodes the same.
    """
    folder = Path(settings.output_path) / FOLDER
    asked = settings.tokenizer
    if folder.is_dir():
        there = load_tokenizer(folder)
        if settings.train_tokenizer not in (None, len(there)):
            raise ConfigurationError(
                f"--train_tokenizer {settings.train_tokenizer}: {folder} holds one of {len(there)} pieces already; "
                "give another --output_path"
            )
        if asked is not None and tokenizer_fingerprint(load_tokenizer(asked)) != tokenizer_fingerprint(there):
            raise ConfigurationError(
                f"--tokenizer {asked}: {folder} holds another one, with which the data there was prepared; leave the "
                "flag out, or give another --output_path"
            )
        return there, folder
    aside = folder.with_name(f".{FOLDER}.{settings.rank:05d}")
    shutil.rmtree(aside, ignore_errors=True)  # of one that was killed
    try:
        with writing(folder):
            _make(settings, parts, sample_folder, aside)
            made = load_tokenizer(aside)
            if folder.is_dir():  # another machine was first
                return settle_tokenizer(settings, parts, sample_folder)
            os.rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return made, folder


def _make(settings: PrepareSettings, parts: list[Part], sample_folder, aside: Path) -> None:
    if settings.train_tokenizer is None:
        tokenizer = load_tokenizer(settings.tokenizer or _default(settings, sample_folder))
        tokenizer.save_pretrained(aside)
        if tokenizer_fingerprint(load_tokenizer(aside)) != tokenizer_fingerprint(tokenizer):
            raise DataError(
                f"tokenizer {settings.tokenizer}: saved and loaded again it would encode otherwise; convert it to a "
                "folder with tokenizer.json"
            )
        return
    if not parts[0].pieces:
        raise ConfigurationError("--train_tokenizer needs local files; a dataset of the hub is streamed only once")
    if settings.rank:
        raise ConfigurationError(
            f"--train_tokenizer: rank 0 trains it; start rank {settings.rank} when "
            f"{Path(settings.output_path) / FOLDER} is there, or copy it there"
        )
    train_sentencepiece(_some_texts(settings, parts), aside, settings.train_tokenizer)


def _default(settings: PrepareSettings, sample_folder) -> str:
    if settings.dataset == SAMPLE:
        from llama_dyt.data.sample import build_sample_corpus

        return build_sample_corpus(sample_folder).tokenizer_folder
    return DEFAULT_TOKENIZER


def _some_texts(settings: PrepareSettings, parts: list[Part]) -> Iterator[str]:
    """The beginning of every part, an equal share of TRAINING_CHARACTERS from each, without what is held out."""
    bad = BadRecords(settings.skip_bad_lines)
    share = -(-TRAINING_CHARACTERS // len(parts))
    for part in parts:
        left = share
        for text, _ in read_part(part, None, bad):
            if not is_held_out(text, settings.validation_fraction):
                yield text[:left]
                left -= len(text)
            if left <= 0:
                break
