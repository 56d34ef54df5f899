"""The flags of convert.py, and what is wrong with them: one dataclass, read as the other entries read theirs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_dyt.config.cli import read_settings
from llama_dyt.config.options import Option, option, options_of
from llama_dyt.convert.source import SOURCES
from llama_dyt.convert.target import TARGETS
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.files import why_not_writable
from llama_dyt.core.problem import Problem
from llama_dyt.norms.spec import NORMS

CONVERT = "convert"
_HERE = (CONVERT,)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class ConvertSettings:
    """One checkpoint in, one out."""

    input_path: str | None = option(
        None,
        "What is converted: a folder or file, or a hub name.",
        short="-i",
        entries=_HERE,
        metavar="PATH|HUB_NAME",
        path=True,
    )
    output_path: str | None = option(
        None, "Folder for the result; it must not be there yet.", short="-o", entries=_HERE, metavar="FOLDER", path=True
    )
    source: str | None = option(
        None,
        "Format of the input; none finds it out.",
        name="from",
        choices=lambda: SOURCES.names(),
        entries=_HERE,
    )
    target: str = option("hf", "Format of the result.", name="to", choices=lambda: TARGETS.names(), entries=_HERE)
    dtype: str | None = option(
        None,
        "Numbers of the result; none keeps them as they are, and is fp32 for --to ours.",
        choices=("fp32", "bf16", "fp16"),
        entries=_HERE,
    )
    config: str | None = option(
        None,
        "Figures that the input does not tell: of fms and dyt_authors the run's --model_variant (llama2_7b) or a "
        "config.json, of neox the run's YML.",
        short="-c",
        entries=_HERE,
        metavar="NAME|PATH",
        path=True,
    )
    tokenizer: str | None = option(
        None,
        "Tokenizer to put into the result: a folder, a SentencePiece .model file or a hub name; none takes the "
        "input's.",
        entries=_HERE,
        metavar="PATH|HUB_NAME",
        path=True,
    )
    verify: bool = option(
        False,
        "Compare logits of the result with the source's on fixed tokens before the result gets its name; each of the "
        "two models is loaded for it, one after the other.",
        entries=_HERE,
    )
    max_shard_size: str = option("5GB", "Largest file of tensors, such as 2GB or 500MB.", entries=_HERE, metavar="SIZE")
    shards: int = option(
        1, "Files, one a tensor-parallel rank, of --to meta.", entries=_HERE, at_least=1, metavar="NUMBER"
    )
    fold_dyt: bool = option(
        False,
        "Put the weight of each Dynamic Tanh into the projections behind it, for inference: the same logits, and a "
        "plain tanh(alpha * x) is left.",
        entries=_HERE,
    )
    upcycle: int | None = option(
        None,
        "Copy each MLP of a dense LLaMA or Mistral into so many experts: the start of a Mixtral whose first loss is "
        "the dense model's.",
        entries=_HERE,
        at_least=2,
        metavar="EXPERTS",
    )
    norm: str | None = option(
        None,
        "Put this norm into the model, fitted to what its own gave on the text of --calibrate. An experiment: the "
        "result is a start for further training. tapered keeps the model's own norms beside Dynamic Tanh, for "
        "--taper_steps of pretrain.py; where all of them have become it, dyt, without --calibrate, leaves that alone.",
        choices=lambda: tuple(norm.name for norm in NORMS if norm.fit is not None),
        entries=_HERE,
    )
    calibrate: str | None = option(
        None, "Text to fit --norm on, as --dataset of pretrain.py.", entries=_HERE, metavar="PATH|HUB_NAME", path=True
    )
    calibration_tokens: int = option(
        32768, "So many tokens of it are taken.", entries=_HERE, at_least=64, metavar="NUMBER"
    )
    push_to_hub: str | None = option(
        None,
        "Upload the result to the hub, into this repository; made private where there is none.",
        entries=_HERE,
        metavar="OWNER/MODEL",
    )
    config_file: str | None = option(
        None,
        "YAML whose keys are these flags; a flag on the command line wins over it.",
        entries=_HERE,
        metavar="FILE",
        path=True,
    )
    imports: tuple[str, ...] = option(
        (),
        "A module of your own to import before flags are read, such as one with a format, a norm or a family, by its "
        "dotted name; may be given several times.",
        name="import",
        entries=_HERE,
        metavar="MODULE",
    )

    @property
    def max_shard_bytes(self) -> int:
        """`max_shard_size` as a number; 0 where it is none."""
        match = _SIZE.fullmatch(self.max_shard_size.strip())
        if match is None:
            return 0
        return int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2].lower()])


def options() -> tuple[Option, ...]:
    return tuple(options_of(ConvertSettings).values())


def read_conversion(argv: Sequence[str] | None = None) -> tuple[ConvertSettings, list[str]]:
    """(settings, problems) of convert.py's command line; a flag that cannot be read has its default.

    What it names by --import is imported first.
    """
    what = "Convert checkpoints of other programs and ours into one another, a tensor at a time."
    (settings,), problems = read_settings(CONVERT, what, lambda: [("conversion", ConvertSettings, options())], argv)
    return settings, problems + [problem for problem in _problems(settings) if problem not in problems]


def parse_conversion(argv: Sequence[str] | None = None) -> ConvertSettings:
    """The settings of a command line; None takes sys.argv.

    Raises:
        ConfigurationError: all that is wrong with it, one problem a line.
    """
    settings, problems = read_conversion(argv)
    if problems:
        raise ConfigurationError(problems)
    return settings


def _problems(settings: ConvertSettings) -> list[str]:
    problems: list[str] = []
    if settings.input_path is None:
        problems.append(Problem("input_path", None, "say what is to be converted"))
    if settings.output_path is None:
        problems.append(Problem("output_path", None, "say into which folder the result shall go"))
    else:
        problems += _output_problems(Path(settings.output_path))
    if not settings.max_shard_bytes:
        problems.append(Problem("max_shard_size", settings.max_shard_size, "give a size, such as 5GB or 500MB"))
    if settings.norm is None and settings.calibrate is not None:
        problems.append(Problem("calibrate", settings.calibrate, "goes with --norm", "give both", clause=True))
    if settings.shards > 1 and not TARGETS.get(settings.target).divided:
        reason = f"--to {settings.target} is not divided by tensor-parallel ranks"
        problems.append(Problem("shards", settings.shards, reason, "leave it out; --max_shard_size bounds its files"))
    return problems


def _output_problems(path: Path) -> list[str]:
    if path.exists():
        reason = "is there already, and nothing is written over"
        return [Problem("output_path", path, reason, "give another, or remove it", clause=True)]
    unwritable = why_not_writable(path)
    return [Problem("output_path", path, unwritable)] if unwritable is not None else []
