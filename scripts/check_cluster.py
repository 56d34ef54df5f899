"""Looks at the machines of a run before it is launched: are they reached, are they alike, are their links fast.

    python scripts/check_cluster.py --hostfile hosts.txt --save_dir /shared/runs/a --path '/shared/data/*.jsonl'
    srun and sbatch: python scripts/check_cluster.py, within an allocation, looks at its machines

Prints a table, and a line for each fault with what to do. Status 0: nothing is wrong; 1: something is; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llama_dyt.core.errors import EXIT_STATUS, ConfigurationError
from llama_dyt.core.store import SCHEME
from llama_dyt.launch.cluster.examine import Asked, examine
from llama_dyt.launch.cluster.faults import Limits, faults_of
from llama_dyt.launch.cluster.machines import reach_of, slurm_hosts
from llama_dyt.launch.cluster.table import as_json, sum_in_words, table_of
from llama_dyt.launch.hosts import read_hosts
from llama_dyt.launch.shell_line import passed_on


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Look at the machines of a run before it is launched.")
    add = parser.add_argument
    add("--hostfile", help="one machine a line, as for colossalai run; none: those of the Slurm job this is in")
    add("--path", action="append", default=[], help="data or a checkpoint that all see alike; s3://… too; repeatable")
    add("--save_dir", help="where the run is to write")
    add("--free_gb", type=float, default=10.0, help="free room that --save_dir is to have")
    add("--gpus", type=int, help="GPUs that each machine is to have; none: as many as most have")
    add("--master_port", type=int, default=29500, help="port of the first machine on which ranks are to meet")
    add("--clock", type=float, default=1.0, metavar="SECONDS", help="how far clocks may be apart")
    add("--megabytes", type=int, default=64, help="sent between each two and summed over all; 0 for neither")
    add("--timeout", type=float, default=10.0, metavar="SECONDS", help="for a connection and a small answer")
    add("--ssh", default="ssh", help="the command that reaches a machine, with options of your own")
    add("--json", action="store_true", help="print all that was found as JSON")
    return parser.parse_args(words)


def absolute(path: str) -> str:
    """A path of this folder, for every machine; an address of a store as it is."""
    return path if SCHEME.match(path) else os.path.join(os.getcwd(), os.path.expanduser(path))


def main() -> int:
    flags = parse()
    hosts = read_hosts(flags.hostfile).names if flags.hostfile else slurm_hosts(os.environ)
    if not hosts:
        raise ConfigurationError("which machines? give --hostfile, or run it within a Slurm job")
    if flags.megabytes < 0 or flags.timeout <= 0 or not 0 < flags.master_port < 65536:
        raise ConfigurationError("--megabytes may not be negative, --timeout must be above 0, --master_port is a port")
    reach = reach_of(flags.ssh, not flags.hostfile, flags.timeout)
    save_dir = absolute(flags.save_dir) if flags.save_dir else None
    paths, given = tuple(map(absolute, flags.path)), passed_on(os.environ)
    asked = Asked(paths, save_dir, flags.master_port, flags.megabytes, flags.timeout, given)
    found = examine(hosts, reach, asked)
    limits = Limits(flags.clock, flags.free_gb, flags.gpus)
    faults = faults_of(found, limits, flags.master_port, reach.remedy)
    if flags.json:
        print(json.dumps(as_json(found, faults), indent=1))
    else:
        print("\n".join([table_of(found, faults), "", *sum_in_words(found, flags.megabytes)]))
        print("\n".join(map(str, faults)) or f"{len(hosts)} machines, nothing wrong")
    return 1 if faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_STATUS)
