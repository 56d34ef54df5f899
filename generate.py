"""Generates text from a trained model: a --save_dir (its newest complete checkpoint), a step folder, or an HF folder.

python generate.py --model_path checkpoint --prompt "Once upon a time" --max_new_tokens 64
python generate.py --model_path runs/chat --chat
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
    from llama_dyt.launch.parent_watch import end_with_launcher

    end_with_launcher()

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_dyt.core import extensions
from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.core.problem import Problem
from llama_dyt.core.program import run_program
from llama_dyt.training.checkpoint.trained_model import load_trained, model_folder
from llama_dyt.training.generation.prompts import STDIN, Asked, read_prompts
from llama_dyt.training.generation.sampling import Sampling

if TYPE_CHECKING:
    from llama_dyt.training.generation.generator import Generator
    from llama_dyt.training.generation.prompt_maker import PromptMaker


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="generate.py", description="Generate text from a trained model.", allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--model_path",
        metavar="PATH|HUB_NAME",
        help="A --save_dir (its newest complete checkpoint is taken), a step_… folder, an HF folder, or a hub name.",
    )
    add(
        "--adapter",
        metavar="PATH",
        help="An adapter of that model, which is merged into it: a folder in peft's format, or what --save_dir of an "
        "adapter's run holds. Without --model_path the base that it names is taken.",
    )
    add(
        "--prompt",
        action="append",
        default=[],
        help="Text to go on from; may be given several times; - reads one from standard input. Without one the model "
        "starts from an empty document.",
    )
    add(
        "--prompt_file",
        metavar="FILE|-",
        help="Prompts, one a line, or .jsonl with `prompt` or `messages`; - reads lines from standard input.",
    )
    add("--max_new_tokens", type=int, default=64, help="Longest continuation, in tokens. Default: 64.")
    add("--temperature", type=float, default=0.8, help="0 takes the likeliest token. Default: 0.8.")
    add("--top_k", type=int, default=50, help="Draw from so many likeliest tokens. Default: 50.")
    add(
        "--top_p",
        type=float,
        default=1.0,
        help="Draw from the likeliest tokens that together have this probability. Default: 1.",
    )
    add("--repetition_penalty", type=float, default=1.0, help="Above 1, what was there before is less likely.")
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="Text before which a continuation ends; may be given several times.",
    )
    add("--num_samples", type=int, default=1, help="Continuations of each prompt. Default: 1.")
    add("--batch_size", type=int, default=1, help="Prompts that are continued at once. Default: 1.")
    add(
        "--chat",
        action="store_true",
        help="Take prompts for what a user says, by the chat template of the model's tokenizer. Without a prompt: a "
        "conversation, a line a turn.",
    )
    add("--system", metavar="TEXT", help="With --chat: the system's message, which comes first.")
    add(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="Show text as it grows. Default: on a terminal.",
    )
    add("--json", action="store_true", help="Print an object a line: prompt, continuation, and what the file had.")
    add(
        "--parse_special_tokens",
        action=argparse.BooleanOptionalAction,
        help="Take special tokens written in the prompt, such as <|im_start|>, for these tokens, not for text. "
        "Default: as in the model's fine-tuning, else text.",
    )
    add("--seed", type=int, default=42, help="Seed of the draws. Default: 42.")
    add(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="A module of your own that the model needs, such as one with its norm or family, by its dotted name; may "
        "be given several times.",
    )
    add("--device", choices=("cuda", "cpu"), help="Default: cuda where there is a GPU.")
    return parser


def sampling_of(arguments: argparse.Namespace) -> Sampling:
    return Sampling(
        arguments.max_new_tokens,
        arguments.temperature,
        arguments.top_k,
        arguments.top_p,
        arguments.repetition_penalty,
        tuple(arguments.stop),
    )


def check(arguments: argparse.Namespace) -> None:
    """Imports the user's modules; raises ConfigurationError naming every value that cannot be used."""
    _raise_if_any(_problems(arguments))


def _problems(arguments: argparse.Namespace) -> list[str]:
    problems: list[str] = [*extensions.load(arguments.imports), *sampling_of(arguments).problems()]
    if arguments.model_path is None and arguments.adapter is None:
        problems.append(Problem("model_path", None, "is needed, or --adapter, which names its base", clause=True))
    for flag in ("num_samples", "batch_size"):
        if (value := getattr(arguments, flag)) < 1:
            problems.append(Problem(flag, value, "give 1 or more"))
    if not -(2**63) <= arguments.seed < 2**64:
        problems.append(Problem("seed", arguments.seed, "give a number of at most 64 bits"))
    if arguments.system is not None and not arguments.chat:
        problems.append(Problem("system", arguments.system, "is for conversations", "add --chat, or leave it out"))
    if arguments.stream and arguments.batch_size > 1:
        problems.append(Problem("stream", True, "shows one text as it grows", "leave --batch_size out"))
    if [*arguments.prompt, arguments.prompt_file].count(STDIN) > 1:
        problems.append(Problem("prompt", STDIN, "standard input can be read once", "give - once"))
    return problems


def _raise_if_any(problems: list[str]) -> None:
    if problems:
        raise ConfigurationError(problems)


def read_asked(arguments: argparse.Namespace) -> tuple[list[Asked], list[str]]:
    """(all prompts of flags and file, what is wrong with the file)."""
    asked = [Asked(sys.stdin.read() if prompt == STDIN else prompt) for prompt in arguments.prompt]
    if arguments.prompt_file is None:
        return asked, []
    try:
        asked += read_prompts(arguments.prompt_file)
    except DataError as error:
        return asked, [Problem("prompt_file", arguments.prompt_file, str(error), text=f"--prompt_file {error}")]
    without = next((one for one in asked if one.messages), None) if not arguments.chat else None
    if without is not None:
        return asked, [Problem("prompt_file", arguments.prompt_file, "holds conversations", "add --chat")]
    return asked, []


def answer_all(generator: Generator, maker: PromptMaker, asked: list[Asked], arguments: argparse.Namespace) -> None:
    """Print the continuation of every prompt; of a chat the answer alone."""
    asked = [one for one in asked for _ in range(arguments.num_samples)]
    if arguments.chat:
        prompts = maker.chats([one.as_chat(arguments.system) for one in asked])
    else:
        prompts = maker.texts([one.text for one in asked])
    stream = arguments.stream if arguments.stream is not None else sys.stdout.isatty()
    stream = stream and not arguments.json and arguments.batch_size == 1
    sampling = sampling_of(arguments)
    if stream:
        for number, (one, prompt) in enumerate(zip(asked, prompts, strict=True)):
            _write(("---\n" if number else "") + ("" if arguments.chat else one.text))
            list(generator.continuations([prompt], sampling, show=_write))
            _write("\n")
        return
    found = generator.continuations(prompts, sampling, batch_size=arguments.batch_size)
    for number, (one, text) in enumerate(zip(asked, found, strict=True)):
        if arguments.json:
            print(json.dumps({**one.record, "prompt": one.text, "continuation": text}, ensure_ascii=False))
            continue
        if number:
            print("---")
        print(text if arguments.chat else one.text + text)


def converse(generator: Generator, maker: PromptMaker, arguments: argparse.Namespace) -> None:
    """A conversation, a line of standard input a turn, until it ends; an empty line begins another."""
    start = [{"role": "system", "content": arguments.system}] if arguments.system is not None else []
    messages: list[dict[str, Any]] = list(start)
    maker.chats([[*start, {"role": "user", "content": "?"}]])  # a template that does not work is told before
    stream = arguments.stream if arguments.stream is not None else sys.stdout.isatty()
    sampling = sampling_of(arguments)
    while True:
        if sys.stdin.isatty():
            _write("> ")
        line = sys.stdin.readline()
        if not line:
            return
        if not line.strip():
            messages = list(start)
            continue
        messages.append({"role": "user", "content": line.rstrip("\r\n")})
        (prompt,) = maker.chats([messages])
        (text,) = generator.continuations([prompt], sampling, show=_write if stream else None)
        _write("\n" if stream else f"{text}\n")
        messages.append({"role": "assistant", "content": text})


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> None:
    arguments = build_parser().parse_args(argv)
    problems = _problems(arguments)
    asked, wrong = read_asked(arguments)
    _raise_if_any([*problems, *wrong])
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

    from llama_dyt.training.generation.generator import Generator
    from llama_dyt.training.generation.prompt_maker import PromptMaker

    torch.manual_seed(arguments.seed)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load_trained(folder, device, adapter=adapter)
    if arguments.parse_special_tokens is not None:
        from llama_dyt.data.tokenizing.prompt_encoding import set_special_tokens

        set_special_tokens(tokenizer, arguments.parse_special_tokens)
    maker = PromptMaker(tokenizer)
    generator = Generator(model, tokenizer, note=lambda line: print(f"note: {line}", file=sys.stderr))
    if arguments.chat and not asked:
        converse(generator, maker, arguments)
    else:
        answer_all(generator, maker, asked or [Asked("")], arguments)


if __name__ == "__main__":
    run_program(main, of_stdout=False)
