"""Generates text from a trained model: a --save_dir (its newest complete checkpoint), a step folder, or an HF folder.

python generate.py --model_path checkpoint --prompt "Once upon a time" --max_new_tokens 64
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llama_dyt.errors import CheckpointError, ConfigurationError, DataError, LlamaDytError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="generate.py", description="Generate text from a trained model.", allow_abbrev=False
    )
    parser.add_argument(
        "--model_path",
        required=True,
        metavar="PATH|HUB_NAME",
        help="A --save_dir (its newest complete checkpoint is taken), a step_… folder, an HF folder, or a hub name.",
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
    parser.add_argument("--seed", type=int, default=42, help="Seed of the draws. Default: 42.")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="Default: cuda where there is a GPU.")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Raises ConfigurationError naming every value that cannot be used."""
    problems = []
    if arguments.max_new_tokens < 1:
        problems.append(f"--max_new_tokens {arguments.max_new_tokens}: give 1 or more")
    if arguments.temperature < 0:
        problems.append(f"--temperature {arguments.temperature}: give 0 (the likeliest token) or more")
    if arguments.top_k < 1:
        problems.append(f"--top_k {arguments.top_k}: give 1 or more")
    if problems:
        raise ConfigurationError(problems)


def model_folder(path: str) -> str:
    """The HF folder that `path` means, or `path` itself where it is no folder here and so may be a hub name.

    Raises:
        CheckpointError: it is a folder, or looks like one, and holds no model or complete checkpoint.
    """
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return str(folder)
    if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        from llama_dyt.training.restore import find_checkpoint

        try:
            return str(find_checkpoint(str(folder), folder) / "model")
        except CheckpointError as error:
            raise CheckpointError(str(error).replace("--load", "--model_path")) from error
    return path


def load(path: str, device: str):
    """(model in evaluation mode on `device`, tokenizer) of an HF folder or hub name.

    Raises:
        CheckpointError: transformers cannot load the model; its reason is given.
        DataError, ConfigurationError: there is no usable tokenizer.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    import llama_dyt  # noqa: F401  (registers the DyT classes with transformers' Auto classes)
    from llama_dyt.data.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(path)
    except DataError as error:
        raise DataError(f"--model_path {path}: {str(error).replace('--tokenizer', '--model_path')}") from error
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(path)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"--model_path {path}: no model could be loaded: {reason}") from error
    return model.to(device).eval(), tokenizer


def continue_text(model, tokenizer, prompt: str, arguments: argparse.Namespace) -> str:
    """`prompt` and the model's continuation of it, up to the end of the document or --max_new_tokens."""
    import torch

    # Training documents start with BOS, so a prompt does as well, whatever the tokenizer adds by itself.
    ids = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    ids += tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ConfigurationError("this model's tokenizer has no BOS token to start from: give a --prompt")
    input_ids = torch.tensor([ids], device=model.device)
    sampling = {"do_sample": True, "temperature": arguments.temperature, "top_k": arguments.top_k}
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=arguments.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        **(sampling if arguments.temperature > 0 else {"do_sample": False}),
    )
    return tokenizer.decode(output[0], skip_special_tokens=True)


def main(argv: list[str] | None = None) -> None:
    arguments = build_parser().parse_args(argv)
    check(arguments)
    folder = model_folder(arguments.model_path)

    import torch

    torch.manual_seed(arguments.seed)
    model, tokenizer = load(folder, arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for number, prompt in enumerate(arguments.prompt or [""]):
        if number:
            print("---")
        print(continue_text(model, tokenizer, prompt, arguments))


if __name__ == "__main__":
    try:
        main()
    except LlamaDytError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
