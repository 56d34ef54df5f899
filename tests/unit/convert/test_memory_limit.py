"""A conversion takes the memory of a few of its largest tensors: held to by a limit that the model itself breaks."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.forks import run

DIM, WIDTH, VOCABULARY = 512, 1536, 4096
LAYERS = 16
LARGEST = 4 * VOCABULARY * DIM
"""Bytes of the largest tensor in fp32."""
ALLOWED = 3 * LARGEST

PROGRAM = """
import resource, sys
from pathlib import Path

import convert
import llama_dyt.convert.run as conversion

folder, allowed, hold = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "hold"
ALL = resource.RLIM_INFINITY

def data_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData"))

def mapped(source):
    # The files' own mappings count as data, whatever of them is read.
    return sum(file.stat().st_size for file in (folder / source).iterdir())

def conversions(name):
    yield name, f"{name}-hf", ["--max_shard_size", "20MB"]
    yield f"{name}-hf", f"{name}-meta", ["--to", "meta"]
    yield f"{name}-hf", f"{name}-ours", ["--to", "ours"]
    yield f"{name}-ours", f"{name}-half", ["--dtype", "bf16"]

def convert_under(limit, source, result, flags):
    resource.setrlimit(resource.RLIMIT_DATA, (limit, ALL))
    try:
        convert.main(["-i", str(folder / source), "-o", str(folder / result), *flags])
        return "whole"
    except (RuntimeError, MemoryError) as error:
        assert "allocate" in str(error) or isinstance(error, MemoryError), error
        return "no memory"
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (ALL, ALL))

def holding(weights, told, count=conversion._counted):
    counted = count(weights, told)
    return conversion.replace(counted, read=lambda name: held.append(counted.read(name)) or held[-1])

for source, result, flags in conversions("tiny"):  # what is imported once is there, and its threads are
    assert convert_under(ALL, source, result, flags) == "whole"
before, count, held = data_bytes(), conversion._counted, []
for source, result, flags in conversions("large"):
    limit = before + mapped(source) + allowed
    if hold:
        conversion._counted = holding
        print("HELD", convert_under(limit, source, result, flags))
        conversion._counted = count
        held.clear()
    print("STREAMED", convert_under(ALL if hold else limit, source, result, flags))
"""


def write_meta(path: Path, layers: int) -> int:
    """Meta's files of a model of so many layers; returns their bytes."""
    path.mkdir()
    shapes = {"tok_embeddings": (VOCABULARY, DIM), "output": (VOCABULARY, DIM), "norm": (DIM,)}
    for layer in range(layers):
        at = f"layers.{layer}."
        shapes |= {f"{at}attention.w{part}": (DIM, DIM) for part in "qkvo"}
        shapes |= {f"{at}feed_forward.w{part}": (WIDTH, DIM) for part in "13"}
        shapes |= {f"{at}feed_forward.w2": (DIM, WIDTH), f"{at}attention_norm": (DIM,), f"{at}ffn_norm": (DIM,)}
    tensors = {f"{name}.weight": torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    torch.save(tensors, path / "consolidated.00.pth")
    params = {"dim": DIM, "n_layers": layers, "n_heads": 8, "multiple_of": 256, "norm_eps": 1e-5, "vocab_size": -1}
    (path / "params.json").write_text(json.dumps(params))
    return (path / "consolidated.00.pth").stat().st_size


def outcome_of(tmp_path: Path, how: str) -> str:
    write_meta(tmp_path / "tiny", 1)
    assert write_meta(tmp_path / "large", LAYERS) > 4 * ALLOWED
    outcome = run(["-c", PROGRAM, str(tmp_path), str(ALLOWED), how])
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def test_what_is_held_is_a_few_tensors(tmp_path):
    assert outcome_of(tmp_path, "stream").count("STREAMED whole") == 4


def test_holding_the_model_would_break_that_limit(tmp_path):
    assert outcome_of(tmp_path, "hold").count("HELD no memory") == 4
