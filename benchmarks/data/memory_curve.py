"""What the data path holds over a long run, as a curve: `python benchmarks/data/memory_curve.py --seconds 60`.

Resident memory of the process and of its tokenizing workers, sampled while an endless mixture of shuffled text is read.
Results go to a dated JSON file in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

RESULTS = REPOSITORY / "benchmarks" / "results"
MEGABYTE = 2**20
WIDTH = 60
SAMPLES = 40


def write_mixture(folder: Path, corpus: str) -> Path:
    mixture = folder / "mixture.yaml"
    mixture.write_text(
        "sources:\n"
        f"  shuffled: {{path: {json.dumps(corpus)}, weight: 3, shuffle: documents}}\n"
        f"  in_order: {{path: {json.dumps(corpus)}, weight: 1}}\n"
    )
    return mixture


def measure(mixture: Path, tokenizer, max_length: int, batch_size: int, num_workers: int, seconds: float) -> list[dict]:
    """Samples {tokens, loader_mb, workers_mb} at even times."""
    import psutil

    from llama_dyt.data.loaders.packed import TokenBatches
    from llama_dyt.data.loaders.step import BatchShape
    from llama_dyt.data.opening import LoaderOptions

    process, samples = psutil.Process(), []
    start = time.monotonic()
    options = LoaderOptions(num_workers=num_workers)
    with TokenBatches(str(mixture), tokenizer, max_length, BatchShape(batch_size), options) as batches:
        for step in batches:
            now = time.monotonic() - start
            if now >= seconds * len(samples) / SAMPLES:
                workers = sum(child.memory_info().rss for child in process.children())
                samples.append(
                    {
                        "seconds": round(now, 2),
                        "tokens": step.position["tokens"],
                        "loader_mb": round(process.memory_info().rss / MEGABYTE, 1),
                        "workers_mb": round(workers / MEGABYTE, 1),
                    }
                )
            if now >= seconds:
                return samples
    raise SystemExit("the data ended")


def curve(samples: list[dict]) -> str:
    """A line a sample: tokens so far, memory, and a bar of it."""
    top = max(sample["loader_mb"] + sample["workers_mb"] for sample in samples)
    lines = []
    for sample in samples:
        total = sample["loader_mb"] + sample["workers_mb"]
        bar = "#" * round(WIDTH * total / top)
        lines.append(f"{sample['tokens'] / 1e6:8.2f} M tokens {total:8.1f} MB {bar}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--dataset", help="text; default: the sample corpus")
    parser.add_argument("--tokenizer", help="default: the sample corpus's")
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file")
    arguments = parser.parse_args()

    from llama_dyt.data.sample import build_sample_corpus
    from llama_dyt.data.tokenizing.tokenizer import load_tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = None if arguments.dataset and arguments.tokenizer else build_sample_corpus(folder / "sample")
        mixture = write_mixture(folder, arguments.dataset or corpus.train_glob)
        tokenizer = load_tokenizer(arguments.tokenizer or corpus.tokenizer_folder)
        sizes = (arguments.max_length, arguments.batch_size, arguments.num_workers)
        samples = measure(mixture, tokenizer, *sizes, arguments.seconds)
    print(curve(samples))
    now = datetime.datetime.now(datetime.UTC)
    report = {
        "date": now.isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/data/memory_curve.py", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("tokenizers", "numpy", "torch")}},
        "machine": f"{os.cpu_count()} {platform.machine()} cores",
        "samples": samples,
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    file = arguments.results / f"{now:%Y-%m-%d}-data-memory.json"
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\n{file}")


if __name__ == "__main__":
    main()
