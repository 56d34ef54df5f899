"""The seam of what a record to fine-tune on looks like: a shape says which columns it has, and what is learned of one.

Each of ours is a file in this folder with a `SHAPE`; a user's own is a module given to `--import`, which calls
`RECORD_SHAPES.register`. All of them lead to one of two things: a prompt with its completion, or a conversation, which
the tokenizer's chat template makes text of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_dyt.core.registry import Registry
from llama_dyt.data.tokenizing.unusable import Unusable

if TYPE_CHECKING:
    from llama_dyt.data.tokenizing.chat_template import LazyTemplate

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Who may speak in a conversation, as chat templates name them."""

Message = dict[str, Any]
"""`role` and `content`, and what else a chat template may look at."""


@dataclass(frozen=True)
class Pair:
    """A prompt, and the completion that is learned behind it."""

    prompt: str
    completion: str

    def picked(self, template: LazyTemplate | None) -> tuple[Any, ...]:
        """(prompt, completion), to be tokenized with others."""
        return self.prompt, self.completion


@dataclass(frozen=True)
class Conversation:
    """Messages of which the assistant's are learned; the last one is such."""

    messages: list[Message]

    @property
    def prompt(self) -> str:
        """What comes before the first answer: a conversation is on one side of training and validation by it."""
        before = []
        for message in self.messages:
            if message["role"] == "assistant":
                break
            before.append(f"{message['role']}: {message['content']}")
        return "\n".join(before)

    def picked(self, template: LazyTemplate | None) -> tuple[Any, ...]:
        """(prompt, last answer, `Tokens` of the whole as the template has it; without one they are left out).

        Raises:
            Unusable: the template refuses it, or cannot be cut where its answers begin and end.
        """
        texts = self.prompt, self.messages[-1]["content"]
        return texts if template is None else (*texts, template.encode(self.messages))


class RecordShape:
    """One shape of a record.

    Attributes:
        name: by which `--record_shape` asks for it.
        columns: what `--columns` can name otherwise; the record's, unless `inner` has them.
        needed: of these, those by which a record is told to be of this shape.
        inner: of these, keys within a column's own objects.
        order: shapes are tried in this order; the first that a record has all of `needed` for is taken.
    """

    name: str
    columns: tuple[str, ...]
    needed: tuple[str, ...]
    inner: tuple[str, ...] = ()
    order: int = 50

    def read(self, record: Mapping[str, Any], names: Mapping[str, str]) -> Pair | Conversation:
        """What is learned of a record.

        Args:
            names: each of `columns` → what the data call it.

        Raises:
            Unusable: a column is absent, or holds what it should not.
        """
        raise NotImplementedError(f"{type(self).__name__}.read")


RECORD_SHAPES: Registry[RecordShape] = Registry(
    "record shape", "llama_dyt.data.records", "SHAPE", "record_shape", in_workers=True
)


def text_of(record: Mapping[str, Any], name: str, check: Callable[[object, str], str | None]) -> str:
    """The text in a column. Raises Unusable where `check` has a reason against it."""
    value = record.get(name)
    if reason := check(value, name):
        raise Unusable(reason)
    return value
