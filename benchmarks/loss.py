"""Memory and time of the head and its loss, without whole logits and with: `python benchmarks/loss.py --help`.

One forward and backward pass from hidden states to the gradients of hidden states and head, by each side in turn: ours,
PyTorch's linear layer and cross entropy over whole fp32 logits, and on CUDA Liger's fused loss where it is installed.
Memory is measured in a process of its own for each side, above what inputs take; times are of one process that runs all
sides in turn. Results go to a dated JSON file in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from common import MEGABYTE, arguments, in_a_process_of_its_own, ratio_of_pairs, write_report
from torch.nn import functional as F

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IGNORED_SHARE = 0.1

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def ours(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    from llama_dyt.models import linear_cross_entropy

    return linear_cross_entropy(hidden, weight, targets) / (targets != -100).sum()


def materialised(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, ignore_index=-100)


def liger(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(ignore_index=-100)(weight, hidden, targets)


SIDES: dict[str, Loss] = {"ours": ours, "materialised": materialised, "liger": liger}


def sides(device: str) -> list[str]:
    with_liger = device == "cuda" and importlib.util.find_spec("liger_kernel") is not None
    return list(SIDES) if with_liger else ["ours", "materialised"]


def make_inputs(given: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states (tokens, hidden), weight (vocabulary, hidden) and targets (tokens,), the same on every side."""
    torch.manual_seed(0)
    dtype, device = DTYPES[given.precision], given.device
    hidden = torch.randn(given.tokens, given.hidden, device=device).to(dtype)
    weight = (torch.randn(given.vocabulary, given.hidden, device=device) * 0.02).to(dtype)
    targets = torch.randint(0, given.vocabulary, (given.tokens,), device=device)
    targets[torch.rand(given.tokens, device=device) < IGNORED_SHARE] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def run_once(side: str, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Forward and backward; gradients are left in the inputs."""
    hidden, weight, _ = inputs
    hidden.grad = weight.grad = None
    loss = SIDES[side](*inputs)
    loss.backward()
    return loss.detach()


def measure_memory(given: argparse.Namespace) -> dict[str, Any]:
    """Peak of one pass of `given.side` above the inputs, its loss, and the norms of its gradients."""
    inputs = make_inputs(given)
    if given.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = run_once(given.side, inputs)
        peak = torch.cuda.max_memory_allocated()
    else:
        import psutil

        small = tuple(tensor[:64].detach().clone() for tensor in inputs)
        run_once(given.side, (small[0].requires_grad_(), small[1].requires_grad_(), small[2].clamp(max=63)))
        from llama_dyt.boosters.engine.host import peak_resident_bytes, reset_peak_resident_bytes

        before = psutil.Process().memory_info().rss
        reset_peak_resident_bytes()
        loss = run_once(given.side, inputs)
        peak = peak_resident_bytes()
    hidden, weight, _ = inputs
    norms = {"hidden_gradient_norm": hidden.grad, "weight_gradient_norm": weight.grad}
    return {
        "side": given.side,
        "memory_mb": (peak - before) / MEGABYTE,
        "loss": float(loss),
        **{name: _norm(gradient) for name, gradient in norms.items()},
    }


def gradients_of(side: str, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
    run_once(side, inputs)
    return [tensor.grad.float() for tensor in inputs[:2]]


def _norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def measure_time(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Of every side the seconds of every pass, in turn, after one that warms up; and how far its gradients (of hidden
    states and weight) are from those of whole logits, by their norm."""
    inputs = make_inputs(given)
    exact = gradients_of("materialised", inputs)
    rows: dict[str, dict[str, Any]] = {side: {"seconds": []} for side in sides(given.device)}
    for side, row in rows.items():
        pairs = zip(gradients_of(side, inputs), exact)
        row["gradient_distance"] = [_norm(own - whole) / _norm(whole) for own, whole in pairs]
    for repetition in range(given.repeat):
        # The order turns round, so that what one side leaves in caches is not always the same side's gain.
        for side in list(rows) if repetition % 2 else reversed(rows):
            if given.device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run_once(side, inputs)
            if given.device == "cuda":
                torch.cuda.synchronize()
            rows[side]["seconds"].append(time.perf_counter() - start)
    return rows


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], Any]] = {"memory": measure_memory, "time": measure_time}


def measure(what: str, words: str) -> Any:
    """A measurement of what `main` was given, in this process."""
    given = argparse.Namespace(**json.loads(words))
    torch.set_num_threads(given.threads)
    return MEASUREMENTS[what](given)


def rows_of(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Memory, times and loss of every side."""
    rows = {}
    for side in sides(given["device"]):
        rows[side] = in_a_process_of_its_own(__file__, "memory", json.dumps({**given, "side": side}))
    for side, row in in_a_process_of_its_own(__file__, "time", json.dumps(given)).items():
        rows[side] |= {**row, "median_seconds": statistics.median(row["seconds"])}
    return list(rows.values())


def summary_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Every side's memory and time, and ours as a share of the others'."""
    own, *others = rows
    summary: dict[str, Any] = {}
    for row in rows:
        summary[f"{row['side']}: memory above inputs, MB"] = row["memory_mb"]
        summary[f"{row['side']}: median ms"] = 1e3 * row["median_seconds"]
    for row in others:
        summary[f"ours / {row['side']}, memory"] = own["memory_mb"] / row["memory_mb"]
        summary[f"ours / {row['side']}, time"] = ratio_of_pairs(own["seconds"], row["seconds"])
        summary[f"ours / {row['side']}, difference of the losses"] = f"{abs(own['loss'] - row['loss']):.1e}"
    return summary


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = arguments(
        __doc__,
        tokens=(8192 if on_gpu else 1024, "rows of hidden states"),
        hidden=(4096 if on_gpu else 256, "their width"),
        vocabulary=(128256, "LLaMA 3's"),
        repeat=(10, "timed passes of each side"),
        threads=(os.cpu_count(), "of a CPU"),
    )
    parser.add_argument("--precision", choices=DTYPES, default="bf16" if on_gpu else "fp32")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if on_gpu else "cpu")
    given = vars(parser.parse_args())
    results = given.pop("results")
    rows = rows_of(given)
    name = f"loss-{given['device']}-{given['vocabulary']}"
    write_report(name, results, rows, summary_of(rows), packages=("torch", "liger-kernel"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        main()
