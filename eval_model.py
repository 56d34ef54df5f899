"""What a trained model is worth: perplexity and bits per byte on datasets, tasks of the lm-evaluation-harness.

python eval_model.py --model_path runs/quickstart --dataset held_out.jsonl --against /models/other
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
    from llama_dyt.launch.parent_watch import end_with_launcher

    end_with_launcher()

import argparse
import json
from pathlib import Path
from typing import Any

from llama_dyt.core import extensions, files
from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.core.problem import Problem
from llama_dyt.core.program import run_program
from llama_dyt.data.formats.sources import ReadOptions
from llama_dyt.data.opening import check_data, open_data
from llama_dyt.data.validation_sets import set_name
from llama_dyt.training.checkpoint.trained_model import load_trained, model_folder
from llama_dyt.training.evaluation.harness import harness_problems, run_tasks
from llama_dyt.training.evaluation.table import in_columns

_WINDOW = 2048
_WAYS = ("documents", "stream", "sliding")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eval_model.py", description="Measure a trained model on text and tasks.", allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--model_path",
        required=True,
        metavar="PATH|HUB_NAME",
        help="A --save_dir (its newest complete checkpoint is taken), a step_… folder, an HF folder, or a hub name.",
    )
    add("--against", metavar="PATH|HUB_NAME", help="Another model, for a table of both and their difference.")
    add(
        "--dataset",
        "-d",
        action="append",
        default=[],
        metavar="NAME|PATH",
        help="Text to score: what pretrain.py's --dataset takes, mixtures excepted; may be given several times.",
    )
    add("--text_field", default="text", metavar="NAME", help="The field that holds the text of a record.")
    add("--split", default="train", help="Of prepared tokens: train or validation. Default: train.")
    add(
        "--windows",
        choices=_WAYS,
        default="documents",
        help="documents: each by itself; stream: end to end; sliding: that, with windows that overlap. Default: "
        "documents.",
    )
    add("--max_length", "-l", type=int, help=f"Tokens of a window. Default: the model's positions, at most {_WINDOW}.")
    add("--stride", type=int, help="New predictions of a sliding window. Default: half of --max_length.")
    add("--max_documents", type=int, help="Score so many documents of each dataset. Default: all.")
    add("--max_bytes", type=int, help="Score about so many bytes of each dataset. Default: all.")
    add("--batch_size", "-b", type=int, default=8, help="Windows taken at once. Default: 8.")
    add("--skip_bad_lines", action="store_true", help="Skip records that cannot be used, in place of stopping.")
    add("--tasks", metavar="NAMES", help="Tasks of the lm-evaluation-harness, with commas between.")
    add("--task_folder", metavar="FOLDER", help="Of tasks of your own, in the harness's YAML.")
    add("--num_fewshot", type=int, help="Examples before each question. Default: as the task says.")
    add("--limit", type=int, help="Questions of each task. Default: all.")
    add("--json", metavar="FILE", help="Where the figures are written, too.")
    add(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="A module of your own that a model or dataset needs, by its dotted name; may be given several times.",
    )
    add("--device", choices=("cuda", "cpu"), help="Default: cuda where there is a GPU.")
    return parser


def read_options(arguments: argparse.Namespace) -> ReadOptions:
    return ReadOptions((arguments.text_field,), split=arguments.split, skip_bad_lines=arguments.skip_bad_lines)


def tasks_of(arguments: argparse.Namespace) -> list[str]:
    return [task for task in (arguments.tasks or "").split(",") if task]


def check(arguments: argparse.Namespace) -> None:
    """Imports the user's modules; raises ConfigurationError naming every value that cannot be used."""
    problems: list[str] = [*extensions.load(arguments.imports)]
    least = {"max_length": 2, "stride": 1, "max_documents": 1, "max_bytes": 1, "batch_size": 1, "limit": 1}
    for flag, bound in least.items():
        if (value := getattr(arguments, flag)) is not None and value < bound:
            problems.append(Problem(flag, value, f"give {bound} or more"))
    if arguments.stride is not None and arguments.windows != "sliding":
        problems.append(Problem("stride", arguments.stride, "is for --windows sliding", "leave it out", clause=True))
    if arguments.stride and arguments.max_length and arguments.stride >= arguments.max_length:
        reason = f"leaves nothing before the first prediction of windows of {arguments.max_length}: give less"
        problems.append(Problem("stride", arguments.stride, reason, clause=True))
    if arguments.num_fewshot is not None and arguments.num_fewshot < 0:
        problems.append(Problem("num_fewshot", arguments.num_fewshot, "give 0 or more"))
    if not arguments.dataset and not tasks_of(arguments):
        problems.append(Problem("dataset", None, "there is nothing to measure", "give --dataset, --tasks or both"))
    problems += harness_problems(tasks_of(arguments))
    if problems:
        raise ConfigurationError(problems)


def look_at_datasets(arguments: argparse.Namespace) -> None:
    """Raises ConfigurationError naming every dataset that cannot be read."""
    options = read_options(arguments)
    problems = [problem for dataset in arguments.dataset for problem in check_data(dataset, options)]
    if problems:
        raise ConfigurationError(problems)


def measure(name: str, flag: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model."""
    import torch

    from llama_dyt.data.tokenizing.tokenizer import tokenizer_fingerprint
    from llama_dyt.training.evaluation.perplexity import Limits, Windows, score

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load_trained(model_folder(name, flag), device, flag)
    positions = getattr(model.config, "max_position_embeddings", None) or _WINDOW
    max_length = arguments.max_length or min(positions, _WINDOW)
    if max_length > positions:
        raise ConfigurationError(Problem("max_length", max_length, f"{name} has {positions} positions: give less"))
    windows = Windows(arguments.windows, max_length, arguments.stride or max(1, max_length // 2))
    limits = Limits(arguments.max_documents, arguments.max_bytes)
    datasets = {}
    for dataset in arguments.dataset:
        try:
            source = open_data(dataset, read_options(arguments))
            datasets[_name(dataset, datasets)] = score(
                model, tokenizer, source, windows, limits, arguments.batch_size
            ).as_record()
        except DataError as error:
            raise DataError(
                f"--dataset {error}" if error.names(dataset) else f"--dataset {dataset}: {error}"
            ) from error
    tasks = {}
    if tasks_of(arguments):
        asked = {"num_fewshot": arguments.num_fewshot, "limit": arguments.limit, "folder": arguments.task_folder}
        tasks = run_tasks(model, tokenizer, tasks_of(arguments), batch_size=arguments.batch_size, **asked)
    return {
        "model_path": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "windows": str(windows),
        "datasets": datasets,
        "tasks": tasks,
    }


def _name(dataset: str, taken: dict[str, Any]) -> str:
    name = set_name(dataset)
    return name if name not in taken else dataset


def main(argv: list[str] | None = None) -> None:
    arguments = build_parser().parse_args(argv)
    check(arguments)
    look_at_datasets(arguments)
    for flag, name in (("--model_path", arguments.model_path), ("--against", arguments.against)):
        if name is not None:
            model_folder(name, flag)  # what is not there is told before minutes are spent on the other
    found = measure(arguments.model_path, "--model_path", arguments)
    other = measure(arguments.against, "--against", arguments) if arguments.against is not None else None
    print(in_columns(found, other))
    if arguments.json is not None:
        result = {"model": found} | ({"against": other} if other is not None else {})
        files.write_text(Path(arguments.json), json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    run_program(main)
