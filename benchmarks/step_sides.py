"""The training loops that `steps.py` compares, each in a process of its own that makes one step when it is told to.

Its own file because it is what runs in those processes: the same model, weights, batches, AdamW and clipping in four
loops, written as their users write them.

    ours        this project: Session and Trainer.fit, with its metrics file
    bare        plain PyTorch: model, torch.optim.AdamW(fused=True), clip_grad_norm_, nothing else
    huggingface transformers.Trainer with the same optimizer
    colossalai  the loop of Colossal-AI's LLaMA examples: Booster with LowLevelZeroPlugin, HybridAdam, progress bar
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import MEGABYTE

BETAS, EPS, LR, WEIGHT_DECAY, CLIPPING = (0.9, 0.95), 1e-8, 3e-4, 0.1, 1.0
LOG_INTERVAL = 10
ENDLESS = 10**6


@dataclass(frozen=True)
class Work:
    """What every side does, from the command line of `steps.py`. `flags` are further flags of benchmark.py, ours."""

    config: str
    norm: str
    precision: str
    batch_size: int
    max_length: int
    plugin: str
    flags: tuple[str, ...] = ()

    @property
    def benchmark_flags(self) -> list[str]:
        words = ["--config", self.config, "--norm", self.norm, "--mixed_precision", self.precision]
        words += ["--batch_size", str(self.batch_size), "--max_length", str(self.max_length), "--plugin", self.plugin]
        return [*words, *self.flags]


class Gate:
    """Lets a loop make one step a line on stdin, and answers each with its seconds, loss and memory.

    A step is timed from the moment its data is asked for to the moment the next is: whatever a loop does beside the
    step itself counts.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what libraries print is no answer
        self._start: float | None = None
        self._cpu_start = 0.0
        self.loss: Any = None

    def wait(self) -> bool:
        """End the step before, if there was one, and wait for the next; False when there is none."""
        import psutil
        import torch

        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.synchronize()
        if self._start is not None:
            seconds = time.perf_counter() - self._start
            memory = torch.cuda.max_memory_allocated() if cuda else psutil.Process().memory_info().rss
            cpu_seconds = time.process_time() - self._cpu_start
            answer = {"seconds": seconds, "cpu_seconds": cpu_seconds}
            answer |= {"loss": float(self.loss() if callable(self.loss) else self.loss), "memory_mb": memory / MEGABYTE}
        else:
            answer = {"ready": True}
        self._answers.write(json.dumps(answer) + "\n")
        if not sys.stdin.readline():
            return False
        self._start, self._cpu_start = time.perf_counter(), time.process_time()
        return True

    def steps(self, batches: Iterator[Any]) -> Iterator[Any]:
        while self.wait():
            yield next(batches)


def plan_of(work: Work) -> Any:
    from llama_dyt.training.plan import make_plan

    return make_plan("benchmark", work.benchmark_flags)


def batches_of(plan: Any) -> Iterator[Any]:
    from llama_dyt.data.loaders.synthetic import SyntheticBatches

    run = plan.run
    return SyntheticBatches(plan.model_config.vocab_size, run.data.max_length, run.data.batch_size, seed=run.run.seed)


def model_of(plan: Any, device: Any) -> Any:
    from llama_dyt.models import build_model

    plan.model_config.use_cache = False
    return build_model(plan.model_config, seed=plan.run.run.seed).to(device).train()


def ours(work: Work, gate: Gate) -> None:
    from llama_dyt.training.session import Session
    from llama_dyt.training.trackers.tracker import Tracked
    from llama_dyt.training.trackers.trackers import Trackers

    plan = plan_of(work)
    plan.run = plan.run.replace(log_interval=LOG_INTERVAL)
    session = Session(plan)
    with tempfile.TemporaryDirectory() as folder:
        tracked = Tracked(plan.run, Path(folder), 0, ENDLESS, "steps", "steps", plan.model_config.vocab_size)
        trackers = Trackers.of_run(tracked, first=True)
        trainer = session.make_trainer(ENDLESS, trackers)
        train_step = trainer.train_step

        def recorded(*words: Any) -> Any:
            outcome = train_step(*words)
            gate.loss = lambda: outcome.loss  # read at the gate: reading waits for the device
            return outcome

        trainer.train_step = recorded
        trainer.fit(gate.steps(batches_of(plan)), ENDLESS)
        trackers.close()


def bare(work: Work, gate: Gate) -> None:
    import torch

    plan = plan_of(work)
    device = torch.device(plan.device)
    model = model_of(plan, device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True
    )
    half = work.precision != "fp32"
    for step in gate.steps(batches_of(plan)):
        batch = {key: tensor.to(device, non_blocking=True) for key, tensor in step.micro_batches[0].items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        optimizer.step()
        optimizer.zero_grad()
        gate.loss = loss.detach()


def huggingface(work: Work, gate: Gate) -> None:
    import torch
    import transformers

    plan = plan_of(work)
    model = model_of(plan, plan.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self):
            for step in batches_of(plan):
                (batch,) = step.micro_batches
                for ids, labels in zip(batch["input_ids"], batch["labels"]):
                    yield {"input_ids": ids, "labels": labels}

    class Recorded(transformers.Trainer):
        def training_step(self, *words: Any, **named: Any) -> torch.Tensor:
            gate.loss = super().training_step(*words, **named)
            return gate.loss

    class AtTheGate(transformers.TrainerCallback):
        def on_train_begin(self, arguments: Any, state: Any, control: Any, **rest: Any) -> None:
            gate.wait()

        def on_step_end(self, arguments: Any, state: Any, control: Any, **rest: Any) -> None:
            # Logging, if it is due, comes after this and so counts to the next step.
            control.should_training_stop = not gate.wait()

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=ENDLESS,
            per_device_train_batch_size=work.batch_size,
            max_grad_norm=CLIPPING,
            logging_steps=LOG_INTERVAL,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=plan.device == "cpu",
            bf16=work.precision == "bf16",
        )
        Recorded(
            model=model,
            args=arguments,
            train_dataset=Rows(),
            optimizers=(optimizer, schedule),
            callbacks=[AtTheGate()],
        ).train()


def colossalai(work: Work, gate: Gate) -> None:
    """As `examples/language/llama` trains: no schedule is stepped here, since the rate is constant."""
    import torch.distributed as dist
    from tqdm import tqdm

    from llama_dyt.launch.process_group import launch

    plan = plan_of(work)
    # The engine does not run on a CPU, or on this torch, without it.
    launch(plan.run.run.seed, plan.environment, tensor_parallel=plan.run.booster.tp > 1)

    from colossalai.accelerator import get_accelerator
    from colossalai.booster import Booster
    from colossalai.booster.plugin import LowLevelZeroPlugin
    from colossalai.nn.optimizer import HybridAdam

    device = get_accelerator().get_current_device()
    model = model_of(plan, device)
    optimizer = HybridAdam(model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)
    booster = Booster(plugin=LowLevelZeroPlugin(stage=2, precision=work.precision, max_norm=CLIPPING))
    model, optimizer, *_ = booster.boost(model, optimizer)
    with tqdm(gate.steps(batches_of(plan)), desc="Step", disable=False) as bar:
        for step in bar:
            batch = {key: tensor.to(device) for key, tensor in step.micro_batches[0].items()}
            loss = model(**batch).loss
            booster.backward(loss, optimizer)
            optimizer.step()
            optimizer.zero_grad()
            shown = loss.detach().clone()
            dist.all_reduce(shown)
            bar.set_postfix({"Loss": f"{shown.item() / dist.get_world_size():.4f}"})
            gate.loss = loss.detach()


SIDES = {"ours": ours, "bare": bare, "huggingface": huggingface, "colossalai": colossalai}


def main(side: str, words: str) -> None:
    given = json.loads(words)
    SIDES[side](Work(**{**given, "flags": tuple(given["flags"])}), Gate())


if __name__ == "__main__":
    from llama_dyt.launch.parent_watch import end_with_launcher

    end_with_launcher()

    from llama_dyt.training.entry import run_entry

    run_entry(lambda: main(*sys.argv[1:3]))
