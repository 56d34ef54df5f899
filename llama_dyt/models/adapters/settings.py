"""What is asked of an adapter: how large, in which modules, from which file; and what is wrong with that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llama_dyt.config.options import TRAINING, option
from llama_dyt.config.run import Owned, RunConfig
from llama_dyt.core.problem import Problem
from llama_dyt.core.store import at, why_not_at

ALL = "all"
"""The word of --lora_targets for every linear layer of the decoder's layers."""


@dataclass(frozen=True)
class AdapterSettings:
    """An adapter (LoRA) trained in place of the weights, which stay as they are."""

    lora_rank: int | None = option(
        None,
        "Train an adapter of this rank (LoRA) and leave the weights of --model_path as they are; none trains all of "
        "the model.",
        entries=TRAINING,
        at_least=1,
        metavar="RANK",
    )
    lora_alpha: float | None = option(
        None,
        "What the adapter's product is multiplied by, times the rank; none is twice --lora_rank.",
        entries=TRAINING,
        above=0,
        metavar="ALPHA",
    )
    lora_dropout: float | None = option(
        None,
        "Share of what goes into the adapter that training leaves out at random; none is 0, or as --adapter has it.",
        entries=TRAINING,
        at_least=0,
        at_most=0.99,
        metavar="SHARE",
    )
    lora_targets: tuple[str, ...] = option(
        (ALL,),
        "Modules with the adapter: all (the linear layers of the decoder's layers), or names such as q_proj, mlp, "
        "embed_tokens, lm_head; may be given several times, or with commas.",
        entries=TRAINING,
        metavar="NAME",
    )
    use_dora: bool = option(
        False, "Split each weight into length and direction, and train the lengths too (DoRA).", entries=TRAINING
    )
    use_rslora: bool = option(
        False, "Divide --lora_alpha by the root of the rank, not by the rank (rsLoRA).", entries=TRAINING
    )
    train_norms: bool = option(
        False, "Train the norms' own parameters (DyT's alpha and weight) beside the adapter.", entries=TRAINING
    )
    adapter: str | None = option(
        None,
        "Go on training this adapter, at step 0 with a fresh optimizer: a folder in peft's format, a checkpoint of an "
        "adapter's run, or its --save_dir. Rank, alpha, targets and kind are its own.",
        entries=TRAINING,
        metavar="PATH",
        path=True,
    )
    merge_adapter: bool = option(
        False,
        "At the end of the run, write --model_path with the adapter merged into its weights to merged/ in --save_dir, "
        "an ordinary HF folder.",
        entries=TRAINING,
    )

    @property
    def asked_for(self) -> bool:
        """Whether the run trains an adapter."""
        return self.lora_rank is not None or self.adapter is not None

    @property
    def flag(self) -> str:
        """The flag that asks for one."""
        return "adapter" if self.adapter is not None else "lora_rank"

    def of_a_new_one(self) -> dict[str, object]:
        """The flags that say what a new adapter is, and are given: by name; --lora_dropout may be another's too."""
        given = {
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
            "lora_targets": self.lora_targets if self.lora_targets != (ALL,) else None,
            "use_dora": self.use_dora or None,
            "use_rslora": self.use_rslora or None,
            "train_norms": self.train_norms or None,
        }
        return {name: value for name, value in given.items() if value is not None}


def problems(run: RunConfig, world_size: int | None, device: str | None) -> Iterator[Problem]:
    """What is wrong with the adapter that a run asks for, by the flags alone."""
    settings = run.adapter
    if not settings.asked_for:
        given = settings.of_a_new_one()
        given |= {"lora_dropout": settings.lora_dropout} if settings.lora_dropout is not None else {}
        given |= {"merge_adapter": True} if settings.merge_adapter else {}
        for name, value in given.items():
            reason, remedy = "has no effect without an adapter", "add --lora_rank or --adapter, or leave it out"
            yield Problem(name, value, reason, remedy, also=("lora_rank",), clause=True)
        return
    asked = settings.flag, getattr(settings, settings.flag)
    if run.model.model_path is None:
        reason, remedy = "needs weights to be trained beside", "give --model_path"
        yield Problem(*asked, reason, remedy, also=("model_path",), clause=True)
    if run.model.norm is not None:
        reason = "starts a norm anew that an adapter's run neither trains whole nor saves"
        yield Problem("norm", run.model.norm, reason, "leave it out", also=("lora_rank", "adapter"), clause=True)
    if settings.merge_adapter and "://" in (run.run.save_dir or "").removeprefix("file://"):
        reason, remedy = f"cannot write to --save_dir {run.run.save_dir}", "leave it out and merge it afterwards"
        yield Problem("merge_adapter", True, reason, remedy, also=("save_dir",), clause=True)
    if run.validation.score_held_out:
        reason = "reads a whole model from the last checkpoint, which holds an adapter alone"
        yield Problem("score_held_out", True, reason, "leave it out", also=("lora_rank", "adapter"), clause=True)
    if settings.adapter is not None:
        for name, value in settings.of_a_new_one().items():
            reason = f"contradicts --adapter {settings.adapter}, which brings its own"
            yield Problem(name, value, reason, "give one", also=("adapter",), clause=True)
        unknown = why_not_at(settings.adapter, "adapter")
        if unknown is not None:
            yield unknown
        elif not at(settings.adapter, "adapter").is_dir():
            remedy = "give a folder with an adapter_config.json, or a checkpoint of an adapter's run"
            yield Problem("adapter", settings.adapter, "no such folder", remedy)


OWNED = Owned({"adapter": AdapterSettings}, problems)
