"""Which tokenizer a preparation uses, and keeping it beside the shards so that a run finds it there.

Several machines may prepare into one folder at once, and all come to the same tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from llama_dyt.core import files
from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.data.formats.shard_writer import writing
from llama_dyt.data.formats.sources import SAMPLE
from llama_dyt.data.order.held_out import is_held_out
from llama_dyt.data.preparing.parts import Part, bad_records, read_part
from llama_dyt.data.preparing.settings import PrepareSettings
from llama_dyt.data.settings import DEFAULT_TOKENIZER
from llama_dyt.data.tokenizing.tokenizer import (
    load_tokenizer,
    save_tokenizer,
    tokenizer_fingerprint,
    train_sentencepiece,
)

FOLDER = "tokenizer"
TRAINING_CHARACTERS = 20_000_000
"""Seen by the training of a tokenizer; BPE on more takes long and changes little."""
_MOST_FETCHED = 32


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
    with writing(folder), files.made_whole(folder) as aside:
        _make(settings, parts, sample_folder, aside)
        load_tokenizer(aside)
    return settle_tokenizer(settings, parts, sample_folder)  # which may be another machine's, that was first


def _make(settings: PrepareSettings, parts: list[Part], sample_folder, aside: Path) -> None:
    if settings.train_tokenizer is None:
        tokenizer = load_tokenizer(settings.tokenizer or _default(settings, sample_folder))
        save_tokenizer(tokenizer, aside)
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
    train_sentencepiece(_some_texts(settings, parts, sample_folder), aside, settings.train_tokenizer)


def _default(settings: PrepareSettings, sample_folder) -> str:
    if settings.dataset == SAMPLE:
        from llama_dyt.data.sample import build_sample_corpus

        return build_sample_corpus(sample_folder).tokenizer_folder
    return DEFAULT_TOKENIZER


def _some_texts(settings: PrepareSettings, parts: list[Part], sample_folder: str) -> Iterator[str]:
    """The beginning of every part, an equal share of TRAINING_CHARACTERS from each, without what is held out. Of files
    that have to be fetched some are enough."""
    fetched = [part for part in parts if part.turn is not None and part.pieces[0].start == 0]
    parts = fetched[:: -(-len(fetched) // _MOST_FETCHED)] if fetched else parts
    options = settings.read_options(sample_folder)
    bad = bad_records(options)
    share = -(-TRAINING_CHARACTERS // len(parts))
    for part in parts:
        left = share
        for text, _ in read_part(part, None, options, bad):
            if not is_held_out(text, settings.validation_fraction):
                yield text[:left]
                left -= len(text)
            if left <= 0:
                break
