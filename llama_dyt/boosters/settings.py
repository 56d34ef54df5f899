"""The settings of the booster: which plugin spreads the model over processes, and how."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llama_dyt.boosters.compilation import SpeedSettings, attention_notices, checkpointing_problems, compile_problems
from llama_dyt.boosters.float8_settings import PrecisionSettings, precision_problems
from llama_dyt.boosters.layout_problems import layout_problems, pipeline_problems, sequence_problems
from llama_dyt.boosters.plugin_problems import plugin_problems
from llama_dyt.boosters.strategy import STRATEGIES
from llama_dyt.config.options import option
from llama_dyt.config.run import Owned, RunConfig
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models.settings import model_size


@dataclass(frozen=True)
class BoosterSettings:
    """How Colossal-AI spreads the model and its training over processes."""

    plugin: str = option(
        "gemini",
        "Booster plugin; 3d is another name of hybrid_parallel, 3d_cpu of hybrid_parallel_cpu.",
        short="-p",
        choices=lambda: STRATEGIES.names(),
        choice_aliases=lambda: STRATEGIES.aliases(),
    )
    mixed_precision: str = option(
        "fp16",
        "Precision of the forward and backward pass; the master weights are always fp32. Gemini has no "
        "fp32, and hybrid_parallel has it with --zero 0.",
        short={"pretrain": "-x", "finetune": "-x"},
        choices=("fp16", "bf16", "fp32"),
        defaults={"benchmark": "bf16"},
    )
    tp: int = option(1, "Tensor-parallel size (hybrid_parallel and _cpu, gemini, gemini_auto).", at_least=1)
    pp: int = option(1, "Pipeline-parallel size (hybrid_parallel and _cpu).", at_least=1)
    ep: int = option(
        1,
        "Expert-parallel size: data-parallel ranks that share the experts of each layer and send each other their "
        "tokens (ddp, zero1, zero2, fsdp, hybrid_parallel and their _cpu).",
        at_least=1,
    )
    pp_style: str = option(
        "1f1b",
        "Order of work in the pipeline. 1f1b: one forward, one backward; interleaved: every stage holds several chunks "
        "of layers, for a smaller bubble and more transfers; zbv: zero bubble, two chunks a stage in the shape of a V.",
        choices=("1f1b", "interleaved", "zbv"),
    )
    n_chunks: int | None = option(
        None,
        "Chunks of layers a stage holds with --pp_style interleaved; none is 2.",
        spellings=("num_model_chunks",),
        at_least=1,
    )
    sp: int = option(
        1, "Sequence-parallel size: ranks that share each sequence (hybrid_parallel, all_to_all).", at_least=1
    )
    sp_mode: str | None = option(
        None,
        "Sequence parallelism. all_to_all (Ulysses): --sp ranks of their own, attention by heads; split_gather: the "
        "--tp ranks, which cut between the linear layers what they would all hold. None takes all_to_all when --sp is "
        "above 1. ring and ring_attn are left out, with the reason.",
        choices=("all_to_all", "split_gather", "ring", "ring_attn"),
    )
    extra_dp: int = option(
        1,
        "gemini: copies of the whole group of ranks over which the model is sharded, each with data of its own.",
        at_least=1,
    )
    zero: int | None = option(
        None,
        "ZeRO stage; none takes the plugin's own: 1 for zero1 and hybrid_parallel_cpu, 2 for zero2 and zero2_cpu, 0 "
        "for hybrid_parallel.",
        at_least=0,
        at_most=3,
    )
    fp32_gradients: bool = option(
        False,
        "Sum gradients over ranks and micro batches in fp32, as fsdp always does, and not in the working precision "
        "(zero1, zero2, zero2_cpu, hybrid_parallel with --zero 1 or 2, hybrid_parallel_cpu).",
    )
    shard_size: int | None = option(
        None,
        "hsdp: ranks that share one copy of the model; none is the processes of one machine.",
        at_least=1,
        metavar="RANKS",
    )
    mbs: int | None = option(None, "Micro batch size in the pipeline, in sequences; none is 1.", at_least=1)
    shard_param_frac: float | None = option(
        None,
        "gemini: share of the parameters sharded, 0 (as ZeRO-2) to 1 (as ZeRO-3); none is 1.",
        at_least=0,
        at_most=1,
    )
    offload_optim_frac: float | None = option(
        None, "gemini: share of the optimizer states kept in host memory, 0 to 1; none is 0.", at_least=0, at_most=1
    )
    offload_param_frac: float | None = option(
        None,
        "gemini: share of the parameters kept in host memory, 0 to 1; needs the two fractions above at 1; none is 0.",
        at_least=0,
        at_most=1,
    )
    memory_limit: int | None = option(
        None,
        "Device memory that gemini_auto and --auto_checkpointing may plan with; none is all there is.",
        short="-m",
        metavar="MB",
        at_least=1,
    )
    warmup_ratio: float = option(
        0.8,
        "gemini_auto: share of device memory set aside for activations in the first step.",
        short={"benchmark": "-w"},
        entries=("benchmark",),
        above=0,
        at_most=1,
    )

    @property
    def micro_batch_size(self) -> int:
        return 1 if self.mbs is None else self.mbs

    def micro_batches(self, sequences: int) -> int:
        """Micro batches of --mbs sequences that a rank sends so many through a pipeline in."""
        return sequences // self.micro_batch_size

    @property
    def model_chunks(self) -> int:
        """Chunks of layers a pipeline stage holds."""
        return {"1f1b": 1, "interleaved": self.n_chunks or 2, "zbv": 2}[self.pp_style]

    @property
    def sequence_parallelism(self) -> str | None:
        """The mode of sequence parallelism; None without."""
        return self.sp_mode or ("all_to_all" if self.sp > 1 else None)

    @property
    def sequence_ranks(self) -> int:
        """How many ranks beside the tensor-parallel ones share each sequence."""
        return self.sp if self.sequence_parallelism == "all_to_all" else 1

    @property
    def ranks_a_replica(self) -> int:
        """How many ranks work on the same data."""
        return self.tp * self.pp * self.sequence_ranks

    @property
    def cuts(self) -> dict[str, int]:
        """Flag → its value, of those that leave no rank a whole replica or whole sequences."""
        return {flag: getattr(self, flag) for flag in ("tp", "pp", "sp") if getattr(self, flag) > 1}

    @property
    def layout_in_words(self) -> str:
        """How a replica is cut, for the line a run begins with; empty where one rank has all of it."""
        words = [f"tp {self.tp} pp {self.pp}"] if self.ranks_a_replica > 1 else []
        words += [self.pp_style] if self.pp_style != "1f1b" else []
        words += [self.sequence_parallelism] if self.sequence_parallelism is not None else []
        words += [f"sp {self.sp}"] if self.sequence_ranks > 1 else []
        words += [f"ep {self.ep}"] if self.ep > 1 else []
        return " ".join(words)

    def data_parallel_size(self, world_size: int) -> int:
        """How many ranks read different data."""
        return world_size // self.ranks_a_replica


def problems(run: RunConfig, world_size: int | None, device: str | None) -> Iterator[str]:
    """What keeps a run from being spread as asked."""
    try:
        size = model_size(run)
    except ConfigurationError:  # told by the model's own checks
        size = None
    yield from checkpointing_problems(run)
    if device is not None:
        for problem in (*plugin_problems(run, device), *compile_problems(run, device)):
            yield problem.here()
    yield from layout_problems(run, size, world_size)
    yield from pipeline_problems(run, size)
    yield from sequence_problems(run, size)
    yield from precision_problems(run, device)


def warnings(run: RunConfig, world_size: int | None, device: str | None, total_steps: int | None) -> Iterator[str]:
    """What is probably not meant."""
    if run.booster.mbs is not None and run.booster.pp == 1 and run.booster.mbs != 1:
        yield f"--mbs {run.booster.mbs} has an effect only with --pp above 1"
    if device is not None:
        yield from attention_notices(run, device)


OWNED = Owned(
    {"booster": BoosterSettings, "precision": PrecisionSettings, "speed": SpeedSettings}, problems, warnings=warnings
)
