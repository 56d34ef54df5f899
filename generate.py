"""Generates text from a trained model: a --save_dir (its newest complete checkpoint), a step folder, or an HF folder.

python generate.py --model_path checkpoint --prompt "Once upon a time" --max_new_tokens 64
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
    from llama_dyt.launch.parent_watch import end_with_launcher

    end_with_launcher()

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from llama_dyt.core import extensions
from llama_dyt.core.errors import CheckpointError, ConfigurationError, DataError, LlamaDytError
from llama_dyt.core.problem import Problem
from llama_dyt.core.store import at, store_of

_LEAST_TEMPERATURE = 0.001
"""Logits are divided by it in fp32, and must stay finite."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="generate.py", description="Generate text from a trained model.", allow_abbrev=False
    )
    parser.add_argument(
        "--model_path",
        metavar="PATH|HUB_NAME",
        help="A --save_dir (its newest complete checkpoint is taken), a step_… folder, an HF folder, or a hub name.",
    )
    parser.add_argument(
        "--adapter",
        metavar="PATH",
        help="An adapter of that model, which is merged into it: a folder in peft's format, or what --save_dir of an "
        "adapter's run holds. Without --model_path the base that it names is taken.",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        help="Text to go on from; may be given several times. Without one the model starts from an empty document.",
    )
    parser.add_argument("--max_new_tokens", type=int, default=64, help="Longest continuation, in tokens. Default: 64.")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token. Default: 0.8.")
    parser.add_argument("--top_k", type=int, default=50, help="Draw from so many likeliest tokens. Default: 50.")
    parser.add_argument(
        "--parse_special_tokens",
        action=argparse.BooleanOptionalAction,
        help="Take special tokens written in the prompt, such as <|im_start|>, for these tokens, not for text. "
        "Default: as in the model's fine-tuning, else text.",
    )
    parser.add_argument("--seed", type=int, default=42, help="Seed of the draws. Default: 42.")
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="A module of your own that the model needs, such as one with its norm or family, by its dotted name; may "
        "be given several times.",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), help="Default: cuda where there is a GPU.")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Imports the user's modules; raises ConfigurationError naming every value that cannot be used."""
    problems: list[str] = list(extensions.load(arguments.imports))
    if arguments.model_path is None and arguments.adapter is None:
        problems.append(Problem("model_path", None, "is needed, or --adapter, which names its base", clause=True))
    if arguments.max_new_tokens < 1:
        problems.append(Problem("max_new_tokens", arguments.max_new_tokens, "give 1 or more"))
    if arguments.temperature != 0 and not _LEAST_TEMPERATURE <= arguments.temperature < math.inf:
        reason = f"give 0 (the likeliest token) or a number of {_LEAST_TEMPERATURE} or more"
        problems.append(Problem("temperature", str(arguments.temperature), reason))
    if arguments.top_k < 1:
        problems.append(Problem("top_k", arguments.top_k, "give 1 or more"))
    if not -(2**63) <= arguments.seed < 2**64:
        problems.append(Problem("seed", arguments.seed, "give a number of at most 64 bits"))
    if problems:
        raise ConfigurationError(problems)


def model_folder(path: str) -> str:
    """The HF folder that `path` means, or `path` itself where it is no folder here and so may be a hub name.

    Raises:
        CheckpointError: it is a folder, or looks like one, and holds no model or complete checkpoint.
    """
    folder = at(path, "model_path").expanduser()
    if (folder / "config.json").is_file():
        return str(store_of(folder).local(folder))
    if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        from llama_dyt.training.checkpoint.reader import find_checkpoint
        from llama_dyt.training.plan.adapters import holds_adapter

        found = folder if holds_adapter(folder) else find_checkpoint(str(folder), folder, flag="--model_path")
        if holds_adapter(found):
            raise CheckpointError(f"--model_path {path}: {found} holds an adapter alone; give it as --adapter")
        return str(store_of(found).local(found, "model/") / "model")
    return path


def load(path: str, device: str, adapter: str | None = None):
    """(model in evaluation mode on `device`, tokenizer) of an HF folder or hub name.

    Args:
        adapter: folder of an adapter to merge into it, None for none.

    Raises:
        CheckpointError: transformers cannot load the model; its reason is given.
        DataError, ConfigurationError: there is no usable tokenizer, or a module of the user's is needed.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
    from llama_dyt.models import FAMILIES, missing_imports
    from llama_dyt.models.auto_classes import register_auto_classes

    if missing := missing_imports(Path(path)):
        raise ConfigurationError(missing)
    for family in FAMILIES:
        register_auto_classes(family)
    try:
        tokenizer = load_tokenizer(path, flag="--model_path")
    except DataError as error:
        raise DataError(f"--model_path {path}: {error}") from error
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(path)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"--model_path {path}: no model could be loaded: {reason}") from error
    if adapter is not None:
        from llama_dyt.models.adapters import merge_into

        merge_into(model.float(), Path(adapter))
    return model.to(device).eval(), tokenizer


def room(prompt_tokens: int, positions: int, arguments: argparse.Namespace) -> int:
    """How many of --max_new_tokens the model has positions for behind a prompt; says so where they are fewer.

    Raises:
        ConfigurationError: not a single one.
    """
    left = positions - prompt_tokens
    if left < 1:
        raise ConfigurationError(
            f"--prompt has {prompt_tokens} tokens with BOS, and the model has {positions} positions for prompt and "
            "continuation together: give a shorter one"
        )
    if left < arguments.max_new_tokens:
        print(
            f"note: the model's {positions} positions leave room for {left} of --max_new_tokens "
            f"{arguments.max_new_tokens} behind a prompt of {prompt_tokens} tokens",
            file=sys.stderr,
        )
    return min(left, arguments.max_new_tokens)


def continue_prompts(model, tokenizer, prompts: list[str], arguments: argparse.Namespace) -> Iterator[str]:
    """The model's continuation of each prompt, up to the end of the document or --max_new_tokens."""
    import torch
    from transformers import GenerationConfig

    from llama_dyt.data.tokenizing.prompt_encoding import PromptEncoder

    encoder = PromptEncoder(tokenizer)
    encoded = encoder.prompts(prompts)
    if not all(map(len, encoded)):
        raise ConfigurationError("this model's tokenizer has no BOS token to start from: give a --prompt")
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = [room(len(ids), positions, arguments) if positions else arguments.max_new_tokens for ids in encoded]
    sampling = {"do_sample": True, "temperature": arguments.temperature, "top_k": arguments.top_k}
    # The flags alone decide: what a folder's generation_config.json says would fill whatever is not said here.
    model.generation_config = GenerationConfig()
    for ids, limit in zip(encoded, limits, strict=True):
        input_ids = torch.from_numpy(ids).long()[None].to(model.device)
        settings = GenerationConfig(
            max_new_tokens=limit,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            **(sampling if arguments.temperature > 0 else {"do_sample": False}),
        )
        output = model.generate(input_ids, attention_mask=torch.ones_like(input_ids), generation_config=settings)
        yield encoder.decode(ids.tolist(), output[0, len(ids) :].tolist())


def main(argv: list[str] | None = None) -> None:
    arguments = build_parser().parse_args(argv)
    check(arguments)
    adapter = None
    if arguments.adapter is not None:
        from llama_dyt.models.adapters.peft_files import base_of
        from llama_dyt.training.plan.adapters import adapter_folder

        adapter = str(adapter_folder(arguments.adapter))
        arguments.model_path = arguments.model_path or base_of(Path(adapter))
        if not arguments.model_path:
            reason, remedy = "its adapter_config.json names no base", "give that as --model_path"
            raise ConfigurationError(Problem("adapter", arguments.adapter, reason, remedy))
    folder = model_folder(arguments.model_path)

    import torch

    torch.manual_seed(arguments.seed)
    model, tokenizer = load(folder, arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"), adapter)
    if arguments.parse_special_tokens is not None:
        from llama_dyt.data.tokenizing.prompt_encoding import set_special_tokens

        set_special_tokens(tokenizer, arguments.parse_special_tokens)
    prompts = arguments.prompt or [""]
    for number, continuation in enumerate(continue_prompts(model, tokenizer, prompts, arguments)):
        if number:
            print("---")
        print(prompts[number] + continuation)


if __name__ == "__main__":
    try:
        main()
    except LlamaDytError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
