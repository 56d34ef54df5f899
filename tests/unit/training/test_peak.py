"""The peak that utilisation divides by: found by name, or measured so that it repeats."""

import os
import signal

import pytest
import torch

from llama_dyt.training.measurement import peak
from llama_dyt.training.measurement.peak import listed_peak_tflops, measure_matmul, peak_tflops


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H20", 148.0),
        ("NVIDIA GH200 480GB", 989.0),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA RTX A4000", None),
        ("something new", None),
    ],
)
def test_a_name_finds_its_own_data_sheet_and_no_other(name, tflops):
    assert listed_peak_tflops(name) == tflops


CPU = torch.device("cpu")


def test_an_unlisted_device_has_a_measured_peak_and_says_so(monkeypatch):
    monkeypatch.setitem(peak.MATMUL_SIZES, "cpu", (32, 256))
    rate, source = peak_tflops(CPU, torch.float32)
    assert rate > 0
    assert source.startswith("cpu: measured float32 matmul of ") and " threads" in source


def test_rounds_go_on_while_they_find_more_and_the_best_is_the_peak(monkeypatch):
    """A clock that rises for four rounds, on which the larger size is the better one."""
    asked = []

    def rate(left, right, out, device):
        asked.append(len(left))
        number = (len(asked) + 1) // 2
        return min(number, 4) * (1.0 if len(left) == 32 else 1.5)

    monkeypatch.setattr(peak, "_rate", rate)
    found = measure_matmul(CPU, torch.float32, (32, 64), seconds=60.0)
    assert (found.tflops, found.size) == (6.0, 64)
    assert asked == [32, 64] * (4 + 3)


def test_the_peak_repeats_where_the_machine_is_idle():
    found = [measure_matmul(CPU, torch.float32) for _ in range(2)]
    if any(one.is_doubtful for one in found):
        pytest.skip(f"not idle: {max(one.busy_processors for one in found):.1f} processors work for others")
    low, high = sorted(one.tflops for one in found)
    assert high <= 1.05 * low


def test_a_machine_that_is_not_idle_is_told(monkeypatch):
    monkeypatch.setitem(peak.MATMUL_SIZES, "cpu", (256,))
    monkeypatch.setattr(peak, "_SETTLED_ROUNDS", 200)  # long enough for the kernel's ticks of 10 ms
    child = os.fork()
    if not child:
        while True:
            pass
    try:
        _, source = peak_tflops(CPU, torch.float32)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert "not idle: " in source and "processors worked for others" in source


def test_the_work_of_the_runs_own_processes_is_not_that_of_others():
    others = peak._WorkOfOthers()
    others._all = others._own = 0.0
    others._now = lambda: (others._wall + 2.0, 1.5, 5.0)
    assert others.processors(own=1) == pytest.approx(1.75)
    assert others.processors(own=3) == pytest.approx(0.25)
    assert others.processors(own=4) == 0.0


def test_measuring_leaves_the_runs_random_numbers_alone():
    before = torch.get_rng_state()
    assert measure_matmul(CPU, torch.float32, (64,), seconds=0.0).tflops > 0
    assert torch.equal(torch.get_rng_state(), before)
