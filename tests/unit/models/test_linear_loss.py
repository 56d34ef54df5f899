"""The loss without whole logits: equal to the loss of logits, in any chunks, and no more memory than it promises."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import tiny_model, tokens
from torch.library import opcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from llama_dyt.models import CausalLmLoss, linear_cross_entropy
from llama_dyt.models.ops import linear_loss

OPERATION = torch.ops.llama_dyt.linear_cross_entropy.default


def inputs(num_tokens, width, vocabulary, seed, dtype=torch.float32, ignored=0.3):
    """Hidden states, weight and targets; logits spread over several units."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, width, generator=generator).to(dtype)
    weight = (3 * torch.randn(vocabulary, width, generator=generator) / width**0.5).to(dtype)
    targets = torch.randint(0, vocabulary, (num_tokens,), generator=generator)
    targets[torch.rand(num_tokens, generator=generator) < ignored] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def exact(hidden, weight, targets, z_loss):
    """Summed loss and both gradients in double precision, of whole logits."""
    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    logits = hidden @ weight.T
    loss = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
    penalty = (z_loss * logits.logsumexp(-1).square())[targets != -100].sum()
    (loss + penalty).backward()
    return loss.detach(), hidden.grad, weight.grad


def distance(value, reference):
    """Norm of the difference by that of the reference; of itself where that is 0."""
    return float((value.double() - reference).norm() / (reference.norm() if reference.any() else 1))


sizes = st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(2, 150), st.integers(0, 10**6))


@given(sizes, st.integers(1, 45), st.sampled_from([0.0, 0.1]), st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=60)
def test_loss_and_gradients_are_those_of_whole_logits_in_any_chunks(size, chunk_rows, z_loss, ignored):
    hidden, weight, targets = inputs(*size, ignored=ignored)
    loss = linear_cross_entropy(hidden, weight, targets, z_loss=z_loss, chunk_rows=chunk_rows)
    loss.backward()
    whole, for_hidden, for_weight = exact(hidden, weight, targets, z_loss)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6, abs=1e-5)
    assert distance(hidden.grad, for_hidden) < 3e-6
    assert distance(weight.grad, for_weight) < 3e-6
    assert hidden.grad[targets == -100].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@given(sizes, st.integers(1, 45), st.sampled_from([0.0, 0.1]))
@settings(max_examples=20)
def test_half_precision_is_no_further_off_than_with_whole_logits(dtype, size, chunk_rows, z_loss):
    hidden, weight, targets = inputs(*size, dtype=dtype)
    loss = linear_cross_entropy(hidden, weight, targets, z_loss=z_loss, chunk_rows=chunk_rows)
    (loss / 7).backward()
    assert hidden.grad.dtype == weight.grad.dtype == dtype
    whole, for_hidden, for_weight = exact(hidden, weight, targets, z_loss)
    rounding = torch.finfo(dtype).eps
    # Logits of several units are rounded by the product in half precision, here and there alike.
    assert loss.item() == pytest.approx(whole.item(), rel=4 * rounding, abs=4 * rounding * len(targets))
    assert distance(hidden.grad * 7, for_hidden) < 6 * rounding
    assert distance(weight.grad * 7, for_weight) < 6 * rounding


def test_the_weights_gradient_is_added_up_in_fp32_and_rounded_once():
    hidden, weight, targets = inputs(512, 8, 40, seed=0, dtype=torch.bfloat16)
    gradients = []
    for chunk_rows in (512, 2):
        weight.grad = None
        linear_cross_entropy(hidden, weight, targets, chunk_rows=chunk_rows).backward()
        gradients.append(weight.grad)
    assert distance(gradients[1], gradients[0].double()) < torch.finfo(torch.bfloat16).eps / 2


def test_the_loss_of_many_chunks_loses_nothing_in_its_sum():
    hidden, weight, targets = inputs(20_000, 4, 8, seed=0)
    loss = linear_cross_entropy(hidden.detach(), weight.detach(), targets, chunk_rows=1)
    assert loss.item() == pytest.approx(exact(hidden, weight, targets, 0.0)[0].item(), rel=1e-7)


def test_inputs_of_any_layout_are_taken():
    hidden, weight, targets = inputs(24, 6, 30, seed=1)
    expected = linear_cross_entropy(hidden, weight, targets)
    expected.backward()
    strided = hidden.detach().reshape(4, 6, 6).transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    wide = torch.empty(30, 12)
    wide[:, ::2] = weight.detach()
    columns = wide.requires_grad_()
    loss = linear_cross_entropy(strided, columns[:, ::2], targets.view(4, 6), chunk_rows=5)
    loss.backward()
    assert not strided.is_contiguous()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(strided.grad.reshape(24, 6), hidden.grad)
    torch.testing.assert_close(columns.grad[:, ::2], weight.grad)


@pytest.mark.parametrize(("wants_hidden", "wants_weight"), [(True, False), (False, True), (False, False)])
def test_only_gradients_that_are_wanted_are_made(wants_hidden, wants_weight):
    hidden, weight, targets = inputs(20, 6, 30, seed=2)
    whole, for_hidden, for_weight = exact(hidden, weight, targets, 0.0)
    hidden.requires_grad_(wants_hidden)
    weight.requires_grad_(wants_weight)
    loss = linear_cross_entropy(hidden, weight, targets, chunk_rows=7)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    assert loss.requires_grad == (wants_hidden or wants_weight)
    if loss.requires_grad:
        loss.backward()
    assert (hidden.grad is not None, weight.grad is not None) == (wants_hidden, wants_weight)
    if wants_hidden:
        assert distance(hidden.grad, for_hidden) < 1e-6
    if wants_weight:
        assert distance(weight.grad, for_weight) < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("learning", [True, False])
def test_a_value_that_is_not_finite_shows_in_the_loss(value, counted, learning):
    """Also at a token without a target: its zero gradient times what is not finite would spoil all weights below."""
    hidden, weight, targets = inputs(9, 6, 30, seed=3, ignored=0)
    targets[4] = 1 if counted else -100
    with torch.no_grad():
        hidden[4, 2] = value
    with torch.set_grad_enabled(learning):
        assert not linear_cross_entropy(hidden, weight, targets, chunk_rows=2).isfinite()


def test_logits_too_far_apart_for_exponentials_are_no_trouble():
    hidden = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.5]], requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1, 1]))
    loss.backward()
    assert loss.item() == 2000.0
    assert hidden.grad.tolist() == [[2.0], [0.0]] and weight.grad.tolist() == [[1000.0], [-1000.0], [0.0]]


def test_no_tokens_make_no_loss():
    hidden, weight, targets = inputs(0, 6, 30, seed=4)
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert loss.item() == 0 and weight.grad.eq(0).all()


def test_a_target_beyond_the_vocabulary_is_refused():
    hidden, weight, targets = inputs(9, 6, 30, seed=5, ignored=0)
    targets[3] = 30
    with pytest.raises(RuntimeError, match="out of bounds"):
        linear_cross_entropy(hidden, weight, targets)


def test_backward_may_run_twice():
    hidden, weight, targets = inputs(9, 6, 30, seed=5)
    loss = linear_cross_entropy(hidden, weight, targets)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(2 * loss, (hidden, weight))
    assert all(torch.equal(2 * a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_a_proper_operation(dtype):
    hidden, weight, targets = inputs(9, 6, 30, seed=6, dtype=dtype)
    opcheck(OPERATION, (hidden, weight, targets, 0.1, "", 0, 30, 4, True, True), rtol=1e-2, atol=1e-2)
    opcheck(OPERATION, (hidden, weight.detach(), targets, 0.0, "", 0, 30, 4, True, False), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("num_tokens", "vocabulary", "device_type"),
    [(8192, 32000, "cpu"), (2048, 4096, "cpu"), (8192, 128256, "cpu"), (8192, 128256, "cuda"), (3, 10**9, "cuda")],
)
def test_chunks_fill_their_memory_and_no_more(num_tokens, vocabulary, device_type):
    rows = linear_loss.rows_of_chunk(num_tokens, vocabulary, device_type)
    most = linear_loss.CHUNK_BYTES[device_type]
    assert 1 <= rows <= num_tokens
    assert rows == 1 or 4 * rows * vocabulary <= most
    assert rows == num_tokens or 4 * 3 * rows * vocabulary > most  # not needlessly small


class LargestTensor(TorchDispatchMode):
    """The most numbers in any tensor that an operation returns, those inside the loss among them."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is OPERATION:  # a mode is off inside what it dispatches
            with self:
                return linear_loss._linear_cross_entropy._init_fn(*args)
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize(
    ("rows", "skip", "largest"),
    # Without whole logits the feed-forward block's hidden states are the largest; else the logits.
    [(8, None, 4 * 64 * 96), (8, False, 4 * 64 * 131), (4 * 64, None, 4 * 64 * 131)],
)
def test_no_tensor_of_a_training_step_is_as_large_as_the_logits(monkeypatch, rows, skip, largest):
    monkeypatch.setitem(linear_loss.CHUNK_BYTES, "cpu", 4 * 131 * rows)
    model = tiny_model().train()
    ids = tokens(batch=4, length=64)
    with LargestTensor() as seen:
        model(ids, labels=ids, skip_logits=skip).loss.backward()
    assert seen.largest == largest


@pytest.mark.parametrize("norm", ["dyt", "rmsnorm"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_learns_the_same_with_and_without_logits(norm, tied, monkeypatch):
    monkeypatch.setitem(linear_loss.CHUNK_BYTES, "cpu", 4 * 131 * 5)
    model = tiny_model(norm, tie_word_embeddings=tied).train()
    ids = tokens()
    labels = ids.clone()
    labels[0, :7] = -100
    results = {}
    for skip in (None, False):
        model.zero_grad()
        out = model(ids, labels=labels, skip_logits=skip)
        out.loss.backward()
        assert (out.logits is None) == (skip is None)
        results[skip] = out.loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}
    assert results[None][0] == pytest.approx(results[False][0], rel=1e-6)
    for name, gradient in results[False][1].items():
        # An alpha's gradient is a sum in which almost all cancels.
        assert (results[None][1][name] - gradient).norm() < 1e-5 * gradient.norm() + 1e-8, name


def test_logits_are_there_whenever_they_could_be_wanted():
    model = tiny_model()
    ids = tokens()
    assert model(ids, labels=ids).logits.shape == (2, 24, 131)
    assert model(ids, labels=ids, skip_logits=True).logits is None
    assert model.train()(ids, labels=ids).logits is None
    assert model(ids).logits.shape == model(ids, labels=ids, skip_logits=False).logits.shape == (2, 24, 131)
    assert model(ids, skip_logits=True).logits is not None  # there is no loss to make in their place


def test_a_head_that_is_more_than_its_weight_is_called():
    model = tiny_model().train()
    ids = tokens()
    plain = model(ids, labels=ids).loss
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: output * 2)
    hooked = model(ids, labels=ids)
    assert hooked.logits is not None and hooked.loss.item() != plain.item()
    handle.remove()

    class Adapted(torch.nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden) * 2

    model.lm_head.__class__ = Adapted
    assert model(ids, labels=ids).loss.item() == hooked.loss.item()


@pytest.mark.parametrize("skip", [True, False])
def test_z_loss_is_in_the_gradient_and_not_in_the_loss(skip):
    model = tiny_model().train()
    ids = tokens()
    labels = ids.clone()
    labels[:, :5] = -100

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    out = model(ids, labels=labels, skip_logits=False)
    counted = labels[:, 1:] != -100
    penalty = out.logits[:, :-1].logsumexp(-1).square()[counted].sum() / counted.sum()
    expected = gradients(out.loss + 0.01 * penalty)
    plain = model(ids, labels=labels, skip_logits=skip).loss.item()
    model.loss_function = CausalLmLoss(z_loss=0.01)
    loss = model(ids, labels=labels, skip_logits=skip).loss
    assert loss.item() == pytest.approx(plain, rel=1e-6)
    for name, gradient in gradients(loss).items():
        assert (gradient - expected[name]).norm() < 1e-5 * expected[name].norm() + 1e-8, name


def test_the_operation_follows_autocast():
    model = tiny_model().train()
    ids = tokens()
    with torch.autocast("cpu", torch.bfloat16):
        fused = model(ids, labels=ids).loss
        plain = model(ids, labels=ids, skip_logits=False).loss
    fused.backward()
    assert fused.dtype == torch.float32 and fused.item() == pytest.approx(plain.item(), rel=1e-6)
    assert model.lm_head.weight.grad.dtype == torch.float32


def test_a_model_with_its_loss_compiles_without_graph_breaks():
    model = tiny_model().train()
    ids = tokens()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = model(ids, labels=ids).loss
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    loss = compiled(ids, labels=ids).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name)


def test_nothing_of_a_chunk_outlives_the_forward_pass():
    """What waits for backward is the gradients, of the inputs' sizes."""
    hidden, weight, targets = inputs(64, 6, 300, seed=7)
    held = []

    def pack(tensor):
        held.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = linear_cross_entropy(hidden, weight, targets, chunk_rows=16)
    assert {tuple(ref().shape) for ref in held if ref() is not None} == {(64, 6), (300, 6)}
    loss.backward()
