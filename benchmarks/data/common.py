"""What the data benchmarks share: a corpus of real text, a tokenizer for it, and the form of their results.

Nothing is downloaded: the text is the Python library's, as in `-d sample`, repeated with a line of its own before each
document, so that no document comes twice.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

RESULTS = REPOSITORY / "benchmarks" / "results"
WORK = REPOSITORY / "data" / "benchmarks"
VOCAB_SIZE = 32000
FILES = 8
CHARACTERS_A_PIECE = 300
PACKAGES = ("numpy", "pyarrow", "tokenizers", "transformers")
MEGABYTE = 2**20


def arguments(description: str, **flags: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="folder for what is made; kept for the next time")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file")
    for name, (value, text) in flags.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"{text}; default: {value}")
    return parser


def make_corpus(work: Path, megabytes: int) -> Path:
    """A folder of FILES .jsonl files with about `megabytes` of text, made once."""
    from llama_dyt.data.sample import sample_documents

    folder = work / f"corpus_{megabytes}mb"
    if folder.is_dir():
        return folder
    texts = [document["text"] for document in sample_documents()]
    aside = folder.with_name(f"{folder.name}.tmp")
    aside.mkdir(parents=True, exist_ok=True)
    files = [open(aside / f"{number}.jsonl", "w", encoding="utf-8") for number in range(FILES)]  # noqa: SIM115
    written = number = 0
    while written < megabytes * MEGABYTE:
        text = f"# document {number}\n{texts[number % len(texts)]}"
        line = json.dumps({"text": text}) + "\n"
        files[number % FILES].write(line)
        written += len(line)
        number += 1
    for file in files:
        file.close()
    os.rename(aside, folder)
    return folder


def make_tokenizer(work: Path, vocab_size: int = VOCAB_SIZE) -> Path:
    """A folder with a SentencePiece tokenizer of LLaMA's kind trained on the text, made once."""
    from llama_dyt.data.sample import sample_documents
    from llama_dyt.data.tokenizer import train_sentencepiece

    folder = work / f"tokenizer_{vocab_size}"
    if not folder.is_dir():
        texts = "".join(document["text"] for document in sample_documents())
        train_sentencepiece([texts[: CHARACTERS_A_PIECE * vocab_size]], folder, vocab_size)
    return folder


def in_a_process_of_its_own(file: str, *words: Any) -> dict[str, Any]:
    """What `python FILE measure WORDS` prints last, as JSON. Memory and caches of one measurement stay out of another.

    Raises:
        SystemExit: it failed; what it said stands above.
    """
    command = [sys.executable, file, "measure", *map(str, words)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=REPOSITORY)
    if ended.returncode:
        raise SystemExit(f"{shlex.join(command)} failed, exit status {ended.returncode}")
    return json.loads(ended.stdout.splitlines()[-1])


def with_speed(side: str, row: dict[str, Any]) -> dict[str, Any]:
    """A measurement with its tokens a second: of the clock, and of the cores, which other programs disturb less."""
    speed = {"tokens_per_second": row["tokens"] / row["seconds"]}
    return {"side": side, **row, **speed, "tokens_per_cpu_second": row["tokens"] / row["cpu_seconds"]}


def median_of(rows: list[dict[str, Any]], side: str, figure: str) -> float:
    return statistics.median(row[figure] for row in rows if row["side"] == side)


def write_report(name: str, results: Path, rows: list[dict[str, Any]], summary: dict[str, Any]) -> Path:
    """Print the summary and write everything to a dated file."""
    now = datetime.datetime.now(datetime.UTC)
    report = {
        "date": now.isoformat(timespec="seconds"),
        "command": shlex.join(["python", f"benchmarks/data/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "machine": f"{os.cpu_count()} {platform.machine()} cores",
        "load_average": os.getloadavg(),
        "summary": summary,
        "rows": rows,
    }
    results.mkdir(parents=True, exist_ok=True)
    file = results / f"{now:%Y-%m-%d}-data-{name}.json"
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for key, value in summary.items():
        print(f"{key}: {value:,.2f}" if isinstance(value, float) else f"{key}: {value:,}")
    print(file)
    return file
