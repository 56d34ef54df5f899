"""Joining the process group, whoever started the processes: the one moment at which the adaptations of the engine are
applied, before anything else of Colossal-AI is touched."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta

import torch
import torch.distributed as dist

from llama_dyt.core import ranks
from llama_dyt.core.environment import ProcessEnvironment, device_type, read_environment
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.launch import DEFAULT_TIMEOUT_SECONDS


def device_connections(given: str | None, launcher: str, tensor_parallel: bool) -> str | None:
    """What CUDA_DEVICE_MAX_CONNECTIONS is to be; None: not set.

    With tensor parallelism 1, so that the kernels of a collective begin before those that overlap with it, unless the
    user says otherwise. Without, 1 forbids what FSDP and ZeRO overlap: what the user set stays, but for a 1 that comes
    through torchrun, since `colossalai run` sets it for every process it starts.

    Args:
        given: its value in the environment.
    """
    if tensor_parallel:
        return given or "1"
    return None if launcher == "torchrun" and given == "1" else given


def launch(
    seed: int,
    environment: ProcessEnvironment | None = None,
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
    tensor_parallel: bool = False,
) -> ProcessEnvironment:
    """Adapt the engine, join the process group (nccl on CUDA, gloo on a CPU) and seed every generator.

    Called once, by an entry or a test's worker, before a booster is made.

    Args:
        timeout: seconds that ranks wait for each other, here and later (--timeout).
        tensor_parallel: whether the run is (`device_connections`).

    Raises:
        ConfigurationError: the launcher's variables do not describe a run, or a GPU is missing for a local rank.
        TrainingError: a rank did not come.
    """
    environment = environment or read_environment()
    if device_type() == "cuda" and environment.local_rank >= torch.cuda.device_count():
        raise ConfigurationError(
            f"local rank {environment.local_rank} has no GPU: this machine has {torch.cuda.device_count()}; start at "
            "most one process a GPU (--nproc_per_node)"
        )

    from llama_dyt.boosters.engine.compat import DEVICE_CONNECTIONS  # importing the engine takes seconds

    from llama_dyt.boosters.adaptation import adapt_engine

    # Before the first use of CUDA, which reads it once.
    wanted = device_connections(os.environ.pop(DEVICE_CONNECTIONS, None), environment.launcher, tensor_parallel)
    if wanted is not None:
        os.environ[DEVICE_CONNECTIONS] = wanted
    adapt_engine(device_type())

    # What upstream `colossalai.launch` does, with a store that is waited for as `core.ranks` waits.
    from colossalai.accelerator import get_accelerator
    from colossalai.utils import set_seed

    accelerator = get_accelerator()
    if accelerator.support_set_device:
        accelerator.set_device(environment.local_rank)
    store = ranks.join(environment.place, timeout, device_type())
    dist.init_process_group(
        accelerator.communication_backend,
        store=store,
        rank=environment.rank,
        world_size=environment.world_size,
        timeout=timedelta(seconds=timeout),
    )
    ranks.open_group()
    set_seed(seed)
    atexit.register(shutdown)
    return environment


def shutdown() -> None:
    """Leave the process group; safe to call twice. Without it torch warns at the end of a good run."""
    ranks.leave()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
