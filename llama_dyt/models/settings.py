"""What is asked of a model: its size, its norms, where its weights come from, its loss; and what is wrong with that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llama_dyt.config.options import TRAINING, Kind, option, options_of
from llama_dyt.config.run import Owned, RunConfig
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem
from llama_dyt.core.store import at, store_of, why_not_at
from llama_dyt.models.presets import SizedFamily, get_model, read_model
from llama_dyt.models.size import Size
from llama_dyt.models.spec import FAMILIES, ModelSpec
from llama_dyt.norms.spec import NORMS

SIZED: tuple[Kind, ...] = ("pretrain", "benchmark")

DEFAULT_CONFIG = "7b"
DEFAULT_NORM = "dyt"


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
        path=True,
    )
    model_path: str | None = option(
        None,
        "Start from these weights, at step 0 with a fresh optimizer: an HF folder, one of our checkpoints, or a hub "
        "name.",
        entries=TRAINING,
        metavar="PATH|HUB_NAME",
        path=True,
    )
    norm: str | None = option(
        DEFAULT_NORM,
        "Kind of normalization: dyt (Dynamic Tanh) or rmsnorm, everything else equal. With --model_path it is that "
        "of the weights unless given.",
        choices=lambda: NORMS.names(),
        choice_aliases=lambda: NORMS.aliases(),
        defaults={"finetune": None},
    )
    hidden_width: int | None = option(
        None, "Hidden size by hand, in place of that of --config.", entries=SIZED, at_least=1
    )
    num_layers: int | None = option(None, "Number of decoder layers by hand.", entries=SIZED, at_least=1)
    num_heads: int | None = option(None, "Number of attention heads by hand.", entries=SIZED, at_least=1)
    num_key_value_heads: int | None = option(None, "Number of key and value heads by hand.", entries=SIZED, at_least=1)
    intermediate_size: int | None = option(None, "Width of the feed-forward block by hand.", entries=SIZED, at_least=1)
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

    def sized(self) -> SizedFamily | None:
        """The family and the figures, those given by hand included; None when the weights of `model_path` decide.

        Raises:
            ConfigurationError: `config` names no size and no usable file.
        """
        if self.config is None:
            return None
        family, size = get_model(self.config)
        return SizedFamily(family, size.with_overrides(**self.size_by_hand()))

    def size_by_hand(self) -> dict[str, int | None]:
        """The figures given by hand, None where none was."""
        names = ("hidden_width", "num_layers", "num_heads", "num_key_value_heads", "intermediate_size")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class LossSettings:
    """What is minimised beside the cross entropy of the next token."""

    z_loss: float = option(
        0.0,
        "Coefficient of the z-loss, which keeps the softmax's denominator near 1: to the gradient is added that of "
        "this times logsumexp(logits)^2, averaged over the same tokens. The loss that is logged, and validation's, "
        "stays the cross entropy alone. PaLM has 1e-4.",
        at_least=0,
        metavar="COEFFICIENT",
    )


def model_of(run: RunConfig) -> SizedFamily | None:
    """The family and figures of the run's model; None where they stand in weights that are not on this machine yet.

    Raises:
        ConfigurationError: the size has no meaning or its file cannot be read.
    """
    path = run.model.model_path
    if path is None or run.model.config is not None:
        return run.model.sized()
    if why_not_at(path, "model_path") is not None:
        return None
    folder = at(path)
    for inner in ("", "model/"):
        name = f"{inner}config.json"
        if (folder / name).is_file():
            return read_model((store_of(folder).local(folder, name) / name).parent)
    return None


def model_size(run: RunConfig) -> Size | None:
    """The figures of `model_of`."""
    sized = model_of(run)
    return sized.size if sized is not None else None


def _size_problems(run: RunConfig, size: Size | None) -> Iterator[Problem]:
    model = run.model
    if run.kind == "finetune" and model.model_path is None:
        reason = "is needed: give the HF folder, the checkpoint or the hub name of the model to fine-tune"
        yield Problem("model_path", None, reason, clause=True)
    if model.model_path is not None:
        given = {"config": model.config, **model.size_by_hand()}
        for name, value in given.items():
            if value is not None:
                reason = f"contradicts --model_path {model.model_path}, which brings its size"
                yield Problem(name, value, reason, "give one", also=("model_path",), clause=True)
        # "name" or "owner/name" may be a hub name; anything else can only be a path.
        only_a_path = model.model_path.startswith(("/", ".")) or model.model_path.count("/") > 1
        unknown = why_not_at(model.model_path, "model_path")
        if unknown is not None:
            yield unknown
        elif only_a_path and not at(model.model_path).is_dir():
            remedy = "give an HF folder, a checkpoint or a hub name"
            yield Problem("model_path", model.model_path, "no such folder", remedy)
    if model.gradient_checkpoint and model.selective_checkpointing == 0:
        reason = "contradicts --selective_checkpointing 0, which recomputes no layer"
        also = ("selective_checkpointing",)
        yield Problem("gradient_checkpoint", True, reason, "leave one out", also=also, clause=True)
    if size is None:
        return
    if "head_dim" not in size.others and size.hidden_size % size.num_heads:
        reason = f"does not divide the hidden size {size.hidden_size}"
        remedy = f"give a divisor, such as {divisor_below(size.hidden_size, size.num_heads)}"
        yield Problem("num_heads", size.num_heads, reason, remedy, clause=True)
    elif size.head_dim % 2:
        reason = f"with --num_heads {size.num_heads} makes heads of {size.head_dim}"
        remedy = "rotary positions need an even number: change one of the two"
        yield Problem("hidden_width", size.hidden_size, reason, remedy, also=("num_heads",), clause=True)
    if size.num_heads % size.num_key_value_heads:
        reason = f"does not divide the {size.num_heads} attention heads"
        remedy = f"give a divisor, such as {divisor_below(size.num_heads, size.num_key_value_heads)}"
        yield Problem("num_key_value_heads", size.num_key_value_heads, reason, remedy, clause=True)


def problems(run: RunConfig, world_size: int | None, device: str | None) -> Iterator[Problem]:
    """What is wrong with the model that a run asks for."""
    try:
        size = model_size(run)
    except ConfigurationError:  # told with the paths
        size = None
    yield from _size_problems(run, size)
    yield from _norm_problems(run)
    yield from _family_problems(run)


def path_problems(run: RunConfig) -> Iterator[str]:
    """What is wrong with the size's name or file."""
    try:
        model_of(run)
    except ConfigurationError as error:
        yield from error.problems


def warnings(run: RunConfig, world_size: int | None, device: str | None, total_steps: int | None) -> Iterator[str]:
    """What is probably not meant."""
    if run.model.model_path is not None and run.model.norm is not None:
        yield (
            f"--norm {run.model.norm} with --model_path: where the weights were trained with another norm, "
            "swapping it is an experiment, and the loss starts far above theirs"
        )
    try:
        sized = model_of(run)
    except ConfigurationError:  # told with the paths
        return
    norm = run.model.norm
    if sized is not None and norm != (own := sized.family.plain_norm) and norm in {f.plain_norm for f in FAMILIES}:
        yield (
            f"--norm {norm}: the own norm of a {sized.family.in_words} is {own}; with another family's the model is "
            "neither the published one nor Dynamic Tanh"
        )


def settle(kind: Kind, values: dict[str, Any]) -> None:
    """Weights bring a size and a norm; asking for others must be explicit, so that it can be told apart."""
    if kind == "finetune" or values.get("model_path") is not None:
        values.setdefault("config", None)
        values.setdefault("norm", None)


def _norm_problems(run: RunConfig) -> Iterator[Problem]:
    """Flags of a norm that the run does not have; where weights decide which it has, they are left to them."""
    chosen = run.model.norm
    for norm in NORMS:
        if norm.settings is None or chosen in (None, norm.name):
            continue
        for name, opt in options_of(norm.settings).items():
            value = run.flags()[name]
            if value != opt.default[run.kind]:
                remedy = f"leave it out, or take --norm {norm.name}"
                yield Problem(name, value, f"--norm {chosen} has none", remedy, also=("norm",))


def _family_problems(run: RunConfig) -> Iterator[Problem]:
    """Flags of a family that the run's model is not of."""
    try:
        sized = model_of(run)
    except ConfigurationError:  # told with the paths
        return
    for family in FAMILIES if sized is not None else ():
        if family.settings is None or family is sized.family:
            continue
        for name, opt in options_of(family.settings).items():
            value = run.flags()[name]
            if value != opt.default[run.kind]:
                reason = f"is of the family {family.name}, and the model is a {sized.family.in_words}"
                yield Problem(name, value, reason, "leave it out", also=("config",), clause=True)


def family_fields(run: RunConfig, family: ModelSpec) -> dict[str, Any]:
    """Fields of a config of this family that its own flags give a value; None where it is open."""
    if family.settings is None:
        return {}
    return {name: getattr(run.groups[family.name], name) for name in options_of(family.settings)}


def norm_fields(run: RunConfig) -> dict[str, Any]:
    """Fields of a config that flags of norms give a value; None where it is open."""
    return {
        name: getattr(run.groups[norm.name], name)
        for norm in NORMS
        if norm.settings is not None
        for name in norm.config_fields
        if name in options_of(norm.settings)
    }


def divisor_below(number: int, limit: int) -> int:
    """The largest divisor of `number` that is no larger than `limit`."""
    return next(divisor for divisor in range(min(limit, number), 0, -1) if number % divisor == 0)


OWNED = Owned({"model": ModelSettings, "loss": LossSettings}, problems, path_problems, warnings, settle)
