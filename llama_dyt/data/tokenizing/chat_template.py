"""Conversations as tokens, by the chat template in a tokenizer's files: one rule, in training and generation.

A template is jinja, rendered in the sandbox that transformers renders it in. What it writes is encoded as one text,
special tokens recognised and none added: the template itself says where BOS is. What is learned is where
`{% generation %}` in the template says, and else what an answer adds to the text that asks for it. Each place where
learning begins or ends must be one between two tokens, and what comes before must be encoded as generation encodes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_dyt.core.errors import DataError
from llama_dyt.data.tokenizing.encode import encode_with_backend
from llama_dyt.data.tokenizing.unusable import Unusable

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SHOWN = 40
_PROBE = "xyzzy"  # in no template


@dataclass(frozen=True)
class Tokens:
    """A sequence and what of it is learned.

    Attributes:
        tokens: int32, (length,).
        learned: bool, (length,): whether a token is a target.
    """

    tokens: np.ndarray
    learned: np.ndarray


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: a HuggingFace tokenizer that has one.

    Raises:
        DataError: it has none, or one that is no jinja.
    """

    def __init__(self, tokenizer: Any) -> None:
        from jinja2 import TemplateSyntaxError
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self._tokenizer = tokenizer
        self._text = template_of(tokenizer)
        self._has_marks = _GENERATION.search(self._text) is not None
        try:
            _compile_jinja_template(self._text)
        except TemplateSyntaxError as error:
            raise DataError(
                f"the chat template of {_named(tokenizer)} is no valid jinja (line {error.lineno}: {error.message}); "
                "mend it, or give another with --chat_template"
            ) from error

    def render(self, messages: Sequence[Mapping[str, Any]], *, ask: bool = False) -> str:
        """The text of a conversation.

        Args:
            ask: whether the assistant is to speak next; the text then ends where its answer begins.

        Raises:
            Unusable: the template refuses these messages.
        """
        return self._render(messages, ask, marks=False)[0]

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The tokens, int32, that an answer is generated behind. Raises as `render`."""
        return self._ids([self.render(messages, ask=True)])[0]

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> Tokens:
        """The tokens of a whole conversation, of which the assistant's turns are learned.

        Raises:
            Unusable: the template refuses it, leaves an answer out, or has no place between two tokens to cut at.
        """
        text, spans = self._render(messages, False, marks=True) if self._has_marks else self._by_prefixes(messages)
        if not spans:
            raise Unusable("the chat template marks nothing of it by {% generation %}, so there is nothing to learn")
        places = [place for span in spans for place in span]
        whole, *prefixes = self._ids([text, *(text[:place] for place in places)])
        learned = np.zeros(len(whole), bool)
        for number, (begin, end) in enumerate(spans):
            before, until = prefixes[2 * number : 2 * number + 2]
            for place, prefix in ((begin, before), (end, until)):
                if not np.array_equal(whole[: len(prefix)], prefix):
                    around = text[max(place - _SHOWN // 2, 0) : place + _SHOWN // 2]
                    raise Unusable(
                        "the chat template cannot be cut at the assistant's turn: a token of this tokenizer reaches "
                        f"over the place in {around!r} where it {'begins' if place == begin else 'ends'}; have the "
                        "template put a special token there"
                    )
            learned[len(before) : len(until)] = True
        return Tokens(whole, learned)

    def ends(self) -> tuple[list[int], str]:
        """(tokens that end an answer, text that does where there are no such).

        They are what the template writes behind one: its first special token, else the text up to the next turn.
        """
        asked = [{"role": "user", "content": _PROBE}]
        said = [*asked, {"role": "assistant", "content": _PROBE}]
        try:
            _, spans = self._by_prefixes(said)
        except Unusable:
            return [], ""
        text = self.render(said)
        tail = text[text.rindex(_PROBE, 0, spans[-1][1]) + len(_PROBE) :]
        special = set(self._tokenizer.all_special_ids) | {
            id for id, token in self._tokenizer.added_tokens_decoder.items() if token.special
        }
        for id in self._ids([tail])[0].tolist() if tail else ():
            if id in special:
                return [id], ""
        return [], tail

    # --- where answers are ----------------------------------------------------------------------------------------

    def _by_prefixes(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[int, int]]]:
        """(text, where in it each answer is): what comes behind the text that asks for it, up to what follows it."""
        text, spans = self.render(messages), []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:number], ask=True)
            until = self.render(messages[: number + 1])
            if not (until.startswith(before) and text.startswith(until)):
                raise Unusable(
                    f"the chat template writes message {number + 1} in another way when it is not the last, so what of "
                    "it is learned cannot be told; mark it in the template by {% generation %}"
                )
            if len(until) == len(before):
                raise Unusable(f"the chat template leaves message {number + 1}, the assistant's, out")
            spans.append((len(before), len(until)))
        return text, spans

    def _render(
        self, messages: Sequence[Mapping[str, Any]], ask: bool, marks: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, found = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self._text,
                return_assistant_tokens_mask=marks,
                add_generation_prompt=ask,
                **self._tokenizer.special_tokens_map,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise Unusable(f"the chat template refuses it ({' '.join(str(error).split())})") from error
        return texts[0], [tuple(span) for span in found[0]] if marks else []

    def _ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self._tokenizer.is_fast:
            return encode_with_backend(self._tokenizer.backend_tokenizer, texts, special_tokens=True)
        rows = self._tokenizer(list(texts), add_special_tokens=False, split_special_tokens=False)["input_ids"]
        return [np.array(row, np.int32) for row in rows]


class LazyTemplate:
    """A tokenizer's chat template, looked for only when there is a conversation: other records need none."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template: ChatTemplate | None = None

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> Tokens:
        """As `ChatTemplate.encode`; raises what making one raises, too."""
        self._template = self._template or ChatTemplate(self._tokenizer)
        return self._template.encode(messages)


def template_of(tokenizer: Any) -> str:
    """The text of a tokenizer's chat template, of several the one named "default".

    Raises:
        DataError: there is none.
    """
    given = tokenizer.chat_template
    if given and not isinstance(given, str):
        given = given.get("default")
    if not given:
        raise DataError(
            f"{_named(tokenizer)} has no chat template, by which conversations become text; give one with "
            "--chat_template FILE (chatml is built in), or take the tokenizer of a chat model"
        )
    return given


def has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def _named(tokenizer: Any) -> str:
    return f"the tokenizer {tokenizer.name_or_path}" if tokenizer.name_or_path else "the tokenizer"
