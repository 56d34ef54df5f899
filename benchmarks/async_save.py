"""How long an asynchronous save stops training, and how far it slows it: `python benchmarks/async_save.py`.

at once         the Trainer's own synchronous save
aside           the same with --async_save: until training could go on, and what the update of the next step waits for;
                the bytes are the same, which is looked at
distributed     torch.distributed.checkpoint.async_save of the same tensors, until it returns

One process, the same tensors; the sides take turns. Each save has come to its end, on the disk, before the next begins.
Then steps: stretches of --interval seconds with one asynchronous save in each, and without, in turns. The processor
time of the writing process is that of its own, which no step has.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from common import MEGABYTE, arguments, median_of, ratio_of_pairs, write_report


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Sides:
    """A run after two steps, and its savers."""

    def __init__(self, flags: list[str], folder: Path) -> None:
        from llama_dyt.data.loaders.synthetic import SyntheticBatches
        from llama_dyt.models import save_config
        from llama_dyt.training.checkpoint.background import BackgroundWriter
        from llama_dyt.training.checkpoint.writer import CheckpointWriter
        from llama_dyt.training.plan import make_plan
        from llama_dyt.training.session import Session

        self.folder = folder
        self.plan = make_plan("benchmark", flags)
        session = Session(self.plan)
        self.trainer = session.make_trainer(2)
        shape = (self.plan.run.data.max_length, self.plan.run.data.batch_size)
        with SyntheticBatches(self.plan.model_config.vocab_size, *shape, num_steps=2) as batches:
            self.batches = list(batches)
        self.step()
        self.step()
        state = self.trainer.boosted.state
        self.num_bytes = 3 * sum(state.sizes().values())

        def files(model: Path) -> None:
            save_config(self.plan.model_config, model)

        self.writers = {
            "at once": CheckpointWriter(folder / "at_once", state, session.grid, files),
            "aside": BackgroundWriter(folder / "aside", state, session.grid, files),
        }
        self.writers["aside"].start()
        whole = (entry for entry in state.gather(list(state.sizes()), lend=True) if entry[1] is not None)
        self.flat = {f"{key}.{name}": tensor for name, tensors in whole for key, tensor in tensors.items()}

    def step(self) -> None:
        self.trainer.train_step(self.batches[self.trainer.progress.step % 2])

    def begin(self, side: str) -> None:
        from llama_dyt.training.callbacks.checkpointing import Checkpointing

        self.trainer.checkpointing = Checkpointing(self.plan.run, self.writers[side])
        self.trainer.save()

    def end(self, side: str) -> Path:
        self.writers[side].conclude(wait=True)
        return self.writers[side].last_path

    def time_save(self, side: str) -> tuple[float, float, Path]:
        """(seconds of blocked training, seconds until it is on the disk, its folder)."""
        import torch.distributed.checkpoint as distributed

        begin = time.perf_counter()
        if side == "distributed":
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            future = distributed.async_save(dict(self.flat), checkpoint_id=folder)
            blocked = time.perf_counter() - begin
            future.result()
            for file in folder.rglob("*"):
                if file.is_file():
                    with file.open("rb") as written:
                        os.fsync(written)
        else:
            self.begin(side)
            blocked = time.perf_counter() - begin
            if side == "aside":  # what is copied meanwhile is waited for in the next step
                self.step()
                blocked = self.trainer.checkpointing.record(self.trainer, None)["save_blocked_seconds"]
            folder = self.end(side)
        return blocked, time.perf_counter() - begin, folder

    def steps_for(self, seconds: float, save: bool) -> float:
        """Steps a second of a stretch, a save at its beginning or none."""
        begin, count = time.perf_counter(), 0
        if save:
            self.step()
            self.begin("aside")
            count = 1
        while time.perf_counter() - begin < seconds:
            self.step()
            count += 1
        rate = count / (time.perf_counter() - begin)
        if save:
            shutil.rmtree(self.end("aside"))
        return rate


def main() -> None:
    parser = arguments(
        __doc__,
        config=("100m", "size of the model"),
        plugin=("ddp", "of the run"),
        mixed_precision=("fp32", "of the run"),
        rounds=(5, "saves of each side"),
        stretches=(4, "pairs of stretches of steps; 0 leaves them out"),
        interval=(60.0, "seconds of a stretch"),
        max_length=(128, "tokens of a step"),
    )
    parser.add_argument("--work", type=Path, help="folder to save in; default: the system's for temporary files")
    parser.add_argument("flags", nargs="*", help="further flags of benchmark.py, after --")
    given = parser.parse_args()
    flags = ["--config", given.config, "--plugin", given.plugin, "--mixed_precision", given.mixed_precision]
    flags += ["--max_length", str(given.max_length), "--batch_size", "1", *given.flags]
    folder = Path(tempfile.mkdtemp(dir=given.work, prefix="async-save-"))
    try:
        rows, summary = measure(Sides(flags, folder), given)
    finally:
        shutil.rmtree(folder)
    write_report(f"async-save-{given.config}", given.results, rows, summary, settings={"flags": flags})


def measure(sides: Sides, given: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    names = ("at once", "aside", "distributed")
    for number in range(given.rounds + 1):
        markers = {}
        for side in names:
            blocked, total, made = sides.time_save(side)
            marker = made / "COMPLETE"
            markers[side] = marker.read_text() if marker.is_file() else None
            assert sum(file.stat().st_size for file in made.rglob("*") if file.is_file()) >= sides.num_bytes
            shutil.rmtree(made)
            rows.append({"side": side, "blocked": blocked, "total": total, "first": number == 0})
        assert markers["at once"] == markers["aside"], "the two saves differ"
    of = {side: [row["blocked"] for row in rows if row["side"] == side and not row["first"]] for side in names}
    later = [row for row in rows if not row["first"]]
    summary: dict[str, Any] = {"tensors, MB": sides.num_bytes / MEGABYTE}
    for side in names:
        summary[f"{side}: seconds of blocked training"] = median_of(later, side, "blocked")
        summary[f"{side}: seconds until on the disk"] = median_of(later, side, "total")
    summary["aside / at once, blocked time"] = ratio_of_pairs(of["aside"], of["at once"])
    summary["aside / distributed, blocked time"] = ratio_of_pairs(of["aside"], of["distributed"])
    writer = sides.writers["aside"]
    before = processor_seconds(writer.process_id)
    with_saves, without = [], []
    for _ in range(given.stretches):
        without.append(sides.steps_for(given.interval, save=False))
        with_saves.append(sides.steps_for(given.interval, save=True))
    if given.stretches:
        summary["steps a second with a save / without"] = ratio_of_pairs(with_saves, without)
        used = processor_seconds(writer.process_id) - before
        summary["processor seconds of the writing process, a save"] = used / given.stretches
    writer.close()
    return rows, summary


if __name__ == "__main__":
    from llama_dyt.launch.parent_watch import end_with_launcher

    end_with_launcher()

    from llama_dyt.training.entry import run_entry

    run_entry(main)
