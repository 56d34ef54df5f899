"""Where a training step's time goes, term by term: `python benchmarks/breakdown.py -- --config 7b --plugin fsdp`.

What follows `--` are flags of benchmark.py. First its measurement is made, undisturbed; then two more steps run under
the profiler, and everything the device did is put into one of the terms below by its name. Idle is what is left of the
measured step. Beside it stands what the matrix products would take at the rate that a matrix product by itself reaches
on this very device: the part of their time that better kernels or larger shapes could save.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import islice
from typing import Any

from common import arguments, write_report

TERMS = (
    # The first whose pattern is found in an operation's or kernel's name.
    ("attention", r"attention|flash|fmha|sdpa"),
    ("optimizer", r"adam|multi_tensor|foreach"),
    ("communication", r"nccl|c10d|gloo"),
    ("loss", r"softmax|nll_loss|cross_entropy"),
    ("matmul", r"^aten::(mm|addmm|bmm|_scaled_mm)$|gemm|nvjet|cutlass|cublas|xmma|splitk"),
    ("copies and fills", r"^memcpy|^memset|^aten::(copy_|fill_|zero_|cat)$|copy_kernel|fillfunctor|catarray"),
)
REST = "elementwise and reductions"


def term_of(name: str) -> str:
    """The term an operation (CPU) or kernel (CUDA) belongs to. What inductor fused is elementwise whatever it holds."""
    lower = name.lower()
    if lower.startswith("triton_") and "mm" not in lower.split("_"):
        return "loss" if re.search(r"softmax|nll_loss", lower) else REST
    return next((term for term, pattern in TERMS if re.search(pattern, lower)), REST)


def device_seconds(events: Iterable[tuple[str, float]], steps: int) -> dict[str, float]:
    """Seconds a step of each term, from (name, seconds) of everything that ran."""
    terms: dict[str, float] = dict.fromkeys([term for term, _ in TERMS] + [REST], 0.0)
    for name, seconds in events:
        terms[term_of(name)] += seconds / steps
    return terms


def union_seconds(intervals: list[tuple[float, float]]) -> float:
    """How long at least one of the intervals lasted; streams that overlap count once."""
    total, end = 0.0, float("-inf")
    for begin, stop in sorted(intervals):
        total += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return total


def operations(profiler: Any) -> tuple[list[tuple[str, float]], float]:
    """((name, seconds) of what ran, seconds in which anything did): kernels on CUDA, operators' own time on a CPU."""
    from torch.autograd import DeviceType

    kernels = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    if kernels:
        # What spans several kernels under a name of its own, such as an optimizer's step, is no kernel.
        kernels = [event for event in kernels if not getattr(event, "is_user_annotation", False)]
        spans = [(event.name, event.time_range.start, event.time_range.end) for event in kernels]
        spans = [span for span in spans if not span[0].startswith(("Optimizer.", "ProfilerStep", "## Call"))]
        busy = union_seconds([(start, end) for _, start, end in spans]) / 1e6
        return [(name, (end - start) / 1e6) for name, start, end in spans], busy
    own: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        own[event.key] += event.self_cpu_time_total / 1e6
    return list(own.items()), sum(own.values())


def measure(flags: list[str]) -> dict[str, Any]:
    """The measurement and its terms, of a run with these flags of benchmark.py, in this process."""
    import torch

    from llama_dyt.data.loaders.synthetic import SyntheticBatches
    from llama_dyt.models import family_of
    from llama_dyt.training.measurement import benchmark as measurement
    from llama_dyt.training.measurement.peak import measure_matmul
    from llama_dyt.training.measurement.profiling import PROFILED_STEPS, profiled
    from llama_dyt.training.plan import make_plan
    from llama_dyt.training.session import Session

    plan = make_plan("benchmark", flags)
    session = Session(plan)
    result = measurement.measure(plan, session)
    run, device, trainer = plan.run, session.boosted.device, session.make_trainer(plan.run.benchmark.num_steps)
    shape = (run.data.max_length, run.data.batch_size, run.optimizer.gradient_accumulation_steps)
    with SyntheticBatches(plan.model_config.vocab_size, *shape, seed=run.run.seed + 1) as batches:
        steps = iter(batches)
        for step in islice(steps, 1):
            trainer.train_step(step)
        profiler = profiled(trainer, steps)
    ran, busy = operations(profiler)
    terms = device_seconds(ran, PROFILED_STEPS)
    if device.type == "cuda":
        terms["idle"] = max(0.0, result.median - busy / PROFILED_STEPS)
        rate = result.matmul_tflops or measure_matmul(device, torch.bfloat16).tflops
    else:
        # On a CPU the profiler itself is part of an operator's time: shares are told, and nothing is called idle.
        rate = result.speedometer.peak_tflops
    meter = result.speedometer
    # The FLOPs of attention's two products are attention's term.
    share = 6 * family_of(plan.model_config).matmul_parameters(plan.model_config) / meter.model_flops
    flops = share * meter.hardware_flops * result.tokens_a_step / meter.num_devices
    return {
        "flags": flags,
        "result": result.to_json(),
        "terms_seconds": terms,
        "matmul_rate_tflops": rate,
        "matmul_seconds_at_that_rate": flops / rate / 1e12,
    }


def table(row: dict[str, Any]) -> str:
    """The terms as Markdown, largest first."""
    terms = row["terms_seconds"]
    total = sum(terms.values())
    lines = ["| term | ms a step | share |", "| --- | --- | --- |"]
    for term, seconds in sorted(terms.items(), key=lambda item: -item[1]):
        lines.append(f"| {term} | {seconds * 1e3:,.1f} | {seconds / total:.1%} |")
    best = row["matmul_seconds_at_that_rate"]
    lines.append(f"| matmul at {row['matmul_rate_tflops']:,.2f} TFLOPS | {best * 1e3:,.1f} | {best / total:.1%} |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__, name=("step", "of the report"))
    parser.add_argument("flags", nargs="*", help="flags of benchmark.py, after --")
    given = parser.parse_args()
    row = measure(given.flags)
    result = row["result"]
    print(table(row))
    summary = {
        "run": result["description"],
        "tokens/s/GPU": result["tokens_per_second_per_device"],
        "TFLOPS/GPU": result["tflops_per_device"],
        "MFU, %": 100 * result["mfu"],
        "median step, s": result["median_step_seconds"],
        "peak memory, MB": result["max_memory_mb"],
        **{f"{term}, ms": seconds * 1e3 for term, seconds in row["terms_seconds"].items()},
        "matmul at the measured peak, ms": row["matmul_seconds_at_that_rate"] * 1e3,
    }
    write_report(f"breakdown-{given.name}", given.results, [row], summary)


if __name__ == "__main__":
    from llama_dyt.launch.parent_watch import end_with_launcher

    end_with_launcher()

    from llama_dyt.training.entry import run_entry

    run_entry(main)
