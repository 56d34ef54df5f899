"""Measure training throughput on synthetic data: `python benchmark.py --help`, or docs/benchmark.md."""

import statistics
import time

from llama_dyt.data.synthetic import SyntheticBatches
from llama_dyt.training.dry_run import print_dry_run
from llama_dyt.training.performance import Speedometer
from llama_dyt.training.plan import make_plan, say
from llama_dyt.training.session import Session, run_entry


def report(speedometer: Speedometer, tokens_a_step: int, seconds: list[float], peak_memory_mb: float) -> str:
    """The result: Colossal-AI's line first, then what stands behind it. Rates are of the median step."""
    median = statistics.median(seconds)
    speed = speedometer.speed(tokens_a_step, median)
    spread = f"{min(seconds):.3f} to {max(seconds):.3f} s" if len(seconds) > 1 else "one step measured"
    return (
        f"max memory usage: {peak_memory_mb: .2f} MB, throughput: {speed.samples_per_second: .2f} samples/s, "
        f"TFLOPS/GPU: {speed.tflops_per_device: .2f}\n"
        f"  {speed.tokens_per_second_per_device:,.1f} tokens/s/GPU; "
        f"step {median:.3f} s, median of {len(seconds)} ({spread})\n"
        f"  MFU {speed.mfu:.1%}, HFU {speed.hardware_tflops_per_device / speedometer.peak_tflops:.1%} of "
        f"{speedometer.peak_tflops:.2f} TFLOPS ({speedometer.peak_source})\n"
        f"  {speedometer.model_flops / 1e9:.3f} GFLOP a token: 6 x matmul weights + 12 x layers x width x length;\n"
        f"  TFLOPS/GPU and MFU leave recomputation out, HFU counts it ({speedometer.hardware_flops / 1e9:.3f} GFLOP)"
    )


def main() -> None:
    plan = make_plan("benchmark")
    run = plan.run
    if run.run.dry_run:
        print_dry_run(plan, run.benchmark.num_steps)
        return
    session = Session(plan)
    trainer = session.make_trainer(run.benchmark.num_steps)
    say(plan, f"benchmark: {session.description}")
    batches = SyntheticBatches(
        plan.model_config.vocab_size,
        run.data.max_length,
        run.data.batch_size,
        run.optimizer.gradient_accumulation_steps,
        session.grid.dp_rank,
        session.grid.dp_size,
        run.benchmark.num_steps,
        seed=run.run.seed,
    )
    seconds = []
    with batches:
        for number, step in enumerate(batches):
            session.boosted.synchronize()
            start = time.perf_counter()
            outcome = trainer.train_step(step)
            session.boosted.synchronize()
            elapsed = time.perf_counter() - start
            measured = number >= run.benchmark.ignore_steps
            if measured:
                seconds.append(elapsed)
            say(plan, f"step {number + 1}: {elapsed:.3f} s, loss {outcome.loss:.4f}{'' if measured else ' (ignored)'}")
    peak = session.largest_peak_memory_mb()
    if plan.is_first_process:
        print(report(trainer.speedometer, step.num_tokens, seconds, peak))


if __name__ == "__main__":
    run_entry(main)
