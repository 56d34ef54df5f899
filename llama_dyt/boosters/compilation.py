"""The settings of compilation and the choice of attention: what a run gets, and what is wrong with it.

Both follow from flags, the plugin and what is installed together.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from llama_dyt.boosters.layout_problems import untraceable_layout
from llama_dyt.boosters.strategy import STRATEGIES, able
from llama_dyt.config.options import option
from llama_dyt.config.run import RunConfig
from llama_dyt.core.problem import Problem


@dataclass(frozen=True)
class SpeedSettings:
    """What makes steps faster, or spends time on memory, and changes no result."""

    compile: bool | None = option(
        None,
        "Compile the decoder layers with torch.compile, one graph for all of them. None compiles on CUDA where the "
        "plugin and the layout allow it, and not on a CPU, where a short run would only start later.",
    )
    auto_checkpointing: bool = option(
        False,
        "Recompute the activations of as few layers as the estimated memory of a rank allows: that of the device, of "
        "this machine's processes together on a CPU, or --memory_limit.",
    )


def compiles(run: RunConfig, device: str) -> bool:
    """Whether `run` compiles its layers on `device` ("cuda" or "cpu"): as asked for, else where it is the default."""
    if run.speed.compile is not None:
        return run.speed.compile
    return device.startswith("cuda") and _obstacle(run, device) is None


def compile_problems(run: RunConfig, device: str) -> Iterator[Problem]:
    """Why layers cannot be compiled though the run asks for it."""
    if run.speed.compile and (obstacle := _obstacle(run, device)):
        yield obstacle


def checkpointing_problems(run: RunConfig) -> Iterator[Problem]:
    """Two flags that each say which layers recompute."""
    if not run.speed.auto_checkpointing:
        return
    for name, given in (
        ("selective_checkpointing", run.model.selective_checkpointing is not None),
        ("gradient_checkpoint", run.model.gradient_checkpoint),
    ):
        if given:
            reason = f"contradicts --{name}, which says how many layers recompute"
            yield Problem("auto_checkpointing", True, reason, "leave one out", also=(name,), clause=True)


def attention_function(run: RunConfig, device: str) -> str:
    """transformers' name of the attention a run has: flash-attn's where asked for and to be had, else torch's, which
    chooses among its kernels (cuDNN's, flash, memory-efficient) by itself."""
    asked = run.model.flash_attention and device.startswith("cuda")
    able = asked and run.booster.mixed_precision != "fp32" and _installed("flash_attn")
    return "flash_attention_2" if able else "sdpa"


def attention_notices(run: RunConfig, device: str) -> Iterator[str]:
    """What a run that asks for flash attention gets in its place, and why."""
    if not run.model.flash_attention or attention_function(run, device) != "sdpa":
        return
    if not device.startswith("cuda"):
        yield "--flash_attention has no effect on a CPU: torch's scaled dot product attention is used"
    elif run.booster.mixed_precision == "fp32":
        yield "--flash_attention has no effect in fp32: torch's scaled dot product attention is used"
    else:
        yield (
            "--flash_attention: the flash-attn package is not installed, so torch's own flash attention is used; pip "
            "install -r requirements-cuda.txt for the package's"
        )


def _obstacle(run: RunConfig, device: str) -> Problem | None:
    """What keeps layers from being compiled, and what to do instead; None: nothing.

    The layouts were found by trying: what is left out has, within a layer, what the tracer of torch 2.13 refuses.
    """
    booster, plugin = run.booster, f"--plugin {run.booster.plugin}"
    if not STRATEGIES.get(booster.plugin).capability.compile:
        reason = f"{plugin} moves parameters in hooks that cannot be traced"
        return _uncompiled(reason, f"leave the flag out, or take one of {', '.join(able('compile'))}", "plugin")
    untraced = untraceable_layout(run)
    if untraced is not None:
        return untraced
    if attention_function(run, device) != "sdpa":
        return _uncompiled(
            "layers with the flash-attn package's kernels are not compiled",
            "leave out one of --compile and --flash_attention (torch's own flash attention can be compiled)",
            "flash_attention",
        )
    if not _has_compiler():
        reason = "torch.compile needs a C++ compiler (g++ or clang++, or $CXX)"
        return _uncompiled(reason, "install one, or leave the flag out")
    if device.startswith("cuda") and not _installed("triton"):
        reason = "torch.compile needs the triton package on CUDA"
        return _uncompiled(reason, "pip install triton, or leave the flag out")
    return None


def _uncompiled(reason: str, remedy: str, *also: str) -> Problem:
    return Problem("compile", True, reason, remedy, also=also)


def _has_compiler() -> bool:
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return any(name and shutil.which(name.split()[0]) for name in names)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
