"""What the processes of `test_benchmark_scripts.py` run: benchmark.py's work with the words of a script."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist

from llama_dyt.training import session
from llama_dyt.training.measurement import benchmark as measurement
from llama_dyt.training.plan import make_plan


def measured(words: list[str]) -> dict[str, Any]:
    """The measurement's JSON, in the process group that the pool has made already."""
    os.environ |= {"RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size())}
    before, session.launch = session.launch, lambda seed, environment, *_: environment
    try:
        return measurement.measure(make_plan("benchmark", words)).to_json()
    finally:
        session.launch = before
        for name in ("RANK", "WORLD_SIZE"):
            del os.environ[name]
