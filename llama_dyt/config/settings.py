"""The settings of a run: one typed dataclass a concern, every field of which is a flag and a YAML key of its name.

Its own file because it is the place where flags are declared and documented (those of validation: `validation.py`).
Defaults and short forms are those of Colossal-AI's LLaMA programs wherever they have the flag.
"""

from __future__ import annotations

from dataclasses import dataclass

from llama_dyt.config.capabilities import PLUGIN_ALIASES, PLUGINS, capability
from llama_dyt.config.options import Kind, option
from llama_dyt.config.sizes import Size, get_size

TRAINING: tuple[Kind, ...] = ("pretrain", "finetune")
SIZED: tuple[Kind, ...] = ("pretrain", "benchmark")

DEFAULT_TOKENIZER = "hf-internal-testing/llama-tokenizer"
"""The tokenizer where neither the run, its data nor its weights bring one: LLaMA's, as Colossal-AI's program has."""
DEFAULT_CONFIG = "7b"
DEFAULT_NORM = "dyt"
FINETUNE_WARMUP_FRACTION = 0.03
"""The share of the steps fine-tuning warms up for when no number is given, as in Colossal-AI's program."""


@dataclass(frozen=True)
class ModelSettings:
    """The decoder: its size, its norms, where its weights come from."""

    config: str | None = option(
        DEFAULT_CONFIG,
        "Model size: a name (7b, llama2_13b, llama3_8b, 15m, ...) or the path of an HF config.json. Left out with "
        "--model_path, whose own config holds.",
        short="-c",
        entries=SIZED,
        defaults={"finetune": None},
        metavar="NAME|PATH",
    )
    model_path: str | None = option(
        None,
        "Start from these weights, at step 0 with a fresh optimizer: an HF folder, one of our checkpoints, or a hub "
        "name.",
        entries=TRAINING,
        metavar="PATH|HUB_NAME",
    )
    norm: str | None = option(
        DEFAULT_NORM,
        "Kind of normalization: dyt (Dynamic Tanh) or rmsnorm, everything else equal. With --model_path it is that "
        "of the weights unless given.",
        choices=("dyt", "rmsnorm"),
        defaults={"finetune": None},
    )
    attn_alpha_init_value: float | None = option(
        None, "Initial alpha of the DyT before attention; none takes the paper's value for the width.", above=0
    )
    ffn_alpha_init_value: float | None = option(
        None,
        "Initial alpha of the DyT before the feed-forward block; none takes the paper's value for the width.",
        above=0,
    )
    dec_alpha_init_value: float | None = option(
        None, "Initial alpha of the decoder's final DyT; none takes the paper's value for the width.", above=0
    )
    hidden_width: int | None = option(
        None, "Hidden size by hand, in place of that of --config.", entries=SIZED, at_least=1
    )
    num_layers: int | None = option(None, "Number of decoder layers by hand.", entries=SIZED, at_least=1)
    num_heads: int | None = option(None, "Number of attention heads by hand.", entries=SIZED, at_least=1)
    num_key_value_heads: int | None = option(None, "Number of key and value heads by hand.", entries=SIZED, at_least=1)
    intermediate_size: int | None = option(None, "Width of the feed-forward block by hand.", entries=SIZED, at_least=1)
    tokenizer: str | None = option(
        None,
        "Tokenizer: a folder, a SentencePiece .model file or a hub name. None takes the one that comes with "
        f"--model_path or with the sample corpus, else {DEFAULT_TOKENIZER}.",
        entries=TRAINING,
        metavar="PATH|HUB_NAME",
    )
    gradient_checkpoint: bool = option(
        False,
        "Recompute activations in the backward pass: less memory, about a third slower.",
        short="-g",
        spellings=("grad_checkpoint", "gradient_checkpointing"),
    )
    selective_checkpointing: float | None = option(
        None,
        "Share of the decoder layers, evenly spread, that recompute their activations: 0 to 1, or a fraction such as "
        "1/3; none is all of them with --gradient_checkpoint, else no layer.",
        at_least=0,
        at_most=1,
        metavar="SHARE",
    )
    flash_attention: bool = option(
        False,
        "Use the flash-attn package's kernels on CUDA, in half precision; where it is not installed, torch's own flash "
        "attention, with a notice.",
        short={"pretrain": "-a", "finetune": "-a", "benchmark": "-x"},
        spellings=("flash_attn", "xformers"),
    )

    @property
    def recomputed_share(self) -> float:
        """The share of decoder layers that recompute their activations."""
        if self.selective_checkpointing is None:
            return 1.0 if self.gradient_checkpoint else 0.0
        return self.selective_checkpointing

    def size(self) -> Size | None:
        """The model's figures, those given by hand included; None when the weights of `model_path` decide.

        Raises:
            ConfigurationError: `config` names no size and no usable file.
        """
        if self.config is None:
            return None
        return get_size(self.config).with_overrides(**self.size_by_hand())

    def size_by_hand(self) -> dict[str, int | None]:
        """The figures given by hand, None where none was."""
        names = ("hidden_width", "num_layers", "num_heads", "num_key_value_heads", "intermediate_size")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class DataSettings:
    """What is read, and in which portions."""

    dataset: str | None = option(
        "togethercomputer/RedPajama-Data-1T-Sample",
        "Text to train on: `sample` (built at once on this machine), a folder or glob of .jsonl, .jsonl.gz, "
        ".jsonl.zst or .parquet, a hub dataset in the default's form, or a mixture (.yaml).",
        short="-d",
        entries=TRAINING,
        defaults={"finetune": "yizhongw/self_instruct", "benchmark": None},
        metavar="NAME|PATH",
    )
    task_name: str = option(
        "super_natural_instructions", "Which part of a hub dataset to fine-tune on.", entries=("finetune",)
    )
    max_length: int = option(
        4096, "Sequence length, in tokens.", short="-l", spellings=("max_context_width",), metavar="TOKENS", at_least=2
    )
    batch_size: int = option(2, "Sequences a data-parallel rank takes at once.", short="-b", at_least=1)
    reset_position_ids: bool = option(
        False, "Count positions from 0 at each document of a packed sequence.", entries=("pretrain",)
    )
    reset_attention_mask: bool = option(
        False, "Keep attention within each document of a packed sequence.", entries=("pretrain",)
    )
    num_epochs: int = option(1, "Passes over the dataset.", short="-e", entries=TRAINING, at_least=1)
    shuffle: str = option(
        "none",
        "Order of the data. none: that of the files; documents or sequences: shuffled by --seed, anew in each epoch. "
        "Text is shuffled by documents only, --shuffle_buffer of them at a time.",
        choices=("none", "documents", "sequences"),
        entries=("pretrain",),
    )
    shuffle_buffer: int = option(
        2000, "Documents of text that are shuffled together.", entries=("pretrain",), metavar="DOCUMENTS", at_least=1
    )
    num_workers: int = option(
        1,
        "Processes of each rank that tokenize text ahead of the steps; 0 does it in a thread of the rank. Prepared "
        "tokens need none.",
        entries=("pretrain",),
        at_least=0,
    )
    skip_bad_lines: bool = option(
        False, "Count and skip lines that are not JSON or lack their field, in place of stopping.", entries=TRAINING
    )


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW (betas 0.9 and 0.95) and the learning rate's course."""

    lr: float = option(3e-4, "Highest learning rate.", spellings=("learning_rate",), above=0)
    weight_decay: float = option(
        0.1, "Weight decay.", short={"pretrain": "-w", "finetune": "-w"}, spellings=("weigth_decay",), at_least=0
    )
    decay_all_parameters: bool = option(
        True,
        "Decay every parameter, alphas and norm weights included, as the DyT authors do for both norms; off leaves "
        "out those with one dimension.",
    )
    lr_scheduler: str = option(
        "cosine",
        "Course of the learning rate. cosine: linear warm-up, then down to a tenth, as Colossal-AI's; quadratic: the "
        "DyT authors' quadratic warm-up and cosine; linear: linear warm-up, then annealing to zero; constant: "
        "warm-up, then level.",
        choices=("cosine", "quadratic", "linear", "constant"),
        defaults={"benchmark": "constant"},
    )
    warmup_steps: int | None = option(
        2000,
        f"Steps of warm-up; none takes {FINETUNE_WARMUP_FRACTION:.0%} of the run.",
        short={"pretrain": "-s"},
        defaults={"finetune": None, "benchmark": 0},
        at_least=0,
    )
    gradient_clipping: float = option(
        1.0, "Largest norm of the whole gradient; 0 turns clipping off.", spellings=("grad_clip",), at_least=0
    )
    gradient_accumulation_steps: int = option(
        1, "Batches of --batch_size that make one optimizer step.", spellings=("accumulation_steps",), at_least=1
    )


@dataclass(frozen=True)
class BoosterSettings:
    """How Colossal-AI spreads the model and its training over processes."""

    plugin: str = option(
        "gemini",
        "Booster plugin; 3d is another name of hybrid_parallel, 3d_cpu of hybrid_parallel_cpu.",
        short="-p",
        choices=PLUGINS,
        choice_aliases=PLUGIN_ALIASES,
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

    def data_parallel_size(self, world_size: int) -> int:
        """How many ranks read different data."""
        return world_size // self.ranks_a_replica

    def shard_ranks(self, world_size: int, local_world_size: int | None = None) -> int:
        """How many ranks share one copy of the model under fsdp and hsdp.

        Args:
            local_world_size: processes of one machine; None where the launcher does not say: then all of them.
        """
        if not capability(self.plugin, "cpu").shard_size:
            return world_size
        return self.shard_size or local_world_size or world_size


@dataclass(frozen=True)
class RunSettings:
    """How long the run is, what it leaves behind, and where it starts."""

    max_steps: int | None = option(
        None, "Stop after this many optimizer steps; none is all of --num_epochs.", entries=TRAINING, at_least=1
    )
    seed: int = option(42, "Seed of the initial weights and of all that is random.", at_least=0, at_most=2**32 - 1)
    save_interval: int = option(
        1000, "Steps between checkpoints; one is always saved at the end.", short="-i", entries=TRAINING, at_least=1
    )
    save_dir: str | None = option(
        "checkpoint",
        "Folder for checkpoints, metrics.jsonl and config.yaml.",
        short="-o",
        defaults={"benchmark": None},
        metavar="FOLDER",
    )
    load: str | None = option(
        None,
        "Resume: a checkpoint, a --save_dir (its newest complete checkpoint), or auto (the newest in --save_dir, "
        "or a new run when there is none).",
        short="-f",
        entries=TRAINING,
        metavar="PATH|auto",
    )
    log_interval: int = option(1, "Steps between lines in the log.", entries=TRAINING, at_least=1)
    tensorboard_dir: str | None = option(
        "tb_logs",
        "Folder for TensorBoard; none writes nothing.",
        short="-t",
        entries=TRAINING,
        defaults={"benchmark": None},
        metavar="FOLDER",
    )
    dry_run: bool = option(
        False, "Print the resolved run, its parameters, tokens a step, steps and memory a rank, then end."
    )
    dry_run_processes: int | None = option(
        None, "Processes that --dry_run plans for; none takes those that were started.", metavar="N", at_least=1
    )
    config_file: str | None = option(
        None,
        "YAML whose keys are these flags; a flag on the command line wins over it.",
        compare=False,
        metavar="PATH",
    )
