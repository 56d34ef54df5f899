"""What is asked of all machines, many at a time, and what they answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from llama_dyt.core.errors import LlamaDytError
from llama_dyt.launch.cluster.machines import Agent, Reach, start_agents

_CLOCK_TIMES = 5
_FACTS_SECONDS = 120
_THREADS = 64


@dataclass(frozen=True)
class Asked:
    """What is to be found out.

    Attributes:
        paths: data and checkpoints that all must see alike.
        save_dir: where the run is to write; None: nowhere.
        port: that ranks are to meet on, of the first machine.
        megabytes: sent between each two, and summed over all; 0 measures no bandwidth and sums nothing.
        timeout: seconds that one machine may take for an answer of the network's.
        environment: what each machine is given of this one's before it is asked, as `colossalai run` does.
    """

    paths: tuple[str, ...] = ()
    save_dir: str | None = None
    port: int = 29500
    megabytes: int = 16
    timeout: float = 10.0
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Findings:
    """What was found, of machines by their names in the order given.

    Attributes:
        silent: why a machine did not answer.
        facts: of `facts.facts`.
        skew: seconds that a machine's clock is ahead of the first's.
        port_taken: why the port cannot be had on the first machine; None where it can.
        unreached: machines that cannot reach the port, and why.
        links: (from, to) → of `links.measure`.
        all_reduce: machine → of `links.all_reduce`; empty where it was not tried.
    """

    hosts: list[str]
    silent: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    skew: dict[str, float] = field(default_factory=dict)
    port_taken: str | None = None
    unreached: dict[str, str] = field(default_factory=dict)
    links: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    all_reduce: dict[str, dict[str, Any]] = field(default_factory=dict)


def examine(hosts: Sequence[str], reach: Reach, asked: Asked) -> Findings:
    """Start agents, ask, and end them whatever happens."""
    found = Findings(list(hosts))
    agents, found.silent = start_agents(hosts, reach)
    try:
        if agents:
            _ask_for_facts(agents, asked, found)
            _compare_clocks(agents, asked, found)
            _try_port(agents, asked, found)
            _measure_links(agents, asked, found)
            if asked.megabytes and len(agents) > 1 and len(agents) == len(hosts):
                _sum_over_all(agents, asked, found)
    finally:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(Agent.end, agents.values()))
    return found


def _on_all(
    agents: dict[str, Agent], action: Callable[[str], Any], found: Findings, hosts: Sequence[str] | None = None
) -> dict[str, Any]:
    """What `action` returns for each machine, at once; one that fails is silent from then on, and no agent any more.

    Args:
        hosts: ask these of them alone.
    """

    def attempt(host: str) -> Any:
        try:
            return action(host)
        except LlamaDytError as error:
            found.silent[host] = str(error)
            return None

    hosts = list(agents if hosts is None else hosts)
    with ThreadPoolExecutor(_THREADS) as pool:
        answers = dict(zip(hosts, pool.map(attempt, hosts), strict=True))
    for host in hosts:
        if host in found.silent:
            agents.pop(host).end()
    return {host: answer for host, answer in answers.items() if host in agents}


def _ask_for_facts(agents: dict[str, Agent], asked: Asked, found: Findings) -> None:
    first = next(iter(agents))
    paths = list(asked.paths)
    _on_all(agents, lambda host: agents[host].ask("take_over", asked.timeout, environment=asked.environment), found)
    if first in found.silent:
        return

    def ask(host: str, token: str | None) -> dict[str, Any]:
        return agents[host].ask("facts", _FACTS_SECONDS, paths=paths, save_dir=asked.save_dir, token=token)

    found.facts = _on_all(agents, lambda host: ask(host, None), found, [first])
    if first in found.silent:
        return
    room = found.facts[first]["save_dir"]
    token = room["token"] if room else None
    others = [host for host in agents if host != first]
    found.facts |= _on_all(agents, lambda host: ask(host, token or "."), found, others)
    if token:
        agents[first].ask("remove", asked.timeout, folder=room["folder"], token=token)


def _compare_clocks(agents: dict[str, Agent], asked: Asked, found: Findings) -> None:
    def offset(host: str) -> float:
        """Against this machine, of the quickest of a few answers."""
        best = (float("inf"), 0.0)
        for _ in range(_CLOCK_TIMES):
            start = time.time()
            theirs = agents[host].ask("clock", asked.timeout)
            end = time.time()
            best = min(best, (end - start, theirs - (start + end) / 2))
        return best[1]

    offsets = _on_all(agents, offset, found)
    zero = next(iter(offsets.values()), 0.0)
    found.skew = {host: offset - zero for host, offset in offsets.items()}


def _try_port(agents: dict[str, Agent], asked: Asked, found: Findings) -> None:
    if not agents or next(iter(agents)) != found.hosts[0]:
        return
    first = found.hosts[0]
    opened = agents[first].ask("listen", asked.timeout, port=asked.port)
    found.port_taken = opened.get("error")
    if found.port_taken is None:
        ask = {"host": first, "port": asked.port, "megabytes": 0, "timeout": asked.timeout}
        others = [host for host in agents if host != first]
        answers = _on_all(agents, lambda host: agents[host].ask("measure", 10 * asked.timeout, **ask), found, others)
        found.unreached = {host: answer["error"] for host, answer in answers.items() if "error" in answer}
    agents[first].ask("close", asked.timeout)


def rounds(hosts: Sequence[str]) -> list[list[tuple[str, str]]]:
    """All pairs, in rounds in which no machine stands twice: the circle of a tournament."""
    circle: list[str | None] = [*hosts, *([None] if len(hosts) % 2 else [])]
    found = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        pairs = zip(circle[:half], reversed(circle[half:]), strict=True)
        found.append([(a, b) for a, b in pairs if a is not None and b is not None])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return found


def _measure_links(agents: dict[str, Agent], asked: Asked, found: Findings) -> None:
    opened = _on_all(agents, lambda host: agents[host].ask("listen", asked.timeout, port=0), found)
    ports = {host: answer["port"] for host, answer in opened.items() if "port" in answer}
    for pairs in rounds(list(ports)):
        ends = {a: b for a, b in pairs if a in agents and b in agents}

        def measure(host: str, ends: dict[str, str] = ends) -> dict[str, Any]:
            to = ends[host]
            ask = {"host": to, "port": ports[to], "megabytes": asked.megabytes, "timeout": asked.timeout}
            return agents[host].ask("measure", 20 * asked.timeout, **ask)

        answers = _on_all(agents, measure, found, list(ends))
        found.links |= {(host, ends[host]): answer for host, answer in answers.items()}
    _on_all(agents, lambda host: agents[host].ask("close", asked.timeout), found)


def _sum_over_all(agents: dict[str, Agent], asked: Asked, found: Findings) -> None:
    hosts = list(agents)
    free = agents[hosts[0]].ask("listen", asked.timeout, port=0)["port"]
    agents[hosts[0]].ask("close", asked.timeout)
    limit = max(6 * asked.timeout, 60)

    def ask(host: str) -> dict[str, Any]:
        place = {"rank": hosts.index(host), "world": len(hosts), "address": hosts[0], "port": free}
        return agents[host].ask("all_reduce", 2 * limit, megabytes=asked.megabytes, timeout=limit, **place)

    found.all_reduce = _on_all(agents, ask, found)
