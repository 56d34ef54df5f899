"""Prepare text once for many runs: `python prepare_data.py --help`, or docs/data.md."""

if __name__ == "__main__":  # before what takes seconds to import
    from llama_dyt.launch.parent_watch import end_with_launcher

    end_with_launcher()

import os
import sys
from pathlib import Path

from llama_dyt.core.program import run_program
from llama_dyt.data.preparing.settings import PrepareSettings, parse_preparation


def verify(settings: PrepareSettings) -> None:
    """Compare every file of a prepared folder with its checksum."""
    from tqdm import tqdm

    from llama_dyt.data.formats.manifest import SPLITS, read_manifests
    from llama_dyt.data.formats.shards import open_shards

    manifests = read_manifests(Path(settings.output_path))
    splits = [split for split in SPLITS if any(manifest.split(split) for manifest in manifests)]
    for split in splits:
        array = open_shards(settings.output_path, split)
        with tqdm(total=array.num_bytes, unit="B", unit_scale=True, desc=split) as bar:
            array.verify(bar.update)
        print(f"{split}: {array.num_tokens:,} tokens in {len(array.shards):,} shards are as they were written")


def main() -> None:
    settings = parse_preparation()
    if settings.verify:
        verify(settings)
        return
    from llama_dyt.data.preparing.prepare import prepare
    from llama_dyt.launch.claim import take

    share = f"claim_{settings.rank:05d}_of_{settings.world_size:05d}"
    claim = take(Path(settings.output_path), "prepare_data.py", flag="--output_path", name=share)
    try:
        print(prepare(settings))
    finally:
        claim.release()
    print(f"in {settings.output_path}: train on it with pretrain.py --dataset {settings.output_path}")


if __name__ == "__main__":
    try:
        run_program(main)
    except KeyboardInterrupt:
        print("stopped; give the same command again to go on from here", file=sys.stderr)
        os._exit(130)
