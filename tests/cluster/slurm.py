"""A small Slurm on machines of namespaces: the real munged, slurmctld and slurmd, with files of its own alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.machines import Machine, environment

_PACKAGES = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_WAIT_SECONDS = 60
_CREDENTIALS_SECONDS = 5
"""How long credentials are good, and a requeued job waits before it may begin: 120 by default."""
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={first.name}({first.address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge.socket,cred_expire={seconds}
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=100000
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
KillWait=30
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A Slurm that takes jobs on the first machine."""

    first: Machine
    configuration: Path

    def run(self, *command: object, **variables: str) -> subprocess.CompletedProcess:
        """A command of Slurm's on the first machine, which succeeds."""
        env = environment(SLURM_CONF=str(self.configuration), **variables)
        ended = self.first.run(*command, env=env)
        assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}{self.logs()}"
        return ended

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED …"""
        said = self.run("scontrol", "--oneliner", "show", "job", job).stdout
        return dict(word.partition("=")[::2] for word in said.split())["JobState"]

    def wait_for(self, job: str, states: Sequence[str], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            assert time.monotonic() < deadline, f"job {job} is {state}\n{self.logs()}"
            time.sleep(0.5)

    def logs(self) -> str:
        logs = sorted(self.configuration.parent.glob("slurm*.log"))
        return "".join(f"\n{log.name}: …{log.read_text()[-1500:]}" for log in logs)


@contextmanager
def slurm(nodes: Sequence[Machine], folder: Path) -> Iterator[Slurm]:
    """Slurm on these machines; skips the test where its programs are missing."""
    missing = [package for program, package in _PACKAGES.items() if shutil.which(program, path=_PATH) is None]
    if missing:
        pytest.skip(f"a small Slurm needs {', '.join(missing)}: bash scripts/test_gear.sh")
    folder.mkdir()
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    configuration = folder / "slurm.conf"
    lines = [f"NodeName={node.name} NodeAddr={node.address} CPUs=2 RealMemory=1000 State=UNKNOWN" for node in nodes]
    first, written = nodes[0], {"seconds": _CREDENTIALS_SECONDS, "nodes": "\n".join(lines)}
    configuration.write_text(_CONFIGURATION.format(first=first, folder=folder, **written))
    found = Slurm(first, configuration)
    with ExitStack() as stack:

        def start(node: Machine, *command: object) -> None:
            log = stack.enter_context(open(folder / f"slurm-{Path(str(command[0])).name}-{node.name}.out.log", "w"))
            env = environment(SLURM_CONF=str(configuration))
            process = subprocess.Popen(node.words(*command), env=env, stdout=log, stderr=log, start_new_session=True)
            stack.callback(lambda: (process.kill(), process.wait()))

        for node in nodes:
            private = [f"--{name}=/run/munge.{name.partition('-')[0]}" for name in ("pid-file", "seed-file", "socket")]
            files = [f"--key-file={key}", f"--log-file={folder}/munged-{node.name}.log", *private]
            start(node, "munged", "--foreground", "--force", *files)
        start(first, "slurmctld", "-D", "-i")
        for node in nodes:
            start(node, "slurmd", "-D", "-N", node.name)
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            env = environment(SLURM_CONF=str(configuration))
            said = first.run("sinfo", "--noheader", "--Node", "--format=%N %T", env=env)
            states = dict(line.split() for line in said.stdout.splitlines() if len(line.split()) == 2)
            if said.returncode == 0 and states == {node.name: "idle" for node in nodes}:
                break
            assert time.monotonic() < deadline, f"{said.stdout}{said.stderr}{found.logs()}"
            time.sleep(0.2)
        yield found
