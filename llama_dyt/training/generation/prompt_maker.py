"""What a continuation goes on from, as tokens: of a text, of a conversation, or of tokens that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.data.tokenizing.chat_template import ChatTemplate
from llama_dyt.data.tokenizing.prompt_encoding import PromptEncoder
from llama_dyt.data.tokenizing.unusable import Unusable

Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Prompt:
    """The tokens that a continuation goes on from, int32.

    Attributes:
        ends: tokens that end the continuation beside EOS.
        stop: text that does; empty for none.
    """

    ids: np.ndarray
    ends: tuple[int, ...] = ()
    stop: str = ""


class PromptMaker:
    """Makes prompts as fine-tuning does: one rule for both."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._encoder = PromptEncoder(tokenizer)

    def texts(self, texts: Sequence[str]) -> list[Prompt]:
        """Prompts of plain texts.

        Raises:
            ConfigurationError: one is empty, and the tokenizer has no BOS to start from.
        """
        encoded = self._encoder.prompts(texts)
        if not all(map(len, encoded)):
            raise ConfigurationError("this model's tokenizer has no BOS token to start from: give a --prompt")
        return [Prompt(ids) for ids in encoded]

    def chats(self, conversations: Sequence[Messages]) -> list[Prompt]:
        """Prompts of conversations, to which the assistant speaks next.

        Raises:
            DataError: the tokenizer has no chat template, or it refuses the conversation.
        """
        try:
            return [self.behind(self._template.prompt(messages)) for messages in conversations]
        except Unusable as reason:
            raise DataError(str(reason)) from reason

    def behind(self, ids: np.ndarray) -> Prompt:
        """The prompt of a conversation's tokens, up to where the assistant speaks."""
        ends, stop = self._ends
        return Prompt(ids, tuple(ends), stop)

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self._tokenizer)

    @cached_property
    def _ends(self) -> tuple[list[int], str]:
        return self._template.ends()
