"""Kills training with SIGKILL at random times and shows that no data was lost or seen twice:
`python benchmarks/data/kills.py --kills 50`.

Every step's sequences are written down, by number and content hash, when it is trained on. After each kill the run
goes on with `--load auto`. Steps that are done again after a kill must be of the same sequences, and all steps together
those of a walk over the data that nothing disturbs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

BATCH_SIZE, MAX_LENGTH, SAVE_INTERVAL = 4, 64, 3
PATIENCE_SECONDS = 120


def row_hashes(step: Any) -> list[str]:
    """A hash of each sequence of a step, of the tokens that are not padding."""
    rows = []
    for batch in step.micro_batches:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            rows.append(hashlib.sha256(ids[labels != -100].numpy().tobytes()).hexdigest()[:20])
    return rows


def train(record_file: str, flags: list[str]) -> None:
    """One start of pretrain.py, in this process, that writes down what it trains on."""
    import pretrain
    from llama_dyt.training.entry import run_entry
    from llama_dyt.training.loop import Trainer

    train_step = Trainer.train_step

    def recorded(self, step):
        record = {"step": self.progress.step + 1, "sequences": step.position["sequences"], "rows": row_hashes(step)}
        with open(record_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return train_step(self, step)

    Trainer.train_step = recorded
    sys.argv = ["pretrain.py", *flags]
    run_entry(pretrain.main)


def write_corpus(folder: Path, num_documents: int) -> tuple[Path, Path]:
    """(mixture, tokenizer) of documents of which no two are alike, in two sources: one repeats, one ends."""
    from llama_dyt.data.tokenizing.tokenizer import train_sentencepiece

    numbers = random.Random(1)
    for name, count in (("long", num_documents), ("short", num_documents // 8)):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for i in range(count):
                words = " ".join(f"{name}{numbers.randrange(10**6)}" for _ in range(numbers.randrange(1, 60)))
                file.write(json.dumps({"text": f"{name} document {i}: {words}"}) + "\n")
    mixture = folder / "mixture.yaml"
    mixture.write_text(
        "sources:\n"
        "  long: {path: ./long.jsonl, weight: 2, epochs: 1, shuffle: documents}\n"
        "  short: {path: ./short.jsonl, weight: 1, epochs: 2}\n"
    )
    sample = [line for name in ("long", "short") for line in (folder / f"{name}.jsonl").read_text().splitlines()[:200]]
    train_sentencepiece(sample, folder / "tokenizer", vocab_size=300)
    return mixture, folder / "tokenizer"


def undisturbed(mixture: Path, tokenizer_folder: Path) -> list[dict[str, Any]]:
    """The records of a run that is never killed, by walking its data alone."""
    from llama_dyt.data.loaders.packed import TokenBatches
    from llama_dyt.data.loaders.step import BatchShape
    from llama_dyt.data.opening import LoaderOptions, Order
    from llama_dyt.data.tokenizing.tokenizer import load_tokenizer

    options = LoaderOptions(order=Order(seed=42, shuffle_buffer=50))
    tokenizer = load_tokenizer(tokenizer_folder)
    batches = TokenBatches(str(mixture), tokenizer, MAX_LENGTH, BatchShape(BATCH_SIZE), options)
    return [
        {"step": number, "sequences": step.position["sequences"], "rows": row_hashes(step)}
        for number, step in enumerate(batches, start=1)
    ]


def read_records(file: Path) -> list[dict[str, Any]]:
    """What was written down; a line that a kill cut off was of a step that did not happen."""
    records = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def run_until_killed(command: list[str], record_file: Path, steps: int, delay_seconds: float) -> bool:
    """Start training and SIGKILL it after so many further steps and a moment. False if it ended before."""
    import psutil

    before = len(read_records(record_file))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=REPOSITORY)
    give_up = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and len(read_records(record_file)) < before + steps:
        if time.monotonic() > give_up:
            process.kill()
            raise SystemExit(f"no {steps} steps in {PATIENCE_SECONDS} seconds")
        time.sleep(0.02)
    if process.poll() is None:
        time.sleep(delay_seconds)
    try:
        workers = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        workers = []
    process.kill()
    message = process.communicate()[1].decode()
    left = psutil.wait_procs(workers, timeout=10)[1]
    if left:
        raise SystemExit(f"{len(left)} worker processes outlived the run")
    if process.returncode not in (0, -9):
        raise SystemExit(f"the run failed, exit status {process.returncode}:\n{message}")
    return process.returncode == -9


def compare(records: list[dict[str, Any]], expected: list[dict[str, Any]]) -> dict[str, int]:
    """Counts of what was trained on. Raises SystemExit where it is not what an undisturbed run sees."""
    last = {record["step"]: record for record in records}
    changed = [record["step"] for record in records if record != last[record["step"]]]
    if changed:
        raise SystemExit(f"done again, steps {changed} were of other sequences")
    if [last[step] for step in sorted(last)] != expected:
        raise SystemExit("the steps are not those of an undisturbed run")
    empty = hashlib.sha256(b"").hexdigest()[:20]
    rows = [row for record in expected for row in record["rows"] if row != empty]
    if not len(rows) == len(set(rows)) == expected[-1]["sequences"]:
        raise SystemExit("two sequences are alike: this corpus cannot show what is lost and what comes twice")
    return {
        "steps": len(expected),
        "steps_done_again": len(records) - len(expected),
        "sequences": len(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--documents", type=int, default=0, help="of the larger source; default: 60 a kill")
    parser.add_argument("--num_workers", default="1")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mixture, tokenizer = write_corpus(folder, arguments.documents or 60 * arguments.kills)
        expected = undisturbed(mixture, tokenizer)
        flags = ["--hidden_width", "32", "--num_layers", "2", "--num_heads", "4", "--num_key_value_heads", "2"]
        flags += ["--intermediate_size", "64", "-d", str(mixture), "--tokenizer", str(tokenizer), "-l", str(MAX_LENGTH)]
        flags += ["-b", str(BATCH_SIZE), "-p", "zero2", "-x", "fp32", "--load", "auto", "-t", "none", "-s", "0"]
        flags += ["-i", str(SAVE_INTERVAL), "-o", str(folder / "run"), "--shuffle_buffer", "50"]
        flags += ["--num_workers", arguments.num_workers, "--max_steps", str(len(expected))]
        record_file = folder / "records.jsonl"
        command = [sys.executable, __file__, "train", str(record_file), *flags]
        kills = 0
        while kills < arguments.kills:
            if not run_until_killed(command, record_file, moments.randrange(1, 10), moments.uniform(0, 0.3)):
                break
            kills += 1
            print(f"kill {kills} after step {read_records(record_file)[-1]['step']}", file=sys.stderr)
        ended = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        if ended.returncode:
            raise SystemExit(f"the last run failed, exit status {ended.returncode}:\n{ended.stderr.decode()}")
        counts = compare(read_records(record_file), expected)
        print(json.dumps({"kills": kills, **counts, "lost": 0, "twice": 0}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        train(sys.argv[2], sys.argv[3:])
    main()
