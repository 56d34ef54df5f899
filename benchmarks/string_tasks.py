"""From nothing to a model that follows instructions, on a CPU: pretraining, fine-tuning and answers on string tasks.

    python benchmarks/string_tasks.py --folder runs/string_tasks --json runs/string_tasks/result.json

A small DyT LLaMA is pretrained on text of made-up words and what can be made of them, then fine-tuned twice: on prompts
and completions, and on conversations by a chat template. Both are asked about words that neither saw; an answer counts
where it is right to the letter. Everything runs by the entries' command lines, as a user has them.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from llama_dyt.data.tokenizing.tokenizer import train_sentencepiece  # noqa: E402

LETTERS = "abcdefghij"

TASKS: dict[str, Callable[[str], str]] = {
    "copy": lambda word: word,
    "upper case": str.upper,
    "reverse": lambda word: word[::-1],
    "length": lambda word: str(len(word)),
    "first letter": lambda word: word[0],
    "last letter": lambda word: word[-1],
}

_PIECES_OF_BYTES = 259  # unk, bos, eos and 256 bytes


@dataclass(frozen=True)
class Size:
    """How large a try is.

    Attributes:
        words: made-up words of training; held_out: of the test, each asked for every task.
        longest: letters of a word.
        pretraining_steps, tuning_steps: of `batch` sequences of `length` tokens.
    """

    words: int = 3000
    held_out: int = 50
    longest: int = 4
    hidden: int = 128
    layers: int = 2
    pretraining_steps: int = 1500
    tuning_steps: int = 2500
    batch: int = 16
    length: int = 64
    lr: float = 4e-3


def make_words(size: Size, seed: int) -> tuple[list[str], list[str]]:
    """(words of training, words held out), without a word in both."""
    draw, words = random.Random(seed), set()
    while len(words) < size.words + size.held_out:
        words.add("".join(draw.choices(LETTERS, k=draw.randint(3, size.longest))))
    ordered = sorted(words)
    draw.shuffle(ordered)
    return ordered[size.held_out :], ordered[: size.held_out]


def question(task: str, word: str) -> str:
    return f"{task}: {word}\n"


def chat(task: str, word: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{task}: {word}"}, {"role": "assistant", "content": TASKS[task](word)}]


def write_data(folder: Path, size: Size, seed: int) -> None:
    """Text, pairs and chats of training, what is asked in the test, and a tokenizer of single letters."""
    folder.mkdir(parents=True, exist_ok=True)
    words, held_out = make_words(size, seed)
    draw = random.Random(seed + 1)
    made = [" ".join([word, *(make(word) for make in TASKS.values())]) for word in words]
    text = [" ; ".join(draw.sample(made, 2)) for _ in words]
    asked = [(task, word) for word in words for task in TASKS]
    draw.shuffle(asked)
    write_lines(folder / "text.jsonl", [{"text": line} for line in text])
    pairs = [{"prompt": question(task, word), "completion": TASKS[task](word)} for task, word in asked]
    write_lines(folder / "pairs.jsonl", pairs)
    write_lines(folder / "chats.jsonl", [{"messages": chat(task, word)} for task, word in asked])
    test = [(task, word) for word in held_out for task in TASKS]
    write_lines(
        folder / "asked.jsonl",
        [{"task": task, "prompt": question(task, word), "expected": TASKS[task](word)} for task, word in test],
    )
    write_lines(
        folder / "asked_chats.jsonl",
        [{"task": task, "messages": chat(task, word), "expected": TASKS[task](word)} for task, word in test],
    )
    letters = [pair["prompt"] + pair["completion"] for pair in pairs]
    characters = set("".join(letters) + "systemuserassistant")
    train_sentencepiece([*letters, "system user assistant"], folder / "tokenizer", _PIECES_OF_BYTES + len(characters))


def write_lines(path: Path, records: Sequence[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def start(entry: str, flags: Sequence[object], folder: Path) -> str:
    """Run an entry to its end; its standard output."""
    command = [sys.executable, str(REPOSITORY / f"{entry}.py"), *map(str, flags)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


Start = Callable[[str, Sequence[object], Path], str]


def pretrain(folder: Path, size: Size, run: Start = start) -> None:
    """Leaves the run `pretrained`."""
    model = ["--config", "15m", "--norm", "dyt", "--hidden_width", size.hidden, "--num_layers", size.layers]
    model += ["--num_heads", 4, "--num_key_value_heads", 4, "--intermediate_size", 8 * size.hidden // 3]
    for place in ("attn", "ffn", "dec"):
        model += [f"--{place}_alpha_init_value", 2]
    steps = size.pretraining_steps
    data = ["--dataset", "text.jsonl", "--tokenizer", "tokenizer", "--num_epochs", 1000, "--max_steps", steps]
    run("pretrain", [*model, *data, *common(size, steps), "--save_dir", "pretrained"], folder)


def tune(folder: Path, size: Size, data: str, save_dir: str, *more: object, run: Start = start) -> None:
    """Fine-tunes `pretrained` on pairs.jsonl or chats.jsonl."""
    steps = size.tuning_steps
    flags = ["--model_path", "pretrained", "--dataset", data, "--num_epochs", 1000, "--max_steps", steps, "--pack"]
    run("finetune", [*flags, *common(size, steps), "--save_dir", save_dir, *more], folder)


def common(size: Size, steps: int) -> list[object]:
    return [
        *("--plugin", "ddp", "--mixed_precision", "fp32", "--max_length", size.length, "--batch_size", size.batch),
        *("--lr", size.lr, "--lr_scheduler", "cosine", "--warmup_steps", steps // 10, "--save_interval", steps),
        *("--log_interval", 20, "--tensorboard_dir", "none"),
    ]


def score(folder: Path, save_dir: str, asked: str, *more: object, run: Start = start) -> dict[str, float]:
    """Share of the questions answered to the letter, by task and of all."""
    flags = ["--model_path", save_dir, "--prompt_file", asked, "--temperature", 0, "--max_new_tokens", 16]
    lines = run("generate", [*flags, "--batch_size", 64, "--json", *more], folder).splitlines()
    answers = [json.loads(line) for line in lines]
    right = Counter(answer["task"] for answer in answers if answer["continuation"] == answer["expected"])
    asked_of = Counter(answer["task"] for answer in answers)
    shares = {task: right[task] / count for task, count in asked_of.items()}
    return {**shares, "all": right.total() / len(answers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/string_tasks"), help="Where everything is written.")
    parser.add_argument("--json", type=Path, help="Where the result is written.")
    parser.add_argument("--seed", type=int, default=0, help="Of the words.")
    parser.add_argument("--pretraining_steps", type=int, default=Size.pretraining_steps)
    parser.add_argument("--tuning_steps", type=int, default=Size.tuning_steps)
    arguments = parser.parse_args()
    size = Size(pretraining_steps=arguments.pretraining_steps, tuning_steps=arguments.tuning_steps)
    folder = arguments.folder.resolve()
    write_data(folder, size, arguments.seed)
    result: dict[str, object] = {}
    seconds = time.perf_counter()

    def lap() -> float:
        nonlocal seconds
        before, seconds = seconds, time.perf_counter()
        return round(seconds - before, 1)

    pretrain(folder, size)
    result["pretraining_seconds"] = lap()
    for name, more, talk in (("pairs", [], []), ("chats", ["--chat_template", "chatml"], ["--chat"])):
        tune(folder, size, f"{name}.jsonl", f"tuned_{name}", *more)
        result[f"{name}_tuning_seconds"] = lap()
        result[name] = score(folder, f"tuned_{name}", "asked.jsonl" if not talk else "asked_chats.jsonl", *talk)
        lap()
        print(f"{name}: {json.dumps(result[name])}", flush=True)
    print(json.dumps(result, indent=2))
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
