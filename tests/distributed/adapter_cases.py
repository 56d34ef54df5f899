"""Adapters over layouts: what peft itself computes in one process, and what the processes of a pool make of the same.

Its own file because the reference shares nothing with the code it judges but the model below peft's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

from llama_dyt.boosters.boosted import Boosted, sum_over_ranks
from llama_dyt.boosters.state_bytes import measure_state_bytes
from llama_dyt.core.environment import ProcessEnvironment
from llama_dyt.models import InitialWeights, empty_model, recompute_activations
from llama_dyt.models.adapters import Adapter, AdapterFiles, adapter_asked_for, attach, read_adapter
from llama_dyt.training.checkpoint.contents import ADAPTER
from llama_dyt.training.checkpoint.model_files import save_adapter_files
from llama_dyt.training.checkpoint.reader import Checkpoint
from llama_dyt.training.checkpoint.writer import CheckpointWriter
from llama_dyt.training.loop import Trainer
from llama_dyt.training.optimizer import parameter_groups
from llama_dyt.training.plan import Plan
from llama_dyt.training.session import Session
from llama_dyt.training.sizing.memory import MemoryEstimate, estimate_memory, stage_parts
from tests.distributed import small_run, training_cases
from tests.distributed.reference import loss_of
from tests.distributed.small_run import Layout
from tests.distributed.training_cases import Trace

NUM_STEPS = 3
SAVE_AT = 3
ONE = ProcessEnvironment(0, 1)
PREFIX = "base_model.model."

KINDS: dict[str, dict[str, Any]] = {
    "linears": {"target_modules": "all-linear"},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head", "o_proj"]},
    "DoRA": {"target_modules": ["q_proj", "o_proj", "up_proj", "down_proj"], "use_dora": True},
    "tied": {"target_modules": ["embed_tokens", "q_proj", "down_proj"]},
    "DoRA everywhere, norms too": {
        "target_modules": ["v_proj", "down_proj", "embed_tokens", "lm_head"],
        "use_dora": True,
        "use_rslora": True,
        "modules_to_save": ["input_layernorm", "post_attention_layernorm", "norm"],
    },
    "mistral_7b": {"target_modules": "all-linear"},
    "gemma_2b": {"target_modules": ["embed_tokens", "q_proj", "o_proj", "gate_proj"], "use_dora": True},
    "phi_2": {
        "target_modules": ["q_proj", "dense", "fc1", "fc2", "lm_head"],
        "use_dora": True,
        "modules_to_save": ["input_layernorm", "final_layernorm"],
    },
}
"""What is asked of peft's LoraConfig; on a LLaMA with DyT unless MODELS says otherwise."""
MODELS: dict[str, dict[str, Any]] = {
    "tied": {"tied": True},
    "mistral_7b": {"family": "mistral_7b", "norm": "rmsnorm"},
    "gemma_2b": {"family": "gemma_2b", "norm": "unit_offset_rmsnorm", "tied": True},
    "phi_2": {"family": "phi_2", "norm": "layernorm"},
}
"""What `small_run.model_config` is given for a kind."""


@dataclass
class Adapted:
    """What a run of an adapter computed. Tensors are whole, and here only on the rank that would write them.

    Attributes:
        gradients: of the first step.
        losses, grad_norms: of every step.
        weights: of the adapter, after the last step.
        frozen: name → SHA-256 of what this rank holds of the parameter, before and after.
        moments: how many numbers Adam has moments of, on this rank.
    """

    gradients: dict[str, torch.Tensor]
    losses: list[float]
    grad_norms: list[float]
    weights: dict[str, torch.Tensor]
    frozen: tuple[dict[str, str], dict[str, str]] = ({}, {})
    moments: int = 0


def num_layers(layout: Layout) -> int:
    """Few, but one for every chunk of a pipeline."""
    return max(2, layout.pp * layout.booster.model_chunks)


def save_with_peft(kind: str, folder: Path, layers: int = 2) -> nn.Module:
    """An adapter of random values on the small model, saved by peft; returns peft's model, in train mode."""
    import peft

    torch.manual_seed(5)
    base = small_run.small_model(num_layers=layers, **MODELS.get(kind, {}))
    model = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=7, **KINDS[kind]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(str(folder))
    return model.train()


def train_with_peft(kind: str, folder: Path, layers: int = 2) -> Adapted:
    """Train that adapter with torch's own clipping and optimizer, in one process."""
    model = save_with_peft(kind, folder, layers)
    trained = {our_name(name): held for name, held in model.named_parameters() if held.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(), lr=small_run.LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=small_run.WEIGHT_DECAY
    )
    gradients, losses, norms = {}, [], []
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        gradients = gradients or {name: held.grad.clone() for name, held in trained.items()}
        norms.append(torch.nn.utils.clip_grad_norm_(trained.values(), small_run.CLIPPING).item())
        losses.append(loss.item())
        optimizer.step()
    return Adapted(gradients, losses, norms, {name: held.detach().clone() for name, held in trained.items()})


def our_name(name: str) -> str:
    """The name of one of peft's parameters as its files, and this program, have it."""
    name = name.removeprefix(PREFIX).replace(".modules_to_save.default", "").replace(".default", "")
    return name.removesuffix(".weight") if name.endswith("lora_magnitude_vector.weight") else name


def boost(run: Any, folder: Path, layers: int, kind: str) -> Boosted:
    """The small model with the adapter in a folder, under the run's plugin."""
    model = empty_model(small_run.model_config(num_layers=layers, **MODELS.get(kind, {})))
    recompute_activations(model, run.model.recomputed_share)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    adapter: Adapter = read_adapter(folder, model)
    attach(model, adapter)
    base = InitialWeights(shapes, model.config, small_run.SEED)
    groups = parameter_groups(model, run.optimizer.weight_decay, run.optimizer.decay_all_parameters)
    with AdapterFiles(folder) as stored:
        in_files = stored.shapes()
        return Boosted(run, model, groups, lambda name: (stored if name in in_files else base).read(name))


def frozen_digests(boosted: Boosted) -> dict[str, str]:
    trained = set(boosted.state.sizes())
    parts = ((name, part) for name, key, part in boosted.state.own_parts() if name not in trained and key == "param")
    return {name: digest(part) for name, part in parts}


def digest(part: torch.Tensor) -> str:
    return hashlib.sha256(part.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def train(layout: Layout, precision: str, folder: str, kind: str, accumulation: int = 1, **flags: Any) -> Adapted:
    """Train the adapter in a folder, on every rank of a pool."""
    run = small_run.run_config(layout, precision, accumulation, model_path="base", norm=None, adapter=folder, **flags)
    boosted = boost(run, Path(folder), num_layers(layout), kind)
    before = frozen_digests(boosted)
    gradients: dict[str, torch.Tensor] = {}
    losses, norms = [], []
    for step in islice(small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size), NUM_STEPS):
        boosted.set_learning_rate(run.optimizer.lr)
        losses += sum_over_ranks([boosted.forward_backward(step)], boosted.device)
        if not norms:
            gradients = {name: whole for name, whole in boosted.state.gradients() if whole is not None}
        norms.append(boosted.optimizer_step().grad_norm)
    names = list(boosted.state.sizes())
    weights = {name: tensors["param"] for name, tensors in boosted.state.gather(names) if tensors is not None}
    moments = sum(state["exp_avg"].numel() for state in boosted.optimizer.optim.state.values())
    return Adapted(gradients, losses, norms, weights, (before, frozen_digests(boosted)), moments)


# --- through the trainer's own session and checkpoints -----------------------------------------------------------


def plan_of(layout: Layout, precision: str, base: str, resume_from: Path | None = None, **flags: Any) -> Plan:
    """A new adapter's run on the weights in a folder, as its entry would resolve it."""
    asked = {"lora_rank": 4, "lora_dropout": 0.1, "train_norms": True, "lora_targets": ["all", "embed_tokens"], **flags}
    schedule = {"lr_scheduler": "cosine", "warmup_steps": 4}
    run = small_run.run_config(layout, precision, model_path=base, norm=None, **schedule, **asked)
    config = small_run.model_config(num_layers=num_layers(layout))
    return Plan(
        run=run,
        environment=ProcessEnvironment(dist.get_rank(), layout.world_size) if dist.is_initialized() else ONE,
        device="cpu",
        model_config=config,
        weights_folder=Path(base),
        adapter=adapter_asked_for(run.adapter, empty_model(config)),
        checkpoint=Checkpoint(resume_from) if resume_from else None,
    )


def start(plan: Plan, folder: str | None = None) -> Trainer:
    """The trainer of a run as an entry gets it, in the process group that the pool made."""
    session = "llama_dyt.training.session"
    with mock.patch(f"{session}.launch"), mock.patch(f"{session}.Speedometer"):
        started = Session(plan)
    writer = None
    if folder is not None:
        files = partial(save_adapter_files, plan.adapter, started._base, None)
        writer = CheckpointWriter(Path(folder), started.boosted.state, started.grid, files, contents=ADAPTER)
    return started.make_trainer(training_cases.TOTAL_STEPS, writer=writer)


def resume(layout: Layout, precision: str, base: str, folder: str) -> tuple[Trace, Trace, dict[str, str]]:
    """Six steps, a checkpoint among them, and those after it again in a run that began with another seed.

    Returns:
        Both, and of what tensor-parallel ranks hold alike, what this rank has: name → SHA-256.
    """
    straight = Trace()
    trainer = start(plan_of(layout, precision, base), folder)
    with training_cases.open_batches(trainer, None) as batches:
        training_cases.follow(trainer, batches, straight, SAVE_AT)
        trainer.save()
        training_cases.follow(trainer, batches, straight, SAVE_AT)
    path = trainer.checkpointing.writer.last_path
    training_cases.finish(trainer, straight)
    alike = {
        name: digest(part)
        for name, key, part in trainer.boosted.state.own_parts()
        if key == "param" and name.endswith(("q_proj.lora_A.weight", "o_proj.lora_B.weight", "embedding_B"))
    }

    resumed = Trace()
    trainer = start(plan_of(layout, precision, base, path, seed=small_run.SEED + 1))
    with training_cases.open_batches(trainer, None) as batches:
        training_cases.follow(trainer, batches, resumed, SAVE_AT)
    return straight, training_cases.finish(trainer, resumed), alike


def load(layout: Layout, precision: str, base: str, path: str) -> dict[str, torch.Tensor]:
    """The adapter and its moments that a run holds which resumed from a checkpoint."""
    return training_cases.tensors_of(start(plan_of(layout, precision, base, Path(path))))


def model_states(layout: Layout, precision: str, base: str) -> dict[str, int]:
    """Bytes this rank holds after its first step, by what `--dry_run` calls them; gradients before that step ends."""
    boosted = start(plan_of(layout, precision, base)).boosted
    boosted.forward_backward(next(small_run.batches(boosted.run, boosted.grid.dp_rank, boosted.grid.dp_size)))
    gradients = measure_state_bytes(boosted).gradients
    boosted.optimizer_step()
    held = measure_state_bytes(boosted)
    return {"parameters": held.weights, "gradients": gradients, "optimizer": held.optimizer_state}


def estimated(layout: Layout, precision: str) -> list[MemoryEstimate]:
    """The same as estimated, of every pipeline stage."""
    plan = plan_of(layout, precision, "base")
    parts = stage_parts(plan.run, plan.model_config, plan.adapter)
    return estimate_memory(plan.run, plan.model_config, layout.world_size, parts=parts)
