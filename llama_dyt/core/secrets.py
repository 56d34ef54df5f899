"""The one place where secrets are taken out of what is written or printed: tokens, keys, passwords in addresses.

What is one: the value of an environment variable or of a flag whose name says so (HF_TOKEN, AWS_SECRET_ACCESS_KEY,
WANDB_API_KEY), what stands before the @ of an address, a signature in its query, and words of the forms that well-known
services give their tokens.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

HIDDEN = "***"
"""What stands in a secret's place."""

_SECRET_NAME = re.compile(
    r"((?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)(?<!mask_)(token|auth)|secret|password|passwd|passphrase|api_?key|access_?key)$"
    r"|(^|_)(secret|password|passwd|credentials?|api_?key|access_?key|private_?key)(_|$)",
    re.IGNORECASE,
)
_SAYS_WHERE = re.compile(r"_(FILE|PATH|DIR|URL|URI|ENDPOINT|SOCK)S?$", re.IGNORECASE)
"""Ends of names of what says where a secret is and does not hold it; addresses are looked into by themselves."""
_SHORTEST = 8
"""A value with fewer characters is not looked for everywhere: "1" or "true" stand in any text."""

_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^\s/@'\"]+@")
_QUERY = re.compile(
    r"(?P<name>[?&](?:[\w.-]*(?:token|secret|password|signature|credential|api_?key|access_?key|sig))=)[^&\s'\"#]+",
    re.IGNORECASE,
)
_HEADER = re.compile(r"(?P<name>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{8,}")
_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{24,}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,})"
)


def is_secret_name(name: str) -> bool:
    """Whether what has this name (a flag, a variable, a key) is to be kept to oneself; `generate_tokens` is not."""
    plain = name.replace("-", "_")
    return bool(_SECRET_NAME.search(plain)) and not _SAYS_WHERE.search(plain)


def redact(text: str, env: Mapping[str, str] | None = None) -> str:
    """A text in which every secret is `***`.

    Args:
        env: whose values are looked for; the process's own environment when None.
    """
    if "@" in text:
        text = _ADDRESS.sub(rf"\g<scheme>{HIDDEN}@", text)
    if "=" in text:
        text = _QUERY.sub(rf"\g<name>{HIDDEN}", text)
    text = _HEADER.sub(rf"\g<name>{HIDDEN}", text)
    text = _FORMS.sub(HIDDEN, text)
    for value in secret_values(os.environ if env is None else env):
        text = text.replace(value, HIDDEN)
    return text


def secret_values(env: Mapping[str, str]) -> list[str]:
    """The secrets in an environment, longest first, so that one within another leaves nothing of it."""
    found = {value for name, value in env.items() if len(value) >= _SHORTEST and is_secret_name(name)}
    return sorted(found, key=lambda value: (-len(value), value))


def redacted(value: Any, name: str = "") -> Any:
    """The same value (texts, numbers, lists, dicts by name) without secrets; `name`: what it is called."""
    if isinstance(value, Mapping):
        return {key: redacted(held, str(key)) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(redacted(held, name) for held in value)
    if isinstance(value, str):
        return HIDDEN if value and is_secret_name(name) else redact(value)
    return value


class _Redacting:
    """A stream of text that lets no secret through."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def keep_out_of_output(*, of_stdout: bool = True) -> None:
    """Have what this process prints, its errors and tracebacks too, be without secrets from now on.

    Args:
        of_stdout: off where that is what was asked for, such as a model's text, and not words about it.
    """
    sys.stderr = _Redacting(sys.stderr)
    if of_stdout:
        sys.stdout = _Redacting(sys.stdout)
