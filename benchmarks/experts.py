"""What the routers' losses are worth: a small Mixtral with Dynamic Tanh and with RMSNorm, with and without them.

    python benchmarks/experts.py --steps 300 --output experts.md

Trains every combination of norm, balancing loss, z-loss and seed, one after the other, in a process each, and writes a
table of the last records' means over the seeds: loss, balance (2 is even), z and entropy of the routers (ln 8 = 2.08 at
most), and the load of the most chosen expert.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEYS = ("loss", "router_balance_loss", "router_z", "router_entropy", "expert_load_most")
SIZE = ["--config", "mixtral_8x2m", "--hidden_width", "128", "--num_layers", "4", "--num_heads", "4"]
SIZE += ["--intermediate_size", "128", "--max_length", "128", "--batch_size", "8"]
LAST = 5


def train(folder: Path, norm: str, balance: float, z: float, seed: int, steps: int, dataset: str) -> dict[str, float]:
    """The means of the last records of one run."""
    flags = {
        "norm": norm,
        "router_aux_loss_coef": balance,
        "router_z_loss_coef": z,
        "seed": seed,
        "max_steps": steps,
        "dataset": dataset,
        "save_dir": folder,
        "plugin": "ddp",
        "mixed_precision": "fp32",
        "lr": 1e-3,
        "warmup_steps": steps // 10,
        "log_interval": max(1, steps // 50),
        "save_interval": steps,
    }
    command = [sys.executable, str(ROOT / "pretrain.py"), *SIZE]
    command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if "router_z" in record][-LAST:]
    return {key: statistics.mean(record[key] for record in records) for key in KEYS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dataset", default="sample")
    parser.add_argument("--output", type=Path, default=Path("experts.md"))
    asked = parser.parse_args()
    lines = [f"| norm | balance | z-loss | {' | '.join(KEYS)} |", "|" + " --- |" * (3 + len(KEYS))]
    for norm, balance, z in itertools.product(("dyt", "rmsnorm"), (0.0, 0.02), (0.0, 0.001)):
        runs = []
        for seed in range(1, asked.seeds + 1):
            with tempfile.TemporaryDirectory() as folder:
                runs.append(train(Path(folder) / "run", norm, balance, z, seed, asked.steps, asked.dataset))
        means = [
            f"{statistics.mean(run[key] for run in runs):.4f} ± {statistics.pstdev(run[key] for run in runs):.4f}"
            for key in KEYS
        ]
        lines.append(f"| {norm} | {balance} | {z} | {' | '.join(means)} |")
        asked.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(lines[-1], flush=True)


if __name__ == "__main__":
    main()
