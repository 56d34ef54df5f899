"""Tokenizers: loading any HuggingFace tokenizer or SentencePiece model, training a small one, encoding in batches.

Every part of the data layer meets tokenizers only through these functions. A document's text is always text: `<s>`
written in it is encoded as those three characters, and BOS/EOS are put by the packing alone. In prompts and completions
special tokens can be recognised, see `prompt_encoding`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.data.formats.hub_client import probe
from llama_dyt.data.tokenizing.prompt_encoding import recognises_special_tokens
from llama_dyt.data.tokenizing.sentencepiece_model import SentencePieceModel

_BACKEND_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_SENTENCEPIECE_FILE = "tokenizer.model"
_FILES = (_BACKEND_FILE, _CONFIG_FILE, _SENTENCEPIECE_FILE)
# What of a config is about the files it came with, or stands in the tokenizer.json.
_OF_THE_FILES = (
    "tokenizer_class",
    "auto_map",
    "tokenizer_file",
    "vocab_file",
    "name_or_path",
    "special_tokens_map_file",
    "add_bos_token",
    "add_eos_token",
)
_ADDED = ("lstrip", "rstrip", "normalized", "single_word")
_HUB_FILES = ["*.json", "*.model", "*.model.*", "tokenizer*", "*.txt", "*.jinja"]
_OWN_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
_REMEDY = "a folder with tokenizer.json or tokenizer.model, a SentencePiece file, or a hub name"
_CHUNK_CHARACTERS = 2000


def load_tokenizer(name_or_path: str | os.PathLike, flag: str = "--tokenizer"):
    """Loads a tokenizer.

    A tokenizer.json is taken as it stands, whatever class a config names for it; a SentencePiece model is converted,
    and one that lies beside a tokenizer.json must encode hard text as that does.

    Args:
        name_or_path: a HuggingFace tokenizer folder, a folder or file with a SentencePiece model, one of our
            checkpoints (its `model/` is used), or a name on the hub.
        flag: what the name was given by, for messages.
    Returns:
        a HuggingFace tokenizer. It has the special tokens that its files name or its model has, and no others.
    Raises:
        DataError: nothing usable there, or it does not encode as its SentencePiece model.
        ConfigurationError: the tokenizer has no end-of-sequence token.
    """
    name = os.path.expanduser(str(name_or_path))
    path = Path(name)
    if path.is_dir():
        tokenizer = _load_folder(path, flag)
    elif path.is_file() and path.name in (_BACKEND_FILE, _CONFIG_FILE):
        tokenizer = _load_folder(path.parent, flag)
    elif path.is_file():
        tokenizer = _guarded(path, lambda: _load_sentencepiece(path), flag)
    elif name.startswith(("/", "./", "../")) or name.count("/") > 1 or path.suffix == ".model":
        raise DataError(f"tokenizer {name}: no such file or folder; give {flag} {_REMEDY}")
    else:
        tokenizer = _load_from_hub(name, flag)
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(
            f"tokenizer {name}: has no end-of-sequence token, so documents would run into each other; "
            "set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def _load_folder(folder: Path, flag: str):
    if not _has(folder, *_FILES) and _has(folder / "model", *_FILES):
        folder = folder / "model"
    if not _has(folder, *_FILES):
        raise DataError(f"tokenizer {folder}: this folder holds no tokenizer; give {flag} {_REMEDY}")
    return _guarded(folder, lambda: _load_files(folder), flag)


def _has(folder: Path, *names: str) -> bool:
    return any((folder / name).is_file() for name in names)


def _load_files(folder: Path):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    own = SentencePieceModel(folder / _SENTENCEPIECE_FILE) if _has(folder, _SENTENCEPIECE_FILE) else None
    if not _has(folder, _BACKEND_FILE):
        if own is None:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return _assemble(own.convert(), folder, _read_config(folder), own.special_tokens)
    backend = Tokenizer.from_file(str(folder / _BACKEND_FILE))
    if own is None:
        config = _read_config(folder)
        return _assemble(backend, folder, config, {} if "eos_token" in config else _names_of_class(folder, backend))
    # HuggingFace's tokenizers of this family differ at a text's start on purpose; their models are used with that.
    if difference := own.first_difference(backend, leading_spaces=False):
        raise DataError(
            f"tokenizer {folder}: its {_BACKEND_FILE} does not encode as the {_SENTENCEPIECE_FILE} beside it: "
            f"{difference}; take away the one that the model was not trained with"
        )
    return _assemble(backend, folder, _read_config(folder), own.special_tokens)


def _read_config(folder: Path) -> dict[str, Any]:
    """What tokenizer_config.json and the older files beside it say, without tokens that are named ""."""
    said = [_read_json(folder / name) for name in (_CONFIG_FILE, "special_tokens_map.json")]
    config = said[1] | said[0]
    older = {"added_tokens_decoder": {str(id): token for token, id in _read_json(folder / "added_tokens.json").items()}}
    config = older | {
        key: value for key, value in config.items() if not key.endswith("_token") or _content(value) != ""
    }
    if _has(folder, "chat_template.jinja"):
        config["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _content(token: Any) -> Any:
    return token["content"] if isinstance(token, dict) and "content" in token else token


def _names_of_class(folder: Path, backend: Any) -> dict[str, str]:
    """The special tokens that a tokenizer's class has by itself, where no file names any; those in its vocabulary."""
    from transformers import AutoTokenizer

    try:
        named = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False).special_tokens_map
    except Exception:  # a class that transformers does not know, or one that does not fit the file
        return {}
    return {name: str(token) for name, token in named.items() if backend.token_to_id(str(token)) is not None}


def _assemble(backend: Any, name: Path, config: dict[str, Any], special_tokens: dict[str, str]):
    """A HuggingFace tokenizer around a `tokenizers.Tokenizer`, which gets the tokens that a config adds and no others.

    Not by `from_pretrained`, which builds what is in a folder anew after the class that a config names.

    Raises:
        DataError: an added token cannot have the id that it has there.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    config = special_tokens | {key: value for key, value in config.items() if key not in _OF_THE_FILES}
    tokens = {key: config.pop(key) for key in list(config) if key.endswith("_token") and _is_token(config[key])}
    named = {_content(token) for token in tokens.values()}
    extra = config.pop("extra_special_tokens", None) or config.pop("additional_special_tokens", None) or []
    extra = extra if isinstance(extra, list) else list(extra.values())
    for id, token in sorted(config.pop("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        content = _content(token)
        special = token.get("special", False) if isinstance(token, dict) else content in {*named, *map(_content, extra)}
        options = (
            {key: token.get(key, False) for key in _ADDED} if isinstance(token, dict) else {"normalized": not special}
        )
        if backend.token_to_id(content) is None:
            backend.add_tokens([AddedToken(content, special=special, **options)])
        if backend.token_to_id(content) != int(id):
            raise DataError(
                f"tokenizer {name}: the added token {content!r} has the id {id} there, and would get "
                f"{backend.token_to_id(content)}; give a folder with a tokenizer.json that has all of them"
            )
    tokens = config.pop("model_specific_special_tokens", {}) | tokens
    own = PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES
    config |= {key: _content(token) for key, token in tokens.items() if key in own}
    if specific := {key: _content(token) for key, token in tokens.items() if key not in own}:
        config["model_specific_special_tokens"] = specific
    if extra:
        config["extra_special_tokens"] = [_content(token) for token in extra]
    return PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path=str(name), **config)


def _is_token(value: Any) -> bool:
    return value is None or isinstance(_content(value), str)


def _load_from_hub(name: str, flag: str):
    from huggingface_hub import snapshot_download
    from transformers import AutoTokenizer

    def load(folder: str):
        # A few have a vocabulary in files of other names alone, which their classes know.
        return (
            _load_files(Path(folder))
            if _has(Path(folder), *_FILES)
            else AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        )

    try:  # one that was fetched before needs no network
        folder = snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True)
        return load(folder)
    except DataError:
        raise
    except Exception:
        probe(name, repo_type="model", flag=flag)
    return _guarded(name, lambda: load(snapshot_download(name, allow_patterns=_HUB_FILES)), flag)


def _guarded(where, load, flag: str):
    try:
        return load()
    except (DataError, ConfigurationError):
        raise
    except Exception as error:  # every backend has exceptions of its own for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"tokenizer {where}: cannot be loaded ({reason}); give {flag} {_REMEDY}") from error


def _load_sentencepiece(path: Path):
    model = SentencePieceModel(path)
    return _assemble(model.convert(), path.parent, {}, model.special_tokens)


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
    save_tokenizer(tokenizer, folder)
    return tokenizer


def save_tokenizer(tokenizer, folder: str | os.PathLike) -> None:
    """`save_pretrained`, whose part in Rust tells of a full disk by a bare Exception: here it is an OSError."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(error, OSError) or number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from error


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds what `load_tokenizer` reads."""
    return _has(folder, *_FILES)


def save_tokenizer_files(source: Path, tokenizer, folder: Path) -> None:
    """Put a loaded tokenizer into a folder as it was saved before: its own files, letter for letter.

    What has no tokenizer.json, and would be converted anew wherever it is loaded, gets one that encodes as its own
    model.
    """
    if not _has(source, *_FILES) and _has(source / "model", *_FILES):
        source = source / "model"
    if not _has(source, _BACKEND_FILE):
        save_tokenizer(tokenizer, folder)
    for name in sorted({name for pattern in _OWN_FILES for name in source.glob(pattern)}):
        if not (folder / name.name).exists():
            shutil.copyfile(name, folder / name.name)


def tokenizer_fingerprint(tokenizer) -> str:
    """Equal for tokenizers that encode equally; stands in data positions, whose offsets count tokens."""
    if tokenizer.is_fast:
        parts = json.loads(tokenizer.backend_tokenizer.to_str())
        description = json.dumps([parts[name] for name in ("model", "normalizer", "pre_tokenizer", "added_tokens")])
    else:
        description = repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(description.encode()).hexdigest()[:16]


def vocabulary_size(tokenizer) -> int:
    """Rows that an embedding needs for every id of a tokenizer: more than it has pieces where its ids have gaps."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def check_vocabulary(tokenizer, vocab_size: int, *, exact: bool = False) -> None:
    """Raises ConfigurationError where a tokenizer's ids do not fit a model's vocabulary.

    Args:
        vocab_size: rows of the model's embedding. More rows than pieces are allowed (padded embeddings) unless `exact`.
    """
    pieces = vocabulary_size(tokenizer)
    padding = tokenizer.pad_token_id
    if padding == pieces - 1 and not recognises_special_tokens(tokenizer):
        pieces -= 1  # a pad token that a config put behind a model's vocabulary: it never comes up in data
    if pieces > vocab_size or (exact and pieces != vocab_size):
        raise ConfigurationError(
            f"the tokenizer has {pieces} pieces but the model's vocabulary is {vocab_size}; "
            "give --tokenizer the one that the model was made with, or a model of that vocabulary"
        )
