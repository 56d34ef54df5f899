"""Conversations as chat templates take them: a column of messages, each with a role and its content.

ShareGPT's shape derives from it: other names, and other words for who speaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_dyt.core.suggest import unknown
from llama_dyt.data.formats.record_files import check_text
from llama_dyt.data.records.record_shape import ROLES, Conversation, Message, RecordShape, Unusable


class Messages(RecordShape):
    """
    Attributes:
        roles: word for a role → the role.
        parts: (the column of messages, who speaks, what is said), of `columns`.
    """

    name, order = "messages", 30
    columns = ("messages", "role", "content")
    needed, inner = ("messages",), ("role", "content")
    roles: Mapping[str, str] = dict(zip(ROLES, ROLES, strict=True))
    parts: tuple[str, str, str] = ("messages", "role", "content")

    def read(self, record: Mapping[str, Any], names: Mapping[str, str]) -> Conversation:
        column, role, content = (names[part] for part in self.parts)
        given = record.get(column)
        if given is None:
            raise Unusable(f"has no field '{column}'")
        if not isinstance(given, list) or not given:
            what = "is empty" if isinstance(given, list) else f"is {type(given).__name__}, not a list of messages"
            raise Unusable(f"field '{column}' {what}")
        messages = [
            self._message(message, role, content, f"message {number} of '{column}'")
            for number, message in enumerate(given, start=1)
        ]
        if messages[-1]["role"] != "assistant":
            raise Unusable(
                f"the last message of '{column}' is the {messages[-1]['role']}'s, not the assistant's, so there is no "
                "answer to it to learn"
            )
        return Conversation(messages)

    def _message(self, message: Any, role: str, content: str, where: str) -> Message:
        if not isinstance(message, dict):
            raise Unusable(f"{where} is {type(message).__name__}, not an object")
        for name in (role, content):
            if reason := check_text(message.get(name), name):
                raise Unusable(f"{where} {reason}")
        speaker = self.roles.get(message[role])
        if speaker is None:
            raise Unusable(f"{where}: {unknown('role', message[role], tuple(self.roles))}")
        if speaker == "assistant" and not message[content].strip():
            raise Unusable(f"{where} is an empty answer of the assistant's, so there is nothing to learn")
        rest = {key: value for key, value in message.items() if key not in (role, content)}
        return {**rest, "role": speaker, "content": message[content]}


SHAPE = Messages()
