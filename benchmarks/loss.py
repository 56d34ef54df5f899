"""Memory and time of the head and its loss, without whole logits and with: `python benchmarks/loss.py --help`.

One forward and backward pass from hidden states to the gradients of hidden states and head, by each side in turn: ours,
PyTorch's linear layer and cross entropy over whole fp32 logits, and on CUDA Liger's fused loss where it is installed.
Memory is measured in a process of its own for each side, above what inputs take; times are of one process that runs all
sides in turn. Results go to a dated JSON file in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402

RESULTS = REPOSITORY / "benchmarks" / "results"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MEGABYTE = 2**20
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


def make_inputs(arguments: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states (tokens, hidden), weight (vocabulary, hidden) and targets (tokens,), the same on every side."""
    torch.manual_seed(0)
    dtype, device = DTYPES[arguments.precision], arguments.device
    hidden = torch.randn(arguments.tokens, arguments.hidden, device=device).to(dtype)
    weight = (torch.randn(arguments.vocabulary, arguments.hidden, device=device) * 0.02).to(dtype)
    targets = torch.randint(0, arguments.vocabulary, (arguments.tokens,), device=device)
    targets[torch.rand(arguments.tokens, device=device) < IGNORED_SHARE] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def run_once(side: str, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Forward and backward; gradients are left in the inputs."""
    hidden, weight, _ = inputs
    hidden.grad = weight.grad = None
    loss = SIDES[side](*inputs)
    loss.backward()
    return loss.detach()


def measure_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak of one pass of `arguments.side` above the inputs, its loss, and the norms of its gradients."""
    inputs = make_inputs(arguments)
    if arguments.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = run_once(arguments.side, inputs)
        peak = torch.cuda.max_memory_allocated()
    else:
        import psutil

        small = tuple(tensor[:64].detach().clone() for tensor in inputs)
        run_once(arguments.side, (small[0].requires_grad_(), small[1].requires_grad_(), small[2].clamp(max=63)))
        from llama_dyt.boosters.host import peak_resident_bytes, reset_peak_resident_bytes

        before = psutil.Process().memory_info().rss
        reset_peak_resident_bytes()
        loss = run_once(arguments.side, inputs)
        peak = peak_resident_bytes()
    hidden, weight, _ = inputs
    norms = {"hidden_gradient_norm": hidden.grad, "weight_gradient_norm": weight.grad}
    return {
        "side": arguments.side,
        "memory_mb": (peak - before) / MEGABYTE,
        "loss": float(loss),
        **{name: float(torch.linalg.vector_norm(gradient, dtype=torch.float64)) for name, gradient in norms.items()},
    }


def gradients_of(side: str, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
    run_once(side, inputs)
    return [tensor.grad.float() for tensor in inputs[:2]]


def measure_time(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Of every side the seconds of every pass, in turn, after one that warms up; and how far its gradients (of hidden
    states and weight) are from those of whole logits, by their norm."""
    inputs = make_inputs(arguments)
    exact = gradients_of("materialised", inputs)
    rows: dict[str, dict[str, Any]] = {side: {"seconds": []} for side in sides(arguments.device)}
    for side, row in rows.items():
        pairs = zip(gradients_of(side, inputs), exact)
        row["gradient_distance"] = [float((own - whole).norm() / whole.norm()) for own, whole in pairs]
    for repetition in range(arguments.repeat):
        # The order turns round, so that what one side leaves in caches is not always the same side's gain.
        for side in list(rows) if repetition % 2 else reversed(rows):
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run_once(side, inputs)
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            rows[side]["seconds"].append(time.perf_counter() - start)
    return rows


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "memory": measure_memory,
    "time": measure_time,
}


def in_a_process_of_its_own(arguments: argparse.Namespace, what: str, side: str = "ours") -> Any:
    """What a measurement gives in a fresh process, where no other has left memory behind.

    Raises:
        SystemExit: it failed; what it said stands above.
    """
    given = ("tokens", "hidden", "vocabulary", "precision", "device", "repeat", "threads")
    flags = [word for name in given for word in (f"--{name}", str(getattr(arguments, name)))]
    command = [sys.executable, __file__, *flags, "--measure", what, "--side", side]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{shlex.join(command)} failed, exit status {ended.returncode}")
    return json.loads(ended.stdout.splitlines()[-1])


def summary_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """All measurements, and ours as a share of the materialised side's."""
    rows = {side: in_a_process_of_its_own(arguments, "memory", side) for side in sides(arguments.device)}
    for side, row in in_a_process_of_its_own(arguments, "time").items():
        rows[side] |= {**row, "median_seconds": statistics.median(row["seconds"])}
    own, whole = rows["ours"], rows["materialised"]
    pairs = [ours / theirs for ours, theirs in zip(own["seconds"], whole["seconds"])]
    return {
        "memory_ratio": own["memory_mb"] / whole["memory_mb"],
        "time_ratio": statistics.median(pairs),
        "time_ratio_range": [min(pairs), max(pairs)],
        "loss_difference": abs(own["loss"] - whole["loss"]),
        "rows": list(rows.values()),
    }


def table(summary: dict[str, Any]) -> str:
    lines = ["| side | memory above inputs, MB | median ms | loss |", "| --- | --- | --- | --- |"]
    for row in summary["rows"]:
        lines.append(
            f"| {row['side']} | {row['memory_mb']:,.0f} | {1e3 * row['median_seconds']:,.1f} | {row['loss']:.7f} |"
        )
    low, high = summary["time_ratio_range"]
    lines.append(
        f"\nours / materialised: memory {summary['memory_ratio']:.3f}, time {summary['time_ratio']:.3f} "
        f"({low:.3f} to {high:.3f} over the pairs), loss differs by {summary['loss_difference']:.1e}"
    )
    return "\n".join(lines)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192 if on_gpu else 1024, help="default: 8192, on a CPU 1024")
    parser.add_argument("--hidden", type=int, default=4096 if on_gpu else 256, help="default: 4096, on a CPU 256")
    parser.add_argument("--vocabulary", type=int, default=128256, help="default: 128256, LLaMA 3's")
    parser.add_argument("--precision", choices=DTYPES, default="bf16" if on_gpu else "fp32")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if on_gpu else "cpu")
    parser.add_argument("--repeat", type=int, default=10, help="timed passes of each side; default: 10")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of a CPU; default: all cores")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file")
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, default="ours", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        print(json.dumps(MEASUREMENTS[arguments.measure](arguments)))
        return
    summary = summary_of(arguments)
    print(table(summary))
    now = datetime.datetime.now(datetime.UTC)
    report = {
        "date": now.isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/loss.py", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "machine": torch.cuda.get_device_name() if arguments.device == "cuda" else f"{os.cpu_count()} CPU cores",
        "load_average": os.getloadavg(),
        **{name: getattr(arguments, name) for name in ("tokens", "hidden", "vocabulary", "precision", "threads")},
        **summary,
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    file = arguments.results / f"{now:%Y-%m-%d}-loss-{arguments.device}-{arguments.vocabulary}.json"
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\n{file}")


if __name__ == "__main__":
    main()
