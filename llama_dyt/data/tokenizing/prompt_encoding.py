"""How prompts and completions become tokens and text again: one rule, for fine-tuning and for generation.

A prompt is encoded as a text of its own, so its tokens are exactly those that generation begins with. A completion goes
on from it: it is encoded without the space that LLaMA's kind of tokenizer puts before a text, which is not in the data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llama_dyt.data.tokenizing.encode import encode_with_backend
from llama_dyt.data.tokenizing.long_text import encode_all

_ANCHORS = ("\n", "a", "0")


def recognises_special_tokens(tokenizer) -> bool:
    """Whether `<|im_start|>` in a prompt or completion is that token, or the characters it is written with.

    It stands in the tokenizer's own files, as transformers' `split_special_tokens`, and so travels with a model; where
    they say nothing it is characters.
    """
    return getattr(tokenizer, "init_kwargs", {}).get("split_special_tokens") is False


def set_special_tokens(tokenizer, recognised: bool) -> None:
    """Decide what `recognises_special_tokens` tells, also of the tokenizer that is saved from now on."""
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = not recognised


class PromptEncoder:
    """Encodes prompts and completions, and decodes what a model makes of a prompt.

    Args:
        tokenizer: a HuggingFace tokenizer; whether special tokens are recognised is asked of it now.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._special_tokens = recognises_special_tokens(tokenizer)
        self._bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._eos = tokenizer.eos_token_id
        if tokenizer.is_fast:
            self._encode = self._by_backend(tokenizer.backend_tokenizer)
            self._continue = self._by_backend(_without_prefix(tokenizer.backend_tokenizer))
        else:
            self._encode = lambda texts: encode_all(self._by_call, texts)
            self._continue = lambda texts: encode_all(self._behind_anchor, texts)

    def prompts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """[BOS] + tokens of each text, int32; no second BOS before one that is written there and recognised."""
        return [
            ids if self._special_tokens and self._bos == ids[:1].tolist() else np.array([*self._bos, *ids], np.int32)
            for ids in self._encode(texts)
        ]

    def completions(self, texts: Sequence[str], prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Tokens + [EOS] of each text, int32, that follow these prompts; no second EOS behind a recognised one.

        Behind a prompt without tokens the completion is the beginning of a text, and encoded as that.
        """
        followed = [len(prompt) > len(self._bos) for prompt in prompts]
        going_on = iter(self._continue([text for text, behind in zip(texts, followed, strict=True) if behind]))
        beginning = iter(self._encode([text for text, behind in zip(texts, followed, strict=True) if not behind]))
        encoded = [next(going_on if behind else beginning) for behind in followed]
        return [ids if ids[-1:].tolist() == [self._eos] else np.array([*ids, self._eos], np.int32) for ids in encoded]

    def decode(self, prompt: Sequence[int], generated: Sequence[int]) -> str:
        """The text of generated tokens up to EOS, to the letter.

        Args:
            prompt: the tokens they were generated from: only behind them does a tokenizer know that its first token
                does not begin a text.
        """
        generated = list(generated)
        if self._eos in generated:
            generated = generated[: generated.index(self._eos)]
        before, whole = self._text(list(prompt)), self._text([*prompt, *generated])
        return whole[len(before) :] if whole.startswith(before) else self._text(generated)

    def _text(self, ids: list[int]) -> str:
        if self._bos and ids[:1] == self._bos:
            ids = ids[1:]  # it would keep a decoder from taking away the space that was put before the text
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _by_backend(self, backend: Any) -> Callable[[Sequence[str]], list[np.ndarray]]:
        def encode(texts: Sequence[str]) -> list[np.ndarray]:
            return encode_with_backend(backend, texts, special_tokens=self._special_tokens)

        return lambda texts: encode_all(encode, texts)

    def _by_call(self, texts: Sequence[str]) -> list[np.ndarray]:
        if not texts:  # which a tokenizer's call does not take
            return []
        split = not self._special_tokens
        ids = self._tokenizer(list(texts), add_special_tokens=False, split_special_tokens=split)["input_ids"]
        return [np.array(row, np.int32) for row in ids]

    def _behind_anchor(self, texts: Sequence[str]) -> list[np.ndarray]:
        """For tokenizers whose parts are not known: encoded behind something whose own tokens are taken away."""
        encoded: list[np.ndarray | None] = [None] * len(texts)
        for anchor in _ANCHORS:
            before = self._by_call([anchor])[0]
            rest = [number for number, ids in enumerate(encoded) if ids is None]
            for number, ids in zip(rest, self._by_call([anchor + texts[number] for number in rest]), strict=True):
                if np.array_equal(ids[: len(before)], before):
                    encoded[number] = ids[len(before) :]
        alone = self._by_call(texts)
        return [other if ids is None else ids for ids, other in zip(encoded, alone, strict=True)]


def _without_prefix(backend: Any) -> Any:
    """The same `tokenizers.Tokenizer` but for what puts a space before a text."""
    from tokenizers import Tokenizer

    parts = json.loads(backend.to_str())
    for name in ("normalizer", "pre_tokenizer"):
        parts[name] = _step_without_prefix(parts[name])
    return Tokenizer.from_str(json.dumps(parts))


def _step_without_prefix(step: dict | None) -> dict | None:
    if step is None or step["type"] == "Prepend":
        return None
    changed = dict(step)
    for name in ("normalizers", "pretokenizers"):
        if name in step:
            changed[name] = [inner for inner in map(_step_without_prefix, step[name]) if inner is not None]
    if "prepend_scheme" in step:
        changed["prepend_scheme"] = "never"
    if "add_prefix_space" in step:
        changed["add_prefix_space"] = False
    return changed
