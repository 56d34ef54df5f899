"""A run small enough for seconds: its model, its text, its flags and the layouts it is spread in.

Its own file because the plain PyTorch loop of `reference.py` and the workers' `cases.py` must read the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llama_dyt.boosters.settings import BoosterSettings
from llama_dyt.boosters.strategy import STRATEGIES, Strategy
from llama_dyt.boosters.training_state import Read
from llama_dyt.config.run import RunConfig
from llama_dyt.data.loaders.step import IGNORE_INDEX, BatchShape, Step, make_micro_batch
from llama_dyt.models import InitialWeights, LlamaDytConfig, LlamaDytForCausalLM, build_config, build_model

SEED = 11
VOCAB_SIZE = 97
"""Odd, so that tensor parallelism has to pad it and ZeRO has to pad slices of what it is a side of."""
LENGTH = 24
GLOBAL_ROWS = 8
LR = 3e-3
CLIPPING = 0.9
"""In the midst of the grad norms, so that some steps are clipped and some are not."""
WEIGHT_DECAY = 0.1
NUM_STEPS = 5
"""Enough to learn by more than a loss may be off, and to see the weights after a step that was clipped."""


@dataclass(frozen=True)
class Layout:
    """How a run is spread over processes. `flags` are further booster flags, as (name, value) pairs."""

    plugin: str
    world_size: int
    tp: int = 1
    pp: int = 1
    zero: int | None = None
    flags: tuple[tuple[str, Any], ...] = ()

    @property
    def booster(self) -> BoosterSettings:
        """The settings of such a run; its precision is left open."""
        return replace(
            BoosterSettings(), plugin=self.plugin, tp=self.tp, pp=self.pp, zero=self.zero, **dict(self.flags)
        )

    @property
    def dp(self) -> int:
        return self.booster.data_parallel_size(self.world_size)

    @property
    def strategy(self) -> Strategy:
        return STRATEGIES.get(self.plugin)

    @property
    def stage(self) -> int | None:
        """Of ZeRO."""
        return self.strategy.zero_stage(self.zero)

    @property
    def cuts(self) -> int:
        """How many ranks share one copy of Adam's moments."""
        data = (
            1 if self.stage == 0 else self.strategy.shard_ranks(run_config(self, self.precisions[0]), self.world_size)
        )
        return self.tp * self.pp * data

    @property
    def slices(self) -> int:
        """How many ranks share the sequences of one data-parallel rank."""
        return self.booster.sequence_ranks

    @property
    def precisions(self) -> tuple[str, ...]:
        """What the engine trains in here, fp32 first where it is among them."""
        can = self.strategy.capability
        without_float32 = can.float32_zero_stages and self.stage not in can.float32_zero_stages
        return tuple(
            p for p in ("fp32", "bf16", "fp16") if p in can.precisions and not (p == "fp32" and without_float32)
        )

    def __str__(self) -> str:
        cuts = [f"{name}{size}" for name, size in (("tp", self.tp), ("pp", self.pp)) if size > 1]
        cuts += [] if self.zero is None else [f"zero{self.zero}"]
        cuts += [value if isinstance(value, str) else f"{name}{value}" for name, value in self.flags]
        return "-".join([self.plugin, *cuts, f"{self.world_size}ranks"])


def hybrid(world_size: int, tp: int = 1, pp: int = 1, zero: int = 0, **flags: Any) -> Layout:
    return Layout("hybrid_parallel", world_size, tp, pp, zero, tuple(flags.items()))


def spread(plugin: str, world_size: int, ep: int) -> Layout:
    return Layout(plugin, world_size, flags=(("ep", ep),))


LAYOUTS = [
    *(Layout(plugin, size) for plugin in ("zero2", "zero2_cpu", "gemini", "gemini_auto") for size in (1, 2)),
    Layout("zero1", 2),
    Layout("ddp", 2),
    Layout("fsdp", 1),
    Layout("fsdp", 2),
    Layout("fsdp_cpu", 2),
    Layout("hsdp", 4, flags=(("shard_size", 2),)),
    Layout("gemini", 2, tp=2),
    hybrid(1),
    hybrid(2),
    hybrid(2, zero=1),
    hybrid(2, zero=2),
    hybrid(2, tp=2),
    hybrid(2, pp=2),
    Layout("hybrid_parallel_cpu", 2, tp=2),
    hybrid(4, tp=2, pp=2),
    hybrid(4, tp=2, zero=1),
    hybrid(4, pp=2, zero=1),
]


OF_FAMILIES = {
    "15m": {},
    "mistral_7b": {"sliding_window": 7},
    "gemma_2b": {"head_dim": 16},
    "phi_2": {"resid_pdrop": 0.0},
    # Coefficients at which the routers' losses are a good part of their gradient.
    "mixtral_8x2m": {"num_local_experts": 4, "router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.1},
}
"""What a small model of each family has beside the common figures: a window shorter than the text, wider heads."""
OF_FAMILIES["mixtral_8x2m limited"] = OF_FAMILIES["mixtral_8x2m"] | {"expert_capacity_factor": 0.9}


def micro_batch_rows(layout: Layout, accumulation: int) -> tuple[tuple[int, ...], ...]:
    """The rows of the global batch that go through the model at a time, over all data-parallel ranks."""
    run = run_config(layout, "fp32", accumulation)
    rank_rows = np.arange(GLOBAL_ROWS).reshape(layout.dp, -1)
    count = run.booster.micro_batches(rank_rows.shape[1]) if layout.pp > 1 else accumulation
    return tuple(tuple(part.ravel().tolist()) for part in np.split(rank_rows, count, axis=1))


def model_config(norm: str = "dyt", num_layers: int = 4, tied: bool = False, family: str = "15m") -> LlamaDytConfig:
    """`family`: a preset of it, and a word where `OF_FAMILIES` has it in several ways."""
    return build_config(
        family.split()[0],
        norm=norm,
        **OF_FAMILIES[family],
        hidden_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=VOCAB_SIZE,
        tie_word_embeddings=tied,
        max_position_embeddings=4096,
        initializer_range=0.1,  # at 0.02 the gradients of q and k are a millionth of the others, and prove nothing
    )


def small_model(
    norm: str = "dyt", num_layers: int = 4, seed: int = SEED, tied: bool = False, family: str = "15m"
) -> LlamaDytForCausalLM:
    return build_model(model_config(norm, num_layers, tied, family), seed=seed)


def weights(model: LlamaDytForCausalLM, seed: int = SEED) -> Read:
    """The same weights for `Boosted`, of a model that has none."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return InitialWeights(shapes, model.config, seed).read


def run_config(layout: Layout, precision: str, accumulation: int = 1, **flags) -> RunConfig:
    """The run's flags; the global batch is the same whatever the layout and the accumulation."""
    settings = {
        "plugin": layout.plugin,
        "tp": layout.tp,
        "pp": layout.pp,
        "zero": layout.zero,
        "mixed_precision": precision,
        "max_length": LENGTH,
        "batch_size": GLOBAL_ROWS // (layout.dp * accumulation),
        "gradient_accumulation_steps": accumulation,
        "lr": LR,
        "weight_decay": WEIGHT_DECAY,
        "gradient_clipping": CLIPPING,
        "seed": SEED,
        "mbs": 2 if layout.pp > 1 else None,
        **dict(layout.flags),
    }
    return RunConfig.build("pretrain", **{**settings, **flags})


def global_batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and labels of one optimizer step, (GLOBAL_ROWS, LENGTH) each.

    A text that can be learned: three times in four a token follows from the one before, else it is drawn, small ids
    more often. Labels are spread unevenly: rows have from none to all of theirs.
    """
    generator = np.random.default_rng((SEED, step))
    drawn = (VOCAB_SIZE * generator.random((GLOBAL_ROWS, LENGTH)) ** 3).astype(np.int64)
    follows = generator.random((GLOBAL_ROWS, LENGTH)) < 0.75
    ids = drawn.copy()
    for place in range(1, LENGTH):
        ids[:, place] = np.where(follows[:, place], (ids[:, place - 1] * 5 + 3) % VOCAB_SIZE, drawn[:, place])
    labels = ids.copy()
    for row in range(GLOBAL_ROWS):
        number = row + step
        labels[row, : LENGTH if number % GLOBAL_ROWS == 5 else (number * 7) % (LENGTH - 2)] = IGNORE_INDEX
    return ids, labels


def letters_tokenizer():
    """A tokenizer whose tokens are single characters, for text that comes through the real loader."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<unk>"]
    letters = [chr(code) for code in range(32, 32 + VOCAB_SIZE - len(special))]
    vocabulary = {token: number for number, token in enumerate(special + letters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def num_label_tokens(labels: np.ndarray) -> int:
    return int((labels[:, 1:] != IGNORE_INDEX).sum())


def write_counting(file: Path, documents: int) -> str:
    """A file of so many documents of JSON, each longer than the one before, up to forty numbers; gives its path."""
    texts = (f"document {number} counts {' '.join(map(str, range(number % 40)))}" for number in range(documents))
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(file)


def batches(run: RunConfig, dp_rank: int, dp_size: int, state: dict | None = None) -> Iterator[Step]:
    """The steps of one data-parallel rank, without end; `state` as for the loaders."""
    accumulation = run.optimizer.gradient_accumulation_steps
    shape = BatchShape(run.data.batch_size, accumulation, dp_rank, dp_size)
    step = state["step"] if state else 0
    while True:
        ids, labels = global_batch(step)
        rows = shape.own_rows
        parts = zip(np.split(ids[rows], accumulation), np.split(labels[rows], accumulation))
        step += 1
        micro_batches = [make_micro_batch(*part) for part in parts]
        yield Step(micro_batches, num_label_tokens(labels), ids.size, {"step": step})
