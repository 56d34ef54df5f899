"""README.md of a converted model: where it comes from, how it is loaded, and what its run was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_dyt.config.yaml_file import load_mapping
from llama_dyt.convert.target import Job
from llama_dyt.core import files
from llama_dyt.core.errors import ConfigurationError

_CARD = "README.md"
_PICTURE = "loss.png"
_SETTINGS = (
    "dataset",
    "mixture",
    "tokenizer",
    "norm",
    "plugin",
    "mixed_precision",
    "max_length",
    "batch_size",
    "global_batch_size",
    "max_steps",
    "num_epochs",
    "lr",
    "warmup_steps",
    "weight_decay",
    "gradient_clipping",
    "seed",
    "model_path",
)
"""Of a run's config.yaml, those that a reader of a card asks for."""
_FIGURES = ("step", "tokens_seen", "loss", "grad_norm", "tokens_per_second", "tflops_per_device", "mfu")


def write_card(job: Job, folder: Path, patched: bool) -> None:
    """Write the card, and the run's picture where it has one; a card that the source had is kept as it is.

    Args:
        patched: our modeling files lie in the folder.
    """
    before = job.opened.generation / _CARD if job.opened.generation is not None else None
    if job.opened.run is None and before is not None and before.is_file() and not job.changes:
        shutil.copyfile(before, folder / _CARD)
        return
    files.write_text(folder / _CARD, "\n".join(_lines(job, folder, patched)) + "\n")


def _lines(job: Job, folder: Path, patched: bool) -> Iterator[str]:
    config, weights = job.weights.config, job.weights
    name = Path(job.input_path).name if job.opened.run is None else job.opened.run.resolve().name
    tags = ["llama_dyt"] if patched else []
    front = ["library_name: transformers", "pipeline_tag: text-generation", *(f"tags: [{tag}]" for tag in tags)]
    yield from ("---", *front, "---", "", f"# {name}", "")
    yield (
        f"{weights.num_parameters:,} parameters in {str(weights.dtype).removeprefix('torch.')}: hidden size "
        f"{config.hidden_size}, {config.num_hidden_layers} layers, {config.num_attention_heads} heads "
        f"({config.num_key_value_heads} of keys and values), vocabulary {config.vocab_size}, "
        f"{config.max_position_embeddings} positions, norm {config.norm_type}."
    )
    yield ""
    origin = "by" if job.opened.run is not None else f"from {job.source} by"
    yield f"Made {origin} llama_dyt's convert.py." + "".join(f" {change}." for change in job.changes)
    trust = ", trust_remote_code=True" if patched else ""
    yield from ("", "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "")
    yield f'model = AutoModelForCausalLM.from_pretrained("."{trust})'
    if job.tokenizer is not None:
        yield f'tokenizer = AutoTokenizer.from_pretrained("."{trust})'
    yield "```"
    if job.opened.run is not None:
        yield from _run_of(job.opened.run, job.opened.step, folder)


def _run_of(run: Path, step: int | None, folder: Path) -> Iterator[str]:
    settings = _settings(run / "config.yaml")
    if settings:
        yield from ("", "## Run", "", "| setting | value |", "| --- | --- |")
        for key, value in settings.items():
            yield f"| `{key}` | {_cell(value)} |"
    records = [record for record in _records(run / "metrics.jsonl") if step is None or record.get("step", 0) <= step]
    last = next((record for record in reversed(records) if "loss" in record), None)
    validated = next((record for record in reversed(records) if "validation_loss" in record), None)
    if last is not None:
        yield from ("", "## Figures", "", "| figure | value |", "| --- | --- |")
        for key in _FIGURES:
            if last.get(key) is not None:
                yield f"| {key} | {_cell(last[key])} |"
        for key, value in (validated or {}).items():
            if key.startswith("validation"):
                yield f"| {key} | {_cell(value)} |"
    if (run / _PICTURE).is_file():
        shutil.copyfile(run / _PICTURE, folder / _PICTURE)
        yield from ("", f"![Loss over the steps]({_PICTURE})")


def _settings(path: Path) -> dict[str, Any]:
    try:
        mapping, _ = load_mapping(path)
    except ConfigurationError:
        return {}
    return {key: mapping[key] for key in _SETTINGS if mapping.get(key) not in (None, "", [])}


def _records(path: Path) -> list[dict[str, Any]]:
    """Records of metrics.jsonl; a last line that is not whole is left out."""
    found = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
    return found


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
