"""The benchmark's work: a run on synthetic data whose steps are timed one by one, and what is told of it."""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from llama_dyt.data.loaders.synthetic import SyntheticBatches
from llama_dyt.training.measurement.figures import figure, percentage
from llama_dyt.training.measurement.peak import measure_matmul
from llama_dyt.training.measurement.performance import Speed, Speedometer
from llama_dyt.training.measurement.profiling import PROFILED_STEPS, profile_steps
from llama_dyt.training.measurement.provenance import provenance, write_json_aside
from llama_dyt.training.plan import Plan, say
from llama_dyt.training.session import Session


@dataclass(frozen=True)
class Measurement:
    """What the steps of a benchmark took.

    Attributes:
        description: the run in one line.
        seconds: of every step, those that are not measured too; the device is idle before and after each.
        losses: of every step.
        ignored: how many of the first steps are not measured.
        tokens_a_step: over all ranks.
        peak_memory_mb: of the rank that needed most, in MB of 2**20 bytes.
        matmul_tflops: what the best square bf16 matmul reached on this GPU after the steps; None elsewhere.
    """

    description: str
    speedometer: Speedometer
    seconds: list[float]
    losses: list[float]
    ignored: int
    tokens_a_step: int
    peak_memory_mb: float
    matmul_tflops: float | None = None

    @property
    def measured(self) -> list[float]:
        return self.seconds[self.ignored :]

    @property
    def median(self) -> float:
        return statistics.median(self.measured)

    @property
    def speed(self) -> Speed:
        """The rates of the median step."""
        return self.speedometer.speed(self.tokens_a_step, self.median)

    @property
    def hfu(self) -> float:
        return self.speed.hardware_tflops_per_device / self.speedometer.peak_tflops

    def report(self) -> str:
        """Colossal-AI's line first, then what stands behind it."""
        speed, meter, measured = self.speed, self.speedometer, self.measured
        spread = "one step measured"
        if len(measured) > 1:
            spread = f"{figure(min(measured), 3)} to {figure(max(measured), 3)} s"
        lines = [
            f"max memory usage:  {self.peak_memory_mb:.2f} MB, throughput:  {figure(speed.samples_per_second)} "
            f"samples/s, TFLOPS/GPU:  {figure(speed.tflops_per_device)}",
            f"  {speed.tokens_per_second_per_device:,.1f} tokens/s/GPU; "
            f"step {figure(self.median, 3)} s, median of {len(measured)} ({spread})",
            f"  MFU {percentage(speed.mfu)}, HFU {percentage(self.hfu)} of {figure(meter.peak_tflops)} TFLOPS "
            f"({meter.peak_source})",
            f"  {figure(meter.model_flops / 1e9, 3)} GFLOP a token: 6 x matmul weights + 12 x layers x width x length;",
            "  TFLOPS/GPU and MFU leave recomputation out, HFU counts it "
            f"({figure(meter.hardware_flops / 1e9, 3)} GFLOP)",
        ]
        if self.matmul_tflops is not None:
            lines.append(f"  a bf16 matmul by itself reaches {self.matmul_tflops:.1f} TFLOPS on this GPU")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same figures, unrounded, and every step."""
        meter = self.speedometer
        return {
            "description": self.description,
            "max_memory_mb": self.peak_memory_mb,
            **asdict(self.speed),
            "hfu": self.hfu,
            "median_step_seconds": self.median,
            "peak_tflops": meter.peak_tflops,
            "peak_source": meter.peak_source,
            "matmul_tflops": self.matmul_tflops,
            "model_flops_per_token": meter.model_flops,
            "hardware_flops_per_token": meter.hardware_flops,
            "num_devices": meter.num_devices,
            "tokens_a_step": self.tokens_a_step,
            "steps": [
                {"seconds": seconds, "loss": loss, "measured": number >= self.ignored}
                for number, (seconds, loss) in enumerate(zip(self.seconds, self.losses, strict=True))
            ],
        }


def measure(plan: Plan, session: Session | None = None) -> Measurement:
    """Train --num_steps steps on synthetic data and time each, then profile where asked. All ranks call it.

    Args:
        session: of the plan, where the caller needs it afterwards; None makes one.
    """
    run, settings = plan.run, plan.run.benchmark
    session = session or Session(plan)
    trainer = session.make_trainer(settings.num_steps)
    say(plan, f"benchmark: {session.description}")
    extra = PROFILED_STEPS if settings.profile is not None else 0
    batches = SyntheticBatches(
        plan.model_config.vocab_size,
        run.data.max_length,
        run.data.batch_size,
        run.optimizer.gradient_accumulation_steps,
        session.grid.dp_rank,
        session.grid.dp_size,
        settings.num_steps + extra,
        seed=run.run.seed,
    )
    seconds, losses = [], []
    with batches:
        steps = iter(batches)
        for number in range(settings.num_steps):
            step = next(steps)
            session.boosted.synchronize()
            start = time.perf_counter()
            outcome = trainer.train_step(step)
            session.boosted.synchronize()
            seconds.append(time.perf_counter() - start)
            losses.append(float(outcome.loss))
            ignored = " (ignored)" if number < settings.ignore_steps else ""
            say(plan, f"step {number + 1}: {figure(seconds[-1], 3)} s, loss {losses[-1]:.4f}{ignored}")
        peak = session.largest_peak_memory_mb()
        if settings.profile is not None:
            table = profile_steps(trainer, steps, Path(settings.profile), write=plan.is_first_process)
            say(plan, table)
    return Measurement(
        description=session.description,
        speedometer=session.speedometer,
        seconds=seconds,
        losses=losses,
        ignored=settings.ignore_steps,
        tokens_a_step=step.num_tokens,
        peak_memory_mb=peak,
        matmul_tflops=_matmul_of_the_gpu(session.boosted.device),
    )


def _matmul_of_the_gpu(device: torch.device) -> float | None:
    """What this very GPU reaches in a matmul, which heat and power limits hold below the data sheet; None on a CPU,
    whose peak is measured in the first place, and where the run has left no memory for it."""
    if device.type != "cuda":
        return None
    try:
        return measure_matmul(device, torch.bfloat16).tflops
    except torch.OutOfMemoryError:
        return None


def write_measurement(file: Path, plan: Plan, measurement: Measurement) -> None:
    """The result, the run's settings, versions, date and machine as JSON; written aside and renamed."""
    report = {
        "benchmark": "benchmark.py",
        "command": shlex.join(["python", "benchmark.py", *sys.argv[1:]]),
        **provenance(),
        "result": measurement.to_json(),
        "settings": plan.run.flags(),
    }
    write_json_aside(file, report)
