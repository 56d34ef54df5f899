"""What the model says, in the course of fine-tuning: answers to the same prompts every so many steps.

Weights may be cut over ranks in any way: they are gathered as a checkpoint gathers them, and the first process
continues the prompts with the likeliest tokens, by a model of its own. Nothing is drawn, so a run is the same with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from llama_dyt.config.run import RunConfig
from llama_dyt.core import ranks
from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.sources import TextSource
from llama_dyt.models.spec import family_of
from llama_dyt.training.callbacks.callback import Callback, Training
from llama_dyt.training.generation.generator import Generator
from llama_dyt.training.generation.prompt_maker import Prompt, PromptMaker
from llama_dyt.training.generation.prompts import read_prompts
from llama_dyt.training.generation.sampling import Sampling
from llama_dyt.training.plan import Plan
from llama_dyt.training.step import StepOutcome
from llama_dyt.training.trackers.tracker import Sample
from llama_dyt.training.trackers.trackers import Trackers

_BATCH = 16
_SHOWN = 3
_SHORT = 60


@dataclass(frozen=True)
class AskedPrompts:
    """What is asked each time.

    Attributes:
        texts: of the prompts, for people.
        prompts: their tokens.
        expected: the answer that the data have, where they have one.
    """

    texts: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    expected: tuple[str | None, ...]


class Samples(Callback):
    """Continues the prompts every --generate_every steps, and tells what came of it."""

    order = 75
    collective = True

    def __init__(self, run: RunConfig, plan: Plan, asked: AskedPrompts, trackers: Trackers) -> None:
        super().__init__(run)
        self._plan, self._asked, self._trackers = plan, asked, trackers
        self._done_step = 0

    def due(self, step: int) -> bool:
        return step % self.run.samples.generate_every == 0

    def on_start(self, trainer: Training) -> None:
        self._done_step = trainer.progress.step

    def after_step(self, trainer: Training, outcome: StepOutcome) -> None:
        trainer.settle()
        if not trainer.stopping:
            self._generate(trainer)
            trainer.window.restart()

    def before_end(self, trainer: Training) -> None:
        if not trainer.stopping and self._done_step != trainer.progress.step:
            self._generate(trainer)

    def _generate(self, trainer: Training) -> None:
        start, step = time.perf_counter(), trainer.progress.step
        state, weights = trainer.boosted.state, {}
        for name, tensors in state.gather(list(state.sizes())):
            if tensors is not None:  # on the first rank alone
                weights[name] = tensors["param"]
        self._done_step = step
        texts = ranks.from_first(lambda: self._continue(trainer, weights), "continuing the prompts")
        seconds = time.perf_counter() - start
        asked = zip(self._asked.texts, self._asked.expected, texts, strict=True)
        samples = [Sample(prompt, text, expected) for prompt, expected, text in asked]
        self._trackers.log_samples(step, samples, seconds)
        for line in in_words(step, samples, seconds):
            trainer.say(line)

    def _continue(self, trainer: Training, weights: dict[str, torch.Tensor]) -> list[str]:
        config = self._plan.model_config
        made = family_of(config).load_causal_lm_class().from_pretrained(None, config=config, state_dict=weights)
        dtype = torch.float32 if trainer.boosted.device.type == "cpu" else torch.bfloat16
        model = made.to(trainer.boosted.device, dtype).eval()
        sampling = Sampling(max_new_tokens=self.run.samples.generate_tokens, temperature=0)
        generator = Generator(model, self._plan.tokenizer)
        return list(generator.continuations(self._asked.prompts, sampling, batch_size=_BATCH))


def in_words(step: int, samples: Sequence[Sample], seconds: float) -> list[str]:
    """A line on all, and a few of the samples."""
    known = [sample for sample in samples if sample.expected is not None]
    right = f", {sum(sample.is_right for sample in known)} of {len(known)} to the letter" if known else ""
    shown = [f"  {_short(sample.prompt)} → {_short(sample.text)}" for sample in samples[:_SHOWN]]
    return [f"step {step}: {len(samples)} prompts continued in {seconds:.1f} s{right}", *shown]


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= _SHORT else f"{shown[: _SHORT // 2]}…{shown[-_SHORT // 2 :]}"


def read_asked_prompts(plan: Plan) -> AskedPrompts | None:
    """What a run asks its model; None where it asks nothing. All ranks call it.

    Raises:
        DataError: the file of prompts cannot be used, or nothing is held out to ask.
    """
    if not plan.run.samples.generate_every:
        return None
    return ranks.from_first(lambda: _read(plan), "reading the prompts")


def _read(plan: Plan) -> AskedPrompts:
    settings = plan.run.samples
    maker = PromptMaker(plan.tokenizer)
    if settings.generate_prompts is not None:
        asked = list(islice(read_prompts(settings.generate_prompts), settings.generate_samples))
        chats = any(one.messages for one in asked)
        made = maker.chats([one.as_chat() for one in asked]) if chats else maker.texts([one.text for one in asked])
        answers = [one.answer for one in asked]
        return AskedPrompts(tuple(one.text for one in asked), tuple(made), tuple(answers))
    texts, prompts, expected = [], [], []
    for chosen in plan.validation:
        source: TextSource = chosen.open(plan.read_options)
        for values, _ in islice(source.iterate(), settings.generate_samples - len(texts)):
            texts.append(values[0])
            expected.append(values[1])
            prompts.append(_prompt_of(values, maker))
    if not texts:
        raise DataError("--generate_every: nothing is held out to ask; give --generate_prompts")
    return AskedPrompts(tuple(texts), tuple(prompts), tuple(expected))


def _prompt_of(values: tuple[Any, ...], maker: PromptMaker) -> Prompt:
    """The prompt of a record: of a conversation what comes before its last answer."""
    if len(values) == 2:
        return maker.texts([values[0]])[0]
    tokens = values[2]
    edges = (tokens.learned[1:] & ~tokens.learned[:-1]).nonzero()[0]
    return maker.behind(tokens.tokens[: int(edges[-1]) + 1])
