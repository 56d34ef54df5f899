"""scripts/check_cluster.py on machines that are well, and on machines each of which has faults of its own."""

from __future__ import annotations

import glob
import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from llama_dyt.core.store import at
from llama_dyt.core.stores.s3 import STORE
from llama_dyt.launch.cluster.examine import Findings, rounds
from llama_dyt.launch.cluster.faults import Limits, faults_of
from tests.cluster.machines import Machine, environment, machines
from tests.forks import ROOT
from tests.s3_server import BUCKET, SECRET, Fault, use

SCRIPT = ROOT / "scripts/check_cluster.py"


def check(node: Machine, *flags: object) -> subprocess.CompletedProcess:
    return node.run("python", SCRIPT, "--hostfile", "hosts.txt", *flags, env=environment())


def write_files(folder: Path, count: int) -> None:
    (folder / "hosts.txt").write_text("".join(f"node{number}\n" for number in range(1, count + 1)))
    (folder / "data").mkdir()
    (folder / "save").mkdir()
    for name in ("a", "b"):
        (folder / f"data/{name}.jsonl").write_text('{"text": "some"}\n' * 99)


def test_machines_that_are_well(tmp_path):
    with machines(2, tmp_path, ssh=True) as nodes:
        write_files(tmp_path, 2)
        flags = ("--path", "data/*.jsonl", "--save_dir", "save/run", "--free_gb", "0.1", "--megabytes", "4")
        ended = check(nodes[0], *flags)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        head, *rows = ended.stdout.splitlines()[:3]
        assert head.split()[:4] == ["machine", "python", "torch", "code"]
        assert [row.split()[0] for row in rows] == ["node1", "node2"] and "2 files" in rows[1] and "Gbit/s" in rows[1]
        assert "all-reduce of 4 MB over 2 machines (gloo, one process each)" in ended.stdout
        assert "2 machines, nothing wrong" in ended.stdout
        assert list((tmp_path / "save").iterdir()) == []  # its own file is gone again


def test_each_fault_is_told_with_its_machine_and_what_to_do(tmp_path):
    (library,) = glob.glob("/usr/lib/*/faketime/libfaketime.so.1") or [None]
    if library is None:
        pytest.skip("another clock needs libfaketime: bash scripts/test_gear.sh")
    ahead = f"SetEnv LD_PRELOAD={library} FAKETIME=+90s FAKETIME_DONT_FAKE_MONOTONIC=1"
    with machines(4, tmp_path, ssh=True, sshd={"node2": ahead}) as nodes:
        write_files(tmp_path, 4)
        of_transformers = Path(distribution("transformers")._path) / "METADATA"
        (tmp_path / "older").write_text(of_transformers.read_text().replace("\nVersion: ", "\nVersion: 1.", 1))
        assert nodes[1].run("mount", "--bind", tmp_path / "older", of_transformers).returncode == 0
        for folder in ("data", "save"):
            mount = ("mount", "-t", "tmpfs", "-o", "size=1M", "none", tmp_path / folder)
            assert nodes[2].run(*mount).returncode == 0
        nodes[3].cut()
        holder = nodes[0].start("python", "-m", "http.server", "29500", env=environment())
        for_the_port = "until (: </dev/tcp/127.0.0.1/29500) 2>/dev/null; do sleep 0.05; done"
        assert nodes[0].run("bash", "-c", for_the_port).returncode == 0
        flags = ("--path", "data", "--save_dir", "save", "--free_gb", "0.1", "--megabytes", "0", "--timeout", "3")
        ended = check(nodes[0], *flags, "--json")
        holder.kill()
    assert ended.returncode == 1 and ended.stdout, ended.stderr
    told = json.loads(ended.stdout)
    of_host = {host: [f["what"] for f in told["faults"] if f["host"] == host] for host in told["hosts"]}
    assert told["ok"] is False and all(fault["remedy"] for fault in told["faults"])
    assert [what.split(" cannot be had")[0] for what in of_host["node1"]] == ["port 29500, where ranks would meet,"]
    version, clock = of_host["node2"]
    assert version.startswith("transformers is 1.") and clock.startswith("its clock is 9") and "ahead" in clock
    data, save, room = of_host["node3"]
    assert data == f"{tmp_path}/data is not there" and save == f"{tmp_path}/save is another folder than on node1"
    assert room == f"{tmp_path}/save has 0.00 GB free, fewer than 0.1"
    (silent,) = of_host["node4"]
    assert silent.startswith("it cannot be reached (ssh: connect to host node4 port 22")


@pytest.mark.parametrize("fault", [None, Fault("", "denied")])
def test_a_store_is_asked_on_each_machine_with_the_credentials_of_this_one(fault, s3_server, tmp_path, monkeypatch):
    s3 = use(s3_server, monkeypatch, tmp_path / "cache")
    STORE.write_text(at(f"s3://{BUCKET}/text/a.jsonl"), '{"text": "some"}\n')
    s3.faults += [fault] if fault else []
    (tmp_path / "hosts.txt").write_text("another\n")
    reach = tmp_path / "reach"  # a shell that knows nothing of this environment, as sshd starts it
    reach.write_text(f'#!/bin/bash\nexec env -i PATH=/usr/bin:/bin HOME={tmp_path} bash -c "${{@: -1}}"\n')
    reach.chmod(0o755)
    words = ["--hostfile", "hosts.txt", "--ssh", str(reach), "--megabytes", "0", "--json"]
    words += ["--path", f"s3://{BUCKET}/text/*.jsonl", "--save_dir", f"s3://{BUCKET}/run"]
    ended = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, cwd=tmp_path)
    told = json.loads(ended.stdout)
    whats = [f["what"] for f in told["faults"] if not f["what"].startswith("port")]
    if fault is None:
        assert told["facts"]["another"]["files"][f"s3://{BUCKET}/text/*.jsonl"]["files"] == 1 and whats == []
    else:
        data, save = whats
        assert data.startswith(f"s3://{BUCKET}/text/*.jsonl cannot be read (") and "no permission" in data
        assert save.startswith(f"s3://{BUCKET}/run cannot be written (") and "no permission" in save
    assert SECRET not in ended.stdout + ended.stderr


def test_wrong_usage_is_told_in_one_line(tmp_path):
    (tmp_path / "hosts.txt").write_text("node[1-4]\n")
    for words, reason in [
        ([], "which machines? give --hostfile"),
        (["--hostfile", str(tmp_path / "hosts.txt")], "'node[1-4]' is no host name"),
        (["--hostfile", str(ROOT / "hostfiles/this_machine.txt"), "--timeout", "0"], "--timeout must be above 0"),
    ]:
        ended = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, env=environment())
        assert ended.returncode == 2 and ended.stderr.startswith("error: ") and reason in ended.stderr


def test_every_pair_is_measured_once_and_no_machine_twice_at_a_time():
    for count in range(1, 9):
        hosts = [f"node{number}" for number in range(count)]
        found = rounds(hosts)
        pairs = [frozenset(pair) for pairs in found for pair in pairs]
        assert len(pairs) == len(set(pairs)) == count * (count - 1) // 2
        assert all(len({host for pair in pairs for host in pair}) == 2 * len(pairs) for pairs in found)


def gpu(**changes: str) -> dict[str, str]:
    fields = {"index": "0", "name": "H100", "driver": "570", "celsius": "40", "uncorrected": "0"}
    return {**fields, "slowed_by_hardware": "Not Active", "slowed_by_heat": "Not Active", **changes}


def test_gpus_and_links_that_stand_out_are_told():
    common = {"python": "3", "versions": {}, "code": "c", "commit": None, "files": {}, "save_dir": None}
    common |= {"why_no_gpus": None}
    hosts = ["a", "b", "c"]
    facts = {host: {**common, "gpus": [gpu(), gpu(index="1")]} for host in hosts}
    facts["b"]["gpus"] = [gpu(uncorrected="3", slowed_by_heat="Active", celsius="91", driver="550")]
    links = {(a, b): {"seconds": 1e-4, "bits_per_second": 1e10} for a, b in [("a", "b"), ("a", "c"), ("b", "c")]}
    links["b", "c"] = {"seconds": 9e-3, "bits_per_second": 1e9}
    found = Findings(hosts, facts=facts, links=links, skew=dict.fromkeys(hosts, 0.0))
    faults = [str(fault) for fault in faults_of(found, Limits(), 29500, "")]
    assert [fault.split(";")[0] for fault in faults] == [
        "b: the driver is 550, elsewhere 570",
        "b: it has 1 GPUs, and 2 are wanted",
        "b: GPU 0 (H100) has 3 uncorrected memory errors",
        "b: GPU 0 (H100) is slowed down by heat, 91 C",
        "b, c: 1.00 Gbit/s between them, 10.00 Gbit/s between most",
        "b, c: 9.00 ms for a round trip, 0.10 between most",
    ]
