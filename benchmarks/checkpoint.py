"""How long saving stops training: `python benchmarks/checkpoint.py --config 100m`.

ours            the Trainer's own save: HuggingFace files, moments, counters, renamed when complete
torch.save      one file with the same weights and moments
distributed     torch.distributed.checkpoint.save of the same

The same tensors, in one process; each save is into a folder of its own, removed afterwards, and the sides take turns.
Ours waits until the disk has it all before it calls a checkpoint complete, so the others are made to wait for that too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import MEGABYTE, arguments, median_of, ratio_of_pairs, write_report


def sides_of(flags: list[str]) -> tuple[dict[str, Callable[[Path], Any]], int]:
    """({side: save into a folder}, bytes of the tensors) of a run after two steps."""
    import torch
    import torch.distributed.checkpoint as distributed

    from llama_dyt.data.loaders.synthetic import SyntheticBatches
    from llama_dyt.models import save_config
    from llama_dyt.training.callbacks.checkpointing import Checkpointing
    from llama_dyt.training.checkpoint.writer import CheckpointWriter
    from llama_dyt.training.plan import make_plan
    from llama_dyt.training.session import Session

    plan = make_plan("benchmark", flags)
    session = Session(plan)
    trainer = session.make_trainer(2)
    shape = (plan.run.data.max_length, plan.run.data.batch_size)
    with SyntheticBatches(plan.model_config.vocab_size, *shape, num_steps=2) as batches:
        for step in batches:
            trainer.train_step(step)
    state = trainer.boosted.state
    whole = {name: tensors for name, tensors in state.gather(list(state.sizes())) if tensors is not None}
    flat = {f"{key}.{name}": tensor for name, tensors in whole.items() for key, tensor in tensors.items()}

    def ours(folder: Path) -> None:
        writer = CheckpointWriter(folder, state, session.grid, lambda model: save_config(plan.model_config, model))
        trainer.checkpointing = Checkpointing(plan.run, writer)
        trainer.save()

    sides = {
        "ours": ours,
        "torch.save": lambda folder: torch.save(flat, folder / "all.pt"),
        "distributed": lambda folder: distributed.save(dict(flat), checkpoint_id=folder / "all"),
    }
    return sides, sum(tensor.numel() * tensor.element_size() for tensor in flat.values())


def time_save(save: Callable[[Path], Any], work: Path | None) -> tuple[float, int]:
    """(seconds, bytes written)."""
    folder = Path(tempfile.mkdtemp(dir=work, prefix="checkpoint-"))
    try:
        begin = time.perf_counter()
        save(folder)
        for file in folder.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written)  # ours has done so; what a crash of the machine could take is not saved
        seconds = time.perf_counter() - begin
        return seconds, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = arguments(
        __doc__,
        config=("100m", "size of the model"),
        mixed_precision=("fp32", "of the run"),
        plugin=("ddp", "of the run"),
        rounds=(5, "saves of each side"),
    )
    parser.add_argument("--work", type=Path, help="folder to save in; default: the system's for temporary files")
    parser.add_argument("flags", nargs="*", help="further flags of benchmark.py, after --")
    given = parser.parse_args()
    flags = ["--config", given.config, "--plugin", given.plugin, "--mixed_precision", given.mixed_precision]
    sides, num_bytes = sides_of([*flags, "--max_length", "16", "--batch_size", "1", *given.flags])
    rows = []
    for number in range(given.rounds + 1):
        for side, save in sides.items():
            seconds, written = time_save(save, given.work)
            if number > 0:  # the first round brings in what each needs
                rows.append(
                    {"side": side, "seconds": seconds, "bytes": written, "mb_a_second": written / seconds / MEGABYTE}
                )
    assert all(row["bytes"] >= num_bytes for row in rows), "a side has not written everything"
    summary: dict[str, Any] = {"tensors, MB": num_bytes / MEGABYTE}
    for side in sides:
        summary[f"{side}: seconds of blocked training"] = median_of(rows, side, "seconds")
        summary[f"{side}: MB/s"] = median_of(rows, side, "mb_a_second")
    seconds = {side: [row["seconds"] for row in rows if row["side"] == side] for side in sides}
    for side in ("torch.save", "distributed"):
        summary[f"ours / {side}, blocked time"] = ratio_of_pairs(seconds["ours"], seconds[side])
    write_report(f"checkpoint-{given.config}", given.results, rows, summary, settings={"flags": flags + given.flags})


if __name__ == "__main__":
    from llama_dyt.launch.parent_watch import end_with_launcher

    end_with_launcher()

    from llama_dyt.training.entry import run_entry

    run_entry(main)
