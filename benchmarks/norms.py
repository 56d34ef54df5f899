"""Dynamic Tanh against RMSNorm, each as everybody computes it: `python benchmarks/norms.py --help`.

Sides are measured in turns, round after round, so that what else the machine does meets all of them. Before any speed
is compared, every side's output and gradients are compared with double precision. Ratios are of times of one round. The
floor is what the memory allows: a forward pass reads and writes once (one copy), a backward pass reads twice and writes
once (one and a half). On a CPU all sides run with the allocator's settings of scripts/common.sh. Results go to a dated
JSON file in benchmarks/results/.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

from common import arguments, keep_large_buffers, ratio_of_pairs, write_report

SHAPES = {"cpu": ["8192x1024", "2048x4096"], "cuda": ["8192x4096", "2048x4096", "8192x8192", "8192x1024"]}
DTYPES = ["fp32", "bf16"]
FLOORS = {"forward": 1.0, "forward+backward": 2.5}
"""In copies of x."""
FLOORS_WITH_RESIDUAL = {"forward": 2.0, "forward+backward": 4.0}
"""Reads x and the residual, writes their sum and the norm of it; back: reads the sum and two gradients, writes one."""
RIVALS = ("RMSNorm compiled", "RMSNorm Liger", "DyT Liger")
"""What ours is held to; how it stands to the others, the table says."""
TOLERANCE = {"fp32": 2e-5, "bf16": 2e-2, "fp16": 4e-3}
"""Largest difference from double precision, as a share of the largest value."""
LEAST_SECONDS_ON_A_GPU = 2e-3
"""A measurement there repeats until it takes about this long; the clock of events is no finer than a microsecond."""


def make_sides(columns: int, device: str, kind: Any) -> dict[str, Any]:
    """Name → module over `columns` with parameters of dtype `kind`, as mixed precision has them."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from llama_dyt.norms import DynamicTanh, RMSNorm, dynamic_tanh_formula
    from llama_dyt.norms.kernels.operator import forward_op

    class Formula(DynamicTanh):
        def forward(self, x):
            return dynamic_tanh_formula(x, self.alpha, self.weight, self.bias)

    class Operator(DynamicTanh):
        def forward(self, x):
            return forward_op(x, self.alpha, self.weight, self.bias)

    sides: dict[str, Any] = {
        "DyT ours": Operator(columns, alpha_init=0.7),
        "DyT eager": Formula(columns, alpha_init=0.7),
        "DyT compiled": Formula(columns, alpha_init=0.7),
        "RMSNorm HF": LlamaRMSNorm(columns, eps=1e-5),
        "RMSNorm torch": torch.nn.RMSNorm(columns, eps=1e-5),
        "RMSNorm compiled": RMSNorm(columns, eps=1e-5),
    }
    if device == "cuda":  # what a compiled layer does with the operator, where `dynamic_tanh` lets inductor fuse
        sides["DyT ours compiled"] = Operator(columns, alpha_init=0.7)
    if device == "cuda" and importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerRMSNorm
        from liger_kernel.transformers.dyt import LigerDyT

        sides["RMSNorm Liger"] = LigerRMSNorm(columns, eps=1e-5)
        sides["DyT Liger"] = LigerDyT(columns, beta=False, init_alpha=0.7)
    return {name: side.to(device, kind) for name, side in sides.items()}


def as_called(name: str, side: Any, residual: bool) -> Callable[..., Any]:
    """The function that is timed: x → y, or with a residual (x, r) → (x + r, y) as in a decoder layer."""
    import torch

    def call(x, *rest):
        if not residual:
            return (side(x),)
        added = x + rest[0]
        return added, side(added)

    if "compiled" in name:
        return torch.compile(call, dynamic=False, fullgraph=True)
    return call


def check_numbers(name: str, call: Callable, side: Any, inputs: list, grads: list, dtype: str) -> None:
    """Output and gradients against double precision.

    Raises:
        SystemExit: they differ: a speed would mean nothing.
    """
    import torch

    from llama_dyt.norms import dynamic_tanh_formula

    def results(function, values, parameters, upstream):
        leaves = [v.detach().requires_grad_() for v in values]
        outputs = function(*leaves)
        return [*outputs, *torch.autograd.grad(outputs, [*leaves, *parameters], upstream)]

    parameters = [p.detach().double().requires_grad_() for p in side.parameters()]

    def exact(x, *rest):
        x = x + rest[0] if rest else x
        if name.startswith("DyT"):
            named = dict(zip((n for n, _ in side.named_parameters()), parameters))
            weight = named["weight"] if "weight" in named else named["gamma"]
            y = dynamic_tanh_formula(x, named["alpha"], weight)
        else:
            y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * parameters[0]
        return (x, y) if rest else (y,)

    seen = results(call, inputs, list(side.parameters()), grads)
    true = results(exact, [v.double() for v in inputs], parameters, [g.double() for g in grads])
    for one, other in zip(seen, true):
        wrong = ((one.double() - other).abs().max() / other.abs().max()).item()
        if not wrong <= TOLERANCE[dtype]:
            raise SystemExit(f"{name} in {dtype} differs from double precision by {wrong:.1e} of the largest value")


class Clock:
    """Seconds of one call, on the device that does the work."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.repeats: dict[Any, int] = {}

    def seconds(self, key: Any, call: Callable[[], Any]) -> float:
        if self.device == "cpu":
            begin = time.perf_counter()
            call()
            return time.perf_counter() - begin
        if key not in self.repeats:
            self.repeats[key] = 1
            self.repeats[key] = max(1, int(LEAST_SECONDS_ON_A_GPU / max(self.seconds(key, call), 1e-6)))
        import torch

        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(self.repeats[key]):
            call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000 / self.repeats[key]


def measure(
    shape: str, dtype: str, device: str, rounds: int, residual: bool, only: list[str] | None
) -> list[dict[str, Any]]:
    """Every side's times over one shape in one precision, and a copy's: a row a round, a side and a kind of pass.

    Args:
        only: the names of the sides to measure; None for all.
    """
    import torch

    rows, columns = map(int, shape.split("x"))
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    torch.manual_seed(0)
    torch._dynamo.reset()
    inputs = [torch.randn(rows, columns, device=device).to(kind) for _ in range(1 + residual)]
    grads = [torch.randn(rows, columns, device=device).to(kind) for _ in range(1 + residual)]
    target = torch.empty_like(inputs[0])
    sides = make_sides(columns, device, kind)
    sides = {name: side for name, side in sides.items() if only is None or name in only}
    calls = {name: as_called(name, side, residual) for name, side in sides.items()}
    for name, call in calls.items():
        check_numbers(name, call, sides[name], inputs, grads, dtype)
    for value in inputs:
        value.requires_grad_()

    def forward_backward(name: str) -> None:
        outputs = calls[name](*inputs)
        torch.autograd.grad(outputs, [*inputs, *sides[name].parameters()], grads)

    jobs: dict[tuple[str, str], Callable[[], Any]] = {("a copy of x", "copy"): lambda: target.copy_(inputs[0].detach())}
    for name in sides:
        jobs[name, "forward"] = lambda name=name: calls[name](*inputs)
        jobs[name, "forward+backward"] = lambda name=name: forward_backward(name)
    clock = Clock(device)
    found = []
    order = list(jobs)
    for number in range(-1, rounds):  # round -1 warms up
        for side, what in order:
            seconds = clock.seconds((side, what), jobs[side, what])
            row = {"shape": shape, "dtype": dtype, "round": number, "what": what, "side": side, "seconds": seconds}
            found.append(row)
        order = order[1:] + order[:1]
    return [row for row in found if row["round"] >= 0]


def seconds_of(rows: list[dict[str, Any]], side: str, what: str) -> list[float]:
    """In the order of the rounds, whatever place a side had in each."""
    return [row["seconds"] for row in rows if row["side"] == side and row["what"] == what]


def summarise(rows: list[dict[str, Any]], floors: dict[str, float]) -> dict[str, Any]:
    """Print a table of medians for one shape and precision; ratios of ours to what it is held to and to the floor."""
    where = f"{rows[0]['shape']} {rows[0]['dtype']}"
    copies = seconds_of(rows, "a copy of x", "copy")
    sides = list(dict.fromkeys(row["side"] for row in rows if row["what"] != "copy"))
    print(f"\n| {where} | forward, ms | forward+backward, ms | times the floor |\n| --- | --- | --- | --- |")
    for side in sides:
        medians = [statistics.median(seconds_of(rows, side, what)) for what in floors]
        distance = medians[1] / (floors["forward+backward"] * statistics.median(copies))
        print(f"| {side} | {medians[0] * 1e3:.3f} | {medians[1] * 1e3:.3f} | {distance:.2f} |")
    summary = {}
    for what, floor in floors.items():
        ours = seconds_of(rows, "DyT ours", what)
        for other in RIVALS:
            if other in sides:
                summary[f"{where} {what}: DyT ours / {other}"] = ratio_of_pairs(ours, seconds_of(rows, other, what))
        summary[f"{where} {what}: DyT ours / floor"] = ratio_of_pairs(ours, [floor * copy for copy in copies])
    return summary


def main() -> None:
    parser = arguments(
        __doc__,
        device=("", "cpu or cuda; cuda if there is one"),
        rounds=(11, "how often each side is measured"),
        threads=(0, "threads on a CPU; 0 leaves it to PyTorch"),
    )
    parser.add_argument("--shapes", nargs="+", help=f"ROWSxCOLUMNS; default on a CPU: {' '.join(SHAPES['cpu'])}")
    parser.add_argument("--dtypes", nargs="+", choices=list(TOLERANCE), default=DTYPES, help="default: fp32 bf16")
    parser.add_argument("--sides", nargs="+", metavar="NAME", help='of the table, "DyT ours" among them; default: all')
    parser.add_argument("--residual", action="store_true", help="time x + r and the norm of it, as a decoder has them")
    chosen = parser.parse_args()
    if chosen.sides and "DyT ours" not in chosen.sides:
        parser.error('--sides: ratios are of "DyT ours", so it has to be among them')
    keep_large_buffers()

    import torch

    device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    floors = FLOORS_WITH_RESIDUAL if chosen.residual else FLOORS
    rows, summary = [], {}
    for shape in chosen.shapes or SHAPES[device]:
        for dtype in chosen.dtypes:
            found = measure(shape, dtype, device, chosen.rounds, chosen.residual, chosen.sides)
            summary.update(summarise(found, floors))
            rows += found
    print()
    name = f"norms{'-residual' if chosen.residual else ''}-{device}"
    write_report(name, chosen.results, rows, summary, threads=torch.get_num_threads(), floors=floors)


if __name__ == "__main__":
    main()
