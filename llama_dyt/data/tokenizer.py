"""Tokenizers: loading any HuggingFace tokenizer or SentencePiece model, training a small one, encoding in batches.

Its own file because every part of the data layer meets tokenizers only through these functions. Text is always text
here: `<s>` written in a document is encoded as those three characters, and BOS/EOS are put by the packing alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from llama_dyt.data.hub import probe
from llama_dyt.data.long_text import encode_all
from llama_dyt.data.text_worker import encode_with_backend
from llama_dyt.errors import ConfigurationError, DataError

_HF_FILES = ("tokenizer.json", "tokenizer_config.json")
_SENTENCEPIECE_FILE = "tokenizer.model"
_REMEDY = "give --tokenizer a folder with tokenizer.json or tokenizer.model, a SentencePiece file, or a hub name"
# Text on which a loaded SentencePiece model must encode as SentencePiece itself does. No space at its start: there
# HuggingFace's own LLaMA tokenizer departs from SentencePiece by design ("legacy=False").
_PROBE_TEXT = "def f(x):\n    return [x, 3.14]\t# caf\u00e9 \u6f22\u5b57 \U0001f600\r\n\n  \ufb01nal words,  spaced"
_CHUNK_CHARACTERS = 2000


def load_tokenizer(name_or_path: str | os.PathLike):
    """Loads a tokenizer.

    Args:
        name_or_path: a HuggingFace tokenizer folder, a folder or file with a SentencePiece model, one of our
            checkpoints (its `model/` is used), or a name on the hub.
    Returns:
        a HuggingFace tokenizer.
    Raises:
        DataError: nothing usable there.
        ConfigurationError: the tokenizer has no end-of-sequence token.
    """
    name = os.path.expanduser(str(name_or_path))
    path = Path(name)
    if path.is_dir():
        tokenizer = _load_folder(path)
    elif path.is_file() and path.name in _HF_FILES:
        tokenizer = _load_folder(path.parent)
    elif path.is_file():
        tokenizer = _guarded(path, lambda: _load_sentencepiece(path))
    elif name.startswith(("/", "./", "../")) or name.count("/") > 1 or path.suffix == ".model":
        raise DataError(f"tokenizer {name}: no such file or folder; {_REMEDY}")
    else:
        tokenizer = _load_from_hub(name)
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(
            f"tokenizer {name}: has no end-of-sequence token, so documents would run into each other; "
            "set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def _load_folder(folder: Path):
    from transformers import AutoTokenizer

    def has(place: Path, *names: str) -> bool:
        return any((place / name).is_file() for name in names)

    if not has(folder, *_HF_FILES, _SENTENCEPIECE_FILE) and has(folder / "model", *_HF_FILES, _SENTENCEPIECE_FILE):
        folder = folder / "model"
    if has(folder, *_HF_FILES):
        return _guarded(folder, lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True))
    if has(folder, _SENTENCEPIECE_FILE):
        return _guarded(folder, lambda: _load_sentencepiece(folder / _SENTENCEPIECE_FILE))
    raise DataError(f"tokenizer {folder}: this folder holds no tokenizer; {_REMEDY}")


def _load_from_hub(name: str):
    from transformers import AutoTokenizer

    try:  # one that was fetched before needs no network
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except Exception:
        probe(name, repo_type="model")
    return _guarded(name, lambda: AutoTokenizer.from_pretrained(name))


def _guarded(where, load):
    try:
        return load()
    except (DataError, ConfigurationError):
        raise
    except Exception as error:  # every backend has exceptions of its own for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"tokenizer {where}: cannot be loaded ({reason}); {_REMEDY}") from error


def _load_sentencepiece(path: Path):
    """A LLaMA tokenizer from a SentencePiece model, refused where it would not encode as SentencePiece does."""
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
    from transformers import LlamaTokenizer

    processor = SentencePieceProcessor(model_file=str(path))
    proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    special = {
        f"{kind}_token": processor.id_to_piece(getattr(processor, f"{kind}_id")())
        for kind in ("unk", "bos", "eos", "pad")
        if getattr(processor, f"{kind}_id")() >= 0
    }
    # add_bos_token is for those who generate from the checkpoint: they must begin as training documents begin.
    special["add_bos_token"] = processor.bos_id() >= 0
    tokenizer = LlamaTokenizer.from_pretrained(
        str(path.parent), vocab_file=str(path), add_prefix_space=proto.normalizer_spec.add_dummy_prefix, **special
    )
    if encode_batch(tokenizer, [_PROBE_TEXT])[0].tolist() != processor.encode(_PROBE_TEXT):
        raise DataError(
            f"tokenizer {path}: only SentencePiece BPE models without text normalization (LLaMA's kind) can be used as "
            "they are; convert this one to tokenizer.json with its model's own HuggingFace class"
        )
    return tokenizer


def train_sentencepiece(texts: Iterable[str], folder: str | os.PathLike, vocab_size: int = 4096):
    """Trains a LLaMA-like SentencePiece model and writes it as a HuggingFace tokenizer folder.

    BPE with byte fallback, ids unk 0, bos 1, eos 2, digits apart; no normalization, no dummy prefix and runs of spaces
    kept, so that code comes back to the letter (one exception is SentencePiece's own: U+2581 comes back as a space).
    The same texts give the same model.

    Args:
        texts: documents; cut here into pieces that the trainer takes.
        folder: receives tokenizer.model, tokenizer.json and tokenizer_config.json; made if absent.
        vocab_size: pieces, the 259 of bytes and specials included.
    Returns:
        the tokenizer.
    Raises:
        DataError: too little text for so large a vocabulary.
    """
    import sentencepiece

    pieces = (text[i : i + _CHUNK_CHARACTERS] for text in texts for i in range(0, len(text), _CHUNK_CHARACTERS))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=pieces,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=0.9999,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=8 * _CHUNK_CHARACTERS,  # bytes; longer ones would be dropped without a word
            num_threads=1,  # the result must not depend on the machine
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[-1]
        raise DataError(
            f"no SentencePiece model of {vocab_size} pieces can be trained on this text: {reason}"
        ) from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _SENTENCEPIECE_FILE).write_bytes(model.getvalue())
    tokenizer = _load_sentencepiece(folder / _SENTENCEPIECE_FILE)
    tokenizer.save_pretrained(folder)
    return tokenizer


def encode_batch(tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text, int32, without special tokens: neither added nor recognised in the text.

    A very long text is encoded in pieces, see `long_text`.
    """
    return encode_all(lambda some: _encode_whole(tokenizer, some), texts)


def _encode_whole(tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    if tokenizer.is_fast:
        # The backend itself: a BatchEncoding would copy masks and offsets that nobody reads, at half the speed.
        return encode_with_backend(tokenizer.backend_tokenizer, texts)
    ids = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False)
    return [np.array(row, dtype=np.int32) for row in ids["input_ids"]]


def tokenizer_fingerprint(tokenizer) -> str:
    """Equal for tokenizers that encode equally; stands in data positions, whose offsets count tokens."""
    if tokenizer.is_fast:
        parts = json.loads(tokenizer.backend_tokenizer.to_str())
        description = json.dumps([parts[name] for name in ("model", "normalizer", "pre_tokenizer", "added_tokens")])
    else:
        description = repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(description.encode()).hexdigest()[:16]


def check_vocabulary(tokenizer, vocab_size: int, *, exact: bool = False) -> None:
    """Raises ConfigurationError where a tokenizer's ids do not fit a model's vocabulary.

    Args:
        vocab_size: rows of the model's embedding. More rows than pieces are allowed (padded embeddings) unless `exact`.
    """
    pieces = len(tokenizer)
    if pieces > vocab_size or (exact and pieces != vocab_size):
        raise ConfigurationError(
            f"the tokenizer has {pieces} pieces but the model's vocabulary is {vocab_size}; "
            "give --tokenizer the one that the model was made with, or a model of that vocabulary"
        )
