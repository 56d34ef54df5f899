"""Which process of a run this is, as its launcher tells: plain `python`, `torchrun`, `colossalai run` or `srun`."""

from __future__ import annotations

import os
import re
import runpy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.place import Place

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

    @property
    def place(self) -> Place:
        """Where this process stands among the others."""
        return Place(self.rank, self.world_size, self.local_rank, self.master_address, self.master_port)


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
    # Only srun's own tasks have the variables of a step. A plain `python` in a batch script has those of the job: the
    # number of all its tasks, and rank 0.
    if _integer(env, "SLURM_STEP_NUM_TASKS", 1) > 1:
        # A port from the job's number: two jobs sharing a machine must not meet on a fixed one.
        job = _integer(env, "SLURM_JOB_ID", 0)
        return ProcessEnvironment(
            rank=_integer(env, "SLURM_PROCID"),
            world_size=_integer(env, "SLURM_STEP_NUM_TASKS"),
            local_rank=_integer(env, "SLURM_LOCALID", 0),
            master_address=env.get("MASTER_ADDR") or first_slurm_host(env.get("SLURM_STEP_NODELIST", "")),
            master_port=_integer(env, "MASTER_PORT", 20_000 + job % _SLURM_PORTS),
            launcher="srun",
            local_world_size=_tasks_on_node(env.get("SLURM_STEP_TASKS_PER_NODE", ""), env.get("SLURM_NODEID", "")),
        )
    return ProcessEnvironment()


def launch_warnings(environment: ProcessEnvironment, env: Mapping[str, str] | None = None) -> list[str]:
    """What a person may not have meant in how the run was started.

    Args:
        environment: of `read_environment`.
        env: the environment; the process's own when None.
    """
    tasks = (os.environ if env is None else env).get("SLURM_NTASKS", "")
    if environment.launcher == "python" and tasks.isdigit() and int(tasks) > 1:
        return [f"this Slurm job has {tasks} tasks, and without srun this is a run of one process: srun python …"]
    return []


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
    """First host of Slurm's compressed list: `gpu[03-07,11],login1` gives `gpu03`, `r[1-2]n[05,9]-ib` gives `r1n05-ib`.

    Raises:
        ConfigurationError: it names no host.
    """
    # Commas part hosts outside of brackets and numbers inside; what stands first in every bracket is the first host's.
    first = re.match(r"(?:[^,\[\]]|\[\d[\d,-]*\])+", node_list.strip())
    if not first or node_list.strip()[first.end() :][:1] not in ("", ","):
        raise ConfigurationError(
            f"SLURM_STEP_NODELIST is {node_list!r}: no list of hosts; set MASTER_ADDR to the first machine's name"
        )
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0])


def _tasks_on_node(tasks_per_node: str, node: str) -> int | None:
    """Tasks on node number `node`, of Slurm's list `8(x3),4`; None where it does not say."""
    counts = [
        int(count)
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node)
        for _ in range(int(times or 1))
    ]
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else None


def device_type() -> str:
    """ "cuda" where this torch build sees a GPU, else "cpu"; a build that can see none is not imported to be asked."""
    if "torch" not in sys.modules and not _built_for_gpus():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _built_for_gpus() -> bool:
    torch = find_spec("torch")
    version = runpy.run_path(str(Path(torch.origin).with_name("version.py"))) if torch and torch.origin else {}
    return version.get("cuda") is not None or version.get("hip") is not None
