"""Tokens a second: our preparation on all cores, the tokenizers library on all cores, and a loop over documents.

ours         `prepare_data.py`'s own function: reading, tokenizing in workers, writing shards, their start included; in
             parts of 8 MB, as a corpus of this size would be one or two otherwise
library      `tokenizers.Tokenizer.encode_batch` on all cores, 1,000 documents at a time, and taking the ids; texts are
             in memory before, nothing is written
loop         the DyT authors' way: for each document `tokenizer(text)["input_ids"]` and a record batch written

All three must have made the same ids before a figure is printed; `<s>` in a text is text for all of them. Each
measurement is a process of its own; the sides take turns, and ratios are of medians.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

from common import (
    arguments,
    in_a_process_of_its_own,
    make_corpus,
    make_tokenizer,
    median_of,
    with_speed,
    write_report,
)

BATCH_DOCUMENTS = 1000
LOOP_SHARE = 8
"""The loop is slow: it takes the first of the corpus' eight files."""


def texts_of(files: list[Path]):
    for file in files:
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]


def ours(corpus: Path, tokenizer: Path, work: Path) -> dict:
    from llama_dyt.data.formats.shards import open_shards
    from llama_dyt.data.preparing.prepare import prepare
    from llama_dyt.data.preparing.settings import PrepareSettings
    from llama_dyt.data.tokenizing.tokenizer import load_tokenizer

    output = work / "tokenization_output"
    shutil.rmtree(output, ignore_errors=True)
    settings = PrepareSettings(
        dataset=str(corpus), output_path=str(output), tokenizer=str(tokenizer), add_bos=False, add_eos=False
    )
    load_tokenizer(tokenizer)  # imports a large library; the loop, too, has it outside its time
    before = os.times()
    report = prepare(settings, part_bytes=8 << 20, show_progress=False)
    after = os.times()
    cpu = after.children_user + after.children_system + after.user + after.system - before.user - before.system
    array = open_shards(output)
    digest = hashlib.sha256(array.tokens(0, array.num_tokens).tobytes()).hexdigest()
    shutil.rmtree(output)
    return {"tokens": array.num_tokens, "seconds": report.seconds, "cpu_seconds": cpu, "sha256": digest}


def library(corpus: Path, tokenizer: Path, work: Path) -> dict:
    import numpy as np
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    backend.encode_special_tokens = True
    texts = list(texts_of(sorted(corpus.iterdir())))
    digest, tokens, seconds, cpu = hashlib.sha256(), 0, 0.0, 0.0
    for first in range(0, len(texts), BATCH_DOCUMENTS):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        encodings = backend.encode_batch(texts[first : first + BATCH_DOCUMENTS], add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        seconds, cpu = seconds + time.perf_counter() - begin, cpu + time.process_time() - cpu_begin
        for row in ids:
            tokens += len(row)
            digest.update(np.array(row, np.int32).tobytes())
    return {"tokens": tokens, "seconds": seconds, "cpu_seconds": cpu, "sha256": digest.hexdigest()}


def loop(corpus: Path, tokenizer: Path, work: Path) -> dict:
    import numpy as np
    import pyarrow
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    files = sorted(corpus.iterdir())[: max(1, len(list(corpus.iterdir())) // LOOP_SHARE)]
    schema = pyarrow.schema([("input_ids", pyarrow.uint32())])
    file = work / "tokenization_loop.arrow"
    digest, tokens = hashlib.sha256(), 0
    begin, cpu = time.perf_counter(), time.process_time()
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
        for text in texts_of(files):
            ids = loaded(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            writer.write_batch(pyarrow.record_batch([pyarrow.array(ids, pyarrow.uint32())], schema=schema))
            tokens += len(ids)
            digest.update(np.array(ids, np.int32).tobytes())
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    file.unlink()
    return {"tokens": tokens, "seconds": seconds, "cpu_seconds": cpu, "sha256": digest.hexdigest()}


SIDES = {"ours": ours, "library": library, "loop": loop}


def main() -> None:
    parser = arguments(
        __doc__,
        megabytes=(100, "size of the corpus"),
        rounds=(3, "measurements of each side"),
        vocab_size=(32000, "pieces of the tokenizer"),
    )
    given = parser.parse_args()
    corpus, tokenizer = make_corpus(given.work, given.megabytes), make_tokenizer(given.work, given.vocab_size)
    first_file = given.work / "tokenization_first"
    shutil.rmtree(first_file, ignore_errors=True)
    first_file.mkdir(parents=True)
    shutil.copy(sorted(corpus.iterdir())[0], first_file)
    reference = in_a_process_of_its_own(__file__, "library", first_file, tokenizer, given.work)
    shutil.rmtree(first_file)
    rows = []
    for _ in range(given.rounds):
        for side in SIDES:
            row = in_a_process_of_its_own(__file__, side, corpus, tokenizer, given.work)
            rows.append(with_speed(side, row))
            print(f"{side}: {rows[-1]['tokens_per_second']:,.0f} tokens/s", file=sys.stderr)
    checksums = {side: {row["sha256"] for row in rows if row["side"] == side} for side in SIDES}
    assert checksums["ours"] == checksums["library"] and len(checksums["ours"]) == 1, "ours and the library's differ"
    assert checksums["loop"] == {reference["sha256"]}, "the loop's ids and the library's differ"
    speed = {side: median_of(rows, side, "tokens_per_second") for side in SIDES}
    summary = {f"{side}, tokens/s": value for side, value in speed.items()}
    per_core = {side: median_of(rows, side, "tokens_per_cpu_second") for side in SIDES}
    summary["ours / library (goal 0.9)"] = speed["ours"] / speed["library"]
    summary["ours / library, by time of the cores"] = per_core["ours"] / per_core["library"]
    summary["ours / loop (goal 3)"] = speed["ours"] / speed["loop"]
    write_report("tokenization", given.results, rows, summary)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(SIDES[sys.argv[2]](*map(Path, sys.argv[3:]))))
    else:
        main()
