"""What was found, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llama_dyt.launch.cluster.examine import Findings
from llama_dyt.launch.cluster.faults import Fault, in_bits

_COLUMNS = ("machine", "python", "torch", "code", "GPUs", "clock", "data", "free", "round trip", "bandwidth", "faults")


def table_of(found: Findings, faults: list[Fault]) -> str:
    """A line a machine."""
    rows = [_COLUMNS, *(_row(host, found, faults) for host in found.hosts)]
    widths = [max(len(row[number]) for row in rows) for number in range(len(_COLUMNS))]
    return "\n".join("  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows)


def _row(host: str, found: Findings, faults: list[Fault]) -> tuple[str, ...]:
    count = sum(host in fault.host.split(", ") for fault in faults)
    facts = found.facts.get(host)
    if facts is None:
        return (host, *["-"] * (len(_COLUMNS) - 2), str(count))
    links = [link for pair, link in found.links.items() if host in pair and "error" not in link]
    speeds = [link["bits_per_second"] for link in links if link["bits_per_second"] is not None]
    room, skew = facts["save_dir"], found.skew.get(host)
    return (
        host,
        facts["python"],
        facts["versions"]["torch"],
        facts["code"][:8],
        str(len(facts["gpus"])),
        "-" if skew is None else f"{skew:+.3f} s",
        f"{sum(one['files'] for one in facts['files'].values())} files" if facts["files"] else "-",
        "-" if room is None or room["free"] is None else f"{room['free'] / 1e9:.1f} GB",
        f"{1e3 * max(link['seconds'] for link in links):.2f} ms" if links else "-",
        in_bits(min(speeds)) if speeds else "-",
        str(count),
    )


def sum_in_words(found: Findings, megabytes: int) -> Iterator[str]:
    """The all-reduce, where it was tried and went well."""
    well = [told for told in found.all_reduce.values() if "error" not in told]
    if well and len(well) == len(found.all_reduce):
        slowest = max(well, key=lambda told: told["seconds"])
        yield (
            f"all-reduce of {megabytes} MB over {len(well)} machines ({slowest['backend']}, one process each): "
            f"{1e3 * slowest['seconds']:.1f} ms, {in_bits(slowest['bits_per_second'])} on each link"
        )


def as_json(found: Findings, faults: list[Fault]) -> dict[str, Any]:
    """All that was found; `ok` says whether nothing is wrong."""
    return {
        "ok": not faults,
        "hosts": found.hosts,
        "faults": [fault.as_json() for fault in faults],
        "facts": found.facts,
        "clock_skew_seconds": found.skew,
        "links": [{"from": a, "to": b, **link} for (a, b), link in found.links.items()],
        "all_reduce": found.all_reduce,
    }
