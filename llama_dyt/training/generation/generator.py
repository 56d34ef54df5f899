"""A model's continuations of prompts: one by one or in batches, drawn or the likeliest, the same either way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.data.tokenizing.prompt_encoding import PromptEncoder
from llama_dyt.training.generation.prompt_maker import Prompt
from llama_dyt.training.generation.sampling import Sampling
from llama_dyt.training.generation.stopping import RepetitionPenalty, StopAtTexts, TextStream, cut_at


class Generator:
    """Continues prompts by a HuggingFace model in evaluation mode.

    Args:
        note: takes a line about what could not be as it was asked for.
    """

    def __init__(self, model: Any, tokenizer: Any, note: Callable[[str], None] = lambda line: None) -> None:
        self._model, self._tokenizer, self._note = model, tokenizer, note
        self._encoder = PromptEncoder(tokenizer)
        self._positions = getattr(model.config, "max_position_embeddings", None)
        # The flags alone decide: what a folder's generation_config.json says would fill whatever is not said here.
        model.generation_config = GenerationConfig()

    def continuations(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        batch_size: int = 1,
        show: Callable[[str], None] | None = None,
    ) -> Iterator[str]:
        """The continuation of each prompt, in their order, up to the end of the document or where it shall stop.

        Args:
            batch_size: prompts that are continued at once, padded on the left.
            show: takes the text as it grows; with a batch_size of 1.

        Raises:
            ConfigurationError: a prompt leaves no position for a single token.
        """
        limits = [self._room(len(prompt.ids), sampling.max_new_tokens) for prompt in prompts]
        start = 0
        while start < len(prompts):
            stop = start + 1
            # One limit a batch, and one rule for its end.
            while stop < min(start + batch_size, len(prompts)) and (
                (limits[stop], prompts[stop].ends, prompts[stop].stop)
                == (limits[start], prompts[start].ends, prompts[start].stop)
            ):
                stop += 1
            yield from self._batch(prompts[start:stop], sampling, limits[start], show)
            start = stop

    @torch.no_grad()
    def _batch(
        self, prompts: Sequence[Prompt], sampling: Sampling, limit: int, show: Callable[[str], None] | None
    ) -> list[str]:
        ends = {self._tokenizer.eos_token_id, *prompts[0].ends}
        stops = (*sampling.stop, *filter(None, (prompts[0].stop,)))
        longest = max(len(prompt.ids) for prompt in prompts)
        input_ids = torch.full((len(prompts), longest), self._tokenizer.eos_token_id)
        mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, longest - len(prompt.ids) :] = torch.from_numpy(prompt.ids).long()
            mask[row, longest - len(prompt.ids) :] = 1

        def decode(row: int, ids: list[int]) -> str:
            end = next((place for place, id in enumerate(ids) if id in ends), len(ids))
            return self._encoder.decode(prompts[row].ids.tolist(), ids[:end])

        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k}
        drawn |= {"top_p": sampling.top_p} if sampling.top_p < 1 else {}
        settings = GenerationConfig(
            max_new_tokens=limit,
            eos_token_id=sorted(ends),
            pad_token_id=self._tokenizer.eos_token_id,
            **(drawn if sampling.draws else {"do_sample": False}),
        )
        more: dict[str, Any] = {}
        if sampling.repetition_penalty != 1:
            penalty = RepetitionPenalty(sampling.repetition_penalty, longest - mask.sum(1))
            more["logits_processor"] = LogitsProcessorList([penalty])
        if stops:
            more["stopping_criteria"] = StoppingCriteriaList([StopAtTexts(stops, longest, decode)])
        if show is not None:
            more["streamer"] = TextStream(partial(decode, 0), stops, show)
        device = self._model.device
        output = self._model.generate(
            input_ids.to(device), attention_mask=mask.to(device), generation_config=settings, **more
        )
        return [cut_at(decode(row, ids), stops) for row, ids in enumerate(output[:, longest:].tolist())]

    def _room(self, prompt_tokens: int, asked: int) -> int:
        """How many of `asked` tokens the model has positions for behind a prompt; says so where they are fewer."""
        if not self._positions:
            return asked
        left = self._positions - prompt_tokens
        if left < 1:
            raise ConfigurationError(
                f"--prompt has {prompt_tokens} tokens with BOS, and the model has {self._positions} positions for "
                "prompt and continuation together: give a shorter one"
            )
        if left < asked:
            self._note(
                f"the model's {self._positions} positions leave room for {left} of --max_new_tokens {asked} behind a "
                f"prompt of {prompt_tokens} tokens"
            )
        return min(left, asked)
