"""Kills a preparation with SIGKILL at random moments, many times, and shows that nothing is lost and nothing twice.

A corpus of documents that are all different is prepared by two workers, killed, given again, killed again, until it
ends by itself; then again from an empty folder, until there were as many kills as asked for. Each finished folder is
compared

- file by file with that of a preparation that nobody disturbed, by SHA-256;
- document by document with the corpus, by the SHA-256 of each document's tokens: every one must be there exactly once.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from common import REPOSITORY, arguments, make_corpus, make_tokenizer, write_report

PART_BYTES = 1 << 19
SHARD_TOKENS = 50_000
VALIDATION_FRACTION = 0.1


def flags(corpus: Path, tokenizer: Path, output: Path, workers: int) -> dict:
    return {
        "dataset": str(corpus),
        "output_path": str(output),
        "tokenizer": str(tokenizer),
        "num_workers": workers,
        "validation_fraction": VALIDATION_FRACTION,
    }


def prepare_here(settings: dict) -> None:
    from llama_dyt.data.preparing.prepare import prepare
    from llama_dyt.data.preparing.settings import PrepareSettings

    print("begins", flush=True)
    prepare(PrepareSettings(**settings), part_bytes=PART_BYTES, shard_tokens=SHARD_TOKENS, show_progress=False)


def checksums(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def documents_in(folder: Path) -> Counter:
    """How often each document is there, by the SHA-256 of its tokens."""
    from llama_dyt.data.formats.manifest import SPLITS
    from llama_dyt.data.formats.shards import open_shards

    found: Counter = Counter()
    for split in SPLITS:
        array = open_shards(folder, split)
        array.verify()
        starts = array.document_starts(0, array.num_documents + 1).tolist()
        for start, stop in zip(starts, starts[1:]):
            found[hashlib.sha256(array.tokens(start, stop).tobytes()).hexdigest()] += 1
    return found


def documents_expected(corpus: Path, tokenizer_folder: Path) -> Counter:
    """The same from the text itself, without any code of the preparation but the encoding."""
    import numpy as np

    from llama_dyt.data.tokenizing.encode import encode_batch
    from llama_dyt.data.tokenizing.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder)
    expected: Counter = Counter()
    for file in sorted(corpus.iterdir()):
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                (ids,) = encode_batch(tokenizer, [json.loads(line)["text"]])
                whole = np.concatenate(([tokenizer.bos_token_id], ids, [tokenizer.eos_token_id])).astype(np.int32)
                expected[hashlib.sha256(whole.tobytes()).hexdigest()] += 1
    return expected


def run_until_killed(settings: dict, wait_seconds: float) -> bool:
    """Start a preparation and kill it so long after its work began; whether it was killed before it ended."""
    command = [sys.executable, __file__, "prepare", json.dumps(settings)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        process.wait(wait_seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True
    if process.returncode:
        raise SystemExit(f"the preparation failed, exit status {process.returncode}")
    return False


def main() -> None:
    parser = arguments(
        __doc__,
        kills=(50, "how many"),
        megabytes=(60, "size of the corpus"),
        vocab_size=(4096, "pieces of the tokenizer"),
        seed=(int(time.time()), "of the random moments"),
    )
    given = parser.parse_args()
    draw = random.Random(given.seed)
    corpus, tokenizer = make_corpus(given.work, given.megabytes), make_tokenizer(given.work, given.vocab_size)
    whole, output = given.work / "kill_whole", given.work / "kill_output"
    shutil.rmtree(whole, ignore_errors=True)
    begin = time.monotonic()
    run_until_killed(flags(corpus, tokenizer, whole, 1), 10_000)
    undisturbed_seconds = time.monotonic() - begin
    expected, reference = documents_expected(corpus, tokenizer), checksums(whole)
    assert len(expected) == expected.total(), "the corpus has a document twice"

    rows, kills, starts, at_work = [], 0, 0, 0
    while kills < given.kills:
        shutil.rmtree(output, ignore_errors=True)
        killed_here, ended, before = 0, False, 0
        while not ended:
            starts += 1
            left = kills < given.kills
            ended = not run_until_killed(
                flags(corpus, tokenizer, output, 2), draw.uniform(0, undisturbed_seconds) if left else 10_000
            )
            if not ended:
                kills, killed_here = kills + 1, killed_here + 1
                done = len(list(output.glob(".journal*/0*.json")))
                at_work, before = at_work + (done > before), done
                print(f"kill {kills}: {done} shards were done", file=sys.stderr)
        found = documents_in(output)
        rows.append(
            {
                "kills": killed_here,
                "documents": found.total(),
                "lost": (expected - found).total(),
                "twice_or_foreign": (found - expected).total(),
                "files_that_differ": len({name for name, _ in checksums(output).items() ^ reference.items()}),
            }
        )
        print(rows[-1], file=sys.stderr)
    summary = {
        "kills": kills,
        "kills after the first shards of a start": at_work,
        "starts": starts,
        "finished folders": len(rows),
        "documents in the corpus": expected.total(),
        "documents lost": sum(row["lost"] for row in rows),
        "documents twice or foreign": sum(row["twice_or_foreign"] for row in rows),
        "files that differ from an undisturbed preparation": sum(row["files_that_differ"] for row in rows),
        "seed": given.seed,
    }
    write_report("kill-preparation", given.results, rows, summary)
    if any(row["lost"] or row["twice_or_foreign"] or row["files_that_differ"] for row in rows):
        raise SystemExit("something was lost, is there twice or differs")
    if at_work < kills / 4:
        raise SystemExit("most kills came before there was anything to lose: give a larger --megabytes")


if __name__ == "__main__":
    if sys.argv[1:2] == ["prepare"]:
        sys.path.insert(0, str(REPOSITORY))
        prepare_here(json.loads(sys.argv[2]))
    else:
        main()
