"""Cases with compiled decoder layers: what the compiler was asked for in a run, beside what the run computed.

Its own file because `cases.py` trains whatever the layers are. The compiler's back end is left out but where it is what
is tried: graphs are then run as they were traced, which finds every break and recompilation, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any
from unittest import mock

import torch
from torch import nn

from llama_dyt.boosters import compiled
from llama_dyt.boosters.boosted import sum_over_ranks
from llama_dyt.data.loaders.step import Step
from llama_dyt.training.callbacks.saturation import SaturationProbe
from tests.distributed import cases, small_run
from tests.distributed.small_run import Layout


@dataclass(frozen=True)
class Graphs:
    """Counts of `torch._dynamo` over a run."""

    made: int
    broken: int


def _graphs() -> Graphs:
    counters = torch._dynamo.utils.counters
    return Graphs(counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))


def _start(backend: str) -> Any:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return mock.patch.object(compiled, "BACKEND", backend)


def train(layout: Layout, precision: str, backend: str = "aot_eager", **flags: Any) -> tuple[cases.RankResult, Graphs]:
    """`cases.train` with compiled layers."""
    with _start(backend):
        return cases.train(layout=layout, precision=precision, compile=True, **flags), _graphs()


@dataclass(frozen=True)
class Course:
    """What came of steps of every kind.

    Attributes:
        graphs: made so far, after each part of the run.
        losses: by compiled layers and by layers as written, of the same steps and evaluations.
        shares: sites that a probe saw, by compiled and by written layers.
        names: of the state dict, of compiled and of written layers.
    """

    graphs: dict[str, Graphs]
    losses: tuple[list[float], list[float]]
    shares: tuple[dict[str, float], dict[str, float]]
    names: tuple[list[str], list[str]]


def every_kind_of_step(layout: Layout, **flags: Any) -> Course:
    """Steps that train, keep documents apart, evaluate and are probed, compiled; the same again by written layers."""
    runs = [small_run.run_config(layout, "fp32", compile=choice, **flags) for choice in (True, False)]
    graphs: dict[str, Graphs] = {}
    losses: list[list[float]] = []
    shares: list[dict[str, float]] = []
    names: list[list[str]] = []
    with _start("aot_eager"):
        for run in runs:
            boosted = cases.boost(run)
            steps = list(islice(small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size), 4))
            found: list[float] = []

            def take(step: Step, boosted: Any = boosted, found: list[float] = found) -> None:
                found.extend(sum_over_ranks([boosted.forward_backward(step)], boosted.device))
                boosted.optimizer_step()

            def evaluate(step: Step, boosted: Any = boosted, found: list[float] = found) -> None:
                found.extend(sum_over_ranks([boosted.evaluate(step)], boosted.device))

            take(steps[0])
            take(_apart(steps[0]))
            evaluate(steps[1])
            evaluate(_apart(steps[1]))
            graphs["warm-up"] = _graphs() if run.speed.compile else graphs["warm-up"]
            for step in steps[2:]:
                take(step)
                take(_apart(step))
                evaluate(steps[1])
                evaluate(_apart(steps[1]))
            with SaturationProbe(boosted.module) as probe, boosted.layers_as_written():
                take(steps[0])
            shares.append(probe.values()["saturation"])
            take(steps[1])
            graphs["end"] = _graphs() if run.speed.compile else graphs["end"]
            losses.append(found)
            names.append(list(boosted.module.state_dict()))
    return Course(graphs, (losses[0], losses[1]), (shares[0], shares[1]), (names[0], names[1]))


def _apart(step: Step) -> Step:
    """The step with two documents in every row."""
    micro_batches = []
    for batch in step.micro_batches:
        documents = torch.zeros_like(batch["input_ids"])
        documents[:, small_run.LENGTH // 3 :] = 1
        micro_batches.append({**batch, "document_ids": documents})
    return Step(micro_batches, step.num_label_tokens, step.num_tokens, step.position)


def masks_made(layout: Layout, compile_layers: bool, **model: Any) -> list[tuple[bool, bool, int, int]]:
    """(is_causal, whether a mask came along, query heads, key heads) of every attention of a step and an evaluation."""
    run = small_run.run_config(layout, "fp32", compile=compile_layers)
    seen: list[tuple[bool, bool, int, int]] = []
    upstream = nn.functional.scaled_dot_product_attention

    def watch(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **rest):
        seen.append((bool(is_causal), attn_mask is not None, query.shape[1], key.shape[1]))
        return upstream(query, key, value, attn_mask, dropout_p, is_causal, **rest)

    with _start("aot_eager"), mock.patch.object(nn.functional, "scaled_dot_product_attention", watch):
        boosted = cases.boost(run, num_layers=2)
        step = next(small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size))
        boosted.forward_backward(step)
        boosted.evaluate(step)
    return seen
