import pytest
import torch
from torch import nn

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models import Float8Linear, build_model, empty_model, use_float8
from tests.unit.models.model_cases import tiny_config, tokens

SCALINGS = ("tensorwise", "rowwise")


def linear(in_features, out_features, scaling, weight=None) -> Float8Linear:
    module = nn.Linear(in_features, out_features, bias=False)
    if weight is not None:
        module.weight = nn.Parameter(weight)
    module.__class__, module.rowwise, module.emulate = Float8Linear, scaling == "rowwise", True
    return module


def powers(*shape, generator):
    """±1, 2, 4 or 8, an 8 in every row and column's reach: 8 bits hold them exactly whatever the scale."""
    values = 2.0 ** torch.randint(0, 4, shape, generator=generator)
    values = values * (torch.randint(0, 2, shape, generator=generator) * 2 - 1)
    values.diagonal().fill_(8.0)
    values[0], values[:, 0] = 8.0, 8.0
    return values


@pytest.mark.parametrize("scaling", SCALINGS)
def test_what_8_bits_hold_exactly_is_multiplied_exactly_forward_and_backward(scaling):
    generator = torch.Generator().manual_seed(0)
    weight, rows = powers(32, 48, generator=generator), powers(40, 48, generator=generator).requires_grad_()
    gradient = powers(40, 32, generator=generator)
    module = linear(48, 32, scaling, weight)
    out = module(rows)
    out.backward(gradient)
    torch.testing.assert_close(out, rows.detach() @ weight.t(), rtol=1e-6, atol=0)
    torch.testing.assert_close(rows.grad, gradient @ weight, rtol=1e-6, atol=0)
    torch.testing.assert_close(module.weight.grad, gradient.t() @ rows.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("scaling", "bound"), [("tensorwise", 0.08), ("rowwise", 0.05)])
def test_rounding_costs_a_few_hundredths(scaling, bound):
    torch.manual_seed(0)
    module, rows = linear(256, 128, scaling), torch.randn(2, 33, 256, requires_grad=True)
    exact = rows.detach() @ module.weight.detach().t()
    gradient = torch.randn(2, 33, 128)
    module(rows).backward(gradient)
    pairs = [
        (module(rows), exact),
        (rows.grad, gradient @ module.weight.detach()),
        (module.weight.grad, gradient.flatten(0, 1).t() @ rows.detach().flatten(0, 1)),
    ]
    for ours, true in pairs:
        distance = (ours.detach() - true).norm() / true.norm()
        assert 0.001 < distance < bound, "rounded, and not more than 8 bits must"


def test_a_scale_a_row_bears_one_row_a_million_times_the_others():
    rows = torch.randn(4, 64)
    rows[0] *= 1e6
    weight = torch.randn(16, 64)
    exact = rows @ weight.t()
    distance = {s: ((linear(64, 16, s, weight)(rows) - exact)[1:].norm() / exact[1:].norm()).item() for s in SCALINGS}
    assert distance["rowwise"] < 0.05 < 0.9 < distance["tensorwise"]


def test_zeros_and_outliers_stay_finite():
    module = linear(32, 16, "tensorwise")
    assert torch.equal(module(torch.zeros(3, 32)), torch.zeros(3, 16))
    assert module(torch.full((3, 32), 1e30)).isfinite().all()


def test_names_classes_and_the_parts_that_keep_their_precision():
    config = tiny_config(num_hidden_layers=4)
    model, plain = empty_model(config), empty_model(config)
    names = [name for name, _ in plain.named_parameters()]
    assert use_float8(model, "rowwise", emulate=True, keep=1) == 2 * 7
    assert [name for name, _ in model.named_parameters()] == names
    changed = [name for name, module in model.named_modules() if isinstance(module, Float8Linear)]
    assert {name.split(".")[2] for name in changed} == {"1", "2"} and len(changed) == 14
    assert type(model.lm_head) is nn.Linear and all(isinstance(m, nn.Linear) for m in [model.lm_head])


def test_widths_and_layers_that_cannot_be_are_refused():
    with pytest.raises(ConfigurationError, match=r"q_proj is 72 by 72, .* multiples of 16"):
        use_float8(empty_model(tiny_config(hidden_size=72)), "tensorwise")
    with pytest.raises(ConfigurationError, match="--fp8_keep_layers 1: of 2 layers none is left"):
        use_float8(empty_model(tiny_config()), "tensorwise", keep=1)


def train(scaling, steps=16, recompute=False):
    """Losses of a tiny model that learns one batch by heart."""
    model = build_model(tiny_config(num_hidden_layers=4), seed=0).train()
    if scaling:
        use_float8(model, scaling, emulate=True)
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids, losses = tokens(4, 32), []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("scaling", SCALINGS)
def test_sixteen_losses_stay_within_two_hundredths_of_fp32s(scaling):
    exact, rounded = train(None), train(scaling)
    assert exact[0] - exact[-1] > 1.0, "it learns, so there is a course to stay on"
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)


def test_recomputation_changes_nothing():
    assert train("tensorwise", 4, recompute=True) == train("tensorwise", 4)
