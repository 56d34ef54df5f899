"""A layer's own loss, handed on with its hidden states: the gradient is as if it were added at the end."""

import torch

from llama_dyt.models.ops.auxiliary_loss import with_loss


def test_its_gradient_joins_that_of_what_follows():
    x = torch.randn(3, 4, requires_grad=True)
    handed = with_loss(x * 2, 0.5 * x.square().mean(), 0.25)
    assert torch.equal(handed, x * 2)
    (gradient,) = torch.autograd.grad(handed.sin().sum(), x)
    (expected,) = torch.autograd.grad((x * 2).sin().sum() + 0.25 * 0.5 * x.square().mean(), x)
    torch.testing.assert_close(gradient, expected)


def test_half_precision_states_take_a_loss_in_fp32():
    x = torch.randn(3, 4, dtype=torch.bfloat16, requires_grad=True)
    handed = with_loss(x, x.float().square().sum(), 2.0)
    assert handed.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(handed.sum(), x)
    torch.testing.assert_close(gradient, 1 + 4 * x.detach())


def test_a_pipeline_may_free_what_was_handed_on_before_the_backward_pass():
    x = torch.randn(3, 4, requires_grad=True)
    hidden = x * 2
    handed = with_loss(hidden, hidden.square().sum(), 1.0)
    total = handed.sum()
    assert handed.untyped_storage().data_ptr() != hidden.untyped_storage().data_ptr()
    handed.data.untyped_storage().resize_(0)  # as the engine's zero-bubble schedule does
    (gradient,) = torch.autograd.grad(total, x)
    torch.testing.assert_close(gradient, 2 + 8 * x.detach())
