"""What is wrong with a cluster, each fault in one line with what to do: pure arithmetic over what was found."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from llama_dyt.launch.cluster.examine import Findings
from llama_dyt.launch.cluster.machines import no_python

_SLOW = 0.5
"""Of the median bandwidth, under which a link is called slow."""
_LATE = 5.0
"""Times the median round trip, above which a link is called late, where it is also above a millisecond."""
_GIGABYTE = 1e9


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        host: the machine, or "a, b" of a link.
        what: what was found.
        remedy: what to do.
    """

    host: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.host}: {self.what}; {self.remedy}"

    def as_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """What is still well.

    Attributes:
        skew: seconds between clocks.
        free_gb: free room where the run writes.
        gpus: on each machine; None: as many as most have.
    """

    skew: float = 1.0
    free_gb: float = 10.0
    gpus: int | None = None


def faults_of(found: Findings, limits: Limits, port: int, reach_remedy: str) -> list[Fault]:
    """Everything that is wrong, machines in their order."""
    return [
        *_silence(found, reach_remedy),
        *_unlike(found),
        *_clocks(found, limits),
        *_port(found, port),
        *_files(found),
        *_save_dir(found, limits),
        *_gpus(found, limits),
        *_links(found),
        *_all_reduce(found),
    ]


def _silence(found: Findings, remedy: str) -> Iterator[Fault]:
    for host, why in found.silent.items():
        if no_python(why):
            what = f"this Python or this code is not there at the path they have here ({why})"
            yield Fault(host, what, "share the file system, or clone and bash scripts/setup.sh at the same path there")
        elif host in found.facts:
            yield Fault(host, f"it stopped answering ({why})", "look at its load, memory and network")
        else:
            yield Fault(host, f"it cannot be reached ({why})", remedy)


def _usual(values: list[Any]) -> Any:
    """What most have; of a tie the first machine's."""
    counts = Counter(map(str, values))
    return max(values, key=lambda value: counts[str(value)]) if values else None


def _unlike(found: Findings) -> Iterator[Fault]:
    """What must be the same everywhere and is not."""
    remedies = {
        "Python": "run the same .venv, or bash scripts/setup.sh there",
        "the code": "copy or check out the same commit there",
        "the driver": "install the same driver, or leave the machine out",
    }
    of_host = {
        host: {
            "Python": facts["python"],
            **facts["versions"],
            "the code": facts["code"],
            "the driver": ", ".join(sorted({gpu["driver"] for gpu in facts["gpus"]})) or "none",
        }
        for host, facts in found.facts.items()
    }
    for name in next(iter(of_host.values()), {}):
        usual = _usual([had[name] for had in of_host.values()])
        for host, had in of_host.items():
            if had[name] == usual:
                continue
            commit = found.facts[host]["commit"] if name == "the code" else None
            what = f"{name} is {had[name]}{f' (commit {commit})' if commit else ''}, elsewhere {usual}"
            yield Fault(host, what, remedies.get(name, "bash scripts/setup.sh there"))


def _clocks(found: Findings, limits: Limits) -> Iterator[Fault]:
    usual = statistics.median_low(found.skew.values()) if found.skew else 0.0
    for host, skew in found.skew.items():
        ahead = skew - usual
        if abs(ahead) > limits.skew:
            what = f"its clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the others'"
            yield Fault(host, what, "start chrony or ntpd there: times of files and logs would mislead")


def _port(found: Findings, port: int) -> Iterator[Fault]:
    if found.port_taken is not None:
        remedy = "give another --master_port to this and to the launcher, or end what holds it (ss -ltnp)"
        yield Fault(found.hosts[0], f"port {port}, where ranks would meet, cannot be had ({found.port_taken})", remedy)
    for host, why in found.unreached.items():
        what = f"it cannot reach port {port} of {found.hosts[0]} ({why})"
        yield Fault(host, what, "open all ports between the machines (firewall, security group)")


def _files(found: Findings) -> Iterator[Fault]:
    for path in next(iter(found.facts.values()), {"files": {}})["files"]:
        seen = {host: facts["files"][path] for host, facts in found.facts.items()}
        whole = [one["hash"] for one in seen.values() if one["files"] and one["error"] is None]
        usual = _usual(whole)
        for host, one in seen.items():
            if one["error"] is not None:
                yield Fault(host, f"{path} cannot be read ({one['error']})", "mend its permissions or its mount there")
            elif one["files"] == 0:
                yield Fault(host, f"{path} is not there", "mount or copy it there, at the same path")
            elif one["hash"] != usual:
                what = f"{path} is other than elsewhere ({one['files']} files, {one['bytes']:,} bytes)"
                yield Fault(host, what, "copy it again, or mount the same there")


def _save_dir(found: Findings, limits: Limits) -> Iterator[Fault]:
    rooms = {host: facts["save_dir"] for host, facts in found.facts.items() if facts["save_dir"] is not None}
    shared_by_first = next(iter(rooms.values()))["token"] if rooms else None
    for host, room in rooms.items():
        if room["error"] is not None:
            yield Fault(host, f"{room['folder']} cannot be written ({room['error']})", "give a --save_dir that can")
        elif shared_by_first is not None and room["token"] is None:
            what = f"{room['folder']} is another folder than on {next(iter(rooms))}"
            yield Fault(host, what, "give a --save_dir on a file system that all machines share")
        if room["free"] is not None and room["free"] < limits.free_gb * _GIGABYTE:
            what = f"{room['folder']} has {room['free'] / _GIGABYTE:.2f} GB free, fewer than {limits.free_gb:g}"
            yield Fault(host, what, "make room, or give another --save_dir (--free_gb says what is enough)")


def _gpus(found: Findings, limits: Limits) -> Iterator[Fault]:
    counts = {host: len(facts["gpus"]) for host, facts in found.facts.items()}
    wanted = limits.gpus if limits.gpus is not None else _usual(list(counts.values()))
    for host, facts in found.facts.items():
        if facts["why_no_gpus"] is not None:
            yield Fault(host, facts["why_no_gpus"], "reload the driver or reboot it (dmesg names an Xid)")
        elif counts[host] != wanted:
            what = f"it has {counts[host]} GPUs, and {wanted} are wanted"
            yield Fault(host, what, "look for one that fell off the bus (dmesg, nvidia-smi), or leave the machine out")
        for gpu in facts["gpus"]:
            name = f"GPU {gpu['index']} ({gpu['name']})"
            if gpu["uncorrected"].isdigit() and int(gpu["uncorrected"]) > 0:
                yield Fault(host, f"{name} has {gpu['uncorrected']} uncorrected memory errors", "reset or replace it")
            causes = {"slowed_by_hardware": "its hardware", "slowed_by_heat": f"heat, {gpu['celsius']} C"}
            for field, words in causes.items():
                if gpu[field] == "Active":
                    yield Fault(host, f"{name} is slowed down by {words}", "look at its cooling and power")


def _links(found: Findings) -> Iterator[Fault]:
    whole = [link for link in found.links.values() if "error" not in link]
    speeds = [link["bits_per_second"] for link in whole if link["bits_per_second"] is not None]
    usual, trip = (statistics.median(values) if values else 0.0 for values in (speeds, [w["seconds"] for w in whole]))
    for (a, b), link in found.links.items():
        if "error" in link:
            remedy = "open all ports between the machines; see that names lead to the same network"
            yield Fault(f"{a}, {b}", f"{a} cannot reach {b} ({link['error']})", remedy)
            continue
        speed = link["bits_per_second"]
        if speed is not None and speed < _SLOW * usual and len(speeds) > 2:
            what = f"{in_bits(speed)} between them, {in_bits(usual)} between most"
            yield Fault(f"{a}, {b}", what, "look at cable, port and negotiated rate (ethtool) of both")
        if link["seconds"] > max(_LATE * trip, 1e-3) and len(whole) > 2:
            what = f"{1e3 * link['seconds']:.2f} ms for a round trip, {1e3 * trip:.2f} between most"
            yield Fault(f"{a}, {b}", what, "look at their route: another rack, or another network (NCCL_SOCKET_IFNAME)")


def _all_reduce(found: Findings) -> Iterator[Fault]:
    for host, told in found.all_reduce.items():
        if "error" in told:
            remedy = "name the network (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME, NCCL_IB_HCA); see NCCL_DEBUG=INFO"
            yield Fault(host, f"an all-reduce over all machines failed ({told['error']})", remedy)


def in_bits(bits: float | None) -> str:
    return "-" if bits is None else f"{bits / 1e9:.2f} Gbit/s"
