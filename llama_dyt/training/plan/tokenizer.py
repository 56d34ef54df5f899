"""What fine-tuning changes of a tokenizer: its chat template, tokens that are added, whether they are recognised."""

from __future__ import annotations

from typing import Any

from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.core.problem import Problem
from llama_dyt.core.store import at
from llama_dyt.data.tokenizing.chat_template import ChatTemplate
from llama_dyt.data.tokenizing.chat_templates import BUILT_IN
from llama_dyt.data.tokenizing.prompt_encoding import recognises_special_tokens, set_special_tokens


def fit_tokenizer(run: RunConfig, tokenizer: Any) -> list[str]:
    """Change a tokenizer as a fine-tuning run says; it is saved so.

    Returns:
        The tokens that it did not have.

    Raises:
        ConfigurationError: the chat template cannot be read, or is none.
    """
    data = run.data
    text, tokens = _template(data.chat_template)
    if text is not None:
        tokenizer.chat_template = text
        try:
            ChatTemplate(tokenizer)
        except DataError as error:
            raise ConfigurationError(Problem("chat_template", data.chat_template, str(error))) from error
    added = _add(tokenizer, (*tokens, *data.add_tokens))
    recognised = data.parse_special_tokens
    if recognised is None:  # a token that is asked for is meant
        recognised = bool(data.add_tokens) or recognises_special_tokens(tokenizer)
    set_special_tokens(tokenizer, recognised)
    return added


def _template(name: str | None) -> tuple[str | None, tuple[str, ...]]:
    """(its text, the tokens it brings); None where the tokenizer's own is meant."""
    if name is None:
        return None, ()
    if name in BUILT_IN:
        return BUILT_IN[name]
    try:
        return at(name).read_text(encoding="utf-8"), ()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        remedy = f"give a file of jinja, or one that is built in ({', '.join(BUILT_IN)})"
        raise ConfigurationError(
            Problem("chat_template", name, f"cannot be read ({reason})", remedy, local=True)
        ) from error


def _add(tokenizer: Any, tokens: tuple[str, ...]) -> list[str]:
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    new = [token for token in dict.fromkeys(tokens) if token not in known]
    special = [AddedToken(token, special=True, normalized=False) for token in dict.fromkeys(tokens)]
    if special:
        tokenizer.add_tokens(special, special_tokens=True)
    return new
