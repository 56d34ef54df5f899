import pytest
import torch

from llama_dyt.training import peak
from llama_dyt.training.peak import best_matmul_tflops, listed_peak_tflops, measured_matmul_tflops, peak_tflops


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


def test_an_unlisted_device_has_a_measured_peak_and_says_so(monkeypatch):
    monkeypatch.setitem(peak.MATMUL_SIZES, "cpu", (32, 256))
    rate, source = peak_tflops(torch.device("cpu"), torch.float32)
    assert rate > 0
    assert source.startswith("cpu: measured float32 matmul of ") and source.endswith("threads")


def test_the_measured_peak_is_the_best_of_its_sizes(monkeypatch):
    rates = {32: 2.0, 64: 3.0}
    monkeypatch.setitem(peak.MATMUL_SIZES, "cpu", tuple(rates))
    monkeypatch.setattr(peak, "measured_matmul_tflops", lambda device, dtype, size, seconds: rates[size])
    assert best_matmul_tflops(torch.device("cpu"), torch.float32) == (3.0, 64)


def test_measuring_leaves_the_runs_random_numbers_alone():
    before = torch.get_rng_state()
    assert measured_matmul_tflops(torch.device("cpu"), torch.float32, size=64, seconds=0.0) > 0
    assert torch.equal(torch.get_rng_state(), before)
