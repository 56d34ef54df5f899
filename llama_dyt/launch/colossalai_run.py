"""The `colossalai` command, with host files as people write them and the programs of its own environment.

The engine takes every line of a host file for a name, comments too; it starts whatever `torchrun` is on PATH, and there
is none outside an activated environment; and its processes for the hosts, each with an ssh connection, live on when the
command is killed, and wait for ever for a machine that is lost. scripts/setup.sh puts this in place of its command.
"""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import sys
from typing import Any

from llama_dyt.core.connections import give_up_after
from llama_dyt.core.errors import EXIT_STATUS, ConfigurationError, LlamaDytError
from llama_dyt.core.processes import end_with_parent
from llama_dyt.launch import shell_line
from llama_dyt.launch.hosts import read_hosts

_SILENT_SECONDS = 60
"""After which a machine that nothing comes from, not even the answers of its kernel, counts as failed."""


def main() -> None:
    """Run Colossal-AI's command line; ends the process."""
    # For this machine and, with the rest of the environment, for the others: they have the same paths.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    from colossalai.cli import cli, launcher

    _have_hosts_end_with_the_command()
    launch = launcher.launch_multi_processes
    launcher.launch_multi_processes = lambda args: launch(_prepared(args))
    try:
        cli(prog_name="colossalai")
    except LlamaDytError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_STATUS)


def _have_hosts_end_with_the_command() -> None:
    engine = importlib.import_module("colossalai.cli.launcher.multinode_runner")
    run_on_host, command = engine.run_on_host, os.getpid()

    def run_while_the_command_does(host: Any, workdir: str, receives: Any, sends: Any, env: dict[str, str]) -> None:
        end_with_parent(command)
        if host.is_local_host:  # which has this environment as it is
            env = {name: value for name, value in env.items() if name == shell_line.ALWAYS}
        connection = _noticing_silence(engine.fabric.Connection)
        engine.fabric.Connection = shell_line.handing_over(connection, shell_line.secrets_of(env))
        run_on_host(host, shell_line.escaped(workdir), receives, sends, shell_line.pasted(env))

    engine.run_on_host = run_while_the_command_does


def _noticing_silence(connection: type) -> type:
    """Upstream's `fabric.Connection` waits without end for a machine that is lost with its network; this one fails."""

    class Connection(connection):
        def open(self) -> Any:
            opened = super().open()
            self.transport.set_keepalive(max(_SILENT_SECONDS // 4, 1))
            give_up_after(self.transport.sock.fileno(), _SILENT_SECONDS)
            return opened

    return Connection


def _prepared(args: Any) -> Any:
    """The arguments of `colossalai run` as the engine understands them.

    Raises:
        ConfigurationError: the host file cannot be used, or contradicts --nproc_per_node; or nothing could be started.
    """
    if shutil.which("torchrun") is None:
        raise ConfigurationError(
            f"`colossalai run` starts torchrun, and {os.path.dirname(sys.executable)} has none, nor the rest of PATH; "
            "set up the environment again: bash scripts/setup.sh"
        )
    if args.hostfile:
        hosts = read_hosts(args.hostfile)
        if args.nproc_per_node is None:
            args.nproc_per_node = hosts.slots
        if hosts.slots not in (None, args.nproc_per_node):
            raise ConfigurationError(
                f"--hostfile {args.hostfile} says slots={hosts.slots} and --nproc_per_node {args.nproc_per_node}; "
                "leave one out, or give both the same number"
            )
        _take_hosts(hosts.names)
    # The engine joins these with spaces, for a shell to take apart again.
    args.user_script, args.user_args = shlex.quote(args.user_script), [shlex.quote(word) for word in args.user_args]
    if args.nproc_per_node is None:
        raise ConfigurationError("--nproc_per_node is missing: the number of processes on each machine, one a GPU")
    return args


def _take_hosts(names: list[str]) -> None:
    """Have the engine take these for what stands in its host file."""
    from colossalai.cli.launcher.hostinfo import HostInfo, HostInfoList

    engine = importlib.import_module("colossalai.cli.launcher.run")  # whose name in the package is a command's

    def fetch_hostfile(hostfile_path: str, ssh_port: int) -> HostInfoList:
        pool = HostInfoList()
        for name in names:
            pool.append(HostInfo(hostname=name, port=ssh_port))
        return pool

    engine.fetch_hostfile = fetch_hostfile


if __name__ == "__main__":
    main()
