"""Joining the process group, whoever started the processes: plain `python`, `torchrun`, `colossalai run` or `srun`.

Its own file because this is the one moment at which the adaptations of the engine are applied, before anything else of
Colossal-AI is touched, and because reading the environment of three launchers has nothing to do with training.
"""

from __future__ import annotations

import atexit
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from llama_dyt.errors import ConfigurationError

_SLURM_PORTS = 10_000


@dataclass(frozen=True)
class ProcessEnvironment:
    """Which process of the run this one is, as its launcher told it.

    Attributes:
        rank: 0 … world_size-1 over all machines.
        world_size: number of processes.
        local_rank: number of this process on its machine; selects the GPU.
        local_world_size: number of processes on this machine; None where the launcher does not say.
        master_address, master_port: where rank 0 listens.
        launcher: "python", "torchrun" (also `colossalai run`, which starts it) or "srun"; for messages.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    master_address: str = "127.0.0.1"
    master_port: int = 0
    launcher: str = "python"
    local_world_size: int | None = None


def read_environment(env: Mapping[str, str] | None = None) -> ProcessEnvironment:
    """Read the launcher's variables without joining anything.

    Args:
        env: the environment; the process's own when None.

    Raises:
        ConfigurationError: a variable is missing or is not a number.
    """
    env = os.environ if env is None else env
    if "RANK" in env and "WORLD_SIZE" in env:
        return ProcessEnvironment(
            rank=_integer(env, "RANK"),
            world_size=_integer(env, "WORLD_SIZE"),
            local_rank=_integer(env, "LOCAL_RANK", 0),
            master_address=env.get("MASTER_ADDR", "127.0.0.1"),
            master_port=_integer(env, "MASTER_PORT", 29500),
            launcher="torchrun",
            local_world_size=_integer(env, "LOCAL_WORLD_SIZE", 0) or None,
        )
    if int(env.get("SLURM_NTASKS", "1") or 1) > 1 and "SLURM_PROCID" in env:
        # A port from the job's number: two jobs sharing a machine must not meet on a fixed one.
        job = int(env.get("SLURM_JOB_ID", "0"))
        return ProcessEnvironment(
            rank=_integer(env, "SLURM_PROCID"),
            world_size=_integer(env, "SLURM_NTASKS"),
            local_rank=_integer(env, "SLURM_LOCALID", 0),
            master_address=env.get("MASTER_ADDR") or first_slurm_host(env.get("SLURM_NODELIST", "")),
            master_port=_integer(env, "MASTER_PORT", 20_000 + job % _SLURM_PORTS),
            launcher="srun",
            local_world_size=_integer(env, "SLURM_NTASKS_PER_NODE", 0) or None,
        )
    return ProcessEnvironment()


def _integer(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = env.get(name)
    if value is None and default is not None:
        return default
    try:
        return int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"environment variable {name} is {value!r}, expected an integer: start the run with torchrun, "
            "`colossalai run` or srun, or unset RANK and WORLD_SIZE to run one process"
        ) from None


def first_slurm_host(node_list: str) -> str:
    """First host of Slurm's compressed list: `gpu[03-07,11],login1` gives `gpu03`."""
    match = re.match(r"([^,\[]+)(?:\[([^\]]+)\])?([^,\[]*)", node_list)
    if not match:
        raise ConfigurationError(
            f"SLURM_NODELIST is {node_list!r}: no host name in it; set MASTER_ADDR to the first machine's name"
        )
    prefix, ranges, suffix = match.groups()
    first = re.split(r"[,-]", ranges)[0] if ranges else ""
    return prefix + first + suffix


def device_type() -> str:
    """ "cuda" where this torch build sees a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def launch(seed: int, environment: ProcessEnvironment | None = None) -> ProcessEnvironment:
    """Adapt the engine, join the process group (nccl on CUDA, gloo on a CPU) and seed every generator.

    Called once, by an entry or a test's worker, before a booster is made.

    Raises:
        ConfigurationError: the launcher's variables do not describe a run, or a GPU is missing for a local rank.
    """
    environment = environment or read_environment()
    if device_type() == "cuda" and environment.local_rank >= torch.cuda.device_count():
        raise ConfigurationError(
            f"local rank {environment.local_rank} has no GPU: this machine has {torch.cuda.device_count()}; start at "
            "most one process a GPU (--nproc_per_node)"
        )

    from .compat import apply_compat  # importing the engine takes seconds: not before it is needed

    apply_compat()
    if device_type() == "cpu":
        from .host import use_host_accelerator

        use_host_accelerator()

    import colossalai

    port = environment.master_port or _free_port()
    colossalai.launch(
        rank=environment.rank,
        world_size=environment.world_size,
        host=environment.master_address,
        port=port,
        local_rank=environment.local_rank,
        seed=seed,
        verbose=False,
    )
    atexit.register(shutdown)
    return environment


def shutdown() -> None:
    """Leave the process group; safe to call twice. Without it torch warns at the end of a good run."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
