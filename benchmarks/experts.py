"""What the routers' losses are worth to a small Mixtral with Dynamic Tanh and with RMSNorm.

    python benchmarks/experts.py --folder runs/experts --results benchmarks/results

Every norm is trained with and without the balancing loss, with and without the z-loss, at each learning rate and seed,
one run after the other by pretrain.py's main, and is looked at on the documents that the sample holds out: the loss,
the routers' choices, the size of their logits, and what the norm before them bounds these by whatever the text is. A
row is written as soon as it is there; what --folder holds already is not made again, so a study that was cut short goes
on, and processes may share one, a seed each. Each run, and each look at it, is a fork of this process, which has
imported what they need: that would be a third of a run so small.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import multiprocessing
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from common import keep_large_buffers, write_report

from llama_dyt.core.processes import end_with_parent

LENGTH, BATCH = 128, 4
SIZE = ["--config", "mixtral_8x2m", "--hidden_width", "96", "--num_layers", "2", "--num_heads", "4"]
SIZE += ["--num_key_value_heads", "4", "--intermediate_size", "96"]
COMMON = ["--dataset", "sample", "--shuffle", "sequences", "--max_length", str(LENGTH), "--batch_size", str(BATCH)]
COMMON += ["--plugin", "hybrid_parallel", "--mixed_precision", "fp32", "--tensorboard_dir", "none"]
OF_NORM = {
    # At this width and so few tokens the paper's alpha learns slowly: docs/experiments.md has the figures.
    "dyt": ["--attn_alpha_init_value", "4", "--ffn_alpha_init_value", "4", "--dec_alpha_init_value", "4"],
    "rmsnorm": [],
}
LOOKS = 2
"""How often a run's model is looked at: after each of so many equal parts of its steps."""
TABLE = {
    "loss": "held-out loss",
    "balance": "balance",
    "entropy": "entropy",
    "load_most": "load, most",
    "unused": "experts unused",
    "z": "z",
    "spread": "spread of logits",
    "logit": "largest logit",
    "bound": "its bound",
}


@dataclass(frozen=True)
class Arm:
    """What is trained; all seeds of it are a line of the table.

    Attributes:
        balance_coefficient, z_coefficient: of the routers' losses.
    """

    lr: float
    norm: str
    balance_coefficient: float
    z_coefficient: float

    def __str__(self) -> str:
        return f"{self.norm}-lr{self.lr:g}-balance{self.balance_coefficient:g}-z{self.z_coefficient:g}"

    @property
    def flags(self) -> list[str]:
        losses = ["--router_aux_loss_coef", str(self.balance_coefficient)]
        losses += ["--router_z_loss_coef", str(self.z_coefficient)]
        return ["--norm", self.norm, *OF_NORM[self.norm], "--lr", str(self.lr), *losses]


def arms(lr: float, balance: float, z: float) -> list[Arm]:
    return [Arm(lr, *of_arm) for of_arm in itertools.product(OF_NORM, (0.0, balance), (0.0, z))]


def train(arm: Arm, seed: int, steps: int, place: Path) -> None:
    """One run; the place then has its checkpoints and metrics.jsonl."""
    words = ["pretrain.py", *SIZE, *COMMON, *arm.flags, "--seed", str(seed), "--save_dir", str(place), "--load", "auto"]
    words += ["--max_steps", str(steps), "--warmup_steps", str(steps // 6), "--save_interval", str(steps // LOOKS)]
    words += ["--log_interval", str(max(1, steps // 80))]
    in_a_fork(_pretrain, words, said=place.parent / f"{place.name}.log")


def _pretrain(words: list[str]) -> None:
    import pretrain
    from llama_dyt.training.entry import run_entry

    sys.argv = words
    run_entry(pretrain.main)


def in_a_fork(function: Callable[..., None], *arguments: Any, said: Path) -> None:
    """Call a function in a fork of this process, which by itself computes nothing: threads would not be forked.

    Args:
        said: a file for what it prints.

    Raises:
        SystemExit: it failed, with the end of what it said.
    """
    process = multiprocessing.get_context("fork").Process(target=_call, args=(os.getpid(), function, arguments, said))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{said}: exit status {process.exitcode}\n{said.read_text(encoding='utf-8')[-3000:]}")
    said.unlink()


def _call(parent: int, function: Callable[..., None], arguments: Sequence[Any], said: Path) -> None:
    end_with_parent(parent)
    with said.open("w", encoding="utf-8") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    function(*arguments)


def look(folders: dict[int, Path], num_bytes: int, result: Path) -> None:
    """Saved models on the documents that the sample holds out.

    Args:
        folders: step → model.
        num_bytes: of text.
        result: a JSON file for step → the mean loss of a token in nats, the figures of `routers`, and of each layer's
            router the largest logit ("logits") and what its norm bounds it by ("bounds").
    """
    import torch

    from llama_dyt.models import load_pretrained
    from llama_dyt.training.evaluation.windows import loss_on

    found = {}
    for step, folder in folders.items():
        windows, bos = held_out(folder, num_bytes)
        model = load_pretrained(folder).eval()
        gates = [layer.mlp.gate for layer in model.model.layers]
        logits: list[list[torch.Tensor]] = [[] for _ in gates]
        for gate, kept in zip(gates, logits):
            gate.register_forward_hook(lambda _, __, output, kept=kept: kept.append(output))
        loss = loss_on(model, windows, unscored=bos).mean
        seen = torch.stack([torch.cat(kept) for kept in logits])
        bounds = [logit_bound(model.config.norm_type, layer) for layer in model.model.layers]
        largest = seen.abs().amax((1, 2)).tolist()
        if any(logit > 1.0001 * bound for logit, bound in zip(largest, bounds)):
            raise SystemExit(f"{folder}: logits of {largest} are above their bounds of {bounds}")
        figures = {"loss": loss, **routers(seen, model.config.num_experts_per_tok)}
        found[step] = {**figures, "logit": max(largest), "bound": max(bounds), "logits": largest, "bounds": bounds}
    result.write_text(json.dumps(found), encoding="utf-8")


def held_out(folder: Path, num_bytes: int) -> tuple[list[Any], int]:
    """(windows of the sample's held-out text, the id of BOS), by a saved model's tokenizer."""
    import numpy as np

    from llama_dyt.data.opening import open_data
    from llama_dyt.data.sample import build_sample_corpus
    from llama_dyt.data.tokenizing.encode import encode_batch, frame_document
    from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
    from llama_dyt.training.evaluation.windows import cut

    texts, size = [], 0
    for (text, *_), _ in open_data(build_sample_corpus().validation_file).iterate():
        if size >= num_bytes:
            break
        texts.append(text)
        size += len(text.encode())
    tokenizer = load_tokenizer(folder)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    documents = [frame_document(ids, bos, eos) for ids in encode_batch(tokenizer, texts)]
    return list(cut(np.concatenate(documents).astype(np.int64), LENGTH)), bos


def routers(logits: Any, top_k: int) -> dict[str, float]:
    """What routers did.

    Args:
        logits: (layers, tokens, experts) fp32.
        top_k: experts that a token is sent to.

    Returns: balance (of all layers together, `models.ops.routing`), z, spread (the mean over tokens of the standard
    deviation of their logits over experts: a shift of all of them leaves it and the probabilities alone), entropy
    (nats), load_most (of the experts of all layers, in multiples of an even share) and unused (the share of experts
    with less than a hundredth of one).
    """
    import torch

    layers, tokens, experts = logits.shape
    probabilities = logits.softmax(-1)
    choices = torch.nn.functional.one_hot(probabilities.topk(top_k, dim=-1).indices, experts).sum((1, 2)).double()
    normalizers = logits.logsumexp(-1)
    entropies = normalizers - (probabilities * logits).sum(-1)
    loads = choices / (tokens * top_k / experts)
    frequency, probability = choices.sum(0) / (layers * tokens), probabilities.double().mean((0, 1))
    return {
        "balance": (experts * (frequency * probability).sum()).item(),
        "z": normalizers.double().square().mean().item(),
        "spread": logits.std(-1, correction=0).double().mean().item(),
        "entropy": entropies.double().mean().item(),
        "load_most": loads.max().item(),
        "unused": (loads < 0.01).double().mean().item(),
    }


def logit_bound(norm: str, layer: Any) -> float:
    """The largest size that a logit of a layer's router can have, whatever the layer reads.

    W is an expert's row of the router and w the norm's weight. Dynamic Tanh: every channel is within its weight, so
    the bound is the sum of |w·W|. RMSNorm: the channels' squares come to their number n together, so it is √n·‖w·W‖₂,
    which is at least as much.
    """
    products = (layer.post_attention_layernorm.weight * layer.mlp.gate.weight).detach().double()
    if norm == "dyt":
        return products.abs().sum(1).max().item()
    return (math.sqrt(products.shape[1]) * products.norm(dim=1)).max().item()


def row_of(arm: Arm, seed: int, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """One run's figures: those of its last model, of the earlier ones ("looks"), and of its records in training; None
    where it is not made and nothing is to be."""
    place = arguments.folder / f"{arm}-seed{seed}"
    kept = arguments.folder / f"{arm}-seed{seed}.json"
    if not kept.exists() and arguments.as_it_stands:
        return None
    if not kept.exists():
        train(arm, seed, arguments.steps, place)
        part = arguments.steps // LOOKS
        folders = {part * n: place / f"step_{part * n:08d}" / "model" for n in range(1, LOOKS + 1)}
        in_a_fork(
            look, folders, arguments.held_out_bytes, place / "looks.json", said=place.parent / f"{place.name}.log"
        )
        looks = json.loads((place / "looks.json").read_text(encoding="utf-8"))
        records = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        records = [record for record in records if "router_z" in record]
        row = {
            **asdict(arm),
            "seed": seed,
            **looks[str(LOOKS * part)],
            "largest_z_in_training": max(record["router_z"] for record in records),
            "largest_loss_after_warmup": max(r["loss"] for r in records if r["step"] > arguments.steps // 6),
            "z_in_training": {record["step"]: round(record["router_z"], 3) for record in records[4::5]},
            "looks": looks,
        }
        kept.write_text(json.dumps(row), encoding="utf-8")
        shutil.rmtree(place)
    return json.loads(kept.read_text(encoding="utf-8"))


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line an arm: means over the seeds, and behind them the smallest and the largest."""
    names = [field.name for field in fields(Arm)]
    lines = [f"| learning rate | norm | balancing loss | z-loss | {' | '.join(TABLE.values())} |"]
    lines.append("|" + " --- |" * (len(names) + len(TABLE)))
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    for arm, of_arm in groups.items():
        cells = [part if isinstance(part, str) else f"{part:g}" for part in arm]
        cells += [_mean_and_range([row[key] for row in of_arm]) for key in TABLE]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean_and_range(values: Sequence[float]) -> str:
    digits = 3 if max(map(abs, values)) < 10 else 1
    mean, low, high = (f"{value:.{digits}f}" for value in (statistics.mean(values), min(values), max(values)))
    return f"{mean} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for what is made; what is there is not made again")
    parser.add_argument("--steps", type=int, default=240, help="of each run, of 512 tokens; default: 240")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--lrs", type=float, nargs="+", default=[2e-3, 1e-2], help="learning rates; default: 2e-3 1e-2")
    parser.add_argument("--balance", type=float, default=0.02, help="coefficient of the balancing loss; default: 0.02")
    parser.add_argument("--z", type=float, default=0.001, help="coefficient of the z-loss; default: 0.001")
    parser.add_argument("--held_out_bytes", type=int, default=60_000, help="of text looked at; default: 60000")
    parser.add_argument("--as_it_stands", action="store_true", help="make nothing: tell of what --folder holds")
    parser.add_argument("--results", type=Path, help="folder for a dated file of the figures")
    arguments = parser.parse_args()
    if arguments.steps < 6 * LOOKS:
        parser.error(f"--steps: {arguments.steps} are too few to warm up in and be looked at; at least {6 * LOOKS}")
    keep_large_buffers()
    arguments.folder = arguments.folder.resolve()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for module in ("pretrain", "llama_dyt.boosters.strategies.hybrid.runtime", "llama_dyt.models.mixtral"):
        importlib.import_module(module)
    rows = []
    lrs, coefficients = arguments.lrs, (arguments.balance, arguments.z)
    for seed, arm in [(seed, arm) for lr in lrs for seed in arguments.seeds for arm in arms(lr, *coefficients)]:
        row = row_of(arm, seed, arguments)
        if row is None:
            continue
        rows.append(row)
        print(f"{arm}, seed {seed}: " + ", ".join(f"{name} {row[key]:.4g}" for key, name in TABLE.items()), flush=True)
    lines = table(rows)
    print("\n" + "\n".join(lines))
    if arguments.results is not None:
        wanted = len(lrs) * len(arguments.seeds) * len(arms(lrs[0], *coefficients))
        counts = {"runs": len(rows), "runs_wanted": wanted, "tokens_a_run": arguments.steps * LENGTH * BATCH}
        write_report("experts-cpu", arguments.results, rows, {}, **counts, table=lines)  # its page has the table


if __name__ == "__main__":
    main()
