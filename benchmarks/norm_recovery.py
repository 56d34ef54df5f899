"""What is left of a trained model whose RMSNorms become Dynamic Tanh, and what a twentieth of its training brings back.

    python benchmarks/norm_recovery.py --folder runs/recovery --results benchmarks/results

For each seed a small model (the quickstart's size, on the sample corpus) is trained with RMSNorm. Its norms are then
exchanged, or fitted to its own on text (`convert.py --norm dyt --calibrate`), and the result is trained on for 5% of
the tokens, on the text alone or beside the original (`--distill_from`); or they stay and are exchanged within the first
third of these steps, one after the other (`--norm tapered`, `--taper_steps`). Everything runs by the entries' command
lines and is scored on the documents that the sample holds out. What --folder holds already is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import KEEP_LARGE_BUFFERS, REPOSITORY, write_report

from llama_dyt.data.sample import build_sample_corpus

LENGTH, BATCH = 256, 4
SIZE = ["--config", "15m", "--hidden_width", "192", "--num_layers", "2", "--num_heads", "4"]
SIZE += ["--intermediate_size", "512"]
COMMON = ["--dataset", "sample", "--shuffle", "sequences", "--max_length", str(LENGTH), "--batch_size", str(BATCH)]
COMMON += ["--plugin", "hybrid_parallel", "--mixed_precision", "fp32", "--tensorboard_dir", "none"]
TEACHING = ["--distill_weight", "0.5", "--distill_hidden_weight", "1.0"]
WAYS = {
    "exchanged": "norms exchanged",
    "fitted": "norms fitted",
    "exchanged, text": "exchanged, then trained on text",
    "fitted, text": "fitted, then trained on text",
    "exchanged, teacher": "exchanged, then trained beside the original",
    "fitted, teacher": "fitted, then trained beside the original",
    "gated, text": "fitted, gated one after the other while trained on text",
    "gated, teacher": "fitted, gated one after the other beside the original",
}


class Seed:
    """All models of one seed, in a folder of their own."""

    def __init__(self, number: int, arguments: argparse.Namespace) -> None:
        self._folder = arguments.folder / f"seed_{number}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._seed = ["--seed", str(number)]
        self._steps = arguments.steps
        self._recovery = round(arguments.steps * arguments.share)
        self._taper_steps = max(1, round(self._recovery * arguments.taper_share))
        self._lr = arguments.lr
        self._original_lr = arguments.original_lr

    def losses(self) -> dict[str, float]:
        """Way → loss on the held-out documents, "original" among them."""
        original = self._original()
        found = {"original": self._score("original", self._folder / "original")}
        starts = {"exchanged": original}
        for start, norm in (("fitted", "dyt"), ("gated", "tapered")):
            starts[start] = self._converted(original, start, norm, "--calibrate", "sample")
        for way in WAYS:
            start, _, recovery = way.partition(", ")
            teaching = ["--distill_from", str(original), *TEACHING] if recovery == "teacher" else []
            # An exchange alone is made by a step that moves nothing.
            steps, lr = (self._recovery, self._lr) if recovery else (1, 1e-12)
            if start == "fitted" and not recovery:
                found[way] = self._score(way, starts[start])
                continue
            place = self._folder / way.replace(", ", "_")
            if not place.exists():
                words = ["--model_path", str(starts[start])]
                words += ["--taper_steps", str(self._taper_steps)] if start == "gated" else ["--norm", "dyt"]
                words += ["--max_steps", str(steps), "--warmup_steps", str(steps // 9), "--lr", str(lr)]
                _run("pretrain.py", *COMMON, *self._seed, *words, *teaching, "--save_dir", str(place))
            if start == "gated":
                place = self._converted(place, f"{place.name}_ended", "dyt")
            found[way] = self._score(way, place)
        return found

    def _converted(self, model: Path, name: str, norm: str, *more: str) -> Path:
        place = self._folder / name
        if not place.exists():
            words = ["--input_path", str(model), "--output_path", str(place), "--norm", norm]
            _run("convert.py", *words, *more)
        return place

    def _original(self) -> Path:
        place = self._folder / "original"
        last = place / f"step_{self._steps:08d}" / "model"
        if not last.exists():
            words = [*SIZE, "--norm", "rmsnorm", "--max_steps", str(self._steps), "--warmup_steps", "300"]
            words += ["--lr", str(self._original_lr), "--load", "auto"]
            _run("pretrain.py", *COMMON, *self._seed, *words, "--save_dir", str(place))
        return last

    def _score(self, name: str, model: Path) -> float:
        result = self._folder / f"{name.replace(', ', '_')}.json"
        if not result.exists():
            words = ["--dataset", build_sample_corpus().validation_file, "--max_length", str(LENGTH)]
            _run("eval_model.py", "--model_path", str(model), *words, "--windows", "stream", "--json", str(result))
        return next(iter(json.loads(result.read_text())["model"]["datasets"].values()))["loss"]


def _run(entry: str, *words: str) -> None:
    command = [sys.executable, entry, *words]
    ended = subprocess.run(
        command, cwd=REPOSITORY, env={**KEEP_LARGE_BUFFERS, **os.environ}, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}\n{ended.stdout[-1000:]}{ended.stderr[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the models; what is there is not made again")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--steps", type=int, default=1800, help="of the originals; default: 1800")
    parser.add_argument("--original_lr", type=float, default=4e-3, help="default: 4e-3")
    parser.add_argument("--share", type=float, default=0.05, help="of the steps, to recover in; default: 0.05")
    share = "of those steps, until all norms are exchanged, where one after the other is; default: a third"
    parser.add_argument("--taper_share", type=float, default=1 / 3, help=share)
    parser.add_argument("--lr", type=float, default=1e-3, help="of the recovery; default: 1e-3")
    parser.add_argument("--results", type=Path, help="folder for a dated file of the figures")
    arguments = parser.parse_args()
    arguments.folder = arguments.folder.resolve()
    rows: list[dict[str, Any]] = []
    for number in arguments.seeds:
        losses = Seed(number, arguments).losses()
        rows.append({"seed": number, **{name: round(loss, 4) for name, loss in losses.items()}})
        print(json.dumps(rows[-1]), flush=True)
    seeds = " | ".join(f"seed {row['seed']}" for row in rows)
    print(f"\n| | {seeds} | above the original, mean (largest) |\n| --- |{' --- |' * (len(rows) + 1)}")
    above = {}
    for way, words in {"original": "the original, RMSNorm", **WAYS}.items():
        gaps = [row[way] - row["original"] for row in rows]
        above[way] = round(statistics.mean(gaps), 4)
        cells = " | ".join(f"{row[way]:.3f}" for row in rows)
        print(f"| {words} | {cells} | {above[way]:.3f} ({max(gaps):.3f}) |")
    if arguments.results is not None:
        write_report("norm_recovery", arguments.results, rows, {"above_the_original": json.dumps(above)})


if __name__ == "__main__":
    main()
