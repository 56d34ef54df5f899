"""The loss without whole logits on a GPU: right in every precision, small, and without waiting for the device."""

import pytest
import torch
from torch.nn import functional as F

from llama_dyt.models import linear_cross_entropy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]


def make_inputs(tokens, hidden, vocabulary, dtype):
    torch.manual_seed(0)
    states = torch.randn(tokens, hidden, device="cuda").to(dtype).requires_grad_()
    weight = (3 * torch.randn(vocabulary, hidden, device="cuda") / hidden**0.5).to(dtype).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,), device="cuda")
    targets[::7] = -100
    return states, weight, targets


@pytest.mark.parametrize("chunk_rows", [None, 37])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_and_gradients_are_those_of_double_precision(dtype, z_loss, chunk_rows):
    states, weight, targets = make_inputs(333, 128, 4001, dtype)
    loss = linear_cross_entropy(states, weight, targets, z_loss=z_loss, chunk_rows=chunk_rows) / 333
    loss.backward()
    exact_states, exact_weight = (tensor.detach().double().requires_grad_() for tensor in (states, weight))
    logits = exact_states @ exact_weight.T
    exact = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum") / 333
    (exact + (z_loss * logits.logsumexp(-1).square())[targets != -100].sum() / 333).backward()
    bound = max(4 * torch.finfo(dtype).eps, 1e-5)
    assert loss.item() == pytest.approx(exact.item(), rel=bound)
    for ours, theirs in ((states.grad, exact_states.grad), (weight.grad, exact_weight.grad)):
        assert ours.dtype == dtype
        assert float((ours.double() - theirs).norm() / theirs.norm()) < 2 * bound


def test_a_vocabulary_of_128k_needs_at_most_two_fifths_of_the_memory_of_whole_logits():
    def peak(loss_of):
        inputs = make_inputs(8192, 2048, 128256, torch.bfloat16)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss_of(*inputs).backward()
        return torch.cuda.max_memory_allocated() - before

    whole = peak(lambda states, weight, targets: F.cross_entropy(F.linear(states, weight).float(), targets))
    assert peak(linear_cross_entropy) <= 0.4 * whole


def test_nothing_waits_for_the_device():
    states, weight, targets = make_inputs(512, 64, 1000, torch.bfloat16)
    linear_cross_entropy(states, weight, targets, z_loss=1e-4, chunk_rows=128).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        linear_cross_entropy(states, weight, targets, z_loss=1e-4, chunk_rows=128).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
