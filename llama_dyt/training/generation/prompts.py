"""Prompts from a file or from standard input: one a line as text, or records with a prompt or messages."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_dyt.core.errors import DataError

STDIN = "-"


@dataclass(frozen=True)
class Asked:
    """One prompt.

    Attributes:
        text: of it; of a conversation its last message.
        messages: of a conversation, which a prompt of plain text has none of.
        record: what the file has of it besides.
        answer: what is expected, where the file says it.
    """

    text: str
    messages: tuple[dict[str, Any], ...] = ()
    record: dict[str, Any] = field(default_factory=dict)
    answer: str | None = None

    def as_chat(self, system: str | None = None) -> list[dict[str, Any]]:
        """The conversation, a text being what the user says."""
        messages = list(self.messages) or [{"role": "user", "content": self.text}]
        if system is not None and messages[0]["role"] != "system":
            return [{"role": "system", "content": system}, *messages]
        return messages


def read_prompts(name: str) -> list[Asked]:
    """The prompts of a file, or of standard input where the name is "-".

    In .jsonl each line is an object with `prompt` (a text) or `messages`; of these what an assistant said last is left
    out, so that the file that was trained on can be given. Elsewhere each line is a prompt; empty lines are none.

    Raises:
        DataError: it cannot be read, a line is no such object, or there is not one prompt.
    """
    try:
        text = sys.stdin.read() if name == STDIN else Path(name).expanduser().read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}); give a file of prompts, or -") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: is not UTF-8 (byte {error.start}); convert it") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if name.endswith(".jsonl"):
        asked = [_record(line, f"{name}, line {number}") for number, line in lines]
    else:
        asked = [Asked(line.rstrip("\r")) for _, line in lines]
    if not asked:
        raise DataError(f"{name}: holds no prompt; give one a line")
    return asked


def _record(line: str, where: str) -> Asked:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: is not valid JSON ({error}); write an object with `prompt` or `messages`") from error
    if isinstance(record, dict) and isinstance(record.get("prompt"), str):
        return Asked(record["prompt"], record=record, answer=record.get("completion"))
    messages = record.get("messages") if isinstance(record, dict) else None
    good = isinstance(messages, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in messages
    )
    answer = None
    if good and messages and messages[-1]["role"] == "assistant":
        *messages, last = messages
        answer = last["content"]
    if not good or not messages:
        raise DataError(f"{where}: has neither a text `prompt` nor `messages` of role and content; mend it")
    return Asked(messages[-1]["content"], tuple(messages), record, answer)
